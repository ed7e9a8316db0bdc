import dataclasses
import json

import numpy as np
import pytest

from ehap_tf.pruning import PruningPlan, compensate, mask, plan_pruning, prune
from tests.pruning.nets import random_scores, small_residual_net


@pytest.fixture
def model():
    return small_residual_net()


@pytest.fixture
def plan(model):
    return plan_pruning(model, random_scores(model), prune_ratio=0.4)


def test_json_round_trip(plan):
    again = PruningPlan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert all((again.kept[layer] == plan.kept[layer]).all() for layer in plan.kept)


def test_plans_are_equal_where_all_that_they_hold_is(plan):
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan and again is not plan
    assert dataclasses.replace(plan, kept=dict(reversed(plan.kept.items()))) == plan
    unknown = dataclasses.replace(plan, macs_before=float("nan"), macs_after=float("nan"))
    assert PruningPlan.from_json(unknown.to_json()) == unknown != plan
    fewer = {**plan.kept, "a": plan.kept["a"][1:]}
    other = {**plan.kept, "a": plan.kept["a"][::-1] + 1}
    less = {layer: kept for layer, kept in plan.kept.items() if layer != "a"}
    assert all(dataclasses.replace(plan, kept=kept) != plan for kept in (fewer, other, less))
    assert dataclasses.replace(plan, implanted={"a": np.array([0])}) != plan
    assert dataclasses.replace(plan, residual="tied") != plan
    assert dataclasses.replace(plan, frozen={**plan.frozen, "a": "it is mine"}) != plan
    assert plan != plan.to_json() and plan in [None, again]
    with pytest.raises(TypeError, match="unhashable"):
        hash(plan)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({"format": "other"}),
        lambda text: text.replace('"residual"', '"residuum"'),
        lambda text: json.dumps({**json.loads(text), "kept": {}}),
        lambda text: json.dumps(
            {**json.loads(text), "kept": {k: [99] for k in json.loads(text)["kept"]}}
        ),
    ],
)
def test_damaged_text_is_refused(plan, damage):
    with pytest.raises(ValueError, match="plan"):
        PruningPlan.from_json(damage(plan.to_json()))


def test_a_plan_is_shown_in_one_line(plan):
    """Of many index arrays only the sums."""
    stay = sum(int(flags.sum()) for flags in plan.flags().values())
    total = sum(plan.filters.values())
    shown = repr(plan)
    assert shown.startswith(f"PruningPlan({len(plan.filters)} layers, {stay} of {total} filters")
    assert f"{plan.params_after:,}" in shown and len(shown) < 200


def test_what_is_no_plan_and_what_are_no_scores(model):
    data = (np.zeros((2, 8, 8, 3)), np.zeros(2))
    for use in (prune, mask, lambda model, plan: compensate(model, model, plan, data)):
        with pytest.raises(TypeError, match=r"plan must be a PruningPlan\. Received: float"):
            use(model, 0.5)
    with pytest.raises(TypeError, match=r"scores must be .*rank_filters.* Received: tuple"):
        plan_pruning(model, data, 0.5)


def test_plan_of_another_model_is_refused(model, plan):
    wrong = dataclasses.replace(plan, filters={**plan.filters, "stem": 7})
    with pytest.raises(ValueError, match=r"expects 7 filters in layer 'stem'\. Received: 6"):
        prune(model, wrong)
    wrong = dataclasses.replace(
        plan,
        filters={**plan.filters, "other": 2},
        kept={**plan.kept, "other": np.array([0])},
    )
    with pytest.raises(ValueError, match="no such layer"):
        prune(model, wrong)


def test_plan_that_breaks_a_tie_is_refused(model, plan):
    tied = dataclasses.replace(
        plan, residual="tied", kept={**plan.kept, "stem": np.arange(6), "b": np.arange(5)}
    )
    with pytest.raises(ValueError, match="together with filters of other layers"):
        prune(model, tied)


def test_plan_that_removes_an_output_or_everything_is_refused(model, plan):
    with pytest.raises(ValueError, match="model output"):
        prune(model, dataclasses.replace(plan, kept={**plan.kept, "logits": np.arange(3)}))
    with pytest.raises(ValueError, match="every filter of layer 'a'"):
        prune(model, dataclasses.replace(plan, kept={**plan.kept, "a": np.array([], np.int64)}))
