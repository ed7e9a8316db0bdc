"""Which kernels have 4 bits, so that a file has no more bytes than wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.allocation import cheapest
from ehap_tf.quantization.integer_rules.integer_kernels import integer_kernel
from ehap_tf.quantization.plan.configs import EhapQuantizeConfig
from ehap_tf.quantization.plan.quantizers import EhapWeightQuantizer, to_channels_last

BITS = (8, 4)


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """A kernel that may have 8 bits or 4.

    Attributes:
        name: of its layer in the file's graph.
        losses: that the loss increases by, as estimated, for each of `BITS`.
        bytes: in the file, likewise.
    """

    name: str
    losses: np.ndarray
    bytes: np.ndarray


def kernel_choices(
    flat: tf_keras.Model,
    configs: Mapping[str, Mapping[str, Any]],
    traces: Mapping[str, np.ndarray],
) -> Iterator[KernelChoice]:
    """The kernels that a file can hold in 4 bits and whose curvature is known.

    The loss is the trace of each filter's Hessian over its number of weights, times the squared
    rounding error of the weights: the second-order term if the error of a weight knows nothing of
    its curvature. A BatchNorm that is folded in scales a filter and its steps alike.

    Args:
        flat: the operators of the file as a float model.
        configs: of its layers.
        traces: layer name -> the trace of each filter's Hessian.
    """
    for layer in flat.layers:
        config = configs.get(layer.name, {}).get("quantize_config")
        kernel = integer_kernel(layer)
        trace = traces.get(layer.name)
        if trace is None or not (kernel and kernel.four_bits):
            continue
        if not isinstance(config, EhapQuantizeConfig) or not config.weights:
            continue
        weight = getattr(layer, config.weights[0])
        values = to_channels_last(weight, config.grouping).numpy()
        if values.shape[-1] != len(trace):
            continue
        curvature = np.maximum(trace, 0.0) / (values.size / len(trace))
        losses = []
        for bits in BITS:
            rounded = EhapWeightQuantizer(bits, config.grouping)(weight, False, {})
            error = to_channels_last(weight - rounded, config.grouping).numpy()
            squares = np.square(error, dtype=np.float64).reshape(-1, len(trace)).sum(axis=0)
            losses.append(float(curvature @ squares))
        yield KernelChoice(
            layer.name,
            np.asarray(losses),
            np.asarray([values.size, -(-values.size // 2)], np.float64),
        )


def bits_for_bytes(
    choices: list[KernelChoice], file_bytes: int, target_bytes: int
) -> dict[str, int]:
    """Layer name -> bits, so that the estimated loss is least.

    Args:
        choices: the kernels whose bits may be chosen.
        file_bytes: of the file in which all of them have 8 bits.
        target_bytes: that it may have.

    Raises:
        ValueError: it has more with all of them in 4 bits.
    """
    fixed = file_bytes - sum(choice.bytes[0] for choice in choices)
    least = int(fixed + sum(choice.bytes[1] for choice in choices))
    if least > target_bytes:
        raise ValueError(
            f"target_bytes must be at least {least:,}, which the file has with "
            f"{len(choices)} kernels in 4 bits; {file_bytes:,} are those of 8 bits. "
            f"Received: {target_bytes:,}"
        )
    if not choices:
        return {}
    chosen = cheapest(
        [choice.losses for choice in choices],
        [choice.bytes for choice in choices],
        target_bytes - fixed,
    )
    return {choice.name: BITS[place] for choice, place in zip(choices, chosen, strict=True)}
