from __future__ import annotations

import dataclasses
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.data import ImageDataset, Split, evaluation_batches, load_dataset
from ehap_tf.pipeline.training.checkpoint import TrainingState
from ehap_tf.pipeline.training.evaluation import Evaluator
from ehap_tf.pipeline.training.fitting import TrainingRecipe, fit
from tests.fresh_processes import FreshProcesses

layers = tf_keras.layers
RECIPE = TrainingRecipe(4, 0.02, 1e-3, 8, warmup_epochs=0.5)
STEPS = 20  # an epoch: 160 images


def small_digits() -> ImageDataset:
    """The digits made small: 16x16 pixels, 160 for training."""

    def smaller(split: Split, count: int) -> Split:
        return Split(split.images[:count, ::2, ::2], split.labels[:count])

    whole = load_dataset("digits")
    return dataclasses.replace(
        whole,
        train=smaller(whole.train, 160),
        validation=smaller(whole.validation, 100),
        test=smaller(whole.test, 10),
    )


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return small_digits()


def small_net() -> tf_keras.Model:
    def he(seed: int) -> tf_keras.initializers.Initializer:
        return tf_keras.initializers.HeNormal(seed=seed)

    inputs = tf_keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, kernel_initializer=he(1))(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="bn")(x))
    return tf_keras.Model(inputs, layers.Dense(10, kernel_initializer=he(2))(layers.Flatten()(x)))


class KilledError(Exception):
    pass


def killed_after(steps: int):
    def progress(done: int, total: int, figures) -> None:
        if done >= steps:
            raise KilledError

    return progress


@pytest.fixture(scope="module")
def uninterrupted(digits: ImageDataset, tmp_path_factory: pytest.TempPathFactory):
    model = small_net()
    directory = tmp_path_factory.mktemp("uninterrupted")
    result = fit(model, digits, RECIPE, directory=directory, seed=1)
    return model, result, directory


def assert_same_weights(model: tf_keras.Model, other: tf_keras.Model) -> None:
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def without_seconds(result) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.history]


def test_a_training_learns_and_keeps_its_best_epoch(digits: ImageDataset, uninterrupted):
    model, result, directory = uninterrupted
    accuracies = [entry["validation_accuracy"] for entry in result.history]
    assert set(result.history[0]) == {
        "epoch",
        "loss",
        "accuracy",
        "validation_accuracy",
        "learning_rate",
        "seconds",
    }
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert result.best_accuracy == max(accuracies) > 0.25
    assert result.best_epoch == 1 + accuracies.index(max(accuracies))
    measured = Evaluator(model)(evaluation_batches(digits.validation, digits, 7))
    assert measured == result.best_accuracy
    assert (result.epochs, result.resumed_epochs, result.notes) == (4, 0, ())
    assert {p.name for p in directory.iterdir()} == {"last.npz", "best.npz"}


# Inside the first epoch, between two, inside the third, at the very end.
@pytest.mark.parametrize("steps", [10, STEPS, 2 * STEPS + 10, 4 * STEPS])
def test_a_killed_training_ends_with_the_same_weights(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path, steps: int
):
    model, result, _ = uninterrupted
    with pytest.raises(KilledError):
        fit(small_net(), digits, RECIPE, directory=tmp_path, seed=1, progress=killed_after(steps))
    resumed = small_net()
    again = fit(resumed, digits, RECIPE, directory=tmp_path, seed=1)
    assert_same_weights(resumed, model)
    assert without_seconds(again) == without_seconds(result)
    assert (again.best_epoch, again.best_accuracy) == (result.best_epoch, result.best_accuracy)
    assert again.resumed_epochs == steps // STEPS


def test_a_finished_training_is_not_repeated(digits: ImageDataset, uninterrupted):
    model, result, directory = uninterrupted
    before = (directory / "last.npz").read_bytes()
    other, calls = small_net(), []
    again = fit(
        other, digits, RECIPE, directory=directory, seed=1, progress=lambda *a: calls.append(a)
    )
    assert_same_weights(other, model)
    assert again.history == result.history
    assert again.resumed_epochs == 4
    assert calls == []
    assert (directory / "last.npz").read_bytes() == before


