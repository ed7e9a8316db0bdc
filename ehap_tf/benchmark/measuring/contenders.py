"""The criteria that benchmarks compare, each ranked once and kept."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.benchmark.measuring.records import Records, Row
from ehap_tf.channels import trace_channels
from ehap_tf.criteria import criterion_names, find_criterion
from ehap_tf.sensitivity import FilterScores, rank_filters

# Slow by nature (the oracle), or another name of one that is listed.
LEFT_OUT = ("oracle", "magnitude_l2")

# A benchmark that is cut short has measured what the comparison is about.
FIRST = ("obd_joint_centered", "hessian_trace", "magnitude", "obd", "taylor_fo", "obd_joint")


class RefusedError(ValueError):
    """A criterion cannot rank a network; its message says why."""


def add_contender_arguments(parser: argparse.ArgumentParser, probes: int = 32) -> None:
    """Adds --criteria, and what `add_ranking_arguments` does."""
    names = [*FIRST, *(name for name in criterion_names() if name not in FIRST)]
    parser.add_argument(
        "--criteria",
        nargs="+",
        default=[name for name in names if name not in LEFT_OUT],
        help="in the order of measuring; default: all but the oracle, those that docs/results.md "
        "is about first",
    )
    add_ranking_arguments(parser, probes)


def add_ranking_arguments(parser: argparse.ArgumentParser, probes: int) -> None:
    """Adds --probes, --batch_size and --rankings."""
    parser.add_argument(
        "--probes",
        type=int,
        default=probes,
        help=f"of the Gauss-Newton sketch, for criteria of curvature; default {probes}",
    )
    parser.add_argument("--batch_size", type=int, default=128, help="micro-batch; default 128")
    parser.add_argument(
        "--rankings",
        default=None,
        help="folder of rankings that several benchmarks share; default: beside the records",
    )


def require_criteria(names: Sequence[str]) -> None:
    """Checks names before hours are spent on the first of them.

    Raises:
        ValueError: no criterion has such a name.
    """
    for name in names:
        find_criterion(name)


def with_reasons(columns: Mapping[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """The columns of a table, with one for why a criterion was refused where some row has it."""
    reasons = {"refused": "refused"} if any("refused" in row for row in rows) else {}
    return {**columns, **reasons}


def line_look(number: int) -> dict[str, str]:
    """Color and marker of the line of criterion `number`; the colors come again with others."""
    markers = ".^sDv"
    return {"color": f"C{number % 10}", "marker": markers[number // 10 % len(markers)]}


def rank(
    records: Records,
    model: tf_keras.Model,
    sample: tuple[np.ndarray, np.ndarray],
    loss: Any,
    criterion: str,
    options: argparse.Namespace,
    seed: int,
    name: str | None = None,
) -> FilterScores:
    """The scores of one criterion, from `records` where they are there.

    `name` is that of a ranking of another network than the one that the records are about.

    Curvature comes from the Gauss-Newton sketch, for the relative Hessian trace too: in networks
    of piecewise linear layers it is the Hessian's, and 32 probes settle what 300 of Hutchinson's
    do not.

    Raises:
        RefusedError: the criterion cannot rank the network, or its numbers overflow.
    """
    shared = name is None
    if name is None:
        # All that the scores depend on, besides the network: benchmarks share them.
        name = f"{criterion}_{options.dataset}_{len(sample[1])}_{options.probes}_probes_seed{seed}"
        if options.residual != "union":
            name += f"_{options.residual}"

    def measure() -> FilterScores:
        try:
            return rank_filters(
                model,
                sample,
                loss,
                criterion,
                estimator="gauss_newton",
                probes=options.probes,
                batch_size=options.batch_size,
                seed=seed,
                residual=options.residual,
            )
        except (ValueError, FloatingPointError) as error:
            raise RefusedError(str(error)) from error

    return records.scores(name, measure, shared)


def removable(model: tf_keras.Model, layers: Sequence[str]) -> list[str]:
    """Those of `layers` that may lose filters: not the one that gives the model's outputs."""
    ids = trace_channels(model).ids
    return [
        name
        for name in layers
        if name in ids.atoms
        and any(ids.frozen_reason(atom) is None for atom in ids.atoms[name].tolist())
    ]


class Clock:
    """Says how far a long benchmark is, one line per measurement."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.monotonic()

    def tick(self, what: str) -> None:
        """One more is done."""
        self._done += 1
        seconds = time.monotonic() - self._began
        print(f"[{self._done}/{self._total}, {seconds:.0f} s] {what}", flush=True)
