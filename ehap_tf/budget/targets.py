"""Whether a device can run a network's integer file, before anything is trained."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import tf_keras

from ehap_tf.budget.ethos_u import ACCELERATORS, compile_for_ethos_u, require_vela
from ehap_tf.budget.micro import missing_micro_operators, require_micro
from ehap_tf.models.keras3 import either_keras
from ehap_tf.quantization import export_tflite, quantize

LITERT, MICRO = "litert", "tflm"
TARGETS = (LITERT, MICRO, *ACCELERATORS)
"""Runtimes: LiteRT, which has all operators of our files, TensorFlow Lite Micro, which has most,
and an Ethos-U beside that."""

_EXAMPLES = 8


@either_keras(None)
def require_target(
    model: tf_keras.Model, target: str, weight_bits: int = 8, *, allow_float: bool = False
) -> tuple[str, ...]:
    """Makes the integer file of a model, trained or not, and looks for operators that are missing.

    Args:
        model: as for `quantize`.
        target: one of `TARGETS`.
        weight_bits: as in `quantize`.
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
        noise_file(model, path, weight_bits, allow_float=allow_float)
        missing = missing_micro_operators(path)
        on_cpu = compile_for_ethos_u(path, target).on_cpu if target in ACCELERATORS else ()
    if missing:
        raise ValueError(
            f"target {target!r} lacks operators that the integer file of this model needs: "
            f"{', '.join(missing)}. Build the network without them, or choose target {LITERT!r}."
        )
    return on_cpu


@either_keras(None)
def noise_file(
    model: tf_keras.Model,
    path: pathlib.Path,
    weight_bits: int = 8,
    *,
    allow_float: bool = False,
) -> pathlib.Path:
    """Writes the integer file of a model as it would be of real data, but for its numbers.

    Args:
        model: as for `quantize`, trained or not.
        path: where the file goes.
        weight_bits: as in `quantize`.
        allow_float: as in `quantize`.
    """
    noise = np.random.default_rng(0)
    examples = {
        name: noise.standard_normal((_EXAMPLES, *tensor.shape[1:])).astype(np.float32)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    }
    qat = quantize(
        model,
        "ptq",
        weight_bits,
        representative_data=(examples if len(examples) > 1 else next(iter(examples.values())),),
        allow_float=allow_float,
        bias_correction=False,
    )
    export_tflite(qat, path, allow_float=allow_float)
    return path