def test_a_crash_between_the_two_files_is_repaired(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path
):
    model, _, directory = uninterrupted
    with pytest.raises(KilledError):
        fit(
            small_net(),
            digits,
            RECIPE,
            directory=tmp_path,
            seed=1,
            progress=killed_after(2 * STEPS),
        )
    # best.npz of the finished training lies beside the last.npz of epoch 2.
    (tmp_path / "best.npz").write_bytes((directory / "best.npz").read_bytes())
    resumed = small_net()
    fit(resumed, digits, RECIPE, directory=tmp_path, seed=1)
    assert_same_weights(resumed, model)


def test_a_damaged_checkpoint_is_set_aside_and_the_best_takes_its_place(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path
):
    model, result, directory = uninterrupted
    for name in ("last.npz", "best.npz"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    content = (tmp_path / "last.npz").read_bytes()
    (tmp_path / "last.npz").write_bytes(content[:-500])
    resumed = small_net()
    with pytest.warns(RuntimeWarning, match=r"last\.npz is damaged"):
        again = fit(resumed, digits, RECIPE, directory=tmp_path, seed=1)
    assert_same_weights(resumed, model)
    assert (tmp_path / "last.npz.corrupt").read_bytes() == content[:-500]
    assert again.resumed_epochs == result.best_epoch
    assert "goes on from" in again.notes[1]


def test_with_every_checkpoint_damaged_it_starts_from_the_beginning_and_says_so(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path
):
    model, _, _ = uninterrupted
    for name in ("last.npz", "best.npz"):
        (tmp_path / name).write_bytes(b"damaged")
    resumed = small_net()
    with pytest.warns(RuntimeWarning, match="starts from the beginning"):
        again = fit(resumed, digits, RECIPE, directory=tmp_path, seed=1)
    assert_same_weights(resumed, model)
    assert len(again.notes) == 3


def test_lost_best_weights_are_said(digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path):
    _, _, directory = uninterrupted
    state = TrainingState.load(directory / "last.npz")
    dataclasses.replace(state, best_epoch=1, best_accuracy=2.0).save(tmp_path / "last.npz")
    with pytest.warns(RuntimeWarning, match=r"best\.npz is missing"):
        result = fit(small_net(), digits, RECIPE, directory=tmp_path, seed=1)
    assert "lost" in result.notes[1]


def test_a_checkpoint_of_another_training_is_refused(digits: ImageDataset, uninterrupted):
    _, _, directory = uninterrupted
    other = dataclasses.replace(RECIPE, learning_rate=0.07)
    with pytest.raises(ValueError, match=r"last\.npz is of another training.*0\.07"):
        fit(small_net(), digits, other, directory=directory, seed=1)


def test_resume_false_starts_anew(digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path):
    model, _, _ = uninterrupted
    (tmp_path / "last.npz").write_bytes(b"of something else")
    fresh = small_net()
    result = fit(fresh, digits, RECIPE, directory=tmp_path, seed=1, resume=False)
    assert result.notes == ()
    assert_same_weights(fresh, model)


def test_a_diverging_training_stops_and_keeps_the_last_good_checkpoint(
    digits: ImageDataset, tmp_path: pathlib.Path
):
    short = dataclasses.replace(RECIPE, epochs=2)

    class Poison(tf_keras.layers.Layer):
        poisoned = tf.Variable(0.0)

        def call(self, inputs):
            return inputs * self.poisoned

    Poison.poisoned.assign(1.0)
    inputs = tf_keras.Input((16, 16, 3))
    model = tf_keras.Model(inputs, Poison()(small_net()(inputs)))

    def poison(done: int, total: int, figures) -> None:
        if done == STEPS:
            Poison.poisoned.assign(np.nan)

    with pytest.raises(FloatingPointError, match=r"epoch 2.*last good checkpoint.*last\.npz"):
        fit(model, digits, short, directory=tmp_path, seed=1, progress=poison)
    state = TrainingState.load(tmp_path / "last.npz")
    assert state.epoch == 1
    assert all(np.all(np.isfinite(w)) for w in state.weights)


def test_a_weight_that_is_nan_while_the_loss_is_fine_stops_the_training(
    digits: ImageDataset, tmp_path: pathlib.Path
):
    model = small_net()

    def poison(done: int, total: int, figures) -> None:
        if done == STEPS:
            model.get_layer("bn").moving_mean.assign(np.full(8, np.nan))

    with pytest.raises(FloatingPointError, match=r"bn/moving_mean.*epoch 2.*last\.npz"):
        fit(model, digits, RECIPE, directory=tmp_path, seed=1, progress=poison)
    assert TrainingState.load(tmp_path / "last.npz").epoch == 1


def test_divergence_before_the_first_checkpoint(digits: ImageDataset, tmp_path: pathlib.Path):
    wild = dataclasses.replace(RECIPE, learning_rate=1e20, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match=r"epoch 1.*no checkpoint yet"):
        fit(small_net(), digits, wild, directory=tmp_path, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_no_epochs_leave_the_model_as_it_is(digits: ImageDataset, tmp_path: pathlib.Path):
    model = small_net()
    result = fit(model, digits, dataclasses.replace(RECIPE, epochs=0), directory=tmp_path, seed=1)
    assert_same_weights(model, small_net())
    assert (result.epochs, result.best_epoch, result.history) == (0, 0, ())
    assert 0 <= result.best_accuracy <= 1


def test_frozen_batch_norm_stops_moving_and_is_thawed_at_the_end(
    digits: ImageDataset, tmp_path: pathlib.Path
):
    model, seen = small_net(), []

    def progress(done: int, total: int, figures) -> None:
        if done % STEPS == 0:
            seen.append(model.get_layer("bn").get_weights())

    fit(
        model,
        digits,
        RECIPE,
        directory=tmp_path,
        seed=1,
        progress=progress,
        freeze_batch_norm_after=2,
    )
    for a, b in zip(seen[1], seen[3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.any(a != b) for a, b in zip(seen[0], seen[1], strict=True))
    assert model.get_layer("bn").trainable


def test_the_compile_state_of_the_model_is_left_alone(digits: ImageDataset, tmp_path: pathlib.Path):
    model = small_net()
    model.compile("adam", "mse")
    optimizer = model.optimizer
    fit(model, digits, dataclasses.replace(RECIPE, epochs=1), directory=tmp_path, seed=1)
    assert model.optimizer is optimizer
    assert model.loss == "mse"


def test_a_strategy_trains_a_copy_and_gives_the_weights_back(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path
):
    trained, _, _ = uninterrupted
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    model = small_net()
    fit(model, digits, RECIPE, directory=tmp_path, seed=1, strategy=strategy)
    for a, b in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_figures_out_of_range():
    for field in ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup_epochs"):
        with pytest.raises(ValueError, match=f"{field} must be .* Received: -1"):
            dataclasses.replace(RECIPE, **{field: -1})
    with pytest.raises(ValueError, match="learning_rate"):
        dataclasses.replace(RECIPE, learning_rate=float("nan"))


def test_an_empty_stream_cannot_be_evaluated(digits: ImageDataset):
    batches = evaluation_batches(digits.validation, digits, 10).take(0)
    with pytest.raises(ValueError, match="empty"):
        Evaluator(small_net())(batches)


@pytest.mark.slow
def test_quantization_aware_models_train_and_resume(digits: ImageDataset, tmp_path: pathlib.Path):
    quantization = pytest.importorskip("ehap_tf.quantization")
    recipe = dataclasses.replace(RECIPE, epochs=2, learning_rate=0.05)
    float_model = small_net()
    images = next(iter(evaluation_batches(digits.train, digits, 32)))[0].numpy()

    def quantized() -> tf_keras.Model:
        return quantization.quantize(float_model, method="qat", representative_data=images)

    whole, killed, resumed = quantized(), quantized(), quantized()
    start = whole.get_weights()
    # With BatchNorm frozen, as in the second half of a recipe; test_killed.py resumes before that.
    options: dict[str, Any] = {"seed": 1, "freeze_batch_norm_after": 0}
    fit(whole, digits, recipe, directory=tmp_path / "a", **options)
    assert any(np.any(a != b) for a, b in zip(start, whole.get_weights(), strict=True))
    with pytest.raises(KilledError):
        fit(
            killed,
            digits,
            recipe,
            directory=tmp_path / "b",
            progress=killed_after(STEPS + 10),
            **options,
        )
    fit(resumed, digits, recipe, directory=tmp_path / "b", **options)
    assert_same_weights(resumed, whole)
    mirrored, strategy = quantized(), tf.distribute.MirroredStrategy(["/cpu:0"])
    fit(mirrored, digits, recipe, directory=tmp_path / "c", strategy=strategy, **options)
    for a, b in zip(mirrored.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_a_training_that_ruins_leaves_the_network_as_it_was(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path
):
    weights = [value.copy() for value in uninterrupted[0].get_weights()]
    accuracy = uninterrupted[1].best_accuracy
    ruin = dataclasses.replace(RECIPE, epochs=3, learning_rate=3.0, warmup_epochs=0.0)
    for kill in (True, False):
        model = small_net()
        model.set_weights(weights)
        if kill:
            with pytest.raises(KilledError):
                fit(model, digits, ruin, directory=tmp_path, seed=1, progress=killed_after(50))
            continue
        result = fit(model, digits, ruin, directory=tmp_path, seed=1)
        assert result.resumed_epochs == 2 and result.epochs == 3
        assert result.best_epoch == 0 and result.best_accuracy == accuracy
        worst = max(epoch["validation_accuracy"] for epoch in result.history)
        assert worst < accuracy - 0.1
        for found, wanted in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(found, wanted)


SCRIPT = """
import os, pathlib, signal, sys
from tests.pipeline.test_training import RECIPE, fit, small_digits, small_net
def progress(done, total, figures):
    if done >= 50:
        os.kill(os.getpid(), signal.SIGKILL)
fit(small_net(), small_digits(), RECIPE, directory=sys.argv[1], seed=1, progress=progress)
"""


@pytest.mark.slow
def test_sigkill(
    digits: ImageDataset, uninterrupted, tmp_path: pathlib.Path, fresh_processes: FreshProcesses
):
    killed = fresh_processes.run(SCRIPT, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = small_net()
    result = fit(resumed, digits, RECIPE, directory=tmp_path, seed=1)
    assert result.resumed_epochs == 2
    assert_same_weights(resumed, uninterrupted[0])


TWO_DEVICES = """
import dataclasses, pathlib, sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.pipeline.test_training import RECIPE, fit, small_digits, small_net
recipe, weights = dataclasses.replace(RECIPE, epochs=3, learning_rate=0.005), []
for number, devices in enumerate((["/cpu:0"], ["/cpu:0", "/cpu:1"])):
    model = small_net()
    # Each device normalises with the statistics of its own half; without them both must agree.
    model.get_layer("bn").trainable = False
    strategy = tf.distribute.MirroredStrategy(devices)
    directory = pathlib.Path(sys.argv[1]) / str(number)
    fit(model, small_digits(), recipe, directory=directory, seed=1, strategy=strategy)
    weights.append(model.get_weights())
difference = max(np.abs(a - b).max() for a, b in zip(*weights))
moved = max(np.abs(a - b).max() for a, b in zip(weights[0], small_net().get_weights()))
print("figures", difference, moved)
"""


@pytest.mark.slow
def test_two_devices_train_like_one(tmp_path: pathlib.Path, fresh_processes: FreshProcesses):
    ran = fresh_processes.run(TWO_DEVICES, tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    line = next(line for line in ran.stdout.splitlines() if line.startswith("figures"))
    difference, moved = (float(figure) for figure in line.split()[1:])
    assert difference < 1e-4 < 1e-2 < moved
