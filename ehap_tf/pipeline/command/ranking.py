"""Ranking a network as the settings of a run say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import tf_keras

from ehap_tf.models import Readout
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Job, select
from ehap_tf.pruning import rank_blocks, remove_blocks, residual_blocks
from ehap_tf.sensitivity import FilterScores, rank_filters

MICRO_BATCH = 128
"""Examples differentiated at once: bounds the memory, changes no score beyond rounding."""


TRACE_PROBES = 16
"""Of the Gauss-Newton sketch where bits are chosen: sums over a layer's filters vary little."""


def ranking_settings(config: PipelineConfig) -> dict[str, Any]:
    """The criterion and what it looks at."""
    values = select(
        config,
        "dataset",
        "criterion",
        "estimator",
        "precision",
        "probes",
        "tolerance",
        "hessian_batch_size",
        "seed",
    )
    # Without these, scores are the same as ever.
    if config.residual == "tied":
        values |= select(config, "residual")
    if config.remove_blocks:
        values["remove_blocks"] = list(config.remove_blocks)
    return values


def wanted_blocks(config: PipelineConfig, model: tf_keras.Model) -> tuple[int | None, list[str]]:
    """How many blocks --remove_blocks means, and which ones they are chosen among.

    None is all of them; one that is named may go with another that it is inside of.

    Raises:
        ValueError: the model does not have them.
    """
    wanted = list(dict.fromkeys(config.remove_blocks))
    if wanted in ([], ["0"]):
        return 0, []
    blocks = residual_blocks(model)
    if not blocks:
        raise ValueError(
            "remove_blocks must be left out: the model has no residual block that can go. "
            f"Received: {','.join(wanted)}"
        )
    is_count = wanted[0].isdecimal()
    count = int(wanted[0]) if is_count else None
    if not (set(wanted) <= set(blocks) if count is None else count <= len(blocks)):
        raise ValueError(
            f"remove_blocks must be at most {len(blocks)} or some of the residual blocks of the "
            f"model that can go: {', '.join(blocks)}. Received: {','.join(wanted)}"
        )
    return count, blocks if is_count else wanted


def removable_blocks(job: Job, model: tf_keras.Model) -> dict[str, float]:
    """The blocks that --remove_blocks means, with the loss after each removal.

    Raises:
        ValueError: the model does not have them.
    """
    count, among = wanted_blocks(job.config, model)
    if count == 0:
        return {}
    data, loss = _examples_and_loss(job, model)
    with job.console.progress("rank: blocks", "losses") as progress:
        order = rank_blocks(model, data, loss, count, among, MICRO_BATCH, progress)
    # Losses that are nearly equal may be in another order on another machine.
    return dict(job.workers.value_from_chief(order))


def rank_without_blocks(job: Job, model: tf_keras.Model, blocks: Iterable[str]) -> FilterScores:
    """Scores of the filters that are left when `blocks` are removed from `model`."""
    blocks = tuple(blocks)
    scores = rank_network(job, remove_blocks(model, blocks) if blocks else model)
    scores.provenance = dataclasses.replace(scores.provenance, without_blocks=blocks)
    return scores


def rank_network(job: Job, model: tf_keras.Model, title: str = "rank") -> FilterScores:
    """Scores of the filters of `model`, with progress on the console under `title`."""
    config = job.config
    data, loss = _examples_and_loss(job, model)
    with job.console.progress(title, "probes") as progress:
        scores = rank_filters(
            model,
            data,
            loss,
            criterion=config.criterion,
            estimator=config.estimator,
            precision=config.precision,
            probes=config.probes,
            tolerance=config.tolerance,
            batch_size=MICRO_BATCH,
            seed=config.seed,
            strategy=job.strategy,
            progress=progress,
            residual=config.residual,
        )
    for note in scores.provenance.notes:
        job.console.say(f"{title}: {note}")
    return scores


def traces_of(job: Job, model: tf_keras.Model) -> FilterScores:
    """The curvature at each filter of `model`, by the fast estimator, whatever ranks filters."""
    data, loss = _examples_and_loss(job, model)
    with job.console.progress("quantize: curvature", "probes") as progress:
        return rank_filters(
            model,
            data,
            loss,
            estimator="gauss_newton",
            probes=TRACE_PROBES,
            batch_size=MICRO_BATCH,
            seed=job.config.seed,
            strategy=job.strategy,
            progress=progress,
        )


def _examples_and_loss(job: Job, model: tf_keras.Model) -> tuple[Any, tf_keras.losses.Loss]:
    readout = Readout.of(model)
    images, labels = job.sample(job.config.hessian_batch_size)
    return (images, readout.labels(labels)), readout.loss()
