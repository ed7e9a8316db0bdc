"""Stage `rank`: what each filter of the baseline is worth."""

from __future__ import annotations

from collections.abc import Mapping

from ehap_tf.models import load_model
from ehap_tf.pipeline.command.job import Figures, Job, Stage
from ehap_tf.pipeline.command.ranking import rank_without_blocks, ranking_settings, removable_blocks


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `scores.npz`."""
    del fingerprint
    config = job.config
    if config.preset == "ehap" and config.criterion == "hessian_trace":
        job.console.say(
            f"rank: the paper's criterion, {config.probes} probes; --preset=best is faster and "
            "more accurate (ResNet-32 to half of its multiply-accumulates, BatchNorm re-estimated: "
            "79.9 against 51.3 % of validation images, docs/results.md)"
        )
    model = load_model(job.run.baseline)
    blocks = removable_blocks(job, model)
    scores = rank_without_blocks(job, model, blocks)
    scores.save(job.run.scores)
    figures = {"removed_blocks": blocks} if blocks else {}
    return figures | {
        "quantity": scores.provenance.quantity,
        "notes": [*scores.provenance.notes, *_about(blocks)],
        **scores.provenance.figures(),
    }


def _about(blocks: Mapping[str, float]) -> list[str]:
    if not blocks:
        return []
    listed = ", ".join(f"{name} ({loss:.4g})" for name, loss in blocks.items())
    return [f"residual blocks removed before, with the loss after each: {listed}"]


STAGE = Stage(
    name="rank",
    settings=ranking_settings,
    inputs=lambda run: (run.baseline,),
    outputs=lambda run: (run.scores,),
    run=run,
    shared=True,
)
