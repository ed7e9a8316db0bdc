"""Times the operators of a network's integer file on this machine, into a table of latencies."""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

from ehap_tf.benchmark.measuring.subject import trained_source
from ehap_tf.budget import LatencyTable, measure_operators
from ehap_tf.budget.operator_timing import ROUNDS
from ehap_tf.files import write_text
from ehap_tf.models import build_model, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add = parser.add_argument
    add("--model", default="resnet32", help="a built-in one, a saved one, or a .tflite file")
    add("--dataset", default="cifar10", help="of a built-in model; default cifar10")
    add("--threads", type=int, default=1, help="of the interpreter; default 1")
    add("--rounds", type=int, default=ROUNDS, help=f"of timings; default {ROUNDS}")
    add("--output", default=None, help="where the table goes, JSON")


def run(options: argparse.Namespace) -> None:
    """Times the operators, prints the dearest, writes the table."""
    began = time.monotonic()
    network: Any = options.model
    if pathlib.Path(options.model).suffix != ".tflite":
        source = trained_source(options.model, options.dataset)
        # The time does not depend on the weights.
        network = load_model(source) if source else build_model(options.model)
    table = measure_operators(network, threads=options.threads, rounds=options.rounds)
    _show(table, time.monotonic() - began)
    if options.output:
        write_text(pathlib.Path(options.output), table.to_json())


def _show(table: LatencyTable, seconds: float) -> None:
    timings = sum(len(family["ms"]) for family in table.families.values())
    print(
        f"{table.device}, {table.threads} thread{'s' * (table.threads > 1)}: the network takes "
        f"{table.network_ms:.3f} ms, its operators one by one "
        f"{table.network_ms - table.constant_ms:.3f} ms; {timings} timings of "
        f"{len(table.families)} kinds in {seconds:.0f} s"
    )
    if table.untimed:
        print("not timed: " + "; ".join(table.untimed))
