"""What surgery writes into the arguments of operators can be saved, and read by a fresh process."""

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.pruning import mask, plan_pruning, prune
from tests.pruning.nets import ROUNDING, batch, random_scores, relative_error, shake

layers = tf_keras.layers

OPERATORS = {
    "channels": lambda x: x[:, :, :, 2:6],
    "channels behind an ellipsis": lambda x: x[..., 2:],
    "channels from the end": lambda x: x[..., -4:],
    "channels by numbers of numpy": lambda x: x[..., np.int64(1) : np.int32(7)],
    "channels at every second position": lambda x: x[:, ::2, 1:-1, :5],
    "positions": lambda x: x[:, 1:5],
    "positions behind an ellipsis": lambda x: x[..., ::2, :],
    "split": lambda x: tf.concat(tf.split(x, 2, axis=-1)[::-1], -1),
    "split into sizes": lambda x: tf.concat(tf.split(x, [2, 5, 1], -1)[:2], axis=3),
    "split by an array": lambda x: tf.split(x, np.array([3, 5]), axis=3)[1],
    "split of positions": lambda x: tf.split(x, 2, axis=1)[1],
    "padded channels": lambda x: x + tf.pad(x[..., :5], [[0, 0], [0, 0], [0, 0], [1, 2]]),
    "padded positions": lambda x: tf.pad(x, np.array([[0, 0], [1, 1], [0, 0], [0, 0]])),
    "sum of slices": lambda x: x[..., :4] + x[..., 4:],
    "gated slices": lambda x: x[..., :4] * tf.sigmoid(x[..., 4:]),
    "mean": lambda x: x - tf.reduce_mean(x, [1, 2], keepdims=True),
    "cast and clip": lambda x: tf.clip_by_value(tf.cast(x, tf.float32), -1.0, np.float32(1)),
    "numbers": lambda x: tf.minimum(2 * x, tf.constant(6.0)) ** 2 / 3 - x * tf.constant([3.0]),
}
LOAD = """
import pathlib, sys, numpy as np, ehap_tf
for path in map(pathlib.Path, sys.argv[1:]):
    np.save(f"{path}.npy", ehap_tf.load_model(path)(np.load(path.with_name("x.npy"))))
"""


def with_all_operators():
    """A branch for each operator; its convolutions are called before_0, after_0, and so on."""
    inputs = layers.Input((8, 8, 3))
    pooled = []
    for number, operator in enumerate(OPERATORS.values()):
        x = layers.Conv2D(8, 1, activation="relu", name=f"before_{number}")(inputs)
        x = layers.Conv2D(3, 1, name=f"after_{number}")(operator(x))
        pooled.append(layers.GlobalAveragePooling2D()(x))
    outputs = layers.Dense(3, name="logits")(layers.Concatenate()(pooled))
    return shake(tf_keras.Model(inputs, outputs))


def low_before(model, seed):
    """Random scores, those of the layers before the operators so low that these lose filters."""
    scores = random_scores(model, seed)
    return {name: s / 100 if name.startswith("before") else s for name, s in scores.items()}


def test_pruned_operators_are_saved_and_read_by_a_fresh_process(tmp_path, fresh_processes):
    model = with_all_operators()
    x, paths = batch(model), []
    np.save(tmp_path / "x.npy", x)
    for residual, kind in (("union", "keras"), ("tied", "h5")):
        scores = low_before(model, 1)
        plan = plan_pruning(model, scores, 0.7, residual=residual, prune_ratio_limit=0.5)
        for number, name in enumerate(OPERATORS):
            assert len(plan.kept[f"before_{number}"]) < 8, name
        slim = prune(model, plan)
        assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
        paths.append(tmp_path / f"{residual}.{kind}")
        slim.save(paths[-1])
        np.save(tmp_path / f"{residual}.npy", slim(x))
    loaded = tf_keras.models.load_model(paths[-1])
    again = plan_pruning(loaded, low_before(loaded, 2), 0.3, residual="tied")
    assert again.params_after < again.params_before
    assert relative_error(prune(loaded, again)(x), mask(loaded, again)(x)) < ROUNDING
    fresh_processes.run(LOAD, *paths).check_returncode()
    for path in paths:
        expected = np.load(tmp_path / f"{path.stem}.npy")
        assert relative_error(np.load(f"{path}.npy"), expected) < ROUNDING
