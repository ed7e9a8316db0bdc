"""Top-1 accuracy of a Keras model."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.data import ImageDataset, Split, evaluation_batches, only_array
from ehap_tf.models import Readout
from ehap_tf.quantization.tflite.evaluate import Accuracy, class_labels, classes


class Evaluator:
    """Accuracy of one model in inference mode, compiled once.

    Args:
        model: with one output.
        threshold: of outputs that are each for itself, as in `evaluate_tflite`.
    """

    def __init__(self, model: tf_keras.Model, threshold: float | None = None) -> None:
        self._model = model
        self._threshold = threshold

        @tf.function(reduce_retracing=True)
        def outputs(inputs: Any) -> Any:
            return model(inputs, training=False)

        self._outputs = outputs

    def __call__(self, batches: tf.data.Dataset, finite: bool = False) -> float:
        """The share of examples, or of their positions, whose largest output is their label.

        Args:
            batches: a finite stream of (inputs, labels) or (inputs, labels, weights), with class
                numbers or one-hot labels; counted as `evaluate_tflite` does.
            finite: whether outputs that are NaN or infinite are an error.

        Raises:
            ValueError: the stream is empty, or outputs are not finite.
        """
        score, is_empty = Accuracy(), True
        for x, y, *weights in batches:
            outputs = only_array(self._outputs(x), "outputs")
            if finite and not np.isfinite(outputs).all():
                raise ValueError(
                    f"The outputs of {self._model.name!r} are not finite (NaN or infinity)"
                )
            score.add(
                classes(outputs, self._threshold),
                class_labels(y, outputs, self._threshold),
                *weights,
            )
            is_empty = False
        if is_empty:
            raise ValueError("There is nothing to evaluate on: the data set is empty")
        return score.result()


def accuracy(model: tf_keras.Model, split: Split, dataset: ImageDataset) -> float:
    """Share of the images of `split` whose largest output is their label.

    Raises:
        ValueError: the split is empty, or the outputs are not finite.
    """
    evaluator = Evaluator(model, Readout.of(model).threshold)
    return evaluator(evaluation_batches(split, dataset, 256), finite=True)
