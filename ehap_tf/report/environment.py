"""Versions and hardware, for the record of a run."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform

PACKAGES = (
    "ehap_tf",
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "numpy",
)


def environment() -> dict[str, str]:
    """Name and value of everything that could make the same command give another result."""
    values = {"Python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            values[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    values["processor"] = f"{_processor()}, {_cores()} cores"
    gpus = _gpus()
    if gpus:
        values["GPU"] = ", ".join(gpus)
    return values


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    import tensorflow as tf

    return [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in tf.config.list_physical_devices("GPU")
    ]
