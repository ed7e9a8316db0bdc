"""What to remove, and the model without it."""

from ehap_tf.pruning.block_removal import rank_blocks, remove_blocks, residual_blocks
from ehap_tf.pruning.plan.cost import count_macs, count_parameters
from ehap_tf.pruning.plan.plan_composition import plan_further, plan_on_slim
from ehap_tf.pruning.plan.pruning_plan import PruningPlan
from ehap_tf.pruning.plan.selection import plan_pruning
from ehap_tf.pruning.repair import repair
from ehap_tf.pruning.surgery.compensation import compensate
from ehap_tf.pruning.surgery.masking import ChannelMask, mask
from ehap_tf.pruning.surgery.recalibration import recalibrate
from ehap_tf.pruning.surgery.slim_model import prune
from ehap_tf.pruning.while_training.callback import PruningCallback
from ehap_tf.pruning.while_training.training_hook import optimizer_variables
from ehap_tf.pruning.while_training.training_state import PruningState

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
