"""Deciding how a model becomes integer, and whether it can, before anything is done to it."""

from __future__ import annotations

import fnmatch
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.graph import kept_random_state
from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization.apply.byte_target import bits_for_bytes, kernel_choices
from ehap_tf.quantization.apply.qat import quantize, rewritten, wrap
from ehap_tf.quantization.plan.quantization_plan import QuantizationPlan
from ehap_tf.quantization.plan.scheme import quantization_scope
from ehap_tf.quantization.tflite.conversion import export_tflite, require_sixteen_bit_kernels
from ehap_tf.quantization.tflite.inputs import input_names

NOISE_EXAMPLES = 8
"""Of noise, with which a file is written to learn its size."""


@kept_random_state()
@either_keras(None)
def plan_quantization(
    model: tf_keras.Model,
    weight_bits: int = 8,
    activation_bits: int = 8,
    *,
    act_percentile: float = 100.0,
    allow_float: bool = False,
    keep_float: Sequence[str] = (),
    bits: Mapping[str, int] | None = None,
    target_bytes: int | None = None,
    scores: Any = None,
) -> QuantizationPlan:
    """Decides how `quantize` makes a model integer: data to look at, to edit and to save.

    Args:
        model: as for `quantize`, trained or not: only its layers count, and not their weights.
        weight_bits: of all kernels; `QuantizationPlan.with_bits` changes single ones.
        activation_bits: as in `quantize`.
        act_percentile: as in `quantize`.
        allow_float: as in `quantize`.
        keep_float: layers that compute in float32 though they need not: their names, or patterns
            as of files. A layer inside a nested model has the model's name before its own, so that
            "head/*" are all of the model called head, each an operator by itself, and "head" is
            that model as a whole. Between two of them nothing is rounded. What they read is
            quantized, if something else than they made it. A layer that has no effect at inference
            stays what it is. Export such a model with `allow_float=True`.
        bits: of single kernels, as for `QuantizationPlan.with_bits`.
        target_bytes: of the file: as many kernels get 4 bits as it takes, so that the loss grows
            least as estimated (the trace of a filter's Hessian over its weights, times their
            squared rounding error). Those in `bits`, and those without a trace, keep what they
            have. The weights count here; the file is written once, of noise, for its size.
        scores: with `target_bytes`, of this model by a criterion that has traces:
            `rank_filters(model, data, loss, estimator="gauss_newton", probes=16)`.

    Returns:
        The plan: for each layer of the file's graph the bits of its kernel and where its output is
        quantized. Print `plan.summary()`.

    Raises:
        TypeError: as in `quantize`.
        ValueError: as in `quantize`; a pattern fits no layer; the target cannot be met, with how
            far it goes; the scores have no traces.

    Example:
        >>> plan = ehap.plan_quantization(model, weight_bits=4, keep_float=("head/*",))
        >>> print(plan.summary())
        >>> qat = ehap.quantize(model, "ptq", representative_data=images, plan=plan)
        >>> scores = ehap.rank_filters(model, data, loss, estimator="gauss_newton", probes=16)
        >>> plan = ehap.plan_quantization(model, target_bytes=200_000, scores=scores)
    """
    traces = _traces(target_bytes, scores)
    if target_bytes is not None and activation_bits > 8:
        raise ValueError(
            "target_bytes is met by kernels of 4 bits, which need activation_bits=8. Received: "
            f"{activation_bits=}, {target_bytes=}"
        )
    settings = QuantizationPlan(
        (), weight_bits, activation_bits, act_percentile, keep_float, allow_float
    )
    with quantization_scope():
        flat, configs, plan = rewritten(model, settings)
        if activation_bits > 8:
            require_sixteen_bit_kernels(wrap(flat, configs, model.output_names))
    plan = plan.with_bits(bits or {})
    if target_bytes is None:
        return plan
    fixed = {name for pattern in bits or {} for name in fnmatch.filter(plan.bits, pattern)}
    choices = [c for c in kernel_choices(flat, configs, traces) if c.name not in fixed]
    eight = plan.with_bits({choice.name: 8 for choice in choices})
    written = _noise_file_bytes(model, eight)
    return eight.with_bits(bits_for_bytes(choices, written, target_bytes))


def require_target_bytes(
    model: tf_keras.Model, target_bytes: int, *, allow_float: bool = False
) -> None:
    """Checks that `plan_quantization` can meet a target, before the model is trained further.

    Args:
        model: of the final size, trained or not.
        target_bytes: as in `plan_quantization`.
        allow_float: as in `quantize`.

    Raises:
        ValueError: the file is larger with all kernels in 4 bits that it can hold so.
    """
    least = _noise_file_bytes(model, plan_quantization(model, 4, allow_float=allow_float))
    if least > target_bytes:
        raise ValueError(
            f"target_bytes must be at least {least:,}, which the file has with all kernels in 4 "
            f"bits that it can hold so. Received: {target_bytes:,}. Remove more of the network."
        )


def _traces(target_bytes: int | None, scores: Any) -> Mapping[str, np.ndarray]:
    """What `scores` knows of the curvature.

    Raises:
        ValueError: nothing, though a target needs it, or a target is missing.
    """
    if (target_bytes is None) != (scores is None):
        raise ValueError(
            "target_bytes and scores go together: which kernels bear 4 bits is told by the "
            f"scores. Received: target_bytes={target_bytes!r}, scores={scores!r}"
        )
    if target_bytes is None:
        return {}
    if target_bytes < 1:
        raise ValueError(f"target_bytes must be at least 1. Received: {target_bytes!r}")
    traces = getattr(scores, "trace", None)
    if not traces:
        raise ValueError(
            'scores must have traces, as those of criterion="hessian_trace" have. '
            f"Received: {scores!r}"
        )
    return traces


@either_keras(None)
def noise_file(
    model: tf_keras.Model,
    path: pathlib.Path,
    plan: QuantizationPlan | None = None,
) -> pathlib.Path:
    """Writes the integer file of a model as it would be of real data, but for its numbers.

    It has the operators, shapes and bytes of the real one, and is made in the time of a conversion.

    Args:
        model: as for `quantize`, trained or not.
        path: where the file goes.
        plan: as in `quantize`.

    Returns:
        `path`.
    """
    noise = np.random.default_rng(0)
    examples = {
        name: noise.standard_normal((NOISE_EXAMPLES, *tensor.shape[1:])).astype(np.float32)
        for name, tensor in zip(input_names(model), model.inputs, strict=True)
    }
    data = (examples if len(examples) > 1 else next(iter(examples.values())),)
    qat = quantize(model, "ptq", representative_data=data, bias_correction=False, plan=plan)
    in_float = plan is not None and any(layer.output == "float" for layer in plan.layers)
    export_tflite(qat, path, allow_float=in_float)
    return path


def _noise_file_bytes(model: tf_keras.Model, plan: QuantizationPlan) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return noise_file(model, pathlib.Path(folder) / "model.tflite", plan).stat().st_size


def require_quantizable(
    model: tf_keras.Model,
    weight_bits: int = 8,
    *,
    activation_bits: int = 8,
    allow_float: bool = False,
) -> None:
    """Checks that `quantize` takes `model`, without the work and without data.

    Args:
        model: as for `quantize`, trained or not.
        weight_bits: as in `quantize`.
        activation_bits: as in `quantize`.
        allow_float: as in `quantize`.

    Raises:
        TypeError: as in `quantize`.
        ValueError: as in `quantize`.
    """
    plan_quantization(model, weight_bits, activation_bits, allow_float=allow_float)
