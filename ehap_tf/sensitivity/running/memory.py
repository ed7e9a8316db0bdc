"""Peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import pathlib
import re
import resource
import sys

import tensorflow as tf

_STATUS = pathlib.Path("/proc/self/status")


class PeakMemory:
    """Measures from its creation on: the resident peak of the process, or a GPU's allocator peak.

    On Linux the kernel's high-water mark is reset first. Elsewhere the mark counts from the start
    of the process.
    """

    def __init__(self) -> None:
        self._gpus = [f"GPU:{i}" for i in range(len(tf.config.list_logical_devices("GPU")))]
        for gpu in self._gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        # "5" resets VmHWM and touches nothing else (proc(5)); not every container allows it.
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        """The peak so far; with several GPUs, of the fullest one."""
        if self._gpus:
            return max(tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in self._gpus)
        with contextlib.suppress(OSError):
            found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.M)
            if found:
                return int(found.group(1)) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
