"""The study: cells, going on after a kill, the table."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tf_keras

from ehap_tf.benchmark import study_table
from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.study import Study
from tests.pruning.nets import shake

layers = tf_keras.layers


def cell(criterion: str, finetuned: float, **values: Any) -> dict[str, Any]:
    base = {"mode": "one_shot", "removed": 0.5, "seed": 0, "macs_left": 0.49}
    accuracies = {"pruned": 0.1, "recalibrated": 0.2, "finetuned": finetuned, "test": 0.25}
    return base | accuracies | {"criterion": criterion} | values


def test_the_table_takes_means_over_seeds_and_leaves_open_what_is_missing() -> None:
    rows = [
        {"criterion": study_table.WHOLE, "validation": 0.9, "test": 0.88},
        cell("obd", 0.5),
        cell("obd", 0.7, seed=1),
        cell("obd", 0.9, removed=0.25),
        cell("magnitude", 0.55),
        cell("obd", 0.8, mode="iterative"),
    ]
    lines = study_table.markdown(rows).splitlines()
    assert lines[0].endswith("| 25% of the MACs removed | 50% of the MACs removed |")
    assert lines[2] == (
        "| obd | one shot | 10.0 / 20.0 / 90.0 (25.0) | 10.0 / 20.0 / 60.0 ± 10.0 (25.0) |"
    )
    assert lines[3] == "| magnitude | one shot |  | 10.0 / 20.0 / 55.0 (25.0) |"
    assert lines[4].startswith("| obd | iterative |")
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
        "--parts=2 --criteria random taylor_fo"
    ).split()

    class KilledError(Exception):
        pass

    finetuned = Study._finetuned
    trained: list[str] = []

    def die_at_the_second(self: Study, slim: Any, cell: study_table.Cell, *rest: Any) -> Any:
        if len(trained) == 1:
            raise KilledError
        trained.append(cell.name)
        model = finetuned(self, slim, cell, *rest)
        assert not np.array_equal(model.get_weights()[0], slim.get_weights()[0])
        return model

    monkeypatch.setattr(Study, "_finetuned", die_at_the_second)
    with pytest.raises(KilledError):
        main(arguments)
    assert trained == ["random_one_shot_0.4_seed0"]
    first = (directory / f"{trained[0]}.json").read_text()

    def remember(self: Study, slim: Any, cell: study_table.Cell, *rest: Any) -> Any:
        trained.append(cell.name)
        return slim  # training was run once, above

    monkeypatch.setattr(Study, "_finetuned", remember)
    assert main(arguments) == 0
    assert trained[1] == "taylor_fo_one_shot_0.4_seed0"
    assert len(trained) == 4 and trained[2] == trained[3]  # two parts
    assert (directory / f"{trained[0]}.json").read_text() == first
    rows = json.loads((directory / "study.json").read_text())["rows"]
    assert len(rows) == 4 and rows[-1]["mode"] == "iterative"
    assert all(row["macs_left"] <= 0.6 for row in rows[1:])
    assert not list(directory.glob("*_checkpoints"))
    (directory / f"{trained[0]}.json").write_text("{")  # damaged: set aside, the rest stands
    assert main([*arguments, "--table_only"]) == 0
    assert "| taylor_fo | one shot |" in (directory / "study.md").read_text()
    assert len(json.loads((directory / "study.json").read_text())["rows"]) == 3
    capsys.readouterr()
    assert main([*arguments, "--learning_rate=1"]) == 1
    assert "learning_rate: 0.05 -> 1.0" in capsys.readouterr().err
