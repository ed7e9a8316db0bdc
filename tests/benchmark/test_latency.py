"""The latency table: every file timed, ratios against the dense float32 file."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.integers import latency
from ehap_tf.benchmark.measuring.isolation import MeasurementError

layers = tf_keras.layers


def residual_net() -> tf_keras.Model:
    inputs = layers.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    return tf_keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def test_every_file_is_timed_and_its_fastest_round_compared(monkeypatch: pytest.MonkeyPatch):
    # Processes of their own are tested in test_isolation, the timing itself with the interpreter.
    timed: list[str] = []

    def scripted(function: str, arguments: dict[str, Any], timeout: float) -> float:
        assert function.endswith(":measure_latency_ms") and pathlib.Path(arguments["path"]).exists()
        timed.append(pathlib.Path(arguments["path"]).stem)
        return (8.0, 2.0, 4.0, 1.0, 6.0, 3.0, 4.5, 0.5)[len(timed) - 1]

    monkeypatch.setattr(latency, "measure", scripted)
    rows = latency.latency_table(residual_net(), residuals=("tied",), threads=(1,), rounds=2)
    names = ["float32 dense", "int8 dense", "float32 slim tied", "int8 slim tied"]
    assert [row.name for row in rows] == names
    assert timed == 2 * [name.replace(" ", "_") for name in names]
    assert [row.milliseconds for row in rows] == [6.0, 2.0, 4.0, 0.5]
    assert [row.speedup for row in rows] == [1.0, 3.0, 1.5, 12.0]
    assert rows[2].macs == rows[3].macs < 0.7 * rows[0].macs
    assert rows[1].bytes < rows[0].bytes
    assert len(latency.bars(rows).axes[0].patches) == 4


def test_the_command_says_how_far_it_is_and_which_timing_failed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    residual_net().save(tmp_path / "net.keras")
    flags = f"latency --model={tmp_path / 'net.keras'} --residual tied --threads 2 --rounds 1"

    def fails_at_the_last(function: str, arguments: dict[str, Any], timeout: float) -> float:
        if pathlib.Path(arguments["path"]).stem == "int8_slim_tied":
            raise MeasurementError("RuntimeError: no such luck")
        return 1.5

    monkeypatch.setattr(latency, "measure", fails_at_the_last)
    assert main(flags.split()) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("[")]
    assert lines[0].startswith("[1/8, ") and "] float32 dense, kilobytes: " in lines[0]
    assert lines[6].startswith("[7/8, ") and len(lines) == 7
    assert lines[6].endswith("] float32 slim tied, 2 threads, milliseconds: 1.500")
    assert said.err == "error: int8 slim tied, 2 threads: RuntimeError: no such luck\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threads": (1, 0)}, "threads must be at least 1. Received: 0"),
        ({"runs": 0}, "runs must be at least 1. Received: 0"),
        ({"rounds": 0}, "rounds must be at least 1. Received: 0"),
        ({"residuals": ("tied", "both")}, "residual must be one of union, tied. Received: 'both'"),
        ({"target_macs": 0.0}, r"target_macs must be in \(0, 1\]. Received: 0.0"),
        ({"target_macs": 1.5}, r"target_macs must be in \(0, 1\]. Received: 1.5"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_converted(
    wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    def too_late(*arguments: Any, **options: Any) -> None:
        raise AssertionError("ranked before the arguments are checked")

    monkeypatch.setattr(latency, "rank_filters", too_late)
    with pytest.raises(ValueError, match=message):
        latency.latency_table(residual_net(), **wrong)


def test_the_width_of_a_saved_model_is_not_ignored(capsys: pytest.CaptureFixture[str]):
    assert main(["latency", "--model=net.keras", "--width=4"]) == 1
    assert "Received: --width=4 --model=net.keras" in capsys.readouterr().err
