from __future__ import annotations

import io
import json
import math
import pathlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from ehap_tf.files import CorruptFileError
from ehap_tf.models import build_model, load_model, save_model

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    return build_model("resnet8a", num_classes=3, input_shape=(16, 16, 3))


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "folder"])
def test_a_model_comes_back(tmp_path: pathlib.Path, model: tf_keras.Model, name: str):
    path = tmp_path / "new" / name
    save_model(model, path)
    save_model(model, path)
    loaded = load_model(path)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-6)
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_the_compile_state_comes_back(tmp_path: pathlib.Path, name: str):
    model = build_model("resnet8", num_classes=3, input_shape=(16, 16, 3))
    model.compile("adam", "mse", metrics=["mae"])
    save_model(model, tmp_path / name)
    loaded = load_model(tmp_path / name)
    ones = np.ones((1, 3), np.float32)
    assert float(tf_keras.losses.get(loaded.loss)(ones, 3 * ones)[0]) == 4.0
    assert isinstance(loaded.optimizer, tf_keras.optimizers.Adam)


def test_a_loss_that_is_not_known_here_costs_the_compile_state_with_a_warning(tmp_path):
    def mine(labels, outputs):
        return outputs

    model = build_model("resnet8", num_classes=3, input_shape=(16, 16, 3))
    model.compile("adam", mine)
    save_model(model, tmp_path / "model.h5")
    with pytest.warns(RuntimeWarning, match="without its compiled loss"):
        loaded = load_model(tmp_path / "model.h5")
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-6)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_truncated_file_is_named(tmp_path: pathlib.Path, model, name: str, kept: float):
    path = tmp_path / name
    save_model(model, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CorruptFileError, match=f"{name} is damaged or truncated"):
        load_model(path)


def test_a_flipped_byte_is_found(tmp_path: pathlib.Path, model: tf_keras.Model):
    path = tmp_path / "model.keras"
    save_model(model, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match=r"model\.keras is damaged"):
        load_model(path)


def test_a_savedmodel_without_its_variables(tmp_path: pathlib.Path, model: tf_keras.Model):
    save_model(model, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "variables")
    with pytest.raises(CorruptFileError, match="folder is damaged"):
        load_model(tmp_path / "folder")


def test_paths_that_are_no_models(tmp_path: pathlib.Path):
    with pytest.raises(FileNotFoundError, match=r"absent\.keras"):
        load_model(tmp_path / "absent.keras")
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"\.keras, \.h5 .*model\.onnx"):
        load_model(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"no saved_model\.pb"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"model\.onnx"):
        save_model(tf_keras.Sequential(), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["weights.h5", "model.weights.h5"])
def test_weights_alone_are_no_model(tmp_path: pathlib.Path, model: tf_keras.Model, name: str):
    model.save_weights(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds weights alone.* model\.load_weights") as raised:
        load_model(tmp_path / name)
    assert not isinstance(raised.value, CorruptFileError)


def test_a_file_of_something_else_is_not_called_damaged(tmp_path: pathlib.Path):
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["rows"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"not a file of Keras: it holds \['rows'\]") as raised:
        load_model(tmp_path / "table.h5")
    assert not isinstance(raised.value, CorruptFileError)


@pytest.mark.parametrize("made_by", [tf_keras, keras])
def test_code_in_a_file_is_read_only_where_it_is_trusted(tmp_path: pathlib.Path, made_by):
    inputs = made_by.Input((4,))
    outputs = made_by.layers.Lambda(lambda x: 2 * x, output_shape=(4,))(inputs)
    made_by.Model(inputs, outputs).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"model\.keras has a Lambda.*safe_mode=False\)$"):
        load_model(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_allclose(loaded(np.ones((1, 4), np.float32)), 2)


FILES = pathlib.Path(__file__).parent / "files"


@pytest.mark.parametrize("path", sorted(FILES.glob("*.keras")), ids=lambda path: path.stem)
def test_files_of_tensorflow_2_13_and_2_14(path: pathlib.Path):
    """Each was written by that version (the number in its name), and holds no default weights."""
    loaded = load_model(path)
    (shape,) = (tuple(tensor.shape[1:]) for tensor in loaded.inputs)
    x = np.linspace(-1, 1, 2 * math.prod(shape), dtype=np.float32).reshape(2, *shape)
    expected = json.loads((FILES / "outputs.json").read_text())[path.stem]
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-6)
    if path.stem.startswith("sequential"):
        assert int(loaded.optimizer.iterations) == 1  # compiled and trained for one step


def test_an_old_file_without_the_weights_of_a_layer(tmp_path: pathlib.Path):
    with zipfile.ZipFile(FILES / "shared_213.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(content, "a") as weights:
        del weights["_layer_checkpoint_dependencies/dense"]
    parts["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(ValueError, match=r"model\.keras .*'dense' expected 2 variables"):
        load_model(tmp_path / "model.keras")


class Unregistered(tf_keras.layers.Layer):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "folder"])
def test_an_unknown_layer_class_is_explained(tmp_path: pathlib.Path, name: str, monkeypatch):
    # tf_keras finds a class again by its module where that can be imported.
    monkeypatch.setattr(Unregistered, "__module__", "somewhere_else")
    inputs = tf_keras.Input((4,))
    save_model(tf_keras.Model(inputs, Unregistered()(inputs)), tmp_path / name)
    with pytest.raises(ValueError, match="register_keras_serializable"):
        load_model(tmp_path / name)


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = tf_keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_saved_subclassed_model_is_refused(tmp_path: pathlib.Path):
    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    save_model(model, tmp_path / "folder")
    with pytest.raises(TypeError, match="subclassed"):
        load_model(tmp_path / "folder")


@pytest.mark.parametrize("name", ["model.keras", "folder"])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path, model, name: str, monkeypatch):
    path = tmp_path / name
    save_model(model, path)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, path)
    monkeypatch.undo()
    np.testing.assert_allclose(load_model(path)(IMAGES), model(IMAGES), rtol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [name]
