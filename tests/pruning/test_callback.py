"""Pruning while training: what is removed, that it stays removed, and that it can go on later."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.channels import trace_channels
from ehap_tf.pruning.while_training.gate_terms import find_gate_terms
from tests.pruning.callback_nets import LOSS, compiled, data, net
from tests.pruning.nets import ROUNDING, relative_error, shake, small_residual_net

layers = tf_keras.layers


class Watch(tf_keras.callbacks.Callback):
    """After every minibatch: whatever the callback removed is zero, in weights and momentum."""

    def __init__(self, pruning: ehap.PruningCallback) -> None:
        super().__init__()
        self.pruning, self.removed = pruning, []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        alive = self.pruning.alive
        self.removed.append(sum(int((~flags).sum()) for flags in alive.values()))
        for name, norm in (
            ("stem", "stem_bn"),
            ("expand", "depthwise_bn"),
            ("bare", None),
            ("project", "project_bn"),
        ):
            dead = ~alive[name]
            owners = [self.model.get_layer(n) for n in (name, norm) if n]
            for variable in [v for owner in owners for v in owner.trainable_weights]:
                slots = [
                    slot
                    for slot in self.model.optimizer.variables
                    if slot.name.split(":")[0].endswith(variable.name.split(":")[0])
                ]
                assert slots
                for values in (variable, *slots):
                    assert not np.asarray(values)[..., dead].any(), (name, values.name)


def test_the_target_is_met_in_steps_and_what_is_removed_stays_zero() -> None:
    model = net()
    dense = tf_keras.models.clone_model(model)
    dense.set_weights(model.get_weights())
    model.compile(tf_keras.optimizers.Adam(0.01), LOSS)
    pruning = ehap.PruningCallback(target_macs=0.6, filters_per_step=4, frequency=3)
    watch = Watch(pruning)
    model.fit(data(), epochs=4, callbacks=[pruning, watch], verbose=0)
    assert pruning.reached
    x = next(iter(data()))[0]
    slim = pruning.finalize()
    assert ehap.count_macs(slim) <= 0.6 * ehap.count_macs(model)
    # One more filter would have been enough: the target is not overshot by a step.
    steps = [figures["filters"] for figures in pruning.history]
    assert steps[:-1] == [4 * (i + 1) for i in range(len(steps) - 1)]
    assert [figures["minibatch"] for figures in pruning.history] == [
        3 * (i + 1) for i in range(len(steps))
    ]
    assert watch.removed[1] == 0 and watch.removed[2] == 4
    assert pruning.history[-2]["macs"] > 0.6 * ehap.count_macs(model)
    expected = np.asarray(model(x, training=False))
    assert relative_error(slim(x, training=False), expected) < ROUNDING
    masked = ehap.mask(model, pruning.plan())
    assert relative_error(masked(x, training=False), expected) < ROUNDING
    # Repaired for what it was before training, it is nearer to that.
    repaired, unrepaired = (
        pruning.finalize(dense=dense, images=x, repair_images=count) for count in (64, 0)
    )
    wanted = dense(x, training=False)
    error = relative_error(repaired(x, training=False), wanted)
    assert error < 0.8 * relative_error(unrepaired(x, training=False), wanted)
    with pytest.raises(ValueError, match="images must be given"):
        pruning.finalize(dense=dense)
    # A slim model that computed the same whatever is removed would prove nothing.
    plan = pruning.plan()
    assert any(len(plan.kept[name]) < count for name, count in plan.filters.items())
    assert slim.count_params() == plan.params_after < model.count_params()
    assert "apply_gradients" not in vars(model.optimizer) and model.train_function is None
    # Compiled anew and trained on with the same callback: what is gone stays gone.
    compiled(model).fit(data(16), callbacks=[pruning, watch], verbose=0)
    assert pruning.plan().to_json() == plan.to_json()
    slim = pruning.finalize()
    assert relative_error(slim(x, training=False), model(x, training=False)) < ROUNDING


def test_scores_are_mean_squares_of_gradients_on_gates() -> None:
    """Against gates that are put in and differentiated, on the training's own minibatches."""
    model = compiled(net())
    plain = compiled(net())
    pruning = ehap.PruningCallback(
        target_filters=1, filters_per_step=1, frequency=100, residual="tied"
    )
    model.fit(data(24), callbacks=[pruning], verbose=0)
    squares = {"stem": 0.0, "expand": 0.0, "bare": 0.0}
    for x, y in data(24):
        gates = {
            "stem": tf.Variable(tf.ones(8)),
            "expand": tf.Variable(tf.ones(12)),
            "bare": tf.Variable(tf.ones(8)),
        }
        places = {"stem_bn": "stem", "project_bn": "stem", "depthwise_bn": "expand", "bare": "bare"}
        with tf.GradientTape() as tape:
            loss = LOSS(y, gated(plain, x, places, gates))
        gradients = tape.gradient(loss, gates)
        for name in squares:
            squares[name] = squares[name] + np.square(gradients[name])
        plain.train_on_batch(x, y)
    terms = find_gate_terms(model, trace_channels(model, "tied"))
    state = pruning.state()
    sums, minibatches = state.squares, state.minibatches
    assert minibatches == 3
    for name in ("stem", "expand", "bare"):
        found = sums[terms.groups[name]]
        np.testing.assert_allclose(found, squares[name], rtol=2e-3, atol=1e-9, err_msg=name)


