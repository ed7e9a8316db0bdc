"""Pruning while training that stops and goes on: the same filters, optimizer and schedule."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.files import CorruptFileError
from tests.pruning.callback_nets import LOSS, compiled, data, net
from tests.pruning.nets import ROUNDING, relative_error

layers = tf_keras.layers


class Stop(tf_keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def test_a_resumed_training_removes_the_same_filters(tmp_path) -> None:
    settings = {"target_macs": 0.5, "filters_per_step": 3, "frequency": 5}
    whole = ehap.PruningCallback(**settings)
    model = compiled(net())
    model.fit(data(), epochs=5, callbacks=[whole], verbose=0, shuffle=False)

    settings["checkpoint"] = tmp_path / "pruning.npz"
    first = ehap.PruningCallback(**settings)
    with pytest.raises(KeyboardInterrupt):
        compiled(net()).fit(data(), epochs=5, callbacks=[first, Stop()], verbose=0)
    assert 0 < len(first.history) < len(whole.history)
    second = ehap.PruningCallback(**settings)
    assert second.epoch == 2
    resumed = compiled(net(seed=7))  # the checkpoint has the weights
    resumed.fit(data(), epochs=5, initial_epoch=second.epoch, callbacks=[second], verbose=0)
    assert second.history == whole.history
    for layer, flags in whole.alive.items():
        np.testing.assert_array_equal(second.alive[layer], flags)
    for one, other in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"frequency': 6.*remove the checkpoint"):
        ehap.PruningCallback(**{**settings, "frequency": 6})
    other = net()
    other.compile(tf_keras.optimizers.Adam(), LOSS)
    before = other.get_weights()
    with pytest.raises(ValueError, match=r"must be one of this optimizer.*of Adam expected"):
        other.fit(data(8), callbacks=[ehap.PruningCallback(**settings)], verbose=0)
    for one, other_one in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other_one)


class Halve(tf_keras.callbacks.Callback):
    """Half the learning rate in every epoch, from whatever it is."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        rate = self.model.optimizer.learning_rate
        rate.assign(rate / 2)


@pytest.mark.parametrize(
    "kind",
    [
        tf_keras.optimizers.Nadam,
        pytest.param(tf_keras.optimizers.SGD, marks=pytest.mark.families),
    ],
)
def test_a_resumed_training_has_the_learning_rate_of_the_time(tmp_path, kind: type) -> None:
    def started(seed: int = 0) -> tf_keras.Model:
        model = net(seed)
        model.compile(kind(0.1), LOSS)
        return model

    whole = started()
    pruning = ehap.PruningCallback(target_filters=2, frequency=3)
    whole.fit(data(32), epochs=3, callbacks=[Halve(), pruning], verbose=0)
    settings = {"target_filters": 2, "frequency": 3, "checkpoint": tmp_path / "pruning.npz"}
    first = ehap.PruningCallback(**settings)
    with pytest.raises(KeyboardInterrupt):
        started().fit(data(32), epochs=3, callbacks=[Halve(), first, Stop()], verbose=0)
    second = ehap.PruningCallback(**settings)
    resumed = started(seed=7)
    resumed.fit(data(32), initial_epoch=2, epochs=3, callbacks=[Halve(), second], verbose=0)
    assert resumed.optimizer.learning_rate.numpy() == np.float32(0.1 / 8)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_schedule_that_ranks_otherwise_does_not_take_the_checkpoint_up(tmp_path) -> None:
    x, y = next(iter(data(16, 16)))
    settings = {
        "criterion": "obd", "target_filters": 2, "data": (x.numpy(), y.numpy()),
        "checkpoint": tmp_path / "pruning.npz",
    }  # fmt: skip
    options = {"probes": 64, "batch_size": 8}
    pruning = ehap.PruningCallback(**settings, loss=LOSS, rank_options=options)
    compiled(net()).fit(data(8), callbacks=[pruning], verbose=0)
    again = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"batch_size": None, "probes": np.int64(64)}
    assert ehap.PruningCallback(**settings, loss=again, rank_options=options).epoch == 1
    other = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=False)
    for loss, probes in ((LOSS, 1), (other, 64), (None, 64)):
        with pytest.raises(ValueError, match=r"must be one of these settings.*'probes': '64'"):
            ehap.PruningCallback(**settings, loss=loss, rank_options={"probes": probes})


