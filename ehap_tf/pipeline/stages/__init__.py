"""The stages of the job in order, one module each."""

from ehap_tf.pipeline.job import Stage
from ehap_tf.pipeline.stages import export, finetune, prune, quantize, rank, report, train

STAGES: tuple[Stage, ...] = (
    train.STAGE,
    rank.STAGE,
    prune.STAGE,
    finetune.STAGE,
    quantize.STAGE,
    export.STAGE,
    report.STAGE,
)

__all__ = ["STAGES"]
