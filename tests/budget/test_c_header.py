"""The header: a program that is built with it holds the file and makes the same inputs."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter

import ehap_tf as ehap
from ehap_tf.quantization.tflite.evaluate import to_integers
from tests.budget.nets import two_inputs_and_outputs

SHIPPED = pathlib.Path(__file__).parents[2] / "saved_models/resnet32_cifar10/model_int8.tflite"
layers = tf_keras.layers


def float_model() -> tf_keras.Model:
    return tf_keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(4)]
    )


@pytest.fixture(scope="module")
def qat_model() -> tf_keras.Model:
    x = np.random.default_rng(0).normal(0.0, 2.0, (40, 8, 8, 3)).astype(np.float32)
    return ehap.quantize(float_model(), "ptq", representative_data=x)


PROGRAM = r"""
#include <stdio.h>
#include "small net.h"
int main(void) {
  unsigned long sum = 0;
  for (int i = 0; i < NET_BYTES; ++i) sum = (31 * sum + net_data[i]) % 1000003;
  printf("%lu %d %d %s\n", sum, NET_INPUT_SIZE, NET_OUTPUT_SIZE, net_labels[1]);
  for (int c = 0; c < 3; ++c)
    for (int p = 0; p < 256; ++p) printf("%d ", net_from_pixel((unsigned char)p, c));
  return (int)((unsigned long long)(void*)net_data % 16);
}
"""


@pytest.mark.parametrize(("compiler", "suffix"), [("gcc", "c"), ("g++", "cc")])
def test_a_program_holds_the_file_and_makes_its_inputs(tmp_path, qat_model, compiler, suffix):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    path = tmp_path / "small net.tflite"
    mean, std = [0.2, 0.4, 0.6], [0.5, 0.25, 0.1]
    file = ehap.export_tflite(
        qat_model,
        path,
        normalization=ehap.Normalization(mean, std),
        labels=["cat", 'a "dog"', "\\", "4"],
    )
    header = ehap.export_c(path, name="net")
    assert header == tmp_path / "small net.h"
    (tmp_path / f"main.{suffix}").write_text(PROGRAM)
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-variable"]
    subprocess.run([compiler, *strict, f"main.{suffix}", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = done.stdout.split("\n", 1)
    total = 0
    for byte in path.read_bytes():
        total = (31 * total + byte) % 1000003
    shapes = file.input.shape, file.output.shape
    assert first == f'{total} {np.prod(shapes[0])} {np.prod(shapes[1])} a "dog"'
    pixels = np.arange(256)[None] / 255.0 - np.asarray(mean)[:, None]
    expected = to_integers((pixels / np.asarray(std)[:, None]).astype(np.float32), file.input)
    received = np.asarray(second.split(), int).reshape(3, 256)
    # Halves are rounded away from zero there, and to even numbers here.
    assert (received == expected).mean() > 0.99 and np.abs(received - expected).max() <= 1


EVERYTHING = r"""
#include <cstdio>
#include <type_traits>
#include "two.h"
#include "one.h"
#define TENSOR(NAME, UPPER) \
  std::printf("%d %d %.9g %d %d ", UPPER##_PLACE, UPPER##_SIZE, NAME##_scale, NAME##_zero_point, \
              std::is_signed<NAME##_t>::value ? (int)sizeof(NAME##_t) : -(int)sizeof(NAME##_t));
int main() {
  static_assert(sizeof(one_data) == ONE_BYTES && alignof(decltype(one_data)) <= 16, "size");
  std::printf("%d ", ONE_ARENA_BYTES);
  TENSOR(one_input, ONE_INPUT)
  TENSOR(one_output, ONE_OUTPUT)
  TENSOR(two_input_0, TWO_INPUT_0)
  TENSOR(two_input_1, TWO_INPUT_1)
  TENSOR(two_output_0, TWO_OUTPUT_0)
  TENSOR(two_output_1, TWO_OUTPUT_1)
  std::printf("\n");
  for (float mean : one_mean) std::printf("%.9g ", mean);
  for (float std : one_std) std::printf("%.9g ", std);
  std::printf("\n");
  for (const char *label : one_labels) std::printf("%s\n", label);
  std::FILE *file = std::fopen("copy.tflite", "wb");
  std::fwrite(one_data, 1, sizeof one_data, file);
  return std::fclose(file);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("bits", [8, 16])
def test_a_cpp_program_knows_all_that_python_does(tmp_path, bits, qat_model):
    """No wheel and no Debian package has the headers of a runtime: it reads, and runs nothing."""
    x = np.random.default_rng(0).normal(0.0, 2.0, (40, 8, 8, 3)).astype(np.float32)
    one = (
        qat_model
        if bits == 8
        else ehap.quantize(float_model(), "ptq", activation_bits=16, representative_data=x)
    )
    mean, std = [0.2, 0.4, 0.6], [0.5, 0.25, 0.1]
    labels = ["cat", "Gänse", "tab\there", "4"]
    file = ehap.export_tflite(
        one,
        tmp_path / "one.tflite",
        normalization=ehap.Normalization(mean, std),
        labels=labels,
    )
    two = two_inputs_and_outputs()
    data = {name: np.ones((8, *i.shape[1:]), np.float32) for name, i in zip(
        two.input_names, two.inputs, strict=True)}  # fmt: skip
    ehap.export_tflite(
        ehap.quantize(two, "ptq", activation_bits=bits, representative_data=(data,)),
        tmp_path / "two.tflite",
    )
    for name in ("one", "two"):
        ehap.export_c(tmp_path / f"{name}.tflite")
    (tmp_path / "main.cc").write_text(EVERYTHING)
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable"]
    subprocess.run(["g++", *strict, "main.cc", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True)
    numbers, pixels, *names = done.stdout.split("\n")
    assert (tmp_path / "copy.tflite").read_bytes() == file.path.read_bytes()
    assert names[:4] == labels
    np.testing.assert_array_equal(np.array(pixels.split(), np.float32), np.float32(mean + std))
    arena, *rest = map(float, numbers.split())
    assert arena == file.arena_bytes
    received = np.reshape(rest, (-1, 5))
    interpreters = [
        Interpreter(model_path=str(tmp_path / f"{name}.tflite")) for name in ("one", "two")
    ]
    # Each in its place in the file, as a program asks a runtime for it.
    expected = [
        details
        for interpreter in interpreters
        for all_details in (interpreter.get_input_details(), interpreter.get_output_details())
        for details in all_details
    ]
    assert len(received) == len(expected) == 6
    for (_, size, scale, zero_point, width), details in zip(received, expected, strict=True):
        assert size == np.prod(details["shape"])
        assert np.float32(scale) == np.float32(details["quantization"][0])
        assert zero_point == details["quantization"][1]
        assert width == np.dtype(details["dtype"]).itemsize == bits // 8
    assert received[:, 0].tolist() == [0, 0, 0, 1, 0, 1]


def test_what_is_no_name_in_c_is_refused():
    with pytest.raises(ValueError, match=r"name must be a name in C\. Received: '2 nets'"):
        ehap.export_c(SHIPPED, name="2 nets")
