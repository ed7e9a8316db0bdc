"""Removal without training: the gated twin is surgery, paths, resuming."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.measuring import contenders
from ehap_tf.benchmark.ranking.gated_model import GatedModel
from ehap_tf.benchmark.ranking.removal import below_all_others
from ehap_tf.pruning import plan_pruning, prune, recalibrate
from ehap_tf.sensitivity import FilterScores, Provenance, rank_filters
from tests.pruning.nets import (
    ROUNDING,
    batch,
    random_scores,
    relative_error,
    shake,
    small_residual_net,
)

layers = tf_keras.layers
pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_closed_gates_are_surgery_recalibrated_statistics_included(residual: str) -> None:
    model = small_residual_net()
    x = batch(model, 24)
    gated = GatedModel(model, residual)
    before = model(x).numpy()
    for seed in (
        (1, 2) if residual == "union" else (1,)
    ):  # the second plan starts from the model again, not from the first
        plan = plan_pruning(model, random_scores(model, seed), prune_ratio=0.4, residual=residual)
        slim = prune(model, plan)
        gated.keep(plan.flags())
        assert relative_error(gated.model(x), slim(x)) < ROUNDING
        gated.recalibrate([x[:16], x[16:]])
        assert relative_error(gated.model(x), slim(x)) > 1e-3
        assert relative_error(gated.model(x), recalibrate(slim, _batches(x), 2)(x)) < ROUNDING
    np.testing.assert_array_equal(model(x), before)


def _batches(x: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(16)


def test_the_gated_twin_can_be_ranked_and_removed_filters_stay_last() -> None:
    model = small_residual_net()
    x, y = batch(model, 8), np.arange(8) % 4
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plan = plan_pruning(model, random_scores(model, 3), prune_ratio=0.3)
    gated = GatedModel(model)
    arguments = {"criterion": "quadratic", "estimator": "gauss_newton", "probes": 4}
    gated.keep(plan.flags())
    scores = rank_filters(gated.model, (x, y), loss, **arguments)
    slim = rank_filters(prune(model, plan), (x, y), loss, **arguments)
    for name, stays in plan.flags().items():
        np.testing.assert_allclose(scores[name][stays], slim[name], rtol=1e-3, atol=1e-6)
    last = below_all_others(scores, plan.flags())
    more = plan_pruning(model, last, prune_ratio=0.5)
    for name, stays in more.flags().items():
        assert not (stays & ~plan.flags()[name]).any()


def test_what_went_together_stays_last() -> None:
    """A group's score is a sum, which must not lift it above filters that are there."""
    model = small_residual_net()
    first = {"stem": np.full(6, 9.0), "b": np.full(6, 9.0), "a": np.full(5, 9.0)}
    first["stem"][:3] = first["b"][:3] = 0.1
    plan = plan_pruning(model, first, prune_ratio=0.3, residual="tied")
    assert plan.kept["stem"].tolist() == plan.kept["b"].tolist() == [3, 4, 5]
    anew = {"stem": np.full(6, 9.0), "b": np.full(6, 9.0), "a": 9 + np.arange(5) / 10}
    last = below_all_others(FilterScores(anew, Provenance("some")), plan.flags())
    again = plan_pruning(model, last, prune_ratio=0.3, residual="tied")
    assert again.to_json() == plan.to_json()


def test_a_criterion_that_refuses_is_left_out_with_its_reason(tmp_path: pathlib.Path) -> None:
    inputs = layers.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, strides=4, activation="relu")(inputs))
    tf_keras.Model(inputs, layers.Dense(10)(x)).save(tmp_path / "net.keras")
    arguments = (
        f"removal --model={tmp_path / 'net.keras'} --dataset=digits --examples=16 "
        f"--validation_images=40 --output={tmp_path / 'removal.json'} --recalibrate_batches=1 "
        "--amounts 0.4 --criteria bn_scale random"
    ).split()
    assert main(arguments) == 0
    whole, refused, measured = json.loads((tmp_path / "removal.json").read_text())["rows"]
    assert whole["criterion"] == "whole" and measured["removed"] == 0.4
    assert refused["criterion"] == "bn_scale"
    assert refused["refused"].startswith("criterion 'bn_scale' needs layers")
    lines = (tmp_path / "removal.md").read_text().splitlines()
    assert lines[0].endswith("| ranking, seconds | refused |")
    assert lines[2] == f"| `bn_scale` | one shot |  |  | {refused['refused']} |"