def gated(model: tf_keras.Model, x: tf.Tensor, places: dict, gates: dict) -> tf.Tensor:
    """The model in training mode with gates behind layers, without moving its statistics."""
    outputs: dict[str, tf.Tensor] = {}
    for layer in model.layers:
        node = layer.inbound_nodes[0]
        if node.is_input:
            outputs[layer.name] = x
            continue
        arguments = [outputs[t._keras_history.layer.name] for t in node.keras_inputs]
        value = arguments[0] if len(arguments) == 1 else arguments
        if isinstance(layer, layers.BatchNormalization):
            mean, variance = tf.nn.moments(value, [0, 1, 2])
            value = tf.nn.batch_normalization(
                value, mean, variance, layer.beta, layer.gamma, layer.epsilon
            )
        else:
            value = layer(value)
        if layer.name in places:
            value = value * gates[places[layer.name]]
        outputs[layer.name] = value
    return value


@pytest.mark.parametrize("name", ["residual", "criterion", "data", "loss", "model", "probe"])
def test_ranking_has_no_options_that_the_schedule_sets_itself(name: str) -> None:
    with pytest.raises(ValueError, match=rf"rank_options must be some of .*seed.*: '{name}'"):
        ehap.PruningCallback("magnitude", target_filters=2, rank_options={name: "tied"})


def test_ranking_has_every_other_option_of_rank_filters() -> None:
    names = set(inspect.signature(ehap.rank_filters).parameters)
    names -= {"model", "data", "loss", "criterion", "residual"}
    ehap.PruningCallback("magnitude", target_filters=2, rank_options=dict.fromkeys(names))


def test_a_ranking_that_cannot_be_judged_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="tolerance must be None for criterion 'obd_joint'"):
        ehap.PruningCallback(
            "obd_joint", target_filters=2, data=data(), rank_options={"tolerance": 0.1}
        )


def test_what_a_batch_norm_counts_of_a_removed_filter_does_not_matter() -> None:
    """A sigmoid makes 1/2 of a removed filter's zero, and the moving mean follows."""
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Dense(8, activation="sigmoid", name="hidden")(layers.Flatten()(x))
    x = layers.Dense(4, name="logits")(layers.BatchNormalization(name="bn")(x))
    model = compiled(shake(tf_keras.Model(inputs, x)))
    pruning = ehap.PruningCallback(target_filters=3, filters_per_step=3, frequency=2)
    model.fit(data(), callbacks=[pruning], verbose=0)
    dead = ~pruning.alive["hidden"]
    assert dead.sum() == 3 and model.get_layer("bn").moving_mean.numpy()[dead].all()
    x = next(iter(data()))[0]
    expected = np.asarray(model(x, training=False))
    assert relative_error(pruning.finalize()(x, training=False), expected) < ROUNDING
    bias = model.get_layer("hidden").bias
    bias.assign(np.where(dead, np.nan, bias))
    with pytest.raises(ValueError, match=r"not finite in .*hidden.*training has diverged"):
        pruning.finalize()


