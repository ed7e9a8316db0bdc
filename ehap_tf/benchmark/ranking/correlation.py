"""How well each criterion foretells the removal of one filter: correlation with the oracle.

The oracle zeroes every filter in turn, where its removal acts, and measures the loss. "Signed"
compares the change of the loss with a criterion's signed form (its score, where it has none),
"absolute" compares absolute values. Filters that cannot be removed (the classifier's) are left out.

Foretelling the removal of one filter is not yet removing many: see the benchmark `removal`.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ehap_tf.benchmark.measuring import output
from ehap_tf.benchmark.measuring.contenders import (
    Clock,
    RefusedError,
    add_contender_arguments,
    rank,
    removable,
    require_criteria,
    with_reasons,
)
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside, digest
from ehap_tf.benchmark.measuring.subject import (
    add_subject_arguments,
    load_subject,
    subject_settings,
    trained_source,
)
from ehap_tf.sensitivity import FilterScores, oracle_importance

COEFFICIENTS = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}
FORMS = ("signed", "absolute")
COLUMNS = {
    "criterion": "criterion",
    **{f"{name} {form}": f"{name.title()}, {form}" for form in FORMS for name in COEFFICIENTS},
    "layers": "Spearman, absolute, mean of layers",
    "seconds": "seconds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, examples=256, noise=True)
    add_contender_arguments(parser)
    parser.set_defaults(residual="union")  # one filter at a time
    output.add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Ranks by the oracle and by every criterion, and compares; what is measured is kept.

    A criterion that cannot rank the network is left out, and the table says why.
    """
    require_criteria(options.criteria)
    model, sample, loss = load_subject(**subject_settings(options))
    source = digest(trained_source(options.model, options.dataset), options.seed)
    records = Records(beside(options.output, options.records), {"model": source}, options.rankings)
    clock = Clock(len(options.criteria) + 1)
    name = f"oracle_{options.dataset}_{options.examples}_seed{options.seed}"
    oracle = records.scores(
        name,
        lambda: oracle_importance(
            model,
            sample,
            loss,
            batch_size=options.batch_size,
            residual=options.residual,
            checkpoint=records.ranking(f"{name}_so_far", shared=True),
            progress=_say_tenths,
        ),
        shared=True,
    )
    clock.tick("oracle")
    found: dict[str, FilterScores] = {}
    refused: list[Row] = []
    for criterion in options.criteria:
        try:
            found[criterion] = rank(records, model, sample, loss, criterion, options, options.seed)
            clock.tick(criterion)
        except RefusedError as error:
            refused.append({"criterion": criterion, "layer": "all", "refused": str(error)})
            clock.tick(f"{criterion}: refused: {error}")
    layers = removable(model, list(oracle))
    rows: list[Row] = [{"criterion": "oracle", "layer": "all", "seconds": oracle.seconds}]
    for criterion, scores in found.items():
        rows += compare(criterion, scores, oracle, layers)
    rows += refused
    overall = [row for row in rows if row["layer"] == "all"]
    columns = with_reasons(COLUMNS, overall)
    output.show("Correlation with the oracle", overall, columns)
    show_layers(rows, layers, list(found))
    table = output.markdown(overall, columns)
    output.save(options, "correlation", rows, plot(found, oracle, layers), table, source)


def compare(
    criterion: str, scores: FilterScores, oracle: FilterScores, layers: Sequence[str]
) -> list[dict[str, Any]]:
    """One row over all of `layers`, then one per layer."""
    signed = scores.signed or scores
    rows = []
    for name in ("all", *layers):
        chosen = list(layers) if name == "all" else [name]
        change = np.concatenate([oracle.signed[layer] for layer in chosen])
        pairs = {
            "signed": (np.concatenate([signed[layer] for layer in chosen]), change),
            "absolute": (
                np.abs(np.concatenate([scores[layer] for layer in chosen])),
                np.abs(change),
            ),
        }
        row: dict[str, Any] = {"criterion": criterion, "layer": name, "filters": len(change)}
        for form, (x, y) in pairs.items():
            for coefficient in COEFFICIENTS:
                row[f"{coefficient} {form}"] = correlation(coefficient, x, y)
        rows.append(row)
    rows[0]["seconds"] = scores.seconds
    by_layer = [row["spearman absolute"] for row in rows[1:]]
    rows[0]["layers"] = float(np.mean([value for value in by_layer if value is not None] or [0.0]))
    return rows


def correlation(coefficient: str, x: np.ndarray, y: np.ndarray) -> float | None:
    """A coefficient by name; None where it is not defined (constant values, a single filter)."""
    if len(x) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(COEFFICIENTS[coefficient](x, y).statistic)
    return value if np.isfinite(value) else None


def show_layers(
    rows: Sequence[dict[str, Any]], layers: Sequence[str], criteria: Sequence[str]
) -> None:
    """Prints a line per layer and a column per criterion; the JSON file has all coefficients."""
    cells = {(row["layer"], row["criterion"]): row.get("spearman absolute") for row in rows}
    table = [
        {"layer": layer} | {criterion: cells[layer, criterion] for criterion in criteria}
        for layer in layers
    ]
    columns = {"layer": "layer"} | {criterion: criterion for criterion in criteria}
    output.show("Spearman, absolute, by layer", table, columns)


def plot(
    found: dict[str, FilterScores], oracle: FilterScores, layers: Sequence[str]
) -> Figure | None:
    """One panel a criterion: the measured change of the loss against the criterion's form."""
    if not found:
        return None
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.1 * lines), layout="constrained")
    change = np.concatenate([oracle.signed[layer] for layer in layers])
    depth = np.concatenate([np.full(len(oracle[n]), i) for i, n in enumerate(layers)])
    panels = np.asarray(figure.subplots(lines, columns, squeeze=False)).ravel().tolist()
    for axes, (criterion, scores) in zip(panels, found.items(), strict=False):
        form = scores.signed or scores
        x = np.concatenate([form[layer] for layer in layers])
        points = axes.scatter(x, change, s=6, c=depth, cmap="viridis", linewidths=0)
        # Changes span decades on both sides of zero.
        axes.set_yscale("symlog", linthresh=_small(change))
        if np.ptp(x) > 0:
            axes.set_xscale("symlog", linthresh=_small(x))
        axes.tick_params(labelsize=6)
        axes.set_title(criterion, fontsize=9)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel("criterion (signed where it has a sign)", fontsize=9)
    figure.supylabel("change of the loss when the filter is zeroed", fontsize=9)
    figure.colorbar(points, ax=panels, label="layer, from the input on")
    return figure


def _small(values: np.ndarray) -> float:
    """Below which a symmetric logarithmic axis is linear: a tenth of the values lie there."""
    positive = np.abs(values)[values != 0]
    return float(np.quantile(positive, 0.1)) if len(positive) else 1.0


def _say_tenths(done: int, total: int, figures: Any) -> None:
    del figures
    step = max(1, total // 10)
    if done == total or done % step < 16:
        print(f"oracle: {done} of {total} losses", flush=True)