def test_no_batches_re_estimate_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = layers.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, strides=4)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = shake(tf_keras.Model(inputs, layers.Dense(10)(x)))
    model.save(tmp_path / "net.keras")
    gated = GatedModel(model)
    gated.recalibrate([])
    assert relative_error(gated.model(batch(model)), model(batch(model))) < ROUNDING
    arguments = (
        f"removal --model={tmp_path / 'net.keras'} --dataset=digits --examples=16 "
        f"--validation_images=40 --output={tmp_path / 'removal.json'} --recalibrate_batches=0 "
        "--amounts 0.4 --criteria magnitude"
    ).split()
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "removal.json").read_text())["rows"]
    assert len(rows) == 2 and not any("recalibrated_accuracy" in row for row in rows)
    line = (tmp_path / "removal.md").read_text().splitlines()[2]
    figures = f"{100 * rows[1]['accuracy']:.1f} ({rows[1]['macs_left']:.2f})"
    assert line.startswith(f"| `magnitude` | one shot | {figures} | ")
    for wrong, message in (
        (["--modes", "recalibrated_steps"], "must be above 0 for the mode recalibrated_steps"),
        (["--modes", "steps", "--step=0"], "--step must be above 0. Received: --step=0"),
        (["--recalibrate_batches=-1"], "must be at least 0. Received: --recalibrate_batches=-1"),
    ):
        assert main([*arguments, *wrong]) == 1
        assert message in capsys.readouterr().err


def test_the_command_measures_paths_and_goes_on_where_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tf_keras.utils.set_random_seed(0)  # `shake` leaves kernels as they are drawn.
    x = inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, strides=4, name="a")(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="b")(x)))
    outputs = layers.Dense(10, name="end")(layers.GlobalAveragePooling2D()(x))
    shake(tf_keras.Model(inputs, outputs)).save(tmp_path / "net.keras")
    out = tmp_path / "removal.json"
    arguments = [
        "removal",
        f"--model={tmp_path / 'net.keras'}",
        "--dataset=digits",
        "--examples=16",
        "--probes=2",
        "--validation_images=50",
        "--recalibrate_batches=1",
        f"--output={out}",
        "--step=0.2",
        "--amounts",
        "0.4",
        "0.2",
        "--criteria",
        "magnitude",
        "obd",
        "--modes",
        "one_shot",
        "repaired",
        "recalibrated_steps",
        "--repair_images=64",
    ]
    assert main(arguments) == 0
    assert "50 validation images" in capsys.readouterr().out
    content = json.loads(out.read_text())
    rows = {(r["criterion"], r["mode"], r["removed"]): r for r in content["rows"]}
    assert rows["whole", "", 0.0]["filters_left"] == 1 and len(rows) == 11
    for name in ("one_shot", "recalibrated_steps"):
        some, more = rows["obd", name, 0.2], rows["obd", name, 0.4]
        assert more["filters_left"] < some["filters_left"] < 1
        assert more["macs_left"] < some["macs_left"] < 1
        assert more["rank_seconds"] >= some["rank_seconds"] > 0
    assert out.with_suffix(".png").exists()
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines[0] == "| criterion | mode | 20% removed | 40% removed | ranking, seconds |"
    for amount in (0.2, 0.4):
        row, same = (rows["obd", mode, amount] for mode in ("repaired", "one_shot"))
        assert row["accuracy"] == same["accuracy"] and 0 <= row["repaired_accuracy"] <= 1
        assert "repaired_accuracy" not in same and row["repair_seconds"] > 0
    assert len(lines) == 7 and lines[2].startswith("| `magnitude` | one shot | ")
    assert f"({rows['magnitude', 'one_shot', 0.4]['macs_left']:.2f})" in lines[2]

    def again(*arguments: object, **options: object) -> None:
        raise AssertionError("measured again")

    rank_filters = contenders.rank_filters
    accuracy = GatedModel.accuracy
    monkeypatch.setattr(contenders, "rank_filters", again)
    monkeypatch.setattr(GatedModel, "accuracy", again)
    assert main(arguments) == 0
    assert json.loads(out.read_text())["rows"] == content["rows"]

    # Rows of a path do not depend on which other amounts are measured.
    monkeypatch.setattr(contenders, "rank_filters", rank_filters)
    monkeypatch.setattr(GatedModel, "accuracy", accuracy)
    other = tmp_path / "other.json"
    others = [argument.replace(str(out), str(other)) for argument in arguments]
    others[others.index("0.2", others.index("--amounts"))] = "0.3"
    assert main(others) == 0
    found = {
        (r["criterion"], r["mode"], r["removed"]): r for r in json.loads(other.read_text())["rows"]
    }
    place = ("obd", "recalibrated_steps", 0.4)
    for key in ("macs_left", "accuracy", "recalibrated_accuracy"):
        assert found[place][key] == rows[place][key]
    assert ("obd", "recalibrated_steps", 0.3) in found
