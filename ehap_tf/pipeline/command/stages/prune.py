"""Stage `prune`: the plan, the slim model, and its repair."""

from __future__ import annotations

import pathlib
from typing import Any

from ehap_tf import files
from ehap_tf.budget import LatencyTable
from ehap_tf.models import load_model, save_model
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Figures, Job, Stage, select
from ehap_tf.pipeline.command.rounds import (
    adapted,
    amount_of_rest,
    plan_options,
    prune_in_steps,
    step_settings,
)
from ehap_tf.pipeline.training.evaluation import accuracy
from ehap_tf.pruning import count_macs, count_parameters, plan_pruning, prune, remove_blocks
from ehap_tf.sensitivity import FilterScores


def settings(config: PipelineConfig) -> dict[str, Any]:
    """How much is removed and how; `amount` is --prune_ratio or one of the targets."""
    values = select(
        config,
        "dataset",
        "prune_ratio_limit",
        "residual",
        "implant_ratio",
        "round_to",
    )
    if config.cost_aware is not None:
        values |= select(config, "cost_aware")
    if config.repaired_images:
        values |= {"repair_images": config.repaired_images} | select(config, "seed")
    else:
        values |= select(config, "recalibrate_batches")
        if config.recalibrate_batches:
            values |= select(config, "batch_size", "seed")
    if config.latency_table is not None:
        values |= select(config, "latency_table")
    if config.prune_steps > 1:
        values |= step_settings(config)
    return config.amount | values


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `plan.json` and `slim.keras`."""
    config = job.config
    whole = load_model(job.run.baseline)
    scores = FilterScores.load(job.run.scores)
    blocks = scores.provenance.without_blocks
    model = remove_blocks(whole, blocks) if blocks else whole
    amount = amount_of_rest(config.amount, whole, model)
    figures: Figures = {}
    if config.prune_steps > 1:
        last = prune_in_steps(job, fingerprint, model, scores, amount)
        plan, slim = last.plan, last.model
        before, removal = last.before, last.removal
        figures["prune_steps"] = list(last.history)
    else:
        with job.console.progress("prune: latency", "files") as progress:
            plan = plan_pruning(
                model,
                scores,
                **amount,
                residual=config.residual,
                **plan_options(config),
                costs=_table(config),
                progress=progress,
            )
        slim = prune(model, plan)
        before, removal = model, plan
    files.write_text(job.run.plan, plan.to_json())
    if plan.shortfall:
        job.console.say(f"prune: {plan.shortfall}")
        figures["prune_shortfall"] = plan.shortfall
    figures |= {
        "params_before": count_parameters(whole),
        "params_after": plan.params_after,
        "macs_before": count_macs(whole),
        "macs_after": plan.macs_after,
    }
    repairs = bool(config.repaired_images)
    if (repairs or config.recalibrate_batches) and before is not None and removal is not None:
        key = "accuracy_before_repair" if repairs else "accuracy_before_recalibration"
        figures[key] = accuracy(slim, job.dataset.test, job.dataset)
        slim = adapted(job, slim, before, removal, "prune: repair")
        # A layer that had no bias may have one now.
        figures["params_after"] = int(slim.count_params())
    save_model(slim, job.run.slim)
    figures["pruned_accuracy"] = accuracy(slim, job.dataset.test, job.dataset)
    return figures


def _table(config: PipelineConfig) -> LatencyTable | None:
    """The times of operators that --latency_table names.

    Raises:
        ValueError: it is no such table; with its name.
    """
    if config.latency_table is None:
        return None
    try:
        return LatencyTable.from_json(pathlib.Path(config.latency_table).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"latency_table {config.latency_table!r} cannot be read: {error}"
        ) from None


STAGE = Stage(
    name="prune",
    settings=settings,
    inputs=lambda run: (run.baseline, run.scores),
    outputs=lambda run: (run.plan, run.slim),
    run=run,
    shared=True,
)