def test_a_model_that_is_built_again_takes_up_the_checkpoint(tmp_path) -> None:
    """Keras counts on: its names are others then."""

    def unnamed(width: int = 6, size: int = 3) -> tf_keras.Model:
        model = tf_keras.Sequential(
            [
                layers.Input((6, 6, 3)),
                layers.Conv2D(width, size, activation="relu"),
                layers.Conv2D(5, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(4),
            ]
        )
        return compiled(model)

    settings = {"target_filters": 3, "filters_per_step": 3, "frequency": 2}
    settings["checkpoint"] = tmp_path / "pruning.npz"
    first = ehap.PruningCallback(**settings)
    model = unnamed()
    model.fit(data(32), callbacks=[first], verbose=0)
    again = unnamed()
    assert first.alive.keys().isdisjoint(layer.name for layer in again.layers)
    second = ehap.PruningCallback(**settings)
    again.fit(data(32), initial_epoch=1, epochs=1, callbacks=[second], verbose=0)
    assert second.reached and list(second.alive) == [again.layers[i].name for i in (0, 1, 3)]
    for one, other in zip(first.alive.values(), second.alive.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    x = next(iter(data()))[0]
    np.testing.assert_array_equal(second.finalize()(x), first.finalize()(x))
    for other in (unnamed(width=7), unnamed(size=2)):
        with pytest.raises(ValueError, match="the state must be one of this model"):
            other.fit(data(8), callbacks=[ehap.PruningCallback(**settings)], verbose=0)


def test_a_checkpoint_of_another_version_says_so(tmp_path) -> None:
    path = tmp_path / "pruning.npz"
    header = np.frombuffer(b'{"format": "ehap_tf.PruningState/1"}', np.uint8)
    np.savez(path, header=header)
    with pytest.raises(CorruptFileError, match=r"PruningState/2'. Received: '.*/1'; remove"):
        ehap.PruningCallback(target_filters=2, checkpoint=path)


def test_weights_of_before_a_step_are_not_cut_silently() -> None:
    pruning = ehap.PruningCallback(target_filters=12, filters_per_step=3, frequency=5)
    model = compiled(net())
    whole = model.get_weights()
    model.fit(data(), epochs=4, callbacks=[pruning], verbose=0)
    pruning.finalize()
    model.set_weights(whole)  # as EarlyStopping(restore_best_weights=True) does
    with pytest.raises(ValueError, match="weights of before the last steps were put back"):
        pruning.finalize()


class Remember(tf_keras.callbacks.Callback):
    """Keeps the state after each epoch."""

    def __init__(self, pruning: ehap.PruningCallback) -> None:
        super().__init__()
        self.pruning, self.states = pruning, []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.states.append(self.pruning.state(with_weights=True))


def test_a_restored_state_holds_at_once_and_in_the_next_fit() -> None:
    pruning = ehap.PruningCallback(target_filters=9, filters_per_step=3, frequency=10)
    remember = Remember(pruning)
    model = compiled(net())
    model.fit(data(), epochs=4, callbacks=[pruning, remember], verbose=0)
    whole, some, *_ = remember.states
    model.set_weights(some.weights)  # as EarlyStopping(restore_best_weights=True) does
    with pytest.raises(ValueError, match="restore the schedule's state of that time"):
        pruning.finalize()
    pruning.restore(dataclasses.replace(some, weights=(), optimizer=()))
    assert (pruning.epoch, pruning.state().minibatch, pruning.reached) == (2, 16, False)
    with pytest.warns(RuntimeWarning, match="3 filters are removed"):
        slim = pruning.finalize()
    x = next(iter(data()))[0]
    assert relative_error(slim(x, training=False), model(x, training=False)) < ROUNDING
    # Back to a time before the first step, all filters learn again.
    pruning.restore(whole)
    assert all(flags.all() for flags in pruning.alive.values())
    model.fit(data(8), callbacks=[pruning], verbose=0)
    plain = compiled(net())
    plain.fit(data(), verbose=0)
    plain.fit(data(8), verbose=0)
    for one, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_numbers_of_numpys_go_into_the_checkpoint(tmp_path) -> None:
    numbers = {
        "filters_per_step": np.int32(8),
        "frequency": np.int64(2),
        "prune_ratio_limit": np.float32(0.75),
        "round_to": np.int64(2),
    }
    for target in ({"target_macs": np.float32(0.7)}, {"target_filters": np.int64(3)}):
        path = tmp_path / f"{next(iter(target))}.npz"
        pruning = ehap.PruningCallback(**target, **numbers, checkpoint=path)
        compiled(net()).fit(data(16), callbacks=[pruning], verbose=0)
        ehap.PruningCallback(**target, **numbers, checkpoint=path)
