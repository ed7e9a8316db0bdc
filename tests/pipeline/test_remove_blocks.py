"""--remove_blocks: residual blocks go before filters are ranked."""

from __future__ import annotations

import json

import pytest
import tf_keras

from ehap_tf.main import help_text, parse_config
from ehap_tf.models import build_model
from ehap_tf.pipeline.command import runner
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.ranking import wanted_blocks
from ehap_tf.pruning import PruningPlan, count_macs, count_parameters, remove_blocks
from ehap_tf.sensitivity import FilterScores
from tests.pruning.nets import shake
from tests.pruning.test_block_removal import block

layers = tf_keras.layers
SETTINGS = {
    "dataset": "digits",
    "normalization": "dataset",
    "force": True,
    "criterion": "magnitude",
    "hessian_batch_size": 32,
    "batch_size": 512,
    "repair_images": 0,
    "recalibrate_batches": 0,
    "precision": "fp32",
    "train_precision": "fp32",
    "stages": ("train", "rank", "prune", "report"),
    "verbosity": 0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((32, 32, 3))
    x = layers.ReLU()(layers.Conv2D(8, 3, strides=4, padding="same")(x))
    for name in ("one", "two", "three"):
        x = block(x, 8, name)
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    path = tmp_path_factory.mktemp("model") / "small.keras"
    shake(tf_keras.Model(inputs, x)).save(path)
    return path


def run(model, folder, **settings):
    config = PipelineConfig(**SETTINGS | settings, model=str(model), output_dir=str(folder))
    return runner.run(config)


@pytest.mark.parametrize(
    ("amount", "steps"),
    [
        ({"target_macs": 0.4}, 2),
        ({"target_params": 0.95}, 1),
        pytest.param({"target_params": 0.5}, 1, marks=pytest.mark.families),
        pytest.param({"target_macs": 0.95}, 1, marks=pytest.mark.families),
        pytest.param({"target_macs": 0.5}, 1, marks=pytest.mark.families),
        pytest.param({"prune_ratio": 0.0}, 1, marks=pytest.mark.families),
    ],
)
def test_blocks_go_first_and_targets_are_shares_of_the_whole(model, tmp_path, amount, steps):
    records = run(model, tmp_path, remove_blocks=("1",), prune_steps=steps, **amount)
    report = json.loads((tmp_path / "report.json").read_text())
    ((gone, loss),) = report["removed_blocks"].items()
    assert gone in ("one", "two", "three") and loss > 0
    assert gone in " ".join(records["rank"].figures["notes"])
    whole = tf_keras.models.load_model(model)
    short = remove_blocks(whole, [gone])
    scores = FilterScores.load(tmp_path / "scores.npz")
    assert scores.provenance.without_blocks == (gone,)
    assert not [name for name in scores if name.startswith(gone)]
    slim = tf_keras.models.load_model(tmp_path / "slim.keras")
    plan = PruningPlan.from_json((tmp_path / "plan.json").read_text())
    assert plan.params_before == count_parameters(short)
    assert report["params_before"] == count_parameters(whole)
    assert report["macs_before"] == count_macs(whole)
    assert report["params_after"] == count_parameters(slim)
    assert report["macs_after"] == count_macs(slim)
    ((name, value),) = amount.items()
    counts = {"target_macs": "macs", "target_params": "params"}
    if name in counts:
        left = report[f"{counts[name]}_after"] / report[f"{counts[name]}_before"]
        assert left <= value
        assert left > value - 0.1 or slim.count_params() == short.count_params()
    else:
        assert slim.count_params() == short.count_params()


def test_nothing_is_done_twice_and_other_blocks_are_another_ranking(model, tmp_path):
    first, again = (run(model, tmp_path, remove_blocks=("1",), prune_ratio=0.0) for _ in range(2))
    assert again["rank"].seconds == first["rank"].seconds
    more = run(model, tmp_path, remove_blocks=("2",), prune_ratio=0.0)
    assert len(more["rank"].figures["removed_blocks"]) == 2


def test_without_the_flag_nothing_is_said_of_blocks(model, tmp_path):
    records = run(model, tmp_path, prune_ratio=0.2)
    assert "remove_blocks" not in records["rank"].settings
    assert "removed_blocks" not in json.loads((tmp_path / "report.json").read_text())


def test_blocks_by_name(model, tmp_path):
    named = run(model, tmp_path, remove_blocks=("three", "one"), prune_ratio=0.2)["rank"]
    losses = named.figures["removed_blocks"]
    assert set(losses) == {"one", "three"} and list(losses.values())[1] > 0
    scores = FilterScores.load(tmp_path / "scores.npz")
    assert [name for name in scores if name.startswith("two")]
    assert not [name for name in scores if name.startswith(("one", "three"))]


@pytest.mark.parametrize("wanted", ["4", "one,four"])
def test_blocks_that_are_not_there(model, tmp_path, wanted):
    message = rf"remove_blocks must be at most 3 or .*: one, two, three\. Received: {wanted}"
    with pytest.raises(ValueError, match=message):
        run(model, tmp_path, remove_blocks=tuple(wanted.split(",")), prune_ratio=0.2)


def test_blocks_that_are_not_there_are_noticed_before_training(tmp_path):
    settings = SETTINGS | {"model": "resnet8", "train_epochs": 0, "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"remove_blocks must be at most 1 .*stage1_block1_add"):
        runner.run(PipelineConfig(**settings, remove_blocks=("9",)))
    assert not (tmp_path / "baseline.keras").exists()
    with pytest.raises(ValueError, match=r"no residual block that can go\. Received: 2"):
        wanted_blocks(PipelineConfig(remove_blocks=("2",)), build_model("vgg16"))
    with pytest.raises(ValueError, match=r"remove_blocks must be at least 0\. Received: -1"):
        PipelineConfig(remove_blocks=("-1",))


def test_a_number_and_a_name():
    with pytest.raises(ValueError, match=r"one number or names of blocks. Received: 4,one"):
        PipelineConfig(remove_blocks=("4", "one"))


def test_the_flag_takes_both():
    flag = "--remove_blocks="
    assert parse_config(["", flag + "4"]).remove_blocks == ("4",)
    assert parse_config(["", flag + "one, two"]).remove_blocks == ("one", "two")
    assert parse_config([""]).remove_blocks == parse_config(["", flag]).remove_blocks == ()
    assert "sums, comma-separated (default: none)" in " ".join(help_text().split())
