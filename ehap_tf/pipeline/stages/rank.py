"""Stage `rank`: what each filter of the baseline is worth."""

from __future__ import annotations

from typing import Any

import tf_keras

from ehap_tf.data import sample_arrays
from ehap_tf.models import ends_in_softmax, load_model
from ehap_tf.pipeline.config import PipelineConfig
from ehap_tf.pipeline.job import Figures, Job, Stage, select
from ehap_tf.sensitivity import rank_filters

MICRO_BATCH = 128
"""Examples differentiated at once: bounds the memory, changes no score beyond rounding."""


def settings(config: PipelineConfig) -> dict[str, Any]:
    """The criterion and what it looks at."""
    return select(
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


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `scores.npz`."""
    del fingerprint
    config = job.config
    model = load_model(job.run.baseline)
    data = sample_arrays(job.dataset, config.hessian_batch_size, config.seed)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=not ends_in_softmax(model))
    with job.console.progress("rank", "probes") as progress:
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
        )
    for note in scores.provenance.notes:
        job.console.say(f"rank: {note}")
    scores.save(job.run.scores)
    return {
        "quantity": scores.provenance.quantity,
        "notes": list(scores.provenance.notes),
        "criterion": scores.criterion,
        "estimator": scores.estimator,
        "precision": scores.precision,
        "probes": scores.probes,
        "rank_seconds": scores.seconds,
        "rank_peak_bytes": scores.peak_bytes,
    }


STAGE = Stage(
    name="rank",
    settings=settings,
    inputs=lambda run: (run.baseline,),
    outputs=lambda run: (run.scores,),
    run=run,
)
