"""The loss's Hessian with respect to the network's outputs, as a product of a factor with itself.

For a convex loss the Hessian on one example's outputs is S S^T. Multiplied with random signs r,
S r is a random vector whose covariance is that Hessian; a column S e_k is one term of the exact
sum. Softmax cross entropy has diag(p) - p p^T, S = diag(sqrt(p)) - p sqrt(p)^T.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from ehap_tf.sensitivity.network import losses
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.network.several_outputs import JoinedLoss

SUPPORTED = (losses.SOFTMAX, losses.SIGMOID, losses.SQUARED)


def is_convex(loss: losses.Loss) -> bool:
    """Whether the loss, or that of each output, is of a kind that `factor_times` knows."""
    parts = [part.loss for part in loss.parts] if isinstance(loss, JoinedLoss) else [loss]
    return all(part.kind in SUPPORTED for part in parts)


def require_known_curvature(network: Network) -> None:
    """Checks that `factor_times` knows the loss.

    Raises:
        ValueError: another loss, or probabilities whose logits are not to be had.
    """
    if isinstance(network.loss, JoinedLoss):
        for part in network.loss.parts:
            _require_known(part.loss, len(part.shape) + 1)
        return
    _require_known(network.loss, network.model.outputs[0].shape.rank)


def _require_known(loss: losses.Loss, rank: int) -> None:
    if not is_convex(loss):
        raise ValueError(
            "loss must be a softmax or sigmoid cross entropy (over the last axis, no ignored "
            "class) or the mean squared error for the Gauss-Newton sketch. Received: "
            f"{loss.name}; use estimator='hutchinson' with criterion='hessian_trace'"
        )
    if loss.kind != losses.SQUARED and not loss.takes_logits:
        raise ValueError(
            f"the Gauss-Newton sketch of {loss.name} needs logits. Received: a model that gives "
            "probabilities and does not end in a softmax (over the last axis of the output) or a "
            "sigmoid that nothing else reads, or in what only moves its numbers; use "
            "estimator='hutchinson' with criterion='hessian_trace', or end the model in logits"
        )
    if rank < 2:
        raise ValueError(f"model must give outputs of shape (batch, ..., n). Received: rank {rank}")


def factor_times(
    network: Network, labels: Any, outputs: tf.Tensor, weights: tf.Tensor, vectors: tf.Tensor
) -> tf.Tensor:
    """Computes S v for each example and position, scaled to the loss over the Hessian batch.

    Args:
        network: for its loss.
        labels: of the examples; only soft labels matter, by their sum.
        outputs: logits, or predictions for the squared error, shape (batch, ..., n).
        weights: one factor per example.
        vectors: v, of the shape of `outputs`.

    Returns:
        A cotangent for `outputs`.
    """
    if isinstance(network.loss, JoinedLoss):
        return _joined_factor_times(network, network.loss, labels, outputs, weights, vectors)
    kind = network.loss.kind
    size = tf.cast(tf.shape(outputs)[-1], outputs.dtype)
    if kind == losses.SOFTMAX:
        p = tf.nn.softmax(outputs)
        root = tf.sqrt(p) * vectors
        product = root - p * tf.reduce_sum(root, axis=-1, keepdims=True)
    elif kind == losses.SIGMOID:
        # sqrt(p (1 - p)) without the cancellation of 1 - p.
        log_variance = tf.math.log_sigmoid(outputs) + tf.math.log_sigmoid(-outputs)
        product = tf.exp(log_variance / 2) * vectors / tf.sqrt(size)
    else:
        product = vectors * tf.sqrt(2 / size)
    positions = tf.reduce_prod(tf.shape(outputs)[1:-1])
    shape = tf.concat([tf.shape(weights), tf.ones([outputs.shape.rank - 1], tf.int32)], 0)
    factors = tf.reshape(weights, shape) * network.factor(positions)
    return product * tf.sqrt(factors * _label_mass(network, labels, outputs))


def _joined_factor_times(
    network: Network,
    loss: JoinedLoss,
    labels: Any,
    outputs: tf.Tensor,
    weights: tf.Tensor,
    vectors: tf.Tensor,
) -> tf.Tensor:
    """The factor of a sum of losses on different outputs has one block for each."""
    pieces = []
    for part, own in zip(loss.parts, loss.labels_of(labels), strict=True):
        one = dataclasses.replace(network, loss=part.loss)
        piece = factor_times(one, own, part.of(outputs), weights, part.of(vectors))
        pieces.append(tf.reshape(piece, [tf.shape(outputs)[0], -1]))
    return tf.concat(pieces, axis=1)


def _label_mass(network: Network, labels: Any, outputs: tf.Tensor) -> tf.Tensor:
    """The sum of the (smoothed) soft labels, by which softmax cross entropy's Hessian scales."""
    loss = network.loss
    if loss.kind != losses.SOFTMAX or loss.sparse:
        return tf.ones([], outputs.dtype)
    total = tf.reduce_sum(tf.cast(labels, outputs.dtype), axis=-1, keepdims=True)
    return total * (1 - loss.label_smoothing) + loss.label_smoothing
