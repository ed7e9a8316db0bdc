"""Hutchinson's estimator of per-filter Hessian traces, by nested gradient tapes.

With Rademacher v over all kernels at once, E[v * (H v)] is the diagonal of H, so the sum of
v * (H v) over a filter's weights is an unbiased estimate of the trace of the filter's block
(Hutchinson 1990; HAP, arXiv 2101.08940; EHAP, arXiv 2306.07030).

The gradient graph is built once a call; a loop inside the graph differentiates it again for every
probe, so that the memory does not grow with the number of probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.sensitivity.estimators.probes import kernel_signs
from ehap_tf.sensitivity.network.filters import filter_sums
from ehap_tf.sensitivity.network.network import Network

Directions = Callable[[tf.Tensor], list[tf.Tensor]]
"""Probe number -> one tensor a kernel."""

Step = Callable[..., tuple[tf.Tensor, tf.Tensor]]


def sign_directions(network: Network, seed: int) -> Directions:
    """Random signs: Hutchinson's estimator."""
    shapes = [kernel.shape for kernel in network.kernels]
    return lambda probe: kernel_signs(seed, probe, shapes, network.dtype)


def basis_directions(network: Network) -> Directions:
    """1 at weight number `probe`, all kernels end to end: one entry of the Hessian's diagonal."""
    shapes = [kernel.shape for kernel in network.kernels]
    starts = np.cumsum([0] + [shape.num_elements() for shape in shapes])

    def direction(probe: tf.Tensor) -> list[tf.Tensor]:
        # one_hot gives zeros for an index outside, which is every kernel but one.
        return [
            tf.reshape(tf.one_hot(probe - start, shape.num_elements(), dtype=network.dtype), shape)
            for start, shape in zip(starts[:-1].tolist(), shapes, strict=True)
        ]

    return direction


def hutchinson_step(network: Network, directions: Directions) -> Step:
    """Builds the function that computes v * (H v), summed by filter, for many probes.

    Args:
        network: what to differentiate.
        directions: the vectors v.

    Returns:
        `step(inputs, labels, weights, first, probes, scales)` -> (products, gradient_finite).
        `probes` are int32 probe numbers; `scales` holds the factors of the loss and of the probe,
        already divided out of `products`, shape (probes, filters). A micro-batch gives its part
        of the sum over the Hessian batch.

    Raises:
        ValueError: (the step) TensorFlow cannot differentiate an operation of the network twice.
    """
    kernels = network.kernels
    dtype = network.dtype

    def step(
        inputs: Any, labels: Any, weights: tf.Tensor, first: tf.Tensor, probes: Any, scales: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del first
        loss_scale, probe_scale = scales[0], scales[1]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(kernels)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(kernels)
                outputs = network.forward(inputs)
                loss = tf.reduce_sum(network.loss_values(labels, outputs, weights)) * loss_scale
            gradients = inner.gradient(loss, kernels, unconnected_gradients="zero")

        def one_probe(index: tf.Tensor, products: tf.TensorArray) -> Any:
            signs = directions(probes[index])
            scaled = [
                tf.cast(sign * probe_scale, k.dtype) for sign, k in zip(signs, kernels, strict=True)
            ]
            try:
                hessian_signs = outer.gradient(
                    gradients, kernels, output_gradients=scaled, unconnected_gradients="zero"
                )
            except LookupError as error:
                raise ValueError(_no_second_derivative(str(error), network, inputs)) from error
            sums = filter_sums(
                [s * tf.cast(h, dtype) for s, h in zip(signs, hessian_signs, strict=True)],
                network.layers,
            )
            # Divided one after the other: the product of the scales may overflow.
            return index + 1, products.write(index, sums / loss_scale / probe_scale)

        count = tf.shape(probes)[0]
        _, products = tf.while_loop(
            lambda index, _: index < count,
            one_probe,
            (tf.constant(0), tf.TensorArray(dtype, count)),
            parallel_iterations=1,
        )
        sums = filter_sums([tf.cast(g, dtype) for g in gradients], network.layers)
        finite = tf.reduce_all(tf.math.is_finite(sums))
        return products.stack(), finite

    return step


def _no_second_derivative(error: str, network: Network, inputs: Any) -> str:
    """A message for TensorFlow's "gradient registry has no entry for: ResizeBicubicGrad"."""
    gradient = error.rpartition(" ")[2]
    graph = tf.function(network.forward, autograph=False).get_concrete_function(inputs).graph
    names = [o.name for o in graph.get_operations() if gradient.startswith(o.type)]
    return (
        "this estimator needs second derivatives of every layer. Received: a model with "
        f"{', '.join(map(repr, names)) or 'an operation'} (layer/operation), where TensorFlow has "
        f"none of {gradient}; use estimator='gauss_newton'"
    )
