"""prune == mask on models drawn at random: 24, with `-m families` 200 more.

EHAP_TF_RANDOM_MODELS=5000 draws that many in place of the 200. There is a test for each residual
mode and kind of head, so that several processes share the work.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from ehap_tf.channels import trace_channels
from ehap_tf.pruning import count_macs, count_parameters, mask, plan_pruning, prune
from ehap_tf.pruning.while_training.zeroing import not_removable_by_zeros, weight_masks
from tests.pruning.nets import batch, random_scores, relative_error, shake
from tests.pruning.random_models import build, recipes

MODELS = int(os.environ.get("EHAP_TF_RANDOM_MODELS", "200"))
HEADS = ("flatten", "pool", "keepdims", "two")
MODES = ("union", "tied")


@pytest.mark.parametrize("residual", MODES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("models", [24, pytest.param(MODELS, marks=pytest.mark.families)])
def test_slim_equals_mask_and_costs_equal_the_plan(head, residual, models):
    @seed(HEADS.index(head) * len(MODES) + MODES.index(residual) + 8 * (models > 24))
    @settings(
        max_examples=-(-models // (len(HEADS) * len(MODES))),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        recipe=recipes(),
        prune_ratio=st.floats(0.1, 0.9),
        implant_ratio=st.sampled_from([0.0, 0.0, 0.5]),
        shake_seed=st.integers(0, 99),
    )
    def check(recipe, prune_ratio, implant_ratio, shake_seed):
        model = shake(build(recipe, head), shake_seed)
        plan = plan_pruning(
            model,
            random_scores(model, shake_seed),
            prune_ratio=prune_ratio,
            residual=residual,
            implant_ratio=implant_ratio,
            implant_init="center",
        )
        note(plan.summary())
        assert_slim_is_right(model, plan)

    check()


def assert_slim_is_right(model, plan):
    weights = model.get_weights()
    slim = prune(model, plan)
    x = batch(model)
    expected = mask(model, plan)(x)
    assert relative_error(slim(x), expected) < 1e-4
    assert count_parameters(slim) == plan.params_after
    assert count_macs(slim) == plan.macs_after
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    if not any(len(small) for small in plan.implanted.values()):
        assert_zero_weights_do_the_same(model, plan, x, expected)


def assert_zero_weights_do_the_same(model, plan, x, expected):
    """What stands for the slim model in training: zeros, where a removal can be said by zeros."""
    graph = trace_channels(model, plan.residual)
    stay = not_removable_by_zeros(graph)
    if any(len(plan.kept[layer]) < plan.filters[layer] for layer in stay):
        return
    for weight, keeps in weight_masks(graph, plan.alive(graph)):
        weight.assign(np.where(keeps, weight.numpy(), 0))
    assert relative_error(model(x), expected) < 1e-4
