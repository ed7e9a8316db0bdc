"""What has to stand in the environment before TensorFlow is imported, for the two commands.

It imports nothing that loads TensorFlow. A library must not set such things for its user's process,
so `import ehap_tf` does not.
"""

from __future__ import annotations

import os
import sys


def prepare_environment() -> None:
    """Sets what the user has not: quiet native code, and fast convolutions on every CPU.

    In a process that has TensorFlow loaded it is too late for that, and nothing is set: the
    processes that this one starts would compute otherwise than it does.
    """
    if "tensorflow" in sys.modules:
        return
    # The C++ side would talk over our progress display.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # TensorFlow leaves oneDNN off on CPUs that have neither AVX512-VNNI nor AMX, where it trains
    # twice as fast too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
