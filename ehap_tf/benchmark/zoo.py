"""Surgery on every architecture family of `tf_keras.applications`: is it exact, and how fast?

Random weights and random scores: what is measured is the graph, not what the models know.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.benchmark.families import FAMILIES, build_family, parse_families
from ehap_tf.benchmark.output import add_output_arguments, save, show
from ehap_tf.channels import RESIDUAL_MODES, trace_channels
from ehap_tf.pruning import count_macs, count_parameters, mask, plan_pruning, prune


@dataclasses.dataclass(frozen=True)
class SurgeryRow:
    """One surgery on one family, checked.

    Attributes:
        family, residual, prune_ratio: what was done.
        filters: filters of the model; `prunable` is the share of them that may go.
        params_before, params_after, macs_before, macs_after: counted on the models themselves.
        error: largest difference of the outputs of the slim and the masked model, relative.
        plan_seconds, target_seconds, surgery_seconds: a plan at a ratio, a plan to half of the
            MACs, and building the slim model.
        saved_and_loaded, trained: the slim model came back from a .keras file with the same
            outputs, and took a step of SGD that left finite weights.
        frozen: layer -> why its channels stay.
    """

    family: str
    residual: str
    prune_ratio: float
    filters: int
    prunable: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    error: float
    plan_seconds: float
    target_seconds: float
    surgery_seconds: float
    saved_and_loaded: bool
    trained: bool
    frozen: dict[str, str]


def operate(family: str, model: tf_keras.Model, residual: str, prune_ratio: float) -> SurgeryRow:
    """One surgery, with everything that a row says about it."""
    rng = np.random.default_rng(1)
    graph = trace_channels(model, residual)
    scores = {layer: rng.random(len(ids)) for layer, ids in graph.ids.atoms.items()}
    atoms = [atom for ids in graph.ids.atoms.values() for atom in ids.tolist()]
    free = sum(graph.ids.frozen_reason(atom) is None for atom in atoms)
    plan, plan_seconds = _timed(
        lambda: plan_pruning(model, scores, prune_ratio=prune_ratio, residual=residual)
    )
    _, target_seconds = _timed(
        lambda: plan_pruning(model, scores, target_macs=0.5, residual=residual)
    )
    slim, surgery_seconds = _timed(lambda: prune(model, plan))
    side = int(model.inputs[0].shape[1])
    x = rng.uniform(0, 1, (2, side, side, 3)).astype(np.float32)
    expected, actual = np.asarray(mask(model, plan)(x)), np.asarray(slim(x))
    return SurgeryRow(
        family=family,
        residual=residual,
        prune_ratio=prune_ratio,
        filters=len(atoms),
        prunable=free / len(atoms),
        params_before=count_parameters(model),
        params_after=count_parameters(slim),
        macs_before=count_macs(model),
        macs_after=count_macs(slim),
        error=float(np.abs(actual - expected).max() / np.abs(expected).max()),
        plan_seconds=plan_seconds,
        target_seconds=target_seconds,
        surgery_seconds=surgery_seconds,
        saved_and_loaded=_survives_saving(slim, x, actual),
        trained=_trains(slim, x),
        frozen=dict(plan.frozen),
    )


def _timed(function: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _survives_saving(model: tf_keras.Model, x: np.ndarray, expected: np.ndarray) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/slim.keras"
        model.save(path)
        loaded = tf_keras.models.load_model(path, compile=False)
    return bool(np.array_equal(np.asarray(loaded(x)), expected))


def _trains(model: tf_keras.Model, x: np.ndarray) -> bool:
    labels = tf.constant([0, 1])
    with tf.GradientTape() as tape:
        probabilities = model(x, training=True)
        loss = tf.reduce_mean(
            tf_keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    steps = list(zip(gradients, model.trainable_variables, strict=True))
    tf_keras.optimizers.SGD(0.01).apply_gradients(steps)
    return all(np.isfinite(weight.numpy()).all() for weight in model.trainable_variables)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --families, --ratios and --output."""
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help="comma-separated; all of them by default"
    )
    parser.add_argument(
        "--ratios", default="0.3,0.6", help="shares of the filters to remove, comma-separated"
    )
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Prints a row for every surgery as it is done, then the table.

    Raises:
        ValueError: a family is not known, or a surgery was not exact.
    """
    families = parse_families(options.families)
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    rows = []
    for family in families:
        model = build_family(family)
        for residual in RESIDUAL_MODES:
            for prune_ratio in ratios:
                row = operate(family, model, residual, prune_ratio)
                rows.append(dataclasses.asdict(row))
                print(f"{family} {residual} {prune_ratio:g}: error {row.error:.1e}", flush=True)
        tf_keras.backend.clear_session()
    show("surgery on the families of tf_keras.applications", rows, _COLUMNS)
    for family, layer, reason in sorted(
        {(row["family"], *item) for row in rows for item in row["frozen"].items()}
    ):
        print(f"{family}: {layer} stays: {reason}")
    save(options, "zoo", rows)
    wrong = [row for row in rows if not _is_right(row)]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} surgeries failed: {wrong[0]}")


def _is_right(row: dict[str, Any]) -> bool:
    return row["error"] < 1e-4 and row["saved_and_loaded"] and row["trained"]


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
    "plan_seconds": "plan, s",
    "target_seconds": "to a target, s",
    "surgery_seconds": "surgery, s",
}
