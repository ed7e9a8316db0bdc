"""What a filter is worth: one criterion a module."""

from ehap_tf.sensitivity.criteria import (
    batch_norm_scale,
    hessian_trace,
    magnitude,
    random_scores,
)
from ehap_tf.sensitivity.criteria.registry import (
    Request,
    Result,
    criterion_names,
    find_criterion,
    register_criterion,
)

# Importing a criterion's module registers it; the order is that of error messages.
_MODULES = (hessian_trace, magnitude, batch_norm_scale, random_scores)

__all__ = ["Request", "Result", "criterion_names", "find_criterion", "register_criterion"]
