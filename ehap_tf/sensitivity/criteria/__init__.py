"""What a filter is worth: one criterion a module."""

from ehap_tf.sensitivity.criteria import (
    batch_norm_scale,
    gate_curvature,
    hessian_trace,
    joint_removal,
    magnitude,
    oracle,
    random_scores,
    taylor,
)
from ehap_tf.sensitivity.criteria.registry import (
    Request,
    Result,
    criterion_names,
    find_criterion,
    register_criterion,
)

# Importing a criterion's module registers it; the order is that of error messages.
_MODULES = (
    hessian_trace,
    gate_curvature,
    joint_removal,
    taylor,
    magnitude,
    batch_norm_scale,
    random_scores,
    oracle,
)

__all__ = ["Request", "Result", "criterion_names", "find_criterion", "register_criterion"]