def test_keep_layers_takes_one_pattern() -> None:
    pruning = ehap.PruningCallback(
        target_filters=9, filters_per_step=9, frequency=1, keep_layers="e*"
    )
    compiled(net()).fit(data(8), callbacks=[pruning], verbose=0)
    assert pruning.alive["expand"].all() and pruning.reached


def test_another_criterion_ranks_on_the_callers_data() -> None:
    model = compiled(net())
    pruning = ehap.PruningCallback("magnitude", target_filters=5, filters_per_step=3, frequency=2)
    first = ehap.rank_filters(model, criterion="magnitude")
    model.optimizer.learning_rate.assign(0)
    model.fit(data(32), callbacks=[pruning], verbose=0)
    assert [figures["filters"] for figures in pruning.history] == [3, 5]
    free = [values for layer, values in first.items() if layer != "logits"]
    lowest = np.sort(np.concatenate(free))[:5]
    gone = [first[layer][~flags] for layer, flags in pruning.alive.items() if layer in first]
    np.testing.assert_allclose(np.sort(np.concatenate(gone)), lowest)
    with pytest.raises(ValueError, match="data must be given for criterion 'obd'"):
        ehap.PruningCallback("obd", target_macs=0.5)
    x, y = next(iter(data(16, 16)))
    pruning = ehap.PruningCallback(
        "obd", target_filters=2, filters_per_step=2, frequency=2, data=(x.numpy(), y.numpy()),
        rank_options={"estimator": "exact"},
    )  # fmt: skip
    model.fit(data(16), callbacks=[pruning], verbose=0)
    assert pruning.history[-1]["filters"] == 2


def test_float16_with_loss_scaling_and_several_steps_an_execution() -> None:
    model = small_residual_net()
    optimizer = tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.SGD(0.01, 0.9))
    model.compile(optimizer, LOSS, steps_per_execution=2)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8, 8, 3)), rng.integers(0, 4, 32)
    pruning = ehap.PruningCallback(target_macs=0.7, filters_per_step=2, frequency=4)
    model.fit(x, y, batch_size=4, epochs=2, callbacks=[pruning], verbose=0)
    assert pruning.history[0]["minibatch"] == 4
    slim = pruning.finalize()
    assert relative_error(slim(x, training=False), model(x, training=False)) < ROUNDING


def test_operators_are_scored_and_removed_like_the_layers_in_their_place() -> None:
    models, prunings = [compiled(net()), compiled(net(operators=True))], []
    models[1].set_weights(models[0].get_weights())
    for model in models:
        prunings.append(ehap.PruningCallback(target_filters=9, filters_per_step=3, frequency=2))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            model.fit(data(), callbacks=[prunings[-1]], verbose=0, shuffle=False)
    layer, operator = prunings
    assert operator.history == layer.history and operator.reached
    for name, flags in layer.alive.items():
        np.testing.assert_array_equal(operator.alive[name], flags)
    x = next(iter(data()))[0]
    expected = models[1](x, training=False)
    assert relative_error(operator.finalize()(x, training=False), expected) < ROUNDING


def test_what_cannot_be_scored_or_removed_stays_and_says_so() -> None:
    def sum_of(activation: str, scale: bool = True) -> tf_keras.Model:
        x = inputs = layers.Input((6, 6, 3))
        one = layers.Conv2D(4, 3, padding="same", name="one")(x)
        one = layers.Activation(activation, name="act")(
            layers.BatchNormalization(scale=scale, name="bn")(one)
        )
        two = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", name="two")(x))
        x = layers.Conv2D(5, 1, name="three")(layers.Add(name="sum")([one, two]))
        x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
        return compiled(shake(tf_keras.Model(inputs, x)))

    pruning = ehap.PruningCallback(target_filters=3, filters_per_step=2, frequency=1)
    model = sum_of("sigmoid")
    with pytest.warns(RuntimeWarning, match="one: 'act'"):
        model.fit(data(32), callbacks=[pruning], verbose=0)
    assert pruning.alive["one"].all() and pruning.reached
    x = next(iter(data()))[0]
    slim = pruning.finalize()
    assert relative_error(slim(x, training=False), model(x, training=False)) < ROUNDING
    with pytest.warns(RuntimeWarning, match="one: 'bn'"):
        sum_of("relu", scale=False).fit(
            data(8), callbacks=[ehap.PruningCallback(target_filters=1)], verbose=0
        )
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match=r"at most 7 filters can go.*'act'"),
    ):
        sum_of("sigmoid").fit(
            data(8), callbacks=[ehap.PruningCallback(target_filters=9)], verbose=0
        )


