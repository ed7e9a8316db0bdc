"""Criteria by name: what holds for each, and how one is added.

It imports no TensorFlow, so that the command can list them at once: the function of a built-in
criterion is imported when it is called.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

CriterionFunction = Callable[[Any], Any]
"""From an `ehap_tf.sensitivity.Request` to a `Result`, or a mapping from layer name to scores."""


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What holds for a criterion.

    Attributes:
        function: what computes it, or "module.name" of one in `ehap_tf.sensitivity.criteria`.
        help: what a filter is worth by it, in one line.
        needs_data: it looks at data, by a loss.
        samples: it draws random vectors, as many as `probes` says.
        judged: its scores are linear in what is sampled, so that their errors are known, and a
            `tolerance` can end the sampling.
        grouped: with `residual="tied"` it scores the removal of a whole group of filters at once;
            the scores of others are the same in both modes.
    """

    function: CriterionFunction | str
    help: str = ""
    needs_data: bool = True
    samples: bool = True
    judged: bool = False
    grouped: bool = False

    def score(self, request: Any) -> Any:
        """What the function returns."""
        if not isinstance(self.function, str):
            return self.function(request)
        module, name = self.function.split(".")
        home = importlib.import_module(f"ehap_tf.sensitivity.criteria.{module}")
        return getattr(home, name)(request)


_CRITERIA: dict[str, Criterion] = {
    "hessian_trace": Criterion("hessian_trace.hessian_trace", judged=True,
        help="curvature of its weights times their energy (HAP, EHAP)"),
    "obd": Criterion("gate_curvature.gate_curvature", judged=True, grouped=True,
        help="curvature of the loss on its gate, half of it"),
    "quadratic": Criterion("gate_curvature.quadratic", judged=True, grouped=True,
        help="predicted change of the loss when it alone is removed"),
    "obd_joint": Criterion("joint_removal.joint", grouped=True,
        help="predicted change of the loss when it goes after the cheaper ones of its layer"),
    "obd_joint_centered": Criterion("joint_removal.joint_centered", grouped=True,
        help="obd_joint where means are made up for, as recalibration does"),
    "obs_joint": Criterion("joint_removal.joint_refit", grouped=True,
        help="obd_joint_centered where the layers behind are solved again, as repair does"),
    "taylor_fo": Criterion("taylor.first_order", samples=False, grouped=True,
        help="squared gradient on its gate"),
    "taylor_fo_weight": Criterion("taylor.first_order_weights", samples=False,
        help="squared gradient times weight, added up"),
    "taylor_so": Criterion("taylor.second_order", grouped=True,
        help="taylor_fo with curvature, squared"),
    "taylor_so_weight": Criterion("taylor.second_order_weights",
        help="taylor_fo_weight with curvature, squared"),
    "magnitude_l2": Criterion("magnitude.mean_square", needs_data=False, samples=False,
        help="mean square of its weights"),
    "magnitude": Criterion("magnitude.mean_square", needs_data=False, samples=False,
        help="another name of magnitude_l2"),
    "magnitude_l1": Criterion("magnitude.mean_absolute", needs_data=False, samples=False,
        help="mean absolute value of its weights"),
    "bn_scale": Criterion("batch_norm_scale.batch_norm_scale", needs_data=False, samples=False,
        help="scale of the BatchNorm behind it"),
    "random": Criterion("random_scores.random_scores", needs_data=False, samples=False,
        help="nothing: a baseline"),
    "oracle": Criterion("oracle.oracle", samples=False, grouped=True,
        help="measured change of the loss when it alone is removed (slow)"),
}  # fmt: skip


def register_criterion(
    name: str,
    needs_data: bool = True,
    *,
    samples: bool = True,
    judged: bool = False,
    grouped: bool = False,
    help: str = "",
) -> Callable[[CriterionFunction], CriterionFunction]:
    """Makes a function available as `rank_filters(..., criterion=name)`.

    Example:
        >>> @register_criterion("kernel_range", needs_data=False)
        ... def kernel_range(request):
        ...     return {l.name: np.ptp(l.kernel.reshape(-1, l.filters), axis=0)
        ...             for l in request.layers}

    Args:
        name: not yet taken.
        needs_data: whether `rank_filters` has to be given data and a loss.
        samples: whether it draws as many random vectors as `request.probes` says.
        judged: whether it heeds `request.tolerance`. One that samples and does not is refused a
            tolerance.
        grouped: whether with `request.residual == "tied"` the scores of filters that go together
            add up to that of their removal at once; `plan_pruning` takes them for tied plans only.
        help: what a filter is worth by it, in one line.

    Returns:
        A decorator for a function that takes a `Request` and returns a `Result`, or a mapping
        from layer name to one score for each filter.

    Raises:
        ValueError: the name is taken.
    """
    if name in _CRITERIA:
        raise ValueError(f"name must not be a registered criterion. Received: {name!r}")

    def register(function: CriterionFunction) -> CriterionFunction:
        _CRITERIA[name] = Criterion(function, help, needs_data, samples, judged, grouped)
        return function

    return register


def criterion_names() -> tuple[str, ...]:
    """All registered names."""
    return tuple(_CRITERIA)


def find_criterion(name: str) -> Criterion:
    """The criterion called `name`.

    Raises:
        ValueError: there is none; lists the valid names.
    """
    if name not in _CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(_CRITERIA)}. Received: {name!r}")
    return _CRITERIA[name]


def check_tolerance(name: str, tolerance: float | None) -> None:
    """Checks that the ranking by a criterion can be judged while it samples.

    Raises:
        ValueError: a tolerance for scores whose errors are not known.
    """
    criterion = find_criterion(name)
    if tolerance is not None and criterion.samples and not criterion.judged:
        judged = ", ".join(one for one, each in _CRITERIA.items() if each.judged)
        raise ValueError(
            f"tolerance must be None for criterion {name!r}, which is not registered as judged "
            f"(scores linear in what is sampled); the criteria {judged} take one. On the command "
            f"line leave it out, or =none where a --flagfile gives it. Received: {tolerance!r}"
        )
