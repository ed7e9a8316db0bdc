"""What a model costs: parameters and multiply-accumulates."""

from __future__ import annotations

import warnings

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
    """Multiply-accumulates of one example in all layers with weights, and between tensors.

    Convolutions, dense and recurrent layers (at each step), attention, `tf.matmul` and its kin,
    and what is inside of TimeDistributed and Bidirectional. Scales, sums and activations of single
    numbers are not counted. A layer that cannot be counted, such as a Lambda or one of your own
    without `Effect.macs`, is named in a warning.

    Raises:
        TypeError: the model is subclassed.
        ValueError: the size of its input is not fixed.
    """
    graph = trace_channels(model)
    if uncounted := graph.uncounted():
        reasons = "; ".join(f"{layer}: {why}" for layer, why in uncounted.items())
        warnings.warn(f"multiply-accumulates are missing: {reasons}", stacklevel=3)
    macs = graph.count_macs(np.ones(len(graph.ids), np.bool_))
    if np.isnan(macs):
        raise ValueError(
            f"MACs need an input of fixed size. Received: {[tuple(t.shape) for t in model.inputs]}"
        )
    return int(macs)
