"""Stage `rank`: what each filter of the baseline is worth."""

from __future__ import annotations

from ehap_tf.models import load_model
from ehap_tf.pipeline.job import Figures, Job, Stage
from ehap_tf.pipeline.ranking import rank_network, ranking_settings


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `scores.npz`."""
    del fingerprint
    scores = rank_network(job, load_model(job.run.baseline))
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
    settings=ranking_settings,
    inputs=lambda run: (run.baseline,),
    outputs=lambda run: (run.scores,),
    run=run,
    shared=True,
)
