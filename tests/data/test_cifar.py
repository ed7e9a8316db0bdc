from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ehap_tf.data import load_dataset
from ehap_tf.files import CorruptFileError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def small_cifar100(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A prepared CIFAR-100 in TFDS's format with 40 training and 20 test images."""
    kind = type(tfds.builder("cifar100", data_dir=tmp_path))

    def examples(self, count: int, value: int):
        for index in range(count):
            image = np.full((32, 32, 3), value, np.uint8)
            image[0, 0] = index
            yield (
                index,
                {
                    "id": str(index),
                    "image": image,
                    "label": index % 100,
                    "coarse_label": index % 20,
                },
            )

    def splits(self, download_manager):
        return {"train": examples(self, 40, 7), "test": examples(self, 20, 9)}

    with monkeypatch.context() as patched:
        patched.setattr(kind, "_split_generators", splits)
        builder = tfds.builder("cifar100", data_dir=tmp_path)
        builder.download_and_prepare()
    return tmp_path


def test_a_prepared_cifar100_is_read(small_cifar100: pathlib.Path):
    data = load_dataset("cifar100", data_dir=small_cifar100)
    assert data.num_classes == len(data.class_names) == 100
    assert data.mean == (0.5071, 0.4867, 0.4408)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 20)
    assert np.all(data.train.images[:, 1:] == 7)
    assert np.all(data.test.images[:, 1:] == 9)
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], data.train.labels)


def test_the_variable_names_the_folder(
    small_cifar100: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(small_cifar100))
    assert len(load_dataset("cifar100").test) == 20


def test_a_truncated_record_file_is_named(small_cifar100: pathlib.Path):
    record = next(small_cifar100.glob("cifar100/*/cifar100-train*"))
    record.write_bytes(record.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match=r"cifar100.*damaged"):
        load_dataset("cifar100", data_dir=small_cifar100)


def test_absent_without_network_says_where_to_point(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(self, **kwargs):
        raise ConnectionError("Failed to resolve 'www.cs.toronto.edu'\nand more lines")

    monkeypatch.setattr("ehap_tf.data.cifar._check_network", lambda: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cifar10", data_dir=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    for words in ("cifar10", str(tmp_path), "download failed", "--data_dir", "TFDS_DATA_DIR"):
        assert words in text


def test_without_a_network_the_download_is_not_tried_for_minutes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def no_route(address, timeout):
        raise OSError("Name or service not known")

    def forbidden(self, **kwargs):
        raise AssertionError("the download was begun")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", no_route)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", forbidden)
    with pytest.raises(FileNotFoundError, match="Name or service not known"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.cifar10
@pytest.mark.slow
def test_the_real_cifar10(cifar10_data_dir: pathlib.Path):
    data = load_dataset("cifar10", data_dir=cifar10_data_dir)
    assert (len(data.train), len(data.validation), len(data.test)) == (45000, 5000, 10000)
    assert data.class_names[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(np.bincount(data.test.labels), [1000] * 10)
    average = (data.train.images[::50] / 255.0).mean((0, 1, 2))
    np.testing.assert_allclose(average, data.mean, atol=0.01)
    validation = {image.tobytes() for image in data.validation.images}
    assert not any(image.tobytes() in validation for image in data.test.images)
