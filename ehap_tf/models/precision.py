"""Which precision a computation runs in, and what this machine is fast at."""

from __future__ import annotations

import functools
import pathlib

import tensorflow as tf

PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "auto")

_POLICIES = {"fp32": "float32", "fp16": "mixed_float16", "bf16": "mixed_bfloat16"}


def resolve_precision(precision: str) -> str:
    """Turns "auto" into what is fastest here without losing the result.

    fp16 on a GPU with tensor cores (compute capability 7 and later), bf16 on a CPU that is faster
    with it (`cpu_gains_from_bfloat16`), else fp32.

    Args:
        precision: one of `PRECISIONS`.

    Returns:
        "fp32", "fp16" or "bf16".

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}. Received: {precision!r}"
        )
    if precision != "auto":
        return precision
    if tf.config.list_physical_devices("GPU"):
        return "fp16" if gpu_has_tensor_cores() else "fp32"
    return "bf16" if cpu_gains_from_bfloat16() else "fp32"


def policy_of(precision: str) -> str:
    """The Keras policy of a precision, e.g. "mixed_float16" of "fp16"; "auto" is resolved first."""
    return _POLICIES[resolve_precision(precision)]


def gpu_has_tensor_cores() -> bool:
    """Whether every visible GPU has compute capability 7.0 or later."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return bool(gpus) and all(d.get("compute_capability", (0, 0))[0] >= 7 for d in details)


@functools.cache
def cpu_gains_from_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether convolutions in bfloat16 are the faster ones, by what Linux says of the CPU.

    AMX is. AVX512-BF16 alone does twice the multiplications of float32 on an AMD core and no more
    than float32's on an Intel core (whose AMX a virtual machine may hide): there a training step
    takes longer. With neither, bfloat16 is emulated.
    """
    try:
        text = pathlib.Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = set(text.split())
    return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
