"""Plans for so many milliseconds, with a table that makes them known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib

import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.quantization import noise_file

layers = tf_keras.layers


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 3, padding="same")(inputs)))
    y = layers.Conv2D(32, 3, padding="same", activation="relu", name="wide")(x)
    y = layers.Conv2D(24, 3, padding="same")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    return tf_keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def table(model) -> ehap.LatencyTable:
    """A device on which a million products take a millisecond, and all else nothing."""
    measured = ehap.measure_operators(model, rounds=1)
    families = {}
    for text, family in measured.families.items():
        about, grid = json.loads(text), family["widths"]
        work = math.prod(about["output"] or [1]) * math.prod(about.get("kernel", [0]))
        products = [work * math.prod(widths) / 1e6 for widths in itertools.product(*grid)]
        families[text] = {"widths": grid, "ms": products}
    return dataclasses.replace(
        measured, device="a device", constant_ms=0.1, network_ms=1.5, families=families
    )


@pytest.fixture(scope="module")
def scores(model) -> ehap.FilterScores:
    return ehap.rank_filters(model, criterion="magnitude")


def test_the_file_of_the_plan_meets_the_target(model, table, scores, tmp_path):
    whole = table.predict_ms(noise_file(model, tmp_path / "whole.tflite"))
    target, said = 0.5 * whole, []
    plan = ehap.plan_pruning(
        model, scores, target_latency_ms=target, costs=table, round_to=8,
        progress=lambda done, total, figures: said.append((done, total, figures["latency_ms"])),
    )  # fmt: skip
    file = noise_file(ehap.prune(model, plan), tmp_path / "slim.tflite")
    predicted = table.predict_ms(file)
    assert 0.6 * target < predicted <= target
    dones, totals, tried = zip(*said, strict=True)
    assert dones == tuple(range(1, len(said) + 1)) and set(totals) == {8}
    assert predicted == pytest.approx(max(ms for ms in tried if ms <= target))


def test_what_cannot_be_reached_says_how_far_it_goes(model, table, scores):
    with pytest.raises(ValueError, match=r"target_latency_ms=0.05 cannot .* on a device at least"):
        ehap.plan_pruning(model, scores, target_latency_ms=0.05, costs=table)
    with pytest.raises(ValueError, match="target_latency_ms must be above 0"):
        ehap.plan_pruning(model, scores, target_latency_ms=0.0, costs=table)
    with pytest.raises(ValueError, match="costs go with target_latency_ms"):
        ehap.plan_pruning(model, scores, target_macs=0.5, costs=table)
    with pytest.raises(ValueError, match="give exactly one of"):
        ehap.plan_pruning(model, scores, target_macs=0.5, target_latency_ms=1.0, costs=table)


def test_settings_that_contradict_each_other(tmp_path: pathlib.Path):
    for settings, message in (
        ({"latency_table": "t.json"}, "latency_table goes with target_latency_ms"),
        ({"target_latency_ms": 1.0, "latency_table": "t.json"}, "latency_table must be a file"),
        ({"target_latency_ms": 1.0, "prune_steps": 2}, "goes with prune_steps=1"),
        ({"target_latency_ms": 1.0, "target_macs": 0.5}, "exclude each other"),
        ({"target_latency_ms": 0.0}, "target_latency_ms must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PipelineConfig(**settings)
