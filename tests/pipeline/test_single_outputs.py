"""Classifiers with a single output, and with labels that do not exclude each other."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.data import load_dataset
from ehap_tf.models import Readout
from ehap_tf.pipeline.command import runner
from ehap_tf.pipeline.command.config import PipelineConfig

L = tf_keras.layers


@pytest.fixture(scope="module")
def digits():
    """Grey images of 16x16 pixels of 0 to 255, and their class numbers, shuffled."""
    split = load_dataset("digits", shape=(16, 16, 1)).train
    order = np.random.default_rng(0).permutation(len(split))
    return split.images[order], split.labels[order]


def trained(images, labels, outputs, activation, epochs=6):
    model = tf_keras.Sequential(
        [
            L.Input(images.shape[1:]),
            L.Rescaling(1 / 255),
            L.Conv2D(8, 3, 2, activation="relu"),
            L.Conv2D(12, 3, activation="relu"),
            L.Flatten(),
            L.Dense(outputs, activation=activation),
        ]
    )
    loss = tf_keras.losses.BinaryCrossentropy(from_logits=activation is None)
    model.compile(tf_keras.optimizers.Adam(0.005), loss)
    if epochs:
        model.fit(images.astype(np.float32), labels, 32, epochs=epochs, verbose=0)
    return model


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_single_output_goes_through_the_command(digits, tmp_path, activation):
    images, labels = digits
    for name, which in (("large", 7), ("small", 1)):
        for number, image in enumerate(images[labels == which]):
            path = tmp_path / "images" / name / f"{number}.png"
            tf.io.write_file(str(path), tf.io.encode_png(image))
    chosen = np.isin(labels, [1, 7])
    model = trained(images[chosen], labels[chosen] == 1, 1, activation)
    model.save(tmp_path / "binary.keras")
    config = PipelineConfig(
        model=str(tmp_path / "binary.keras"), dataset=f"folder:{tmp_path / 'images'}",
        output_dir=str(tmp_path / "run"), criterion="obd", estimator="gauss_newton", probes=2,
        hessian_batch_size=32, target_macs=0.7, repair_images=64, finetune_epochs=1, qat_epochs=1,
        learning_rate=0.02, precision="fp32", train_precision="fp32", verbosity=0,
    )  # fmt: skip
    records = runner.run(config)
    assert records["train"].figures["normalization"] == "none"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    test = load_dataset(config.dataset, shape=(16, 16, 1)).test
    said = model.predict(test.images.astype(np.float32), verbose=0)[:, 0]
    own = ((said > (0.5 if activation else 0.0)) == test.labels).mean()
    assert report["baseline_accuracy"] == pytest.approx(own) and own > 0.9
    for stage in ("finetuned", "qat", "tflite"):
        assert report[f"{stage}_accuracy"] > 0.85
    assert report["macs_after"] <= 0.7 * report["macs_before"]
    content = json.loads((tmp_path / "run" / "model_int8.tflite.json").read_text())
    assert content["labels"] == ["large", "small"]


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("single", "sigmoid"), ("single column", None), ("multi-label", "sigmoid")],
)
def test_compress_takes_single_outputs_and_labels_for_each(digits, tmp_path, kind, activation):
    images, numbers = digits
    images = images.astype(np.float32)
    labels = {
        "single": numbers >= 5,
        "single column": (numbers >= 5)[:, None],
        "multi-label": np.stack([numbers >= 5, numbers % 2 == 0, numbers % 3 == 0], axis=1),
    }[kind].astype(np.int64)
    model = trained(images, labels, 3 if kind == "multi-label" else 1, activation, epochs=10)
    part, held = (images[:900], labels[:900]), (images[900:], labels[900:])
    result = ehap.compress(
        model, part, held, path=tmp_path / "small.tflite", target_macs=0.6, probes=2,
        rank_examples=64, repair_images=64, finetune_epochs=1, qat_epochs=1, learning_rate=0.01,
    )  # fmt: skip
    threshold = 0.5 if activation else 0.0
    said = model.predict(held[0], verbose=0).reshape(held[1].shape) > threshold
    assert result.report["baseline_accuracy"] == pytest.approx((said == held[1]).mean())
    assert result.report["baseline_accuracy"] > 0.85
    for stage in ("finetuned", "qat", "tflite"):
        assert result.report[f"{stage}_accuracy"] > 0.8
    file = ehap.evaluate_tflite(tmp_path / "small.tflite", held, threshold=threshold)
    assert file == result.report["tflite_accuracy"]


def test_chance_is_that_of_the_data(digits, tmp_path):
    images, numbers = digits
    model = trained(images[:64], numbers[:64] >= 5, 1, "sigmoid", epochs=0)
    data = images[:300].astype(np.float32), (numbers[:300] >= 5).astype(int)
    with pytest.raises(ValueError, match=r"no better than chance on validation_data.*force=True"):
        ehap.compress(model, data, data, path=tmp_path / "small.tflite")


def test_a_single_output_of_another_loss_is_refused_at_once(digits, tmp_path):
    images, numbers = digits
    model = trained(images[:64], numbers[:64] >= 5, 1, None, epochs=0)
    data = images[:300].astype(np.float32), numbers[:300]
    with pytest.raises(ValueError, match=r"single one with a binary cross-entropy.*None, 1.*mse"):
        ehap.compress(model, data, data, loss="mse", path=tmp_path / "small.tflite")


@pytest.mark.parametrize(
    ("outputs", "activation", "threshold"),
    [(1, "sigmoid", 0.5), (1, None, 0.0), (2, "softmax", None), (2, None, None)],
)
def test_how_outputs_are_read(outputs, activation, threshold):
    x = L.Input((4,))
    model = tf_keras.Model(x, L.Dense(outputs, activation=activation)(x))
    readout = Readout.of(model)
    assert readout.threshold == threshold
    labels = np.array([0, 1, 1])
    values = model(np.eye(3, 4, dtype=np.float32))
    loss = float(readout.loss()(readout.labels(labels), values))
    if activation is None:
        values = tf.nn.softmax(values) if outputs > 1 else tf.sigmoid(values)
    second = values.numpy()[:, -1].astype(np.float64)
    wanted = -np.log(np.where(labels == 1, second, 1 - second)).mean()
    assert loss == pytest.approx(wanted, rel=1e-4)
