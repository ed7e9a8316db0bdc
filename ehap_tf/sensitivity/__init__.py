"""What a filter is worth: curvature estimators, criteria, and the scores that they give."""

from ehap_tf.criteria import criterion_names, register_criterion
from ehap_tf.sensitivity.criteria import Request, Result
from ehap_tf.sensitivity.estimators.convergence import Snapshot, convergence
from ehap_tf.sensitivity.estimators.estimation import ESTIMATOR_NAMES
from ehap_tf.sensitivity.filter_ranking import rank_filters
from ehap_tf.sensitivity.scores import FilterScores, Provenance
from ehap_tf.sensitivity.single_removals import oracle_importance

__all__ = [
    "ESTIMATOR_NAMES",
    "FilterScores",
    "Provenance",
    "Request",
    "Result",
    "Snapshot",
    "convergence",
    "criterion_names",
    "oracle_importance",
    "rank_filters",
    "register_criterion",
]
