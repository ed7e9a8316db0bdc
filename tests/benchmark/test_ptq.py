"""Post-training quantization beside the converter's: who is behind is named."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np
import pytest
import tf_keras

from ehap_tf.benchmark.integers import ptq


def options(folder: pathlib.Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ptq.add_arguments(parser)
    networks = "--networks=ECG Conv1D, denoising"
    return parser.parse_args([networks, f"--output={folder / 'ptq.json'}", *more])


def test_a_network_behind_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    measured: list[str] = []

    def measure(function: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert function == "ehap_tf.benchmark.integers.ptq:quantize_network"
        assert arguments["steps"] == 60
        measured.append(arguments["network"])
        ours = 29.8 if arguments["network"] == "ECG Conv1D" else 29.5
        return vars(ptq.QuantizedRow(arguments["network"], ours, 30.0, 9, 10, 5, 6, 0, 0, 1.0))

    monkeypatch.setattr(ptq, "measure", measure)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^under plain conversion: denoising -0\.50 dB$"):
            ptq.run(options(tmp_path))
    assert measured == ["ECG Conv1D", "denoising"]
    assert len((tmp_path / "ptq.md").read_text().splitlines()) == 2 + 2
    with pytest.raises(ValueError, match=r"--networks must be among .*Received: cat"):
        ptq.run(options(tmp_path, "--networks=cat"))


def test_both_files_are_compared_with_the_float_model():
    """Dense layers whose units differ in size: what per-tensor scales lose 6 to 9 dB of."""
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Input((20,)),
            tf_keras.layers.Dense(16, "relu"),
            tf_keras.layers.Dense(6),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([0.3 * rng.standard_normal(w.shape) for w in model.get_weights()])
    model.layers[0].kernel.assign(model.layers[0].kernel * np.logspace(-1.5, 0, 16))
    x = rng.uniform(-1.0, 1.0, (300, 20)).astype(np.float32)
    row = ptq.compared("small", model, x[:200], x[200:])
    assert row.ours_db > row.plain_db - ptq.TOLERATED_DB
    assert min(row.ours_db, row.plain_db) > 20.0
    assert (row.ours_operators, row.ours_float, row.plain_float) == (2, 0, 0)
