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

import tensorflow as tf

from ehap_tf.sensitivity.filters import filter_sums
from ehap_tf.sensitivity.network import Network
from ehap_tf.sensitivity.probes import kernel_seeds, kernel_signs

Step = Callable[..., tuple[tf.Tensor, tf.Tensor]]


def hutchinson_step(network: Network, seed: int, jit_compile: bool = False) -> Step:
    """Builds the compiled function that computes v * (H v), summed by filter, for many probes.

    Args:
        network: what to differentiate.
        seed: of the probes.
        jit_compile: through XLA; the number of probes is then fixed by the first call.

    Returns:
        `step(inputs, labels, weights, first, probes, scales)` -> (products, gradient_finite).
        `probes` are int32 probe numbers; `scales` holds the factors of the loss and of the probe,
        already divided out of `products`, shape (probes, filters). A micro-batch gives its part
        of the sum over the Hessian batch.
    """
    kernels = network.kernels
    seeds = kernel_seeds(seed, len(kernels))
    shapes = [kernel.shape for kernel in kernels]
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
            signs = kernel_signs(seeds, probes[index], shapes, dtype)
            scaled = [sign * probe_scale for sign in signs]
            hessian_signs = outer.gradient(
                gradients, kernels, output_gradients=scaled, unconnected_gradients="zero"
            )
            # Divided one after the other: the product of the scales may overflow.
            values = [
                s * (tf.cast(h, dtype) / loss_scale / probe_scale)
                for s, h in zip(signs, hessian_signs, strict=True)
            ]
            return index + 1, products.write(index, filter_sums(values))

        count = probes.shape[0] if jit_compile else tf.shape(probes)[0]
        _, products = tf.while_loop(
            lambda index, _: index < count,
            one_probe,
            (tf.constant(0), tf.TensorArray(dtype, count)),
            parallel_iterations=1,
        )
        finite = tf.reduce_all(tf.math.is_finite(filter_sums(gradients)))
        return products.stack(), finite

    return tf.function(step, jit_compile=jit_compile, reduce_retracing=True)
