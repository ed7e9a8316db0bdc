"""Gates that close a channel to a constant, where the next layer reads it; the sketch on them.

`gate_derivatives` closes a channel to zero right where its removal acts. Here the gate stands at
the end of the chain of layers that is the filter's alone (behind the activation and the pooling),
in tied mode where each reader reads what goes together, and the channel falls back to any constant:
zero, or its mean over the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.sensitivity.estimators.gauss_newton import Vectors
from ehap_tf.sensitivity.estimators.hutchinson import Step
from ehap_tf.sensitivity.gates.gate_derivatives import (
    GatedForward,
    channel_factors,
    gate_columns,
    gate_count,
    gate_sketch_step,
)
from ehap_tf.sensitivity.gates.group_gates import find_groups, grouped_forward
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.statistics import Floats


def closing_forward(network: Network, constants: Floats | None) -> GatedForward:
    """The network with a gate on every filter, in tied mode on every group of filters.

    Args:
        network: what to put gates into.
        constants: for each channel that `channel_means_step` looks at what it is when its gate is
            closed; None for zeros.

    Raises:
        ValueError: a layer's channels cannot be followed.
    """
    if network.residual == "tied":
        readers = find_groups(network).readers
        if constants is None:
            return grouped_forward(network)
        ends = np.cumsum([len(places) for places in readers.values()])
        pieces = np.split(constants, ends[:-1])
        return grouped_forward(network, dict(zip(readers, pieces, strict=True)))
    columns = _columns(network)

    def forward(inputs: Any, alpha: tf.Tensor) -> tf.Tensor:
        def gate(node: Any, outputs: Any) -> Any:
            if id(node) not in columns:
                return outputs
            factors = channel_factors(alpha[:, columns[id(node)]], outputs)
            if constants is None:
                return outputs * factors
            constant = tf.constant(constants[columns[id(node)]], outputs.dtype)
            return constant + (outputs - constant) * factors

        return network.forward(inputs, gate)

    return forward


def channel_means_step(network: Network) -> Step:
    """Builds the function that sums each channel's mean over positions, times example weights.

    The channels are those behind the gates, one per filter; in tied mode those that readers read.

    Returns:
        A step as `hutchinson_step` gives, with one row whatever the probes are.
    """
    tied = network.residual == "tied"
    owners = _reading_nodes(network) if tied else _gate_nodes(network)

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del labels, first, probes, scales
        seen: dict[int, list[tf.Tensor]] = {node: [] for nodes in owners for node in nodes}

        def look(node: Any, tensor: Any) -> Any:
            if id(node) in seen:
                values = tf.cast(tensor, network.dtype)
                means = tf.reduce_mean(values, axis=list(range(1, values.shape.rank - 1)))
                seen[id(node)].append(tf.linalg.matvec(means, weights, transpose_a=True))
            return tensor

        network.forward(inputs, **{"before" if tied else "after": look})
        # A layer that is called several times has several means for one gate.
        every = [[mean for node in nodes for mean in seen[node]] for nodes in owners]
        sums = tf.concat([tf.add_n(means) / len(means) for means in every], 0)
        return sums[tf.newaxis], tf.reduce_all(tf.math.is_finite(sums))

    return step


def gate_rows_step(network: Network, vectors: Vectors, constants: Floats | None) -> Step:
    """Builds the function that gives the sketch u on the gates, before it is squared.

    The Gauss-Newton matrix on the gates is the mean over probes of the sum over examples of u u^T.

    Args:
        network: what to differentiate.
        vectors: what the factor of the loss's curvature is multiplied with.
        constants: as for `closing_forward`.

    Returns:
        A step as `gauss_newton_step` gives, with values of shape (probes, examples * gates): u,
        example after example.
    """
    forward = closing_forward(network, constants)
    return gate_sketch_step(
        network, forward, gate_count(network), vectors, lambda u: tf.reshape(u, [-1])
    )


def _reading_nodes(network: Network) -> list[list[int]]:
    return [[node] for node in find_groups(network).readers]


def _gate_nodes(network: Network) -> list[list[int]]:
    """The nodes of each layer's gate."""
    nodes: dict[int, list[int]] = {}
    for node, part in _columns(network).items():
        nodes.setdefault(part.start, []).append(node)
    return list(nodes.values())


def _columns(network: Network) -> dict[int, slice]:
    """`id()` of a node behind which a gate stands -> its part of all filters, in their order."""
    return gate_columns(network, lambda gate: gate.ends)
