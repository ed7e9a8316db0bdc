"""prune == mask on models drawn at random; EHAP_TF_RANDOM_MODELS=5000 draws more of them."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from ehap_tf.channels import trace_channels
from ehap_tf.pruning import count_macs, count_parameters, mask, plan_pruning, prune
from ehap_tf.pruning.zeroing import not_removable_by_zeros, weight_masks
from tests.pruning.nets import batch, random_scores, relative_error, shake
from tests.pruning.random_models import build, recipes

EXAMPLES = int(os.environ.get("EHAP_TF_RANDOM_MODELS", "200"))


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 200,
    suppress_health_check=list(HealthCheck),
)
@given(
    recipe=recipes(),
    head=st.sampled_from(["flatten", "pool", "keepdims", "two"]),
    residual=st.sampled_from(["union", "tied"]),
    prune_ratio=st.floats(0.1, 0.9),
    implant_ratio=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_slim_equals_mask_and_costs_equal_the_plan(
    recipe, head, residual, prune_ratio, implant_ratio, seed
):
    model = shake(build(recipe, head), seed)
    weights = model.get_weights()
    plan = plan_pruning(
        model,
        random_scores(model, seed),
        prune_ratio=prune_ratio,
        residual=residual,
        implant_ratio=implant_ratio,
        implant_init="center",
    )
    note(plan.summary())
    slim = prune(model, plan)
    x = batch(model)
    expected = mask(model, plan)(x)
    assert relative_error(slim(x), expected) < 1e-4
    assert count_parameters(slim) == plan.params_after
    assert count_macs(slim) == plan.macs_after
    assert all(
        np.array_equal(before, after)
        for before, after in zip(weights, model.get_weights(), strict=True)
    )
    if not implant_ratio:
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
