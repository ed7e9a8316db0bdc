"""What to remove, and the model without it."""

from ehap_tf.pruning.blocks import rank_blocks, remove_blocks, residual_blocks
from ehap_tf.pruning.callback import PruningCallback
from ehap_tf.pruning.compensation import compensate
from ehap_tf.pruning.cost import count_macs, count_parameters
from ehap_tf.pruning.masking import ChannelMask, mask
from ehap_tf.pruning.plan import PruningPlan
from ehap_tf.pruning.recalibration import recalibrate
from ehap_tf.pruning.repair import repair
from ehap_tf.pruning.rounds import plan_further, plan_on_slim
from ehap_tf.pruning.selection import plan_pruning
from ehap_tf.pruning.surgery import prune
from ehap_tf.pruning.training_hook import optimizer_variables
from ehap_tf.pruning.training_state import PruningState

__all__ = [
    "ChannelMask",
    "PruningCallback",
    "PruningPlan",
    "PruningState",
    "compensate",
    "count_macs",
    "count_parameters",
    "mask",
    "optimizer_variables",
    "plan_further",
    "plan_on_slim",
    "plan_pruning",
    "prune",
    "rank_blocks",
    "recalibrate",
    "remove_blocks",
    "repair",
    "residual_blocks",
]
