import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.pipeline import compress
from ehap_tf.pipeline.training import finetuning

CLASSES = 3


@pytest.fixture(scope="module")
def data():
    """Images whose class is the brightest channel: a small network learns that in a few steps."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, 384)
    images = random.normal(size=(384, 8, 8, CLASSES)).astype(np.float32)
    images[np.arange(384), :, :, labels] += 1.0
    return (images[:256], labels[:256]), (images[256:], labels[256:])


@pytest.fixture(scope="module")
def model(data):
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, CLASSES)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(0.05, momentum=0.9), loss, ["accuracy"])
    model.fit(*data[0], epochs=5, batch_size=32, verbose=0)
    return model


OPTIONS = {
    "target_params": 0.5, "criterion": "magnitude", "finetune_epochs": 2, "qat_epochs": 1,
    "batch_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def compressed(model, data, tmp_path_factory):
    """What `compress` gives, and the weights and optimizer that the model had before."""
    before = model.get_weights(), model.optimizer
    path = tmp_path_factory.mktemp("compressed") / "small.tflite"
    return ehap.compress(model, *data, path=path, **OPTIONS), path, *before


@pytest.mark.slow
def test_one_call_from_a_trained_model_to_the_integer_file(model, data, compressed):
    result, path, weights, optimizer = compressed
    report = result.report
    assert report["params_after"] <= 0.5 * report["params_before"]
    assert ehap.count_parameters(result.model) == report["params_after"] == result.plan.params_after
    assert report["tflite_accuracy"] >= 0.95 and report["tflite_float_ops"] == 0
    assert report["tflite_accuracy"] == ehap.evaluate_tflite(path, data[1])
    assert result.tflite.path == path and path.stat().st_size == report["tflite_bytes"]
    assert model.optimizer is optimizer
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_activations_of_16_bits_or_why_not(model, data, tmp_path, eagerly, monkeypatch):
    options = {**OPTIONS, "finetune_epochs": 0, "activation_bits": 16}
    result = ehap.compress(model, *data, path=tmp_path / "net.tflite", **options)
    assert result.tflite.input.dtype == result.tflite.output.dtype == "int16"
    assert result.report["tflite_accuracy"] >= 0.95 and not result.tflite.float_ops

    def too_late(*args, **kwargs):
        raise AssertionError("ranked before the operators were looked at")

    monkeypatch.setattr("ehap_tf.pipeline.compress.rank_filters", too_late)
    normed = tf_keras.Sequential(
        [
            tf_keras.layers.Input((8, 8, CLASSES)),
            tf_keras.layers.Conv2D(8, 3),
            tf_keras.layers.LayerNormalization(),
            tf_keras.layers.GlobalAveragePooling2D(),
            tf_keras.layers.Dense(CLASSES),
        ]
    )
    normed.compile("sgd", model.loss)
    with pytest.raises(ValueError, match=r"8-bit activations only: RSQRT\."):
        ehap.compress(normed, *data, path=tmp_path / "normed.tflite", **options)


@pytest.mark.slow
def test_one_hot_labels_do_what_class_numbers_do(model, data, compressed, tmp_path, eagerly):
    numbers = compressed[0]
    one_hot = ehap.compress(
        model,
        *((x, np.eye(CLASSES)[y]) for x, y in data),
        path=tmp_path / "one_hot.tflite",
        loss=tf_keras.losses.CategoricalCrossentropy(from_logits=True),
        **OPTIONS,
    )
    for figure in ("baseline_accuracy", "pruned_accuracy", "tflite_accuracy"):
        assert one_hot.report[figure] == pytest.approx(numbers.report[figure], abs=0.01)
    assert len(repr(one_hot)) < 300 and f"{one_hot.tflite.bytes:,} bytes" in repr(one_hot)


def segmentation(end=lambda y: y):
    """An untrained classifier of every pixel."""
    layers = tf_keras.layers
    inputs = layers.Input((8, 8, CLASSES))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return tf_keras.Model(inputs, end(layers.Conv2D(CLASSES, 1, name="pixels")(x)))


@pytest.mark.parametrize("form", ["numbers", "column", "one-hot"])
def test_accuracy_counts_every_position(data, form):
    x = data[1][0]
    net = segmentation()
    said = net.predict(x, verbose=0).argmax(-1)
    pixels = np.where(np.random.default_rng(0).random(said.shape) < 0.25, (said + 1) % 3, said)
    labels = {"numbers": pixels, "column": pixels[..., None], "one-hot": np.eye(CLASSES)[pixels]}
    assert compress.accuracy_on(net, (x, labels[form])) == np.mean(said == pixels)


@pytest.mark.slow
def test_examples_without_weight_do_not_count(model, data, tmp_path):
    """A half of both sets, with wrong labels, weighs nothing."""

    def half_wrong(x, y):
        weights = (np.arange(len(y)) % 2).astype(np.float32)
        return x, np.where(weights > 0, y, (y + 1) % CLASSES), weights

    train, validation = (half_wrong(*pair) for pair in data)
    options = {**OPTIONS, "finetune_epochs": 3, "qat_epochs": 0}
    report = ehap.compress(model, train, validation, path=tmp_path / "n.tflite", **options).report
    for stage in ("baseline", "finetuned", "tflite"):
        assert report[f"{stage}_accuracy"] > 0.9, stage
    unweighted = compress.accuracy_on(model, validation[:2])
    assert unweighted < 0.6


def test_accuracy_of_an_output_in_a_dict(model, data):
    x, y = data[1]
    named = tf_keras.Model(model.input, {"logits": model.output})
    muddled = np.where(np.arange(len(y)) % 4 == 0, (y + 1) % CLASSES, y)
    expected = compress.accuracy_on(model, (x, muddled))
    assert 0.7 < expected < 0.8
    for labels in (muddled, {"logits": muddled}):
        assert compress.accuracy_on(named, (x, labels)) == expected
    with pytest.raises(ValueError, match=r"labels must be one array\. Received: 2 arrays"):
        compress.accuracy_on(named, (x, {"logits": y, "more": y}))


@pytest.mark.slow
@pytest.mark.parametrize("named", ["key", pytest.param("layer", marks=pytest.mark.families)])
def test_a_segmentation_whose_loss_goes_by_the_name_of_the_output(data, tmp_path, named):
    tf_keras.utils.set_random_seed(0)
    if named == "layer":
        net, name = segmentation(), "pixels"
    else:
        net, name = segmentation(lambda y: {"logits": y}), "logits"
    loss = {name: tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    net.compile(tf_keras.optimizers.SGD(0.1), loss, loss_weights={name: 0.5})
    pairs = [(x, x.argmax(-1)) for x, _ in data]
    train, test = [(x, {name: y}) for x, y in pairs] if named == "key" else pairs
    net.fit(*train, epochs=40, batch_size=32, verbose=0)
    result = ehap.compress(
        net, train, test, path=tmp_path / "net.tflite", prune_ratio=0.25, probes=4,
        finetune_epochs=2, qat_epochs=1, batch_size=32,
    )  # fmt: skip
    report = result.report
    assert 0.9 < report["tflite_accuracy"] == ehap.evaluate_tflite(tmp_path / "net.tflite", test)
    for stage in ("baseline", "finetuned", "qat"):
        assert report[f"{stage}_accuracy"] == pytest.approx(report["tflite_accuracy"], abs=0.05)


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (None, TypeError, "validation_data must be a pair"),
        ((np.zeros((4, 7, 8, CLASSES)), np.zeros(4)), ValueError, r"validation_data.*\(4, 7, 8"),
        ((np.zeros((4, 8, 8, CLASSES)), np.eye(4)[:, :3]), ValueError, "validation_data.*argmax"),
    ],
    ids=["none", "shape", "one-hot"],
)
def test_validation_data_are_looked_at_first(
    model, data, tmp_path, monkeypatch, validation, error, message
):
    monkeypatch.setattr("ehap_tf.pipeline.compress.rank_filters", None)
    with pytest.raises(error, match=message):
        ehap.compress(model, data[0], validation, path=tmp_path / "small.tflite")


def with_a_threshold():
    layers = tf_keras.layers
    inputs = layers.Input((8, 8, CLASSES))
    x = layers.ThresholdedReLU(0.3, name="threshold")(layers.Conv2D(8, 3)(inputs))
    return tf_keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def test_a_layer_without_integer_kernel_is_noticed_first(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("ehap_tf.pipeline.compress.rank_filters", None)
    with pytest.raises(
        ValueError, match=r"threshold.* not supported in integers.*allow_float=True"
    ):
        ehap.compress(with_a_threshold(), *data, path=tmp_path / "small.tflite", loss=model.loss)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_layer_without_integer_kernel_may_stay_in_float(model, data, tmp_path):
    result = ehap.compress(
        with_a_threshold(), *data, path=tmp_path / "small.tflite", loss=model.loss,
        target_params=0.9, criterion="magnitude", finetune_epochs=0, qat_epochs=0, allow_float=True,
        force=True,
    )  # fmt: skip
    assert result.tflite.float_operators
    assert result.report["tflite_float_ops"] == len(result.tflite.float_operators)


def test_finetune_refuses_labels_of_the_other_kind(model, data):
    (x, y), _ = data
    with pytest.raises(ValueError, match=r"train_data must hold class numbers.*argmax"):
        ehap.finetune(model, (x, np.eye(CLASSES)[y]), epochs=1)


def untrained(model):
    """The same initial weights whatever tests ran before."""
    tf_keras.utils.set_random_seed(0)
    return tf_keras.models.clone_model(model)


@pytest.mark.parametrize("several", [False, True])
def test_arrays_sorted_by_class_are_mixed(several):
    y = np.repeat([0, 1], 200)
    x = [np.arange(400.0), 2.0 * np.arange(400.0)] if several else np.arange(400.0)
    epochs = []
    batches = finetuning.shuffled_batches((x, y), 50)
    for _ in range(2):
        inputs, labels = next(iter(batches))
        first = np.asarray(inputs[0] if several else inputs)
        assert 0.2 < np.mean(labels) < 0.8
        np.testing.assert_array_equal(labels, first >= 200)
        epochs.append(first)
    assert (epochs[0] != epochs[1]).any()
    drawn, labels = compress._drawn((x, y), 64, seed=0)
    first = drawn[0] if several else drawn
    assert 0.3 < labels.mean() < 0.7 and len(set(first)) == 64
    np.testing.assert_array_equal(labels, first >= 200)


def test_lists_of_numbers_are_drawn_from_and_trained_on():
    x, y = np.random.default_rng(0).normal(size=(64, 4)), np.arange(64) % 2
    for found, expected in zip(
        compress._drawn((x.tolist(), y.tolist()), 16, seed=0),
        compress._drawn((x, y), 16, seed=0),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    net = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(1)])
    lists, arrays = (
        ehap.finetune(net, pair, pair, epochs=1, loss="mse", batch_size=16)
        for pair in ((x.tolist(), y.tolist()), (x, y))
    )
    np.testing.assert_array_equal(lists.get_weights()[0], arrays.get_weights()[0])


def test_a_path_that_cannot_be_written_is_noticed_first(model, data, tmp_path):
    with pytest.raises(IsADirectoryError):
        ehap.compress(model, *data, path=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finetune_returns_a_trained_copy(model, data):
    random = untrained(model)
    before = random.get_weights()
    trained = ehap.finetune(random, *data, epochs=5, loss=model.loss, batch_size=32)
    assert trained is not random
    for a, b in zip(before, random.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    scores = trained.evaluate(*data[1], verbose=0, return_dict=True)
    assert scores["accuracy"] > 0.9


def test_a_dataset_keeps_its_batches(model, data):
    stream = tf.data.Dataset.from_tensor_slices(data[0]).batch(32)
    one, other = (
        ehap.finetune(untrained(model), stream, epochs=1, loss=model.loss, batch_size=size)
        for size in (8, 256)
    )
    for before, after in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def two_outputs():
    inputs = tf_keras.layers.Input((4,))
    ends = {name: tf_keras.layers.Dense(1, name=f"{name}_layer")(inputs) for name in "ab"}
    return tf_keras.Model(inputs, ends)


@pytest.mark.parametrize(
    ("weights", "compiled"),
    [({"a": 1.0, "b": 0.0}, True), ([1.0, 0.0], False)],
    ids=["compiled", "given"],
)
def test_loss_weights_say_which_output_trains(weights, compiled):
    net, x = two_outputs(), np.ones((8, 4))
    data, losses = (x, {"a": 9.0 * x[:, :1], "b": 9.0 * x[:, :1]}), {"a": "mse", "b": "mse"}
    net.compile("sgd", losses, loss_weights=weights if compiled else [0.0, 0.0])
    options = {} if compiled else {"loss_weights": weights}
    trained = ehap.finetune(net, data, data, epochs=2, **options)
    changed = [
        (trained.get_layer(f"{name}_layer").kernel != net.get_layer(f"{name}_layer").kernel)
        for name in "ab"
    ]
    assert np.all(changed[0]) and not np.any(changed[1])
    own_loss = ehap.finetune(net, data, epochs=1, loss=losses)  # as `rank_filters` takes it
    assert np.all(own_loss.get_layer("b_layer").kernel != net.get_layer("b_layer").kernel)


@pytest.mark.parametrize("weights", [[1.0], {"a": 1.0, "c": 2.0}])
def test_loss_weights_of_other_outputs_are_refused(weights):
    x = np.ones((8, 4))
    data, losses = (x, {"a": x[:, :1], "b": x[:, :1]}), {"a": "mse", "b": "mse"}
    with pytest.raises(ValueError, match=r"loss_weights must be .*\(a, b\).*Received: "):
        ehap.finetune(two_outputs(), data, loss=losses, loss_weights=weights)


def test_finetune_takes_an_activation_of_the_users_own(data):
    layers = tf_keras.layers
    inputs = layers.Input((8, 8, CLASSES))
    x = layers.Conv2D(4, 3, activation=lambda x: tf.nn.relu(x) ** 2)(inputs)
    model = tf_keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained = ehap.finetune(model, data[0], epochs=1, loss=loss)
    assert np.isfinite(trained.predict(data[1][0], verbose=0)).all()


def test_finetune_keeps_the_best_validation_weights(model, data):
    """Validation labels that contradict what is learnt: the loss on them rises with every epoch."""
    (x, y), _ = data
    fresh, contrary = untrained(model), (x, (y + 1) % CLASSES)
    options = {"epochs": 5, "learning_rate": 0.05, "loss": model.loss, "batch_size": 32}
    best = ehap.finetune(fresh, data[0], contrary, **options)
    last = ehap.finetune(fresh, data[0], **options)
    best_loss, last_loss = (recompiled(m).evaluate(*contrary, verbose=0) for m in (best, last))
    assert best_loss < 0.9 * last_loss


def test_finetune_that_only_worsens_leaves_the_weights(model, data):
    """The model is compared as it was, too: every epoch here is worse."""
    (x, y), test = data
    contrary = (x, (y + 1) % CLASSES)
    same = ehap.finetune(model, contrary, test, epochs=2, learning_rate=0.05, batch_size=32)
    for before, after in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_quantized_training_keeps_the_weights_of_the_best_accuracy(model, data):
    """Two fifths of the labels are wrong: the loss rises while the others are learnt."""
    (x, y), _ = data
    muddled = (x, np.where(np.arange(len(x)) % 5 < 2, (y + 1) % CLASSES, y))
    options = {"loss": model.loss, "batch_size": 32, "verbose": 0}
    accuracies = []
    for quantized in (True, False):
        fresh = untrained(model)
        finetuning.fit_best(fresh, data[0], muddled, 5, 0.05, quantized=quantized, **options)
        accuracies.append(compress.accuracy_on(fresh, muddled))
    assert accuracies[0] > 0.55 > accuracies[1]


def test_among_equal_accuracies_the_loss_decides(model):
    network = untrained(model)
    best = finetuning.BestWeights(by_accuracy=True)
    best.set_model(network)
    for number, figures in enumerate([(0.5, 0.8), (0.6, 0.9), (0.4, 0.9), (0.45, 0.9), (0.1, 0.7)]):
        network.set_weights([np.full_like(w, number) for w in network.get_weights()])
        best.offer(dict(zip(("loss", "accuracy"), figures, strict=True)))
    assert best.weights[0].max() == 2


def recompiled(model):
    model.compile(loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_no_loss_is_known(model, data):
    bare = tf_keras.models.clone_model(model)
    with pytest.raises(ValueError, match=r"loss must be given .*SparseCategorical"):
        ehap.finetune(bare, data[0])
    with pytest.raises(ValueError, match=r"loss must be given .*SparseCategorical"):
        ehap.compress(bare, *data)


def test_a_diverging_loss_is_an_error(model, data):
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        ehap.finetune(model, data[0], epochs=1, loss=lambda y, p: tf.reduce_sum(p) * np.nan)


def test_weights_that_diverge_unseen_by_the_loss_are_an_error(model, data):
    """oneDNN's ReLU turns NaN into 0, so that a network of NaN can have a finite loss."""
    (x, y), _ = data
    poisoned = np.where(np.arange(len(x)) == 100, np.nan, 1.0)[:, None, None, None] * x
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        ehap.finetune(model, (poisoned.astype(np.float32), y), epochs=1)


