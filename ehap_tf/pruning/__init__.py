"""What to remove, and the model without it."""

from ehap_tf.pruning.cost import count_macs, count_parameters
from ehap_tf.pruning.masking import ChannelMask, mask
from ehap_tf.pruning.plan import PruningPlan
from ehap_tf.pruning.recalibration import recalibrate
from ehap_tf.pruning.selection import plan_pruning
from ehap_tf.pruning.surgery import prune

__all__ = [
    "ChannelMask",
    "PruningPlan",
    "count_macs",
    "count_parameters",
    "mask",
    "plan_pruning",
    "prune",
    "recalibrate",
]
