from __future__ import annotations

import functools
import logging
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf import criteria
from ehap_tf.files import CorruptFileError
from ehap_tf.sensitivity import criterion_names, oracle_importance, register_criterion
from ehap_tf.sensitivity.criteria import Result
from tests.fresh_processes import FreshProcesses
from tests.sensitivity.networks import cross_entropy, examples, joined, residual_net

layers = tf_keras.layers


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    return residual_net(dtype="float32")


def data() -> tuple[np.ndarray, np.ndarray]:
    x, y = examples()
    return x.astype(np.float32), y


def test_the_callers_things_stay_as_they_are(model: tf_keras.Model) -> None:
    model.compile("adam", cross_entropy())
    model.fit(*data(), verbose=0)
    weights = [w.copy() for w in model.get_weights()]
    state = [v.numpy().copy() for v in model.optimizer.variables]
    tf.random.set_seed(7)
    expected = tf.random.uniform([2]).numpy()
    tf.random.set_seed(7)
    scores = ehap.rank_filters(model, data(), precision="bf16", probes=2)  # the compiled loss
    np.testing.assert_array_equal(tf.random.uniform([2]).numpy(), expected)
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, variable in zip(state, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(before, variable.numpy())
    assert scores.precision == "bf16" and scores.probes == 2
    assert scores.seconds > 0 and scores.peak_bytes > 0
    assert scores.provenance.examples == 10
    assert list(scores) == ["first", "second", "classifier"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "size"}, r"criterion must be one of .*hessian_trace.*Received: 'size'"),
        ({"estimator": "guess"}, r"estimator must be one of hutchinson, gauss_newton, exact"),
        ({"precision": "fp8"}, r"precision must be one of fp32, fp16, bf16, auto"),
        ({"probes": 0}, "probes must be"),
        ({"probes": 2.5}, "probes must be"),
        ({"tolerance": 1.5}, "tolerance must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 2.5}, r"batch_size must be.*Received: 2\.5"),
        ({"batch_size": True}, "batch_size must be"),
        ({"loss": lambda y, p: tf.reduce_mean(p)}, r"one value per example.*Received: shape \(\)"),
        ({"loss": "mse"}, r"labels must have the shape of the outputs.*\(10,\).*\(10, 4\)"),
        ({"seed": -1}, "seed must be"),
        ({"loss": "no_such_loss"}, "loss must be"),
        ({"loss": None, "model": residual_net()}, "loss must be given"),
        ({"loss": "sparse_categorical_crossentropy"}, "from_logits=True"),
        ({"loss": "binary_crossentropy"}, "from_logits=True"),
        ({"data": None}, "data must be given"),
        ({"data": (examples()[0], np.full(10, 4))}, r"labels must be in 0 to 3"),
        ({"data": (examples()[0], np.full(10, -1))}, r"labels must be in 0 to 3"),
        ({"data": (np.full((2, 6, 6, 2), np.nan), np.zeros(2))}, "finite"),
        ({"data": (examples()[0], np.eye(4)[np.zeros(10, int)])}, "must hold class numbers"),
        ({"loss": "categorical_crossentropy"}, "must hold one-hot labels"),
        ({"data": (np.zeros((2, 6, 6, 3)), np.zeros(2))}, r"None, 6, 6, 2\).*\(2, 6, 6, 3\)"),
        (
            {"data": (np.zeros((2, 5, 6, 2)), np.zeros(2)), "criterion": "taylor_fo"},
            r"None, 6, 6, 2\).*\(2, 5, 6, 2\)",
        ),
        ({"estimator": "exact", "precision": "bf16"}, "estimator 'exact'"),
    ],
)
def test_bad_arguments(model: tf_keras.Model, arguments: dict[str, Any], message: str) -> None:
    given = {"model": model, "data": data(), "loss": cross_entropy(), "probes": 1} | arguments
    with pytest.raises(ValueError, match=message):
        ehap.rank_filters(**given)


