"""What a model costs: parameters and multiply-accumulates."""

from __future__ import annotations

import numpy as np
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.models.keras3 import either_keras


@either_keras(None)
def count_parameters(model: tf_keras.Model) -> int:
    """Numbers in all weights of the model, trained or not (BatchNorm's statistics included)."""
    return int(model.count_params())


@either_keras(None)
def count_macs(model: tf_keras.Model) -> int:
    """Multiply-accumulates of one example in convolutions and dense layers.

    Raises:
        TypeError: the model is subclassed.
        ValueError: the size of its input is not fixed.
    """
    graph = trace_channels(model)
    macs = graph.count_macs(np.ones(len(graph.ids), np.bool_))
    if np.isnan(macs):
        raise ValueError(
            f"MACs need an input of fixed size. Received: {[tuple(t.shape) for t in model.inputs]}"
        )
    return int(macs)
