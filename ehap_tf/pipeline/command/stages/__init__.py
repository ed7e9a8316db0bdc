"""The stages of the job in order, one module each."""

from ehap_tf.pipeline.command.job import Stage
from ehap_tf.pipeline.command.stages import export, finetune, prune, quantize, rank, report, train

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