def test_bad_models() -> None:
    class Subclassed(tf_keras.Model):
        pass

    with pytest.raises(TypeError, match="subclassed"):
        ehap.rank_filters(Subclassed(), data(), cross_entropy())
    broken = residual_net(dtype="float32")
    broken.get_layer("first").kernel.assign(broken.get_layer("first").kernel * np.nan)
    with pytest.raises(ValueError, match="NaN"):
        ehap.rank_filters(broken, data(), cross_entropy())
    huge = residual_net(dtype="float32")
    for name in ("first", "second", "classifier"):
        huge.get_layer(name).kernel.assign(huge.get_layer(name).kernel * 1e30)
    with pytest.raises(ValueError, match="finite outputs"):
        ehap.rank_filters(huge, data(), cross_entropy())
    twin = ehap.quantize(tf_keras.Sequential([layers.Input((4,)), layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"float model.*the model that quantize was given"):
        ehap.rank_filters(twin, (np.zeros((2, 4)), np.zeros(2)), cross_entropy())
    inputs = layers.Input((4,))
    two = tf_keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match="loss must be one for each output"):
        ehap.rank_filters(two, (np.zeros((2, 4)), np.zeros(2)), cross_entropy())
    nothing = tf_keras.Model(inputs, layers.ReLU()(inputs))
    with pytest.raises(ValueError, match="at least one convolution or Dense"):
        ehap.rank_filters(nothing, (np.zeros((2, 4)), np.zeros(2)), "mse")


def test_a_network_that_is_random_at_inference_is_refused() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Flatten()(layers.Dropout(0.5, name="restless")(inputs, training=True))
    model = tf_keras.Model(inputs, layers.Dense(4)(x))
    with pytest.raises(ValueError, match=r"same outputs.*'restless'"):
        ehap.rank_filters(model, data(), cross_entropy(), probes=1)


def test_small_outputs_hide_no_randomness() -> None:
    inputs = layers.Input((6, 6, 2))
    x = layers.Flatten()(layers.Dropout(0.5, name="restless")(inputs, training=True))
    small = tf_keras.initializers.RandomNormal(stddev=1e-8, seed=0)
    model = tf_keras.Model(inputs, layers.Dense(4, kernel_initializer=small)(x))
    with pytest.raises(ValueError, match="'restless'"):
        ehap.rank_filters(model, data(), cross_entropy(), probes=1)


def test_nan_labels_are_refused() -> None:
    inputs = layers.Input((4,))
    model = tf_keras.Model(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="loss must be finite"):
        ehap.rank_filters(model, (np.zeros((2, 4)), np.full((2, 2), np.nan)), "mse")


def test_criteria_without_data_take_none(model: tf_keras.Model) -> None:
    kernel = model.get_layer("second").kernel.numpy().reshape(-1, 3)
    l2 = ehap.rank_filters(model, criterion="magnitude")
    np.testing.assert_allclose(l2["second"], (kernel.astype(np.float64) ** 2).mean(axis=0))
    l1 = ehap.rank_filters(model, criterion="magnitude_l1")
    np.testing.assert_allclose(l1["second"], np.abs(kernel.astype(np.float64)).mean(axis=0))
    random = [joined(ehap.rank_filters(model, criterion="random", seed=s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(random[0], random[1])
    assert not np.array_equal(random[0], random[2])
    assert l2.estimator is None and l2.probes == 0 and not l2.standard_error


def test_a_custom_criterion_is_one_function(
    model: tf_keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "_CRITERIA", dict(criteria._CRITERIA))

    @register_criterion("range", needs_data=False)
    def kernel_range(request: Any) -> dict[str, np.ndarray]:
        return {
            layer.name: np.ptp(layer.kernel.reshape(-1, layer.filters), axis=0)
            for layer in request.layers
        }

    scores = ehap.rank_filters(model, criterion="range")
    assert scores["first"].shape == (3,) and "range" in criterion_names()
    with pytest.raises(ValueError, match="range"):
        register_criterion("range")

    @register_criterion("wrong", needs_data=False)
    def wrong(request: Any) -> dict[str, np.ndarray]:
        return {"first": np.zeros(2)}

    with pytest.raises(ValueError, match=r"3 scores for layer 'first'.*\(2,\)"):
        ehap.rank_filters(model, criterion="wrong")
    with pytest.raises(ValueError, match=r"for criterion 'range', which is not .* judged.*0\.1"):
        ehap.rank_filters(model, criterion="range", tolerance=0.1)
    # One that draws nothing at random takes any, as it takes any number of probes.
    register_criterion("narrow", needs_data=False, samples=False)(kernel_range)
    assert len(ehap.rank_filters(model, criterion="narrow", tolerance=0.1)) == len(scores)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, r"'mine' must return a Result.*Received: NoneType"),
        (np.zeros(10), TypeError, r"'mine' must return a Result.*Received: ndarray"),
        (Result(np.zeros(2)), ValueError, r"'mine' must give 10 numbers as scores.*shape \(2,\)"),
        (Result(np.zeros((10, 1))), ValueError, r"10 numbers as scores.*shape \(10, 1\)"),
        (Result(None), ValueError, "10 numbers as scores"),
        (Result({"first": np.zeros(3)}), TypeError, r"10 numbers as scores.*Received: dict"),
        (Result(np.zeros(10), trace=np.zeros(11)), ValueError, r"10 numbers as trace.*\(11,\)"),
        (Result(np.zeros(10), signed=np.zeros(3)), ValueError, r"10 numbers as signed.*\(3,\)"),
        ({"first": ["a", "b", "c"]}, TypeError, r"'mine' must give 3 scores.*Received: list"),
    ],
)
def test_what_a_custom_criterion_returns_is_checked(
    model: tf_keras.Model,
    monkeypatch: pytest.MonkeyPatch,
    result: Any,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(criteria, "_CRITERIA", dict(criteria._CRITERIA))
    register_criterion("mine", needs_data=False)(lambda request: result)
    with pytest.raises(error, match=message):
        ehap.rank_filters(model, criterion="mine")


def test_sixteen_bits_rank_as_thirty_two_do(
    model: tf_keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    arguments: dict[str, Any] = {"probes": 3, "batch_size": 6}
    for estimator in ("hutchinson", "gauss_newton"):
        arguments["estimator"] = estimator
        full = joined(ehap.rank_filters(model, data(), cross_entropy(), **arguments))
        for precision in ("fp16", "bf16"):
            scores = ehap.rank_filters(
                model, data(), cross_entropy(), precision=precision, **arguments
            )
            assert np.isfinite(joined(scores)).all()
            tolerance = 0.02 if precision == "fp16" else 0.1
            np.testing.assert_allclose(
                joined(scores), full, rtol=tolerance, atol=tolerance * np.abs(full).max()
            )
    if not tf.config.list_physical_devices("GPU"):
        said = [
            r for r in caplog.records if r.name.startswith("ehap_tf") and "float16" in r.message
        ]
        assert len(said) <= 1  # once in a process
        assert all(r.levelno == logging.WARNING for r in said)


def test_float16_repeats_what_overflows(model: tf_keras.Model) -> None:
    # Logits in the thousands: the scaled gradient overflows at the first loss scale.
    steep = tf_keras.models.clone_model(model)
    steep.set_weights(model.get_weights())
    kernel = steep.get_layer("first").kernel
    kernel.assign(kernel * 300)
    x, y = data()
    arguments: dict[str, Any] = {"probes": 2, "loss": "mse", "data": (x, np.eye(4)[y])}
    full = ehap.rank_filters(steep, **arguments)
    half = ehap.rank_filters(steep, precision="fp16", **arguments)
    assert "repeated" in half.provenance.notes[0]
    np.testing.assert_allclose(
        joined(half), joined(full), rtol=0.05, atol=0.05 * np.abs(joined(full)).max()
    )


@pytest.mark.parametrize("estimator", ["hutchinson", "gauss_newton"])
def test_float16_takes_micro_batches_without_weight(model: tf_keras.Model, estimator: str) -> None:
    x, y = examples(64)
    x, counts = x.astype(np.float32), (np.arange(64) < 32).astype(np.float32)
    arguments: dict[str, Any] = {
        "loss": cross_entropy(),
        "estimator": estimator,
        "precision": "fp16",
        "probes": 2,
        "batch_size": 32,
    }
    found = joined(ehap.rank_filters(model, (x, y, counts), **arguments))
    # The mean over 64 examples of a loss that is zero for half of them.
    expected = joined(ehap.rank_filters(model, (x[:32], y[:32]), **arguments)) / 2
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def draw(seed: int) -> Any:
    return tf_keras.initializers.RandomNormal(stddev=1.0, seed=seed)


def saturated_net() -> tuple[tf_keras.Model, np.ndarray, np.ndarray]:
    """Every example is so surely right that loss and curvature are zero; the inputs are large."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(3, 6, 6, 2))).astype(np.float32) * 1000
    inputs = layers.Input((6, 6, 2))
    found = layers.Conv2D(3, 3, activation="relu", kernel_initializer=draw(1))(inputs)
    found = layers.GlobalAveragePooling2D()(found)
    model = tf_keras.Model(inputs, layers.Dense(4, kernel_initializer=draw(2))(found))
    return model, x, np.argmax(model(x), axis=-1)


def test_float16_ends_where_there_is_no_curvature() -> None:
    model, x, y = saturated_net()
    arguments: dict[str, Any] = {"probes": 1, "batch_size": 1}
    with pytest.raises(FloatingPointError, match=r"float16 gives zero.*larger batch_size"):
        ehap.rank_filters(model, (x, y), cross_entropy(), precision="fp16", **arguments)


def test_a_loss_of_zero_is_right_in_float16() -> None:
    model, x, y = saturated_net()
    full, half = (
        ehap.rank_filters(model, (x, y), cross_entropy(), "oracle", precision=p, batch_size=1)
        for p in ("fp32", "fp16")
    )
    scale = joined(full).max()
    np.testing.assert_allclose(joined(half), joined(full), rtol=0.01, atol=0.01 * scale)


@pytest.mark.parametrize("compiled", [[3.0], {"classifier": 3.0}])
def test_the_weight_of_a_compiled_loss_counts(compiled: Any) -> None:
    model = residual_net()
    model.compile("sgd", cross_entropy(), loss_weights=compiled)
    for criterion in ("oracle", "obd", "taylor_fo"):
        arguments: dict[str, Any] = {"criterion": criterion, "probes": 2}
        plain = joined(ehap.rank_filters(model, examples(), cross_entropy(), **arguments))
        weighted = joined(ehap.rank_filters(model, examples(), **arguments))
        power = 2 if criterion == "taylor_fo" else 1
        np.testing.assert_allclose(weighted, plain * 3.0**power, rtol=1e-9)


def test_the_oracle_goes_on_from_its_checkpoint(
    model: tf_keras.Model, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehap_tf.sensitivity.single_removals.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("ehap_tf.sensitivity.criteria.oracle.TOGETHER", 3)
    path = tmp_path / "oracle.npz"
    whole = oracle_importance(model, data(), cross_entropy())

    class KilledError(Exception):
        pass

    def die(done: int, total: int, figures: Any) -> None:
        if done >= 6:
            raise KilledError

    with pytest.raises(KilledError):
        oracle_importance(model, data(), cross_entropy(), checkpoint=path, progress=die)
    counts: list[int] = []
    resumed = oracle_importance(
        model,
        data(),
        cross_entropy(),
        checkpoint=path,
        progress=lambda done, total, figures: counts.append(done),
    )
    assert counts == [9, 11] and not path.exists()
    np.testing.assert_allclose(joined(resumed.signed), joined(whole.signed), rtol=1e-6)
    path.write_bytes(b"nonsense")
    with pytest.raises(CorruptFileError, match=r"oracle\.npz"):
        oracle_importance(model, data(), cross_entropy(), checkpoint=path)


@pytest.mark.parametrize("changed", ["offset", "loss", "precision", "activation", "in bf16"])
def test_the_oracle_refuses_a_checkpoint_of_something_else(
    changed: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehap_tf.sensitivity.single_removals.SAVE_SECONDS", 0.0)
    model, path = residual_net(dtype="float32"), tmp_path / "oracle.npz"
    arguments: dict[str, Any] = {"loss": cross_entropy(), "checkpoint": path}
    if changed == "in bf16":
        arguments["precision"] = "bf16"

    def stop(done: int, total: int, figures: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oracle_importance(model, data(), progress=stop, **arguments)
    if changed == "offset":
        norm = next(x for x in model.layers if isinstance(x, layers.BatchNormalization))
        norm.beta.assign_add([1.0, 2.0, 3.0])
    elif changed == "loss":
        arguments["loss"] = tf_keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="sum"
        )
    elif changed == "precision":
        arguments["precision"] = "bf16"
    else:
        model = residual_net("gelu", dtype="float32")  # the same names and weights
    with pytest.raises(ValueError, match="same model, data, loss and precision"):
        oracle_importance(model, data(), **arguments)


def focal(labels: tf.Tensor, logits: tf.Tensor, gamma: float) -> tf.Tensor:
    right = tf.gather(tf.nn.softmax(logits), tf.cast(labels, tf.int32), batch_dims=1)
    return -((1 - right) ** gamma) * tf.math.log(right)


class Focal(tf_keras.losses.Loss):
    """Its settings are not in its configuration."""

    def __init__(self, gamma: float) -> None:
        super().__init__(name="focal")
        self.gamma = gamma

    def call(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return focal(labels, logits, self.gamma)


def test_a_loss_class_of_ones_own_takes_the_labels_that_it_wants(model: tf_keras.Model) -> None:
    losses = (Focal(2.0), functools.partial(focal, gamma=2.0))
    one, other = (ehap.rank_filters(model, data(), loss, "taylor_fo") for loss in losses)
    np.testing.assert_allclose(joined(one), joined(other), rtol=1e-6)


@pytest.mark.parametrize(
    "make", [Focal, lambda g: functools.partial(focal, gamma=g), lambda g: lambda *a: focal(*a, g)]
)
def test_the_oracle_goes_on_in_other_batches_but_not_with_another_loss(
    make: Any, model: tf_keras.Model, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ehap_tf.sensitivity.single_removals.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("ehap_tf.sensitivity.criteria.oracle.TOGETHER", 3)
    path = tmp_path / "oracle.npz"

    def stop(done: int, total: int, figures: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oracle_importance(model, data(), make(2.0), batch_size=7, checkpoint=path, progress=stop)
    with pytest.raises(ValueError, match="same model, data, loss and precision"):
        oracle_importance(model, data(), make(2.1), batch_size=7, checkpoint=path)
    counts: list[int] = []
    resumed = oracle_importance(
        model,
        data(),
        make(2.0),
        batch_size=4,
        checkpoint=path,
        progress=lambda done, total, figures: counts.append(done),
    )
    assert counts[0] == 6
    whole = oracle_importance(model, data(), make(2.0))
    np.testing.assert_allclose(joined(resumed.signed), joined(whole.signed), rtol=1e-4)


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import ehap_tf as ehap
from tests.sensitivity.networks import cross_entropy, examples, joined, residual_net
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
model, data = residual_net(), examples(21)
for criterion, estimator, probes, size in [
    ("hessian_trace", "hutchinson", 5, 8),
    ("hessian_trace", "hutchinson", 1, 8),
    ("hessian_trace", "gauss_newton", 5, 8),
    ("hessian_trace", "exact", 5, None),
    ("quadratic", "gauss_newton", 5, 8),
    ("oracle", "hutchinson", 1, 8),
]:
    one, two = (
        ehap.rank_filters(model, data, cross_entropy(), criterion, estimator, probes=probes,
                          batch_size=size, strategy=s) for s in (None, strategy))
    np.testing.assert_allclose(joined(two), joined(one), rtol=1e-9, atol=1e-14)
    assert two.probes == one.probes
print("same")
"""


def test_two_devices_give_the_scores_of_one(fresh_processes: FreshProcesses) -> None:
    done = fresh_processes.run(REPLICAS)
    assert done.stdout.strip() == "same", done.stderr[-3000:]


def test_strategy_has_to_be_one(model: tf_keras.Model) -> None:
    with pytest.raises(TypeError, match="strategy must be"):
        ehap.rank_filters(model, data(), cross_entropy(), strategy="mirrored")  # type: ignore[arg-type]
