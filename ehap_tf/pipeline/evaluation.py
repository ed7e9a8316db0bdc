"""Top-1 accuracy of a Keras model."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import ImageDataset, Split, evaluation_batches


def accuracy(
    model: tf_keras.Model, split: Split, dataset: ImageDataset, batch_size: int = 256
) -> float:
    """Share of the images of `split` whose largest output is their label.

    Runs the model in inference mode; its compile state is neither used nor changed.

    Raises:
        ValueError: the split is empty, or the outputs are not finite.
    """
    if not len(split):
        raise ValueError(f"The data set {dataset.name!r} has no images to measure accuracy on")

    @tf.function(reduce_retracing=True)
    def count(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = model(images, training=False)
        right = tf.argmax(outputs, axis=-1, output_type=tf.int64) == tf.cast(labels, tf.int64)
        return tf.math.count_nonzero(right), tf.reduce_all(tf.math.is_finite(outputs))

    total, finite = 0, True
    for images, labels in evaluation_batches(split, dataset, batch_size):
        right, batch_finite = count(images, labels)
        total += int(right)
        finite = finite and bool(batch_finite)
    if not finite:
        raise ValueError(f"The outputs of {model.name!r} are not finite (NaN or infinity)")
    return float(np.float64(total) / len(split))
