"""The stages of the job in order, one module each."""

from ehap_tf.pipeline.job import Stage
from ehap_tf.pipeline.stages import train

STAGES: tuple[Stage, ...] = (train.STAGE,)

__all__ = ["STAGES"]
