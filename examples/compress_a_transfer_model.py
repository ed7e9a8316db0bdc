"""A transfer-learning model, a trained backbone nested in a new classifier, in one call.

The backbone learns the digits 0 to 4, the classifier on top of it 5 to 9; then `ehap.compress`
takes half of the multiply-accumulates away, backbone included, and writes the integer file. About
a minute, no download.
"""

import pathlib
import tempfile

import numpy as np
import tf_keras
from sklearn.datasets import load_digits

import ehap_tf as ehap

digits = load_digits()
images = (digits.images[..., None] / 16.0).astype(np.float32)
low, high = digits.target < 5, digits.target >= 5

layers = tf_keras.layers
tf_keras.utils.set_random_seed(0)


def train(model: tf_keras.Model, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
    """What a script of your own does already."""
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, ["accuracy"])
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)


backbone = tf_keras.Sequential([layers.Input((8, 8, 1))], name="backbone")
for filters in (32, 64):
    backbone.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
    backbone.add(layers.BatchNormalization(momentum=0.9))
    backbone.add(layers.ReLU())
pretraining = tf_keras.Sequential([backbone, layers.GlobalAveragePooling2D(), layers.Dense(5)])
train(pretraining, images[low], digits.target[low], epochs=6)

inputs = layers.Input((8, 8, 1))
features = layers.GlobalAveragePooling2D()(backbone(inputs))
model = tf_keras.Model(inputs, layers.Dense(5)(layers.Dense(32, "relu")(features)))
x, y = images[high], digits.target[high] - 5
x, x_validation, x_test = np.split(x, [-300, -200])
y, y_validation, y_test = np.split(y, [-300, -200])
train(model, x, y, epochs=8)

path = pathlib.Path(tempfile.mkdtemp()) / "digits_5_to_9.tflite"
result = ehap.compress(
    model,
    (x, y),
    (x_validation, y_validation),  # chooses epochs, so it is not what is measured at the end
    path=path,
    target_macs=0.5,
    criterion="hessian_trace",
    probes=16,
    finetune_epochs=6,
    batch_size=64,
)
for name, value in result.report.items():
    print(f"{name:22} {value}")
print(f"{'test':22} {ehap.evaluate_tflite(path, (x_test, y_test)):.3f}")
print(f"kept filters: { {layer: len(kept) for layer, kept in result.plan.kept.items()} }")
print(f"input: real = {result.tflite.input.scale:.5f} * (q - {result.tflite.input.zero_point})")
