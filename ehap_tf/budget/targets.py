"""Whether a device can run a network's integer file, before anything is trained."""

from __future__ import annotations

import pathlib
import tempfile

import tf_keras

from ehap_tf.budget.ethos_u import ACCELERATORS, compile_for_ethos_u, require_vela
from ehap_tf.budget.micro import missing_micro_operators, require_micro
from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization import noise_file, plan_quantization

LITERT, MICRO = "litert", "tflm"
TARGETS = (LITERT, MICRO, *ACCELERATORS)
"""Runtimes: LiteRT, which has all operators of our files, TensorFlow Lite Micro, which has most,
and an Ethos-U beside that."""


@either_keras(None)
def require_target(
    model: tf_keras.Model,
    target: str,
    weight_bits: int = 8,
    *,
    activation_bits: int = 8,
    allow_float: bool = False,
) -> tuple[str, ...]:
    """Makes the integer file of a model, trained or not, and looks for operators that are missing.

    Args:
        model: as for `quantize`.
        target: one of `TARGETS`.
        weight_bits: as in `quantize`.
        activation_bits: as in `quantize`.
        allow_float: as in `quantize`.

    Returns:
        The operators that an Ethos-U leaves to the processor beside it, which is slow.

    Raises:
        ImportError: the extra `[micro]` is not installed.
        ValueError: `target` is none of `TARGETS`, or lacks operators of the file; with their names.
        TypeError, ValueError: as in `quantize`.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}. Received: {target!r}")
    if target == LITERT:
        return ()
    require_micro()
    if target in ACCELERATORS:
        require_vela()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        plan = plan_quantization(model, weight_bits, activation_bits, allow_float=allow_float)
        noise_file(model, path, plan)
        missing = missing_micro_operators(path)
        on_cpu = compile_for_ethos_u(path, target).on_cpu if target in ACCELERATORS else ()
    if missing:
        raise ValueError(
            f"target {target!r} lacks operators that the integer file of this model needs: "
            f"{', '.join(missing)}. Build the network without them, or choose target {LITERT!r}."
        )
    return on_cpu