def test_models_and_arguments_that_are_refused() -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    pruning = ehap.PruningCallback(target_filters=1)
    with pytest.raises(TypeError, match="to_tf_keras"):
        model.fit(np.ones((4, 4)), np.ones((4, 2)), callbacks=[pruning], verbose=0)
    with pytest.raises(ValueError, match="knows no model yet"):
        pruning.finalize()
    with pytest.raises(ValueError, match="exactly one of"):
        ehap.PruningCallback(target_macs=0.5, target_params=0.5)
    with pytest.raises(ValueError, match=r"target_macs must be in \(0, 1\].*Received: 60"):
        ehap.PruningCallback(target_macs=60)
    with pytest.raises(ValueError, match="frequency must be a whole number"):
        ehap.PruningCallback(target_macs=0.5, frequency=0)
    with pytest.raises(ValueError, match="round_to must be a whole number"):
        ehap.PruningCallback(target_macs=0.5, round_to=0)
    with pytest.raises(ValueError, match=r"prune_ratio_limit must be in \[0, 1\]. Received: 95"):
        ehap.PruningCallback(target_macs=0.5, prune_ratio_limit=95)
    with pytest.raises(ValueError, match="residual must be one of union, tied"):
        ehap.PruningCallback(target_macs=0.5, residual="untied")
    with pytest.raises(ValueError, match=r"criterion must be one of .*obd.* Received: 'obdd'"):
        ehap.PruningCallback("obdd", target_macs=0.5, data=(np.ones((4, 4)), np.ones(4)))
    legacy = net()
    legacy.compile(tf_keras.optimizers.legacy.SGD(), LOSS)
    with pytest.raises(ValueError, match="legacy"):
        legacy.fit(data(8), callbacks=[ehap.PruningCallback(target_macs=0.5)], verbose=0)
    ftrl = net()
    ftrl.compile(tf_keras.optimizers.Ftrl(), LOSS)
    with pytest.raises(ValueError, match="Received: Ftrl"):
        ftrl.fit(data(8), callbacks=[ehap.PruningCallback(target_macs=0.5)], verbose=0)
    with pytest.warns(RuntimeWarning, match="target is not met"):
        pruning = ehap.PruningCallback(target_macs=0.5)
        compiled(net()).fit(data(8), callbacks=[pruning], verbose=0)
        pruning.finalize()


def test_a_target_that_is_not_met_says_why() -> None:
    model = compiled(net())
    pruning = ehap.PruningCallback(target_filters=20, filters_per_step=2, frequency=4)
    model.fit(data(64), callbacks=[pruning], verbose=0)
    with pytest.warns(RuntimeWarning, match="4 filters.* after 8 minibatches.*lower frequency"):
        pruning.finalize()
    # Reachable in one go from all filters, out of reach from those that the steps have left.
    pruning._begun._done = True
    with pytest.warns(RuntimeWarning, match="limits allow no more: raise prune_ratio_limit"):
        pruning.finalize()


def test_a_gate_that_ends_in_a_sigmoid_leaves_the_scoring_to_what_it_multiplies() -> None:
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    gate = layers.Dense(4, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 4))(gate)])
    x = layers.Dense(2, name="end")(layers.GlobalMaxPooling2D()(x))
    model = tf_keras.Model(inputs, x)
    terms = find_gate_terms(model, trace_channels(model))
    assert not terms.missing
    np.testing.assert_array_equal(terms.groups["conv"], terms.groups["gate"])
    norm = model.get_layer("bn")
    of_conv = [t for t in terms.terms if set(t.groups) == set(terms.groups["conv"])]
    (term,) = of_conv
    assert {id(weight) for weight, _ in term.weights} == {id(norm.gamma), id(norm.beta)}
