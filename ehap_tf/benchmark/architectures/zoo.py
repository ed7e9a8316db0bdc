"""Surgery on every architecture family of `tf_keras.applications`: is it exact, and how fast is it?

Random weights and random scores: what is measured is the graph, not what the models know. Each
family has a process of its own, and every surgery that went well is kept: the same command after a
kill does the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras

from ehap_tf.benchmark.architectures.families import (
    add_family_arguments,
    build_family,
    families_and_ratios,
)
from ehap_tf.benchmark.architectures.surgery_check import checked, enliven
from ehap_tf.benchmark.architectures.zoo_table import table
from ehap_tf.benchmark.measuring.contenders import Clock
from ehap_tf.benchmark.measuring.isolation import MeasurementError, measure
from ehap_tf.benchmark.measuring.output import add_output_arguments, save, show
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside
from ehap_tf.channels import RESIDUAL_MODES

FAMILY_SECONDS = 7200


def operate_family(
    family: str, ratios: Sequence[float], directory: str, settings: Mapping[str, Any]
) -> None:
    """Makes the surgeries of one family that `directory` has no record of."""
    records = Records(pathlib.Path(directory), settings)
    model = enliven(build_family(family, activation=None))
    for residual, prune_ratio in itertools.product(RESIDUAL_MODES, ratios):
        make = functools.partial(_measured, family, model, residual, prune_ratio)
        row = records.row(_name(family, residual, prune_ratio), make)
        print(
            f"  {family} {residual} {prune_ratio:g}: error {row['error']:.1e}, spread "
            f"{row['spread']:.2f}, surgery {row['surgery_seconds']:.1f} CPU s",
            flush=True,
        )


def _measured(family: str, model: tf_keras.Model, residual: str, prune_ratio: float) -> Row:
    return dataclasses.asdict(checked(family, model, residual, prune_ratio))


def _name(family: str, residual: str, prune_ratio: float) -> str:
    return f"{family}_{residual}_{prune_ratio:g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --families, --ratios, --records and --output."""
    add_family_arguments(parser, ratios="0.3,0.6")
    add_records_argument(parser)
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Makes the surgeries that are missing, prints the table, writes what --output asks for.

    Raises:
        ValueError: a family is not known, or a surgery was not exact.
    """
    families, ratios = families_and_ratios(options)
    settings = {"tf_keras": tf_keras.__version__}
    records = Records(beside(options.output, options.records), settings)
    clock, rows, failed = Clock(len(families)), [], []
    for family in families:
        names = [_name(family, *case) for case in itertools.product(RESIDUAL_MODES, ratios)]
        said = "done"
        if any(records.find(name) is None for name in names):
            arguments = {
                "family": family,
                "ratios": ratios,
                "directory": str(records.directory),
                "settings": settings,
            }
            try:
                measure(f"{__name__}:operate_family", arguments, FAMILY_SECONDS)
            except MeasurementError as error:
                said = f"failed: {error}"
                failed.append(f"{family}: {error}")
        rows += [row for name in names if (row := records.find(name)) is not None]
        clock.tick(f"{family}: {said}")
    show("surgery on the families of tf_keras.applications", rows, _COLUMNS)
    save(options, "zoo", rows, table=table(rows))
    if failed:
        raise ValueError("; ".join(failed))


_COLUMNS = {
    "family": "family",
    "residual": "residual",
    "prune_ratio": "removed",
    "prunable": "prunable",
    "params_before": "parameters",
    "params_after": "slim",
    "macs_before": "MACs",
    "macs_after": "slim",
    "error": "error",
    "spread": "spread",
    "plan_seconds": "plan, CPU s",
    "target_seconds": "to a target, CPU s",
    "surgery_seconds": "surgery, CPU s",
}