def test_endless_data_is_refused(model, data):
    endless = tf.data.Dataset.from_tensor_slices(data[0]).batch(32).repeat()
    with pytest.raises(ValueError, match="endless"):
        ehap.finetune(model, endless)


def test_a_stream_that_does_not_end_is_refused(model, data, tmp_path, monkeypatch):
    def examples():
        while True:
            yield data[0][0][:32], data[0][1][:32]

    endless = tf.data.Dataset.from_generator(
        examples, output_signature=(tf.TensorSpec((32, 8, 8, CLASSES)), tf.TensorSpec(32, tf.int64))
    )
    monkeypatch.setattr("ehap_tf.data.arrays.ENDLESS", 64)
    monkeypatch.setattr("ehap_tf.pipeline.compress.rank_filters", None)
    for name, pair in (
        ("train_data", (endless, data[1])),
        ("validation_data", (data[0], endless)),
    ):
        with pytest.raises(ValueError, match=f"{name} must end.*more than 64 examples"):
            ehap.finetune(model, *pair)
        with pytest.raises(ValueError, match=f"{name} must end.*more than 64 examples"):
            ehap.compress(model, *pair, path=tmp_path / "small.tflite")


def test_several_inputs_or_outputs_are_refused_at_once(data, tmp_path):
    (x, y), test = data
    one, other = (tf_keras.layers.Input((8, 8, CLASSES)) for _ in range(2))
    total = tf_keras.layers.GlobalAveragePooling2D()(tf_keras.layers.Add()([one, other]))
    model = tf_keras.Model([one, other], tf_keras.layers.Dense(CLASSES)(total))
    path = tmp_path / "file.tflite"
    with pytest.raises(ValueError, match=r"one input and one output\. Received: 2 and 1; "):
        ehap.compress(model, ([x, x], y), ([x, x], y), path=path, loss="mse")
    with pytest.raises(ValueError, match=r"one input and one output\. Received: 1 and 2; "):
        ehap.compress(tf_keras.Model(one, [one, one]), data[0], test, path=path, loss="mse")


def test_a_subclassed_model_is_refused(data):
    class Mine(tf_keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="subclass"):
        ehap.finetune(Mine(), data[0], loss="mse")


def test_examples_of_weight_zero_are_as_if_they_were_not_there(model, data):
    """Keras divides by the number of all examples, so twice the rate gives the same steps."""
    x, y = data[0][0][:128], data[0][1][:128]
    twice, wrong = np.r_[x, x], np.r_[y, (y + 1) % CLASSES]
    weighted = (twice, wrong, np.r_[np.ones(128), np.zeros(128)])
    start = recompiled(untrained(model))
    got = ehap.finetune(start, weighted, epochs=3, learning_rate=0.1, batch_size=256)
    expected = ehap.finetune(start, (x, y), epochs=3, learning_rate=0.05, batch_size=128)
    for one, other in zip(got.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    right = compress.accuracy_on(got, (x, y))
    assert compress.accuracy_on(got, weighted) == right > compress.accuracy_on(got, (twice, wrong))
    slim = ehap.recalibrate(start, weighted, batches=1)
    assert slim.count_params() == start.count_params()
    with pytest.raises(ValueError, match="sample_weight must be finite and not negative"):
        ehap.finetune(start, (x, y, -np.ones(128)), epochs=1)
