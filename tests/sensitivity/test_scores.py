from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from ehap_tf.files import CorruptFileError
from ehap_tf.sensitivity import FilterScores, Provenance


def make_scores() -> FilterScores:
    return FilterScores(
        {"outer/conv_1": np.array([1.0, 2.5]), "logits": np.array([-1.0, 0.0, np.pi])},
        Provenance("hessian_trace", "hutchinson", "bf16", 8, 3, 1.5, 10**10, 64, "x", ("a", "ä")),
        trace={"outer/conv_1": np.array([1.0, 2.0])},
        standard_error={"logits": np.array([0.1, 0.2, 0.3])},
        signed={"logits": np.array([1.0, -2.0, 3.0])},
    )


def test_is_a_read_only_mapping_in_model_order() -> None:
    scores = make_scores()
    assert list(scores) == ["outer/conv_1", "logits"]
    assert len(scores) == 2 and "logits" in scores and "conv_1" not in scores
    with pytest.raises(ValueError, match="read-only"):
        scores["logits"][0] = 1
    with pytest.raises(TypeError):
        scores.trace["logits"] = np.zeros(3)  # type: ignore[index]
    with pytest.raises(KeyError, match="outer/conv_1"):
        scores["nothing"]


def test_saves_and_loads_everything(tmp_path: pathlib.Path) -> None:
    scores, path = make_scores(), tmp_path / "deep" / "scores.npz"
    scores.save(path)
    loaded = FilterScores.load(path)
    assert list(loaded) == list(scores)
    assert loaded.provenance == scores.provenance
    for group in ("trace", "standard_error", "trace_standard_error", "signed"):
        before, after = getattr(scores, group), getattr(loaded, group)
        assert list(after) == list(before)
        for name in before:
            np.testing.assert_array_equal(after[name], before[name])
    for name in scores:
        np.testing.assert_array_equal(loaded[name], scores[name])
    assert loaded.probes == 8 and loaded.peak_bytes == 10**10
    with np.load(path, allow_pickle=False) as archive:
        assert b"hessian_trace" in archive["header"].tobytes()


@pytest.mark.parametrize("size", [0, 10, 200, -1])
def test_a_truncated_file_is_named(tmp_path: pathlib.Path, size: int) -> None:
    path = tmp_path / "scores.npz"
    make_scores().save(path)
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(CorruptFileError, match=r"scores\.npz"):
        FilterScores.load(path)


def test_flipped_bytes_never_give_wrong_scores(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "scores.npz"
    make_scores().save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(bytes(damaged))
        try:
            loaded = FilterScores.load(path)
        except CorruptFileError:
            refused += 1
        else:  # bytes that carry nothing, such as time stamps
            for name, values in make_scores().items():
                np.testing.assert_array_equal(loaded[name], values)
    assert refused > 30


def test_another_npz_file_is_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(CorruptFileError, match=r"other\.npz"):
        FilterScores.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        FilterScores.load(tmp_path / "missing.npz")


def test_a_newer_version_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehap_tf.sensitivity.scores.VERSION", 2)
    make_scores().save(tmp_path / "new.npz")
    monkeypatch.undo()
    with pytest.raises(CorruptFileError, match="version 2"):
        FilterScores.load(tmp_path / "new.npz")


def test_provenance_survives_json() -> None:
    provenance = make_scores().provenance
    assert Provenance.from_dict(dataclasses.asdict(provenance)) == provenance
