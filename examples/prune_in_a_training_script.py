"""Pruning inside an existing training script: what is new is between the two lines of dashes.

Run it from anywhere: `python examples/prune_in_a_training_script.py`. It takes about a minute and
downloads nothing.
"""

import pathlib
import tempfile

import numpy as np
import tf_keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ehap_tf as ehap

digits = load_digits()
images = (digits.images[..., None] / 16.0).astype(np.float32)
x, x_test, y, y_test = train_test_split(images, digits.target, test_size=0.2, random_state=0)

layers = tf_keras.layers
tf_keras.utils.set_random_seed(0)
model = tf_keras.Sequential([layers.Input((8, 8, 1))])
for filters in (32, 64):
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
    model.add(layers.BatchNormalization(momentum=0.9))
    model.add(layers.ReLU())
    model.add(layers.MaxPooling2D())
model.add(layers.Flatten())
model.add(layers.Dense(10))

loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, ["accuracy"])
model.fit(x, y, batch_size=64, epochs=8, verbose=0)
before = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]

# ---------------------------------------------------------------------------------------------
scores = ehap.rank_filters(model, (x[:256], y[:256]), estimator="gauss_newton", probes=16)
plan = ehap.plan_pruning(model, scores, target_macs=0.4)
slim = ehap.recalibrate(ehap.prune(model, plan), (x, y))

slim.compile("adam", loss, ["accuracy"])
slim.fit(x, y, batch_size=64, epochs=5, verbose=0)
after = slim.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]

qat = ehap.quantize(slim, representative_data=(x[:640], y[:640]))
qat.compile(tf_keras.optimizers.Adam(1e-4), loss, ["accuracy"])
qat.fit(x, y, batch_size=64, epochs=2, verbose=0)

path = pathlib.Path(tempfile.mkdtemp()) / "digits_int8.tflite"
file = ehap.export_tflite(qat, path)
integer = ehap.evaluate_tflite(path, (x_test, y_test))
# ---------------------------------------------------------------------------------------------

print(f"trained:  accuracy {before:.3f}, {ehap.count_macs(model):,.0f} MACs")
print(f"slim:     accuracy {after:.3f}, {ehap.count_macs(slim):,.0f} MACs")
print(f"INT8:     accuracy {integer:.3f}, {file.bytes:,} bytes, {file.float_ops} float operators")
print(f"the file: {path}")
