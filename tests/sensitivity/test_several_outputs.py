"""Models with several outputs: their curvature is the sum of what each output's loss has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from tests.sensitivity.networks import joined

layers = tf_keras.layers
losses = tf_keras.losses


def net(softmax: bool = False, named: bool = True) -> tf_keras.Model:
    """A convolution shared by a classifier and a regression; float64.

    The last layers have the names of the outputs only if `named`.
    """

    def draw(seed: int) -> Any:
        return tf_keras.initializers.RandomNormal(stddev=0.3, seed=seed)

    options: dict[str, Any] = {"dtype": "float64"}
    inputs = layers.Input((5, 5, 2), **options)
    x = layers.Conv2D(
        3, 3, activation="relu", kernel_initializer=draw(1), name="shared", **options
    )(inputs)
    x = layers.GlobalAveragePooling2D(**options)(x)
    digit = layers.Dense(
        4, activation="softmax" if softmax else None, kernel_initializer=draw(2),
        name="digit" if named else None,
        **options,
    )(x)  # fmt: skip
    ink = layers.Dense(2, kernel_initializer=draw(3), name="ink" if named else None, **options)(x)
    return tf_keras.Model(inputs, {"digit": digit, "ink": ink})


LOSSES = {"digit": losses.SparseCategoricalCrossentropy(from_logits=True), "ink": "mse"}


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return random.normal(size=(12, 5, 5, 2)), {
        "digit": np.arange(12) % 4,
        "ink": random.normal(size=(12, 2)),
    }


def only(model: tf_keras.Model, name: str) -> tf_keras.Model:
    return tf_keras.Model(model.inputs, model.get_layer(name).output)


def test_the_trace_is_the_sum_over_the_outputs(data):
    """The exact trace of each output alone, by the code for one output, is the oracle."""
    model, (x, y) = net(), data
    both = ehap.rank_filters(model, (x, y), LOSSES, estimator="exact")
    parts = [
        ehap.rank_filters(only(model, name), (x, y[name]), LOSSES[name], estimator="exact")
        for name in LOSSES
    ]
    np.testing.assert_allclose(
        both.trace["shared"], parts[0].trace["shared"] + parts[1].trace["shared"], rtol=1e-9
    )
    np.testing.assert_allclose(both.trace["digit"], parts[0].trace["digit"], rtol=1e-9)
    np.testing.assert_allclose(both.trace["ink"], parts[1].trace["ink"], rtol=1e-9)


def test_the_sketch_agrees_with_the_exact_trace(data):
    exact = ehap.rank_filters(net(), data, LOSSES, estimator="exact")
    sketch = ehap.rank_filters(net(), data, LOSSES, estimator="gauss_newton", probes=400)
    distance = np.abs(joined(sketch) - joined(exact))
    assert np.all(distance < 4 * joined(sketch.standard_error) + 1e-12)
    assert np.any(joined(exact) > 10 * joined(sketch.standard_error))


def test_losses_in_order_compiled_weighted_and_after_a_softmax(data):
    x, y = data
    options: dict[str, Any] = {"estimator": "gauss_newton", "probes": 8}
    expected = ehap.rank_filters(net(), data, LOSSES, **options)
    in_order = list(LOSSES.values())
    listed = ehap.rank_filters(net(), (x, list(y.values())), in_order, **options)
    from_probabilities = {**LOSSES, "digit": "sparse_categorical_crossentropy"}
    softmax = ehap.rank_filters(net(softmax=True), data, from_probabilities, **options)
    for scores in (listed, softmax):
        np.testing.assert_allclose(joined(scores), joined(expected), rtol=1e-9)
    model = net()
    model.compile("sgd", LOSSES, loss_weights={"digit": 1.0, "ink": 0.25})
    weighted = ehap.rank_filters(model, data, **options)
    np.testing.assert_allclose(weighted["digit"], expected["digit"], rtol=1e-9)
    np.testing.assert_allclose(weighted["ink"], expected["ink"] / 4, rtol=1e-9)


def test_outputs_in_a_dict_go_by_its_keys(data):
    expected = ehap.rank_filters(net(), data, LOSSES, estimator="exact")
    model = net(named=False)
    assert set(model.output_names).isdisjoint(LOSSES)
    found = ehap.rank_filters(model, data, LOSSES, estimator="exact")
    model.compile("sgd", LOSSES)
    compiled = ehap.rank_filters(model, data, estimator="exact")
    for scores in (found, compiled):
        np.testing.assert_allclose(joined(scores), joined(expected), rtol=1e-9)
    assert np.isfinite(model.evaluate(*data, verbose=0)).all()  # Keras takes the same
    with pytest.raises(ValueError, match=r"one for each output \(digit, ink\)"):
        ehap.rank_filters(model, data, dict.fromkeys(model.output_names, "mse"))
    one_hot = {**data[1], "digit": np.eye(4)[data[1]["digit"]]}
    with pytest.raises(ValueError, match="class numbers as labels"):
        ehap.rank_filters(model, (data[0], one_hot))


def test_one_compiled_loss_serves_every_output(data):
    x, y = data
    data = (x, {**y, "digit": np.eye(4)[y["digit"]]})
    expected = ehap.rank_filters(net(), data, {"digit": "mse", "ink": "mse"}, estimator="exact")
    model = net()
    for weights, factor in ((None, 1.0), (0.5, 0.5)):
        model.compile("sgd", "mse", loss_weights=weights)
        found = ehap.rank_filters(model, data, estimator="exact")
        np.testing.assert_allclose(joined(found), factor * joined(expected), rtol=1e-9)


def test_gates_and_gradients_of_several_outputs(data):
    """The gate curvature of the shared convolution is the sum of that of each output."""
    model, (x, y) = net(), data
    options: dict[str, Any] = {"criterion": "obd", "estimator": "exact"}
    both = ehap.rank_filters(model, data, LOSSES, **options)
    parts = [
        ehap.rank_filters(only(model, name), (x, y[name]), LOSSES[name], **options)
        for name in LOSSES
    ]
    np.testing.assert_allclose(both["shared"], parts[0]["shared"] + parts[1]["shared"], rtol=1e-9)
    first_order = ehap.rank_filters(model, data, LOSSES, criterion="taylor_fo")
    assert all(np.all(np.isfinite(values)) for values in first_order.values())


def cascade() -> tf_keras.Model:
    """A classifier whose probabilities another one reads."""
    options: dict[str, Any] = {"dtype": "float64", "activation": "softmax"}
    inputs = layers.Input((5, 5, 2), dtype="float64")
    x = layers.Conv2D(3, 3, activation="relu", dtype="float64", name="shared")(inputs)
    x = layers.GlobalAveragePooling2D(dtype="float64")(x)
    coarse = layers.Dense(4, name="coarse", **options)(x)
    x = layers.Concatenate(dtype="float64")([x, coarse])
    return tf_keras.Model(inputs, [coarse, layers.Dense(4, name="fine", **options)(x)])


def one_head_twice() -> tf_keras.Model:
    inputs = layers.Input((5, 5, 2), dtype="float64")
    x = layers.Conv2D(3, 3, activation="relu", dtype="float64", name="shared")(inputs)
    head = layers.Dense(4, activation="softmax", dtype="float64", name="head")
    ends = [
        head(pooling(dtype="float64")(x))
        for pooling in (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
    ]
    return tf_keras.Model(inputs, ends)


@pytest.mark.parametrize("build", [cascade, one_head_twice])
def test_probabilities_that_something_else_reads_stay_probabilities(build: Any, data: Any) -> None:
    """The Keras model's own losses, with filters removed by hand, are the oracle."""
    tf_keras.utils.set_random_seed(1)
    model, x = build(), data[0] * 3
    labels = [np.arange(12) % 4, np.arange(12)[::-1] // 3]
    found = ehap.rank_filters(
        model, (x, labels), ["sparse_categorical_crossentropy"] * 2, criterion="oracle"
    )

    def total() -> float:
        loss = losses.SparseCategoricalCrossentropy()
        return sum(float(loss(y, p)) for y, p in zip(labels, model(x), strict=True))

    kernel = model.get_layer("shared").kernel
    start, before, changes = kernel.numpy(), total(), []
    for column in range(3):
        kernel.assign(np.where(np.arange(3) == column, 0, start))
        changes.append(total() - before)
    np.testing.assert_allclose(found.signed["shared"], changes, rtol=1e-6)


def test_exact_goes_output_by_output_where_that_is_the_hessian(data):
    scores = ehap.rank_filters(net(), data, LOSSES, estimator="exact")
    assert scores.provenance.notes == ("equal to the Gauss-Newton trace",)
    as_functions = {"digit": by_hand(LOSSES["digit"]), "ink": by_hand(losses.mean_squared_error)}
    by_weight = ehap.rank_filters(net(), data, as_functions, estimator="exact")
    assert by_weight.provenance.notes == ("one product per weight",)
    np.testing.assert_allclose(joined(scores), joined(by_weight), rtol=1e-9)


def by_hand(loss: Any) -> Any:
    """The loss as a function whose form is not known."""
    function = getattr(loss, "call", loss)
    return lambda labels, outputs: function(labels, outputs)


def test_labels_in_a_row_for_an_output_of_one_number(data):
    x, y = data
    inputs = layers.Input((5, 5, 2), dtype="float64")
    pooled = layers.GlobalAveragePooling2D(dtype="float64")(inputs)
    ends = [layers.Dense(n, dtype="float64", name=name)(pooled) for n, name in ((4, "a"), (1, "b"))]
    model = tf_keras.Model(inputs, ends)
    row, column = (
        joined(ehap.rank_filters(model, (x, [y["digit"], ink]), list(LOSSES.values()), "oracle"))
        for ink in (y["ink"][:, 0], y["ink"][:, :1])
    )
    np.testing.assert_allclose(row, column, rtol=1e-12)


def test_the_model_stays_as_it_is(data):
    model = net()
    before = [len(layer.outbound_nodes) for layer in model.layers]
    ehap.rank_filters(model, data, LOSSES, estimator="gauss_newton", probes=1)
    assert [len(layer.outbound_nodes) for layer in model.layers] == before


def test_what_does_not_fit_is_said(data):
    x, y = data
    with pytest.raises(ValueError, match=r"one for each output \(digit, ink\).*Received: 'mse'"):
        ehap.rank_filters(net(), data, "mse")
    summed = {**LOSSES, "ink": losses.MeanSquaredError(reduction="sum")}
    with pytest.raises(ValueError, match="'ink' must be averaged"):
        ehap.rank_filters(net(), data, summed)
    with pytest.raises(ValueError, match="Gauss-Newton sketch"):
        ehap.rank_filters(net(), data, {**LOSSES, "ink": "mae"}, estimator="gauss_newton")
    wrong = (x, {**y, "digit": y["digit"] + 1})
    with pytest.raises(ValueError, match="labels must be in 0 to 3"):
        ehap.rank_filters(net(), wrong, LOSSES)
    probabilities = {**LOSSES, "digit": "sparse_categorical_crossentropy"}
    with pytest.raises(ValueError, match=r"expects probabilities.*from_logits=True"):
        ehap.rank_filters(net(), data, probabilities)
    with pytest.raises(ValueError, match=r"labels must be .*\(digit, ink\).*Received: digit"):
        ehap.rank_filters(net(), (x, {"digit": y["digit"]}), LOSSES)
    with pytest.raises(ValueError, match=r"labels must be .*Received: one array"):
        ehap.rank_filters(net(), (x, y["digit"]), LOSSES)
    weighted = (x, y, dict.fromkeys(y, np.ones(12)))
    with pytest.raises(ValueError, match=r"sample_weight must be one .*Received: dict of 2"):
        ehap.rank_filters(net(), weighted, LOSSES)
    with pytest.raises(ValueError, match=r"one input and one output\. Received: 1 and 2"):
        ehap.compress(net(), data, data, loss=LOSSES)


@pytest.mark.parametrize("named", [False, True], ids=["a tensor", "a dict of one"])
def test_labels_of_the_only_output_by_name(data, named):
    x, y = data[0], data[1]["digit"]
    model = only(net(), "digit")
    if named:
        model = tf_keras.Model(model.inputs, {"digit": model.outputs[0]})
    loss = LOSSES["digit"]
    model.compile("sgd", {"digit": loss})
    assert np.isfinite(model.evaluate(x, {"digit": y}, verbose=0))  # Keras takes the same
    for criterion in ("taylor_fo", "obd"):
        options: dict[str, Any] = {"criterion": criterion, "estimator": "exact"}
        expected = joined(ehap.rank_filters(model, (x, y), loss, **options))
        for labels in ({"digit": y}, [y]):
            found = ehap.rank_filters(model, (x, labels), {"digit": loss}, **options)
            np.testing.assert_array_equal(joined(found), expected)
    for labels in ({"ink": y}, {"digit": y, "ink": y}, [y, y]):
        with pytest.raises(ValueError, match=r"labels must be one array, .* output 'digit'"):
            ehap.rank_filters(model, (x, labels), loss)
    with pytest.raises(ValueError, match="labels must be in 0 to 3"):
        ehap.rank_filters(model, (x, {"digit": y + 1}), loss)


def test_a_loss_of_ones_own_takes_labels_in_a_structure(data):
    x, y = data[0], data[1]["digit"]
    model, loss = only(net(), "digit"), LOSSES["digit"]

    def weighed(labels: Any, logits: Any) -> Any:
        return loss.call(labels["class"], logits) * labels["weight"]

    labels = {"class": y, "weight": np.ones(len(y))}
    found = ehap.rank_filters(model, (x, labels), weighed, "taylor_fo")
    expected = ehap.rank_filters(model, (x, y), loss, "taylor_fo")
    np.testing.assert_allclose(joined(found), joined(expected), rtol=1e-12)


@pytest.mark.parametrize("form", ["list", "dict", "dict with None"])
def test_an_output_without_a_loss_is_left_out(data, form):
    """The others rank as they do in a model of their own, with the compiled weights."""
    model, (x, y) = net(named=True), data
    loss = {
        "list": [LOSSES["digit"], None],
        "dict": {"digit": LOSSES["digit"]},
        "dict with None": {"digit": LOSSES["digit"], "ink": None},
    }[form]
    arguments: dict[str, Any] = {"probes": 3, "estimator": "gauss_newton"}
    alone = ehap.rank_filters(only(model, "digit"), (x, y["digit"]), LOSSES["digit"], **arguments)
    model.compile("sgd", loss, loss_weights={"digit": 2.0})
    weights = np.ones(12)
    for labels, own, factor in ((y, None, 2.0), ([y["digit"], y["ink"]], loss, 1.0)):
        scores = ehap.rank_filters(model, (x, labels, weights), own, **arguments)
        assert list(scores) == ["shared", "digit"] == list(alone)
        for layer in alone:
            np.testing.assert_allclose(scores[layer], factor * alone[layer], rtol=1e-6)
    plan = ehap.plan_pruning(model, scores, prune_ratio=0.4)
    assert len(plan.kept["ink"]) == 2
    trained = ehap.finetune(model, (x, y), (x, y), epochs=1, learning_rate=0.1)
    few = ehap.finetune(model, (x, [y["digit"], None]), epochs=1, learning_rate=0.1)
    alike = ehap.finetune(model, (x, y), epochs=1, learning_rate=0.1)
    assert all(map(np.array_equal, few.get_weights(), alike.get_weights()))
    before, after = (m.get_layer("ink").get_weights() for m in (model, trained))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    kernels = [np.array(m.get_layer("digit").kernel) for m in (model, trained)]
    assert not np.array_equal(*kernels)
    with pytest.raises(ValueError, match="loss must be one for each output"):
        ehap.rank_filters(model, data, {"none": "mse"})


@pytest.mark.parametrize("loss", [[None, None], {"digit": None, "ink": None}])
def test_no_loss_of_any_output_is_said(data, loss):
    model = net()
    model.compile("sgd", loss)
    for given in (None, loss):
        with pytest.raises(ValueError, match="loss must be given when"):
            ehap.rank_filters(model, data, given, "taylor_fo")
        with pytest.raises(ValueError, match="loss must be given when"):
            ehap.finetune(model, data, epochs=1, loss=given)
