"""`python -m ehap_tf.benchmark NAME [--option=value ...]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from ehap_tf.benchmark.measuring.isolation import MeasurementError
from ehap_tf.files import require_writable
from ehap_tf.native_output import NativeErrorOutput
from ehap_tf.startup import prepare_environment

ROOMS: dict[str, dict[str, str]] = {
    "ranking": {
        "removal": "accuracy when many filters go together, by criterion, without fine-tuning",
        "repair_settings": "repair on more or fewer images, with other ridges, on noise",
        "study": "accuracy of pruned and fine-tuned networks, by criterion and seed; resumable",
        "trace": "seconds per probe and peak memory, by estimator and precision",
        "fidelity": "rank correlation with the exact scores, against probes and seconds",
        "correlation": "correlation of every criterion with the oracle: zero one filter, measure",
        "implants": "accuracy with and without neural implants at equal parameters",
    },
    "integers": {
        "latency": "milliseconds of float32 and INT8 files, dense and slim, by threads",
        "operators": "milliseconds of each operator at several widths: the table of a device",
        "convert": "every family of tf_keras.applications as a full-integer file, dense and pruned",
        "ptq": "post-training quantization beside plain full-integer conversion: error, bytes",
        "rounding": "post-training quantization with kernels rounded each way, at 8 and 4 bits",
    },
    "architectures": {
        "zoo": "surgery on every family of tf_keras.applications: exactness, size, seconds",
    },
}
"""Room -> benchmark -> one line of help. `ehap_tf.benchmark.ROOM.NAME` has
`add_arguments(parser)`, `run(options)`.

`run` raises ValueError, TypeError or OSError for what the user got wrong, FloatingPointError where
numbers went out of range and MeasurementError where a process failed.
"""

COMMANDS = {name: room for room, names in ROOMS.items() for name in names}
"""Benchmark -> its room."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one benchmark; returns the exit status."""
    prepare_environment()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m ehap_tf.benchmark", description=sys.modules["ehap_tf.benchmark"].__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for name, room in COMMANDS.items():
        summary = ROOMS[room][name]
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if arguments[:1] == [name]:
            # Only the chosen benchmark is imported: some need packages that others do not.
            module_of(name).add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        if getattr(options, "output", None) is not None:
            require_writable(options.output)  # before hours are spent on what goes there
        module_of(options.command).run(options)
    except (ValueError, TypeError, OSError, FloatingPointError, MeasurementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def module_of(name: str) -> Any:
    """The module of a benchmark, imported."""
    with NativeErrorOutput().captured():
        return importlib.import_module(f"ehap_tf.benchmark.{COMMANDS[name]}.{name}")


if __name__ == "__main__":
    sys.exit(main())
