"""Ranking a network as the settings of a run say."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf.data import sample_arrays
from ehap_tf.models import ends_in_softmax
from ehap_tf.pipeline.config import PipelineConfig
from ehap_tf.pipeline.job import Job, select
from ehap_tf.sensitivity import FilterScores, rank_filters

MICRO_BATCH = 128
"""Examples differentiated at once: bounds the memory, changes no score beyond rounding."""


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
    # Without it, scores are the same as ever.
    return values | select(config, "residual") if config.residual == "tied" else values


def rank_network(job: Job, model: tf_keras.Model, title: str = "rank") -> FilterScores:
    """Scores of the filters of `model`, with progress on the console under `title`."""
    config = job.config
    data = sample_arrays(job.dataset, config.hessian_batch_size, config.seed)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=not ends_in_softmax(model))
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
