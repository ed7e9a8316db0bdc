from __future__ import annotations

import dataclasses
import pathlib

import ml_dtypes
import numpy as np
import pytest

from ehap_tf.files import CorruptFileError
from ehap_tf.pipeline.training.checkpoint import TrainingState

STATE = TrainingState(
    epoch=3,
    weights=[np.arange(6, dtype=np.float32).reshape(2, 3), np.float32(2.5)],
    optimizer=[np.int64(12), np.full((2, 3), np.inf, np.float32)],
    best_epoch=2,
    best_accuracy=0.75,
    history=({"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 1 / 3}),
    settings={"seed": 1, "recipe": {"learning_rate": 0.1}},
)


def test_a_state_comes_back_exactly(tmp_path: pathlib.Path):
    STATE.save(tmp_path / "a.npz", tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        loaded = TrainingState.load(tmp_path / name)
        for field in dataclasses.fields(STATE):
            before, after = getattr(STATE, field.name), getattr(loaded, field.name)
            if field.name in ("weights", "optimizer"):
                for x, y in zip(before, after, strict=True):
                    np.testing.assert_array_equal(x, y)
                    assert np.asarray(x).dtype == y.dtype
            else:
                assert before == after


def test_bfloat16_weights_keep_their_values(tmp_path: pathlib.Path):
    weights = [np.array([0.1, 3.0], ml_dtypes.bfloat16)]
    dataclasses.replace(STATE, weights=weights).save(tmp_path / "a.npz")
    loaded = TrainingState.load(tmp_path / "a.npz").weights[0].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(loaded, weights[0])


def damage(content: bytes, kind: str) -> bytes:
    if kind == "flipped":
        middle = content.index(b"recipe")
        return content[:middle] + b"R" + content[middle + 1 :]
    return {"empty": b"", "half": content[: len(content) // 2], "text": b"hello"}[kind]


@pytest.mark.parametrize("kind", ["empty", "half", "text", "flipped"])
def test_damage_is_found_and_the_file_named(tmp_path: pathlib.Path, kind: str):
    path = tmp_path / "last.npz"
    STATE.save(path)
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(CorruptFileError, match=r"last\.npz is damaged or truncated"):
        TrainingState.load(path)


def test_another_npz_and_a_pickle_are_refused(tmp_path: pathlib.Path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", header=np.array([{}], dtype=object))
    for name in ("other.npz", "pickle.npz"):
        with pytest.raises(CorruptFileError, match=name):
            TrainingState.load(tmp_path / name)


def test_an_absent_file_is_not_a_damaged_one(tmp_path: pathlib.Path):
    with pytest.raises(FileNotFoundError):
        TrainingState.load(tmp_path / "last.npz")
