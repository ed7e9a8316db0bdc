"""The study: cells, going on after a kill, the table."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.ranking import study, study_table
from ehap_tf.benchmark.ranking.study import Study
from ehap_tf.pipeline.training import trainer
from ehap_tf.sensitivity import criterion_names
from tests.pruning.nets import shake

layers = tf_keras.layers
pytestmark = pytest.mark.usefixtures("eagerly")


def cell(criterion: str, finetuned: float, **values: Any) -> dict[str, Any]:
    base = {"mode": "one_shot", "removed": 0.5, "seed": 0, "macs_left": 0.49}
    accuracies = {"pruned": 0.1, "recalibrated": 0.2, "finetuned": finetuned, "test": 0.25}
    return base | accuracies | {"criterion": criterion} | values


def test_the_table_takes_means_over_seeds_and_says_what_is_missing() -> None:
    rows = [
        {"criterion": study_table.WHOLE, "validation": 0.9, "test": 0.88},
        cell("obd", 0.5),
        cell("obd", 0.7, seed=1),
        cell("obd", 0.9, removed=0.25),
        cell("magnitude", 0.55),
        cell("obd", 0.8, mode="iterative"),
    ]
    cells = [
        study_table.Cell(criterion, "one_shot", removed, seed)
        for criterion in ("obd", "magnitude", "random")
        for removed in (0.5, 0.25)
        for seed in (0, 1)
    ]
    cells += [study_table.Cell("obd", "iterative", 0.5, seed) for seed in (0, 1)]
    lines = study_table.markdown(rows, cells).splitlines()
    assert lines[0].endswith("| 25% of the MACs removed | 50% of the MACs removed |")
    assert lines[2] == (
        "| obd | one shot | 10.0 / 20.0 / 90.0 (25.0), 1 of 2 seeds "
        "| 10.0 / 20.0 / 60.0 ± 10.0 (25.0) |"
    )
    assert lines[3] == (
        "| magnitude | one shot | not measured | 10.0 / 20.0 / 55.0 (25.0), 1 of 2 seeds |"
    )
    assert lines[4] == "| random | one shot | not measured | not measured |"
    assert lines[5] == "| obd | iterative |  | 10.0 / 20.0 / 80.0 (25.0), 1 of 2 seeds |"
    assert "5 of 14 networks are measured." in lines
    assert "90.00%" in lines[-1]
    # Magnitude has one cell: only there are the two compared.
    assert study_table.best_criteria(rows, 1) == ["magnitude"]
    assert len(study_table.plot(rows).axes) == 3


def test_the_study_goes_on_where_it_was_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, strides=4, name="a")(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="b")(x)))
    outputs = layers.Dense(10, name="end")(layers.GlobalAveragePooling2D()(x))
    shake(tf_keras.Model(inputs, outputs)).save(tmp_path / "net.keras")
    directory = tmp_path / "study"
    arguments = (
        f"study --model={tmp_path / 'net.keras'} --dataset=digits --directory={directory} "
        "--examples=16 --validation_images=40 --test_images=40 --recalibrate_batches=1 "
        "--finetune_steps=4 --finetune_batch=16 --round_to=1 --removed 0.4 --seeds 0 --best=1 "
        "--parts=2 --train_precision=fp32 --criteria random taylor_fo"
    ).split()

    class KilledError(Exception):
        pass

    finetune, fit = Study._finetune, study.fit
    results: list[Any] = []

    def fit_and_remember(*arguments: Any, **options: Any) -> None:
        results.append(fit(*arguments, **options))

    monkeypatch.setattr(study, "fit", fit_and_remember)
    trained: list[str] = []

    def die_at_the_second(self: Study, slim: Any, cell: study_table.Cell, *rest: Any) -> None:
        if len(trained) == 1:
            raise KilledError
        trained.append(cell.name)
        before = slim.get_weights()[0]
        finetune(self, slim, cell, *rest)
        assert not np.array_equal(slim.get_weights()[0], before)

    monkeypatch.setattr(Study, "_finetune", die_at_the_second)
    with pytest.raises(KilledError):
        main(arguments)
    assert trained == ["random_one_shot_0.4_seed0"]

    def rows() -> dict[str, Any]:
        return json.loads((directory / "records.json").read_text())["rows"]

    first = rows()[trained[0]]
    # What is measured is what was trained.
    assert first["finetuned"] == pytest.approx(results[0].best_accuracy)

    def remember(self: Study, slim: Any, cell: study_table.Cell, *rest: Any) -> None:
        trained.append(cell.name)  # training was run once, above

    monkeypatch.setattr(Study, "_finetune", remember)
    assert main(arguments) == 0
    assert trained[1] == "taylor_fo_one_shot_0.4_seed0"
    assert len(trained) == 4 and trained[2] == trained[3]  # two parts
    assert rows()[trained[0]] == first
    assert len(rows()) == 4 and rows()[trained[3]]["mode"] == "iterative"
    assert all(rows()[name]["macs_left"] <= 0.6 for name in trained)
    assert not list(directory.glob("*_checkpoints"))

    # On another machine, with nothing but the small file.
    content = (directory / "records.json").read_text()
    assert str(tmp_path) not in content
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "records.json").write_text(content)
    more = [name.replace("random", "magnitude") for name in arguments]
    assert main(more) == 0
    assert trained[4] == "magnitude_one_shot_0.4_seed0" and rows()[trained[0]] == first
    assert "| random |" not in (directory / "study.md").read_text()
    assert main([*arguments, "--table_only"]) == 0
    assert "| random | one shot |" in (directory / "study.md").read_text()

    capsys.readouterr()
    assert main([*arguments, "--learning_rate=1"]) == 1
    assert "learning_rate: 0.05 -> 1.0" in capsys.readouterr().err
    shake(tf_keras.models.load_model(tmp_path / "net.keras"), 1).save(tmp_path / "net.keras")
    assert main(arguments) == 1
    assert "other settings" in capsys.readouterr().err
    assert rows()[trained[0]] == first


def study_of_one_layer(tmp_path: pathlib.Path, flags: str) -> list[str]:
    """The arguments of a study of a network with one convolution, cut once."""
    inputs = layers.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, strides=4, activation="relu")(inputs))
    tf_keras.Model(inputs, layers.Dense(10)(x)).save(tmp_path / "net.keras")
    return (
        f"study --model={tmp_path / 'net.keras'} --dataset=digits --directory={tmp_path} "
        "--examples=16 --validation_images=40 --test_images=40 --recalibrate_batches=0 "
        f"--round_to=1 --removed 0.4 --seeds 0 --train_precision=fp32 {flags}"
    ).split()


def test_a_criterion_that_refuses_is_left_out_with_its_reason(tmp_path: pathlib.Path) -> None:
    arguments = study_of_one_layer(
        tmp_path, "--finetune_epochs=0 --best=0 --criteria bn_scale random"
    )
    assert main(arguments) == 0
    table = (tmp_path / "study.md").read_text()
    assert "| bn_scale | one shot | not measured |" in table
    assert "\n`bn_scale` was refused: criterion 'bn_scale' needs layers" in table
    assert "1 of 2 networks are measured." in table


def test_a_cell_that_diverges_is_recorded_as_failed_and_the_others_go_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = study_of_one_layer(tmp_path, "--best=1 --parts=1 --criteria magnitude random")
    trained: list[str] = []

    def diverge_at_the_first(*arguments: Any, directory: pathlib.Path, **options: Any) -> None:
        trained.append(directory.parent.name)
        if len(trained) == 1:
            directory.mkdir(parents=True)
            (directory / "last.npz").touch()
            raise FloatingPointError(trainer._not_finite("The loss", "by step 4", 1, directory))

    monkeypatch.setattr(study, "fit", diverge_at_the_first)
    assert main(arguments) == 0
    content = (tmp_path / "records.json").read_text()
    rows = json.loads(content)["rows"]
    reason = "The loss became NaN or infinite in epoch 2, by step 4"
    assert rows["magnitude_one_shot_0.4_seed0"]["failed"] == reason
    assert str(tmp_path) not in content and not list(tmp_path.glob("*_checkpoints"))
    table = (tmp_path / "study.md").read_text()
    assert "| magnitude | one shot | not measured |" in table
    assert f"\n`magnitude_one_shot_0.4_seed0` failed: {reason}\n" in table
    assert "2 of 3 networks are measured." in table and "| random | iterative |" in table
    # It would diverge again.
    assert main(arguments) == 0 and len(trained) == 3
    assert (tmp_path / "study.md").read_text() == table


def test_what_tells_most_is_measured_first() -> None:
    parser = argparse.ArgumentParser()
    study.add_arguments(parser)
    options = parser.parse_args([])
    cells = study.cells_of(options, "one_shot", options.criteria, options.seeds)
    count = len(options.criteria)
    assert set(options.criteria) == set(criterion_names()) - {"oracle", "magnitude_l2"}
    assert [cell.criterion for cell in cells[:3]] == [
        "obd_joint_centered",
        "hessian_trace",
        "magnitude",
    ]
    assert {(cell.removed, cell.seed) for cell in cells[:count]} == {(0.5, 0)}
    assert {cell.seed for cell in cells[: 3 * count]} == {0} and len(cells) == 6 * count
