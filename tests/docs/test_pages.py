"""The code on the pages runs as it stands there, and the site's navigation is whole."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from ehap_tf.quantization import TFLiteModel

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_is_one_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks("tutorial.md", "python")
    assert len(code) == 9
    names: dict = {}
    exec(compile("\n".join(code), "tutorial.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "0 float operators" in printed
    trained, integer = (float(x) for x in re.findall(r"(?:model|file) (0\.\d+)", printed))
    assert integer > 0.9 and trained > 0.9 and integer > trained - 0.03
    assert names["result"].report["tflite_accuracy"] > 0.85
    assert (tmp_path / "digits_int8.tflite.json").exists()
    # The board's program gives what the checked evaluation gives.
    x, _ = names["test"]
    expected = TFLiteModel(tmp_path / "digits_int8.tflite")(x[:50])
    np.testing.assert_allclose([names["classify"](image) for image in x[:50]], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("number", "weight"), enumerate(["my_scale.scale", "gained.gain"]), ids=["scale", "filters"]
)
def test_layers_of_your_own(capsys, own_rules, number, weight):
    code = blocks("your_own_layers.md", "python")
    assert len(code) == 3
    names: dict = {"__name__": "your_own_layers"}
    exec(compile(code[number], "your_own_layers.md", "exec"), names)
    layer, attribute = weight.split(".")
    assert getattr(names["slim"].get_layer(layer), attribute).shape[0] < 16
    assert not names["plan"].uncounted
    assert names["difference"] < 1e-6
    assert "frozen" not in capsys.readouterr().out


def test_layers_of_your_own_in_integers(tmp_path, monkeypatch, own_rules):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "your_own_layers"}
    exec(compile(blocks("your_own_layers.md", "python")[2], "your_own_layers.md", "exec"), names)
    assert "STRIDED_SLICE" in names["file"].operators
    assert not names["file"].float_operators


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(5), ids=["pipeline", "loss", "while you train", "criterion", "two outputs"]
)
def test_your_own_data(tmp_path, monkeypatch, capsys, number):
    from ehap_tf import criteria

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(criteria, "_CRITERIA", dict(criteria._CRITERIA))
    code = blocks("your_own_data.md", "python")
    assert len(code) == 5
    names: dict = {}
    exec(compile(code[number], "your_own_data.md", "exec"), names)
    before, after = names["model"], names["slim"]
    assert after.count_params() < before.count_params()
    assert capsys.readouterr().out
    if number == 3:
        assert names["plan"].kept["conv"].tolist() == [0, 1, 2, 3, 4, 6, 7]
    if number == 4:
        assert names["file"].float_ops == 0
        assert set(after.output_names) == {"digit", "ink"}


# Declares what the C++ program uses. The network of the stand-in adds input i to output i mod 3.
INTERPRETER = """
#pragma once
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
struct TfLiteQuantizationParams { float scale; int32_t zero_point; };
struct TfLiteTensor { TfLiteQuantizationParams params; size_t bytes; };
namespace tflite {
struct Interpreter {
  TfLiteTensor in{{0.5f, -3}, 6}, out{{0.25f, 2}, 3};
  std::vector<int8_t> x = std::vector<int8_t>(6), y = std::vector<int8_t>(3);
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  const TfLiteTensor* input_tensor(size_t) const { return &in; }
  const TfLiteTensor* output_tensor(size_t) const { return &out; }
  template <class T> T* typed_input_tensor(int) { return x.data(); }
  template <class T> const T* typed_output_tensor(int) { return y.data(); }
  TfLiteStatus Invoke() {
    for (auto& v : y) v = 0;
    for (size_t i = 0; i < x.size(); ++i) y[i % 3] += x[i] / 4;
    return kTfLiteOk;
  }
};
struct FlatBufferModel {
  static std::unique_ptr<FlatBufferModel> BuildFromFile(const char* name) {
    std::FILE* file = std::fopen(name, "rb");
    if (!file) return nullptr;
    std::fclose(file);
    return std::make_unique<FlatBufferModel>();
  }
};
namespace ops { namespace builtin { struct BuiltinOpResolver {}; } }
struct InterpreterBuilder {
  InterpreterBuilder(const FlatBufferModel&, const ops::builtin::BuiltinOpResolver&) {}
  TfLiteStatus operator()(std::unique_ptr<Interpreter>* made, int) {
    *made = std::make_unique<Interpreter>();
    return kTfLiteOk;
  }
};
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_cpp_program_quantizes_and_dequantizes(tmp_path):
    (code,) = blocks("tutorial.md", "cpp")
    (tmp_path / "classify.cpp").write_text(code)
    lite = tmp_path / "tensorflow" / "lite"
    (lite / "kernels").mkdir(parents=True)
    for name in ("interpreter.h", "interpreter_builder.h", "model_builder.h"):
        (lite / name).write_text('#pragma once\n#include "tensorflow/lite/kernels/register.h"\n')
    (lite / "kernels" / "register.h").write_text(INTERPRETER)
    program = tmp_path / "classify"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}"]
    subprocess.run(["g++", *flags, "-o", program, tmp_path / "classify.cpp"], check=True)

    image = np.array([0.3, -1.0, 100.0, 8.0, 2.2, -200.0], np.float32)
    image.tofile(tmp_path / "image.f32")
    integers = np.clip(np.rint(image / 0.5) - 3, -128, 127).astype(np.int8)
    quarters = np.trunc(integers / 4).astype(int)
    expected = 0.25 * (quarters[:3] + quarters[3:] - 2)

    def run(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    done = run(tmp_path / "classify.cpp", tmp_path / "image.f32")
    logits, decision = done.stdout.splitlines()
    np.testing.assert_allclose([float(x) for x in logits.split()], expected)
    assert decision == f"class {expected.argmax()}" and done.returncode == 0
    assert run("missing.tflite", tmp_path / "image.f32").returncode == 1
    assert run(tmp_path / "classify.cpp", tmp_path / "missing").returncode == 1
    assert run().returncode == 2


def test_every_page_is_in_the_navigation():
    configuration = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert f": {page.name}\n" in configuration, f"{page.name} is not in mkdocs.yml"


def test_every_public_function_is_in_the_reference():
    import ehap_tf

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [name for name in ehap_tf._HOMES if f".{name}\n" not in text]
    assert not missing


def test_the_reference_names_what_can_be_had():
    import ehap_tf

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    named = {tuple(path.rsplit(".", 1)) for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    elsewhere = {("ehap_tf.sensitivity", name) for name in ("Request", "Result")}
    elsewhere |= {("ehap_tf.quantization", name) for name in ("GraphBuilder", "LayerQuantization")}
    elsewhere |= {("ehap_tf.channels", name) for name in ("Call", "Effect", "pass_on", "frozen")}
    elsewhere |= {("ehap_tf.pipeline.compress", "Compressed")}
    assert named - elsewhere == {(home, name) for name, home in ehap_tf._HOMES.items()}
