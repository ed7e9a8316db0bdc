"""Pruning a slim model further is pruning the first one more."""

import numpy as np
import pytest
import tf_keras

from ehap_tf.pruning import plan_further, plan_on_slim, plan_pruning, prune
from tests.pruning.nets import (
    ROUNDING,
    batch,
    random_scores,
    relative_error,
    shake,
    small_residual_net,
)

layers = tf_keras.layers


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_steps_come_to_the_same_as_one_plan(residual):
    model = small_residual_net()
    plan = plan_pruning(model, random_scores(model), 0.0, residual=residual)
    slim = model
    for step, ratio in enumerate((0.2, 0.4, 0.6)):
        scores = random_scores(slim, step)
        further = plan_further(model, plan, scores, prune_ratio=ratio, prune_ratio_limit=0.7)
        for layer, kept in further.kept.items():
            assert set(kept) <= set(plan.kept[layer])
            # The limit counts from the first model: 70% of six filters are four.
            assert len(kept) >= further.filters[layer] - int(0.7 * further.filters[layer])
        slim = prune(slim, plan_on_slim(slim, plan, further))
        plan = further
        assert slim.count_params() == plan.params_after
    at_once = prune(model, plan)
    assert at_once.count_params() == slim.count_params() < model.count_params()
    assert relative_error(slim(batch(model)), at_once(batch(model))) < ROUNDING


def test_filters_that_are_gone_are_counted_first():
    """At the same scores, a step to a ratio is that ratio at once."""
    model = small_residual_net()
    scores = random_scores(model)
    half = plan_pruning(model, scores, 0.3)
    left = {layer: scores[layer][half.kept[layer]] for layer in scores}
    further = plan_further(model, half, left, prune_ratio=0.5)
    at_once = plan_pruning(model, scores, 0.5)
    for layer, kept in at_once.kept.items():
        np.testing.assert_array_equal(further.kept[layer], kept)
    # Also for signed scores that are divided by costs.
    signed = {layer: values - 0.9 for layer, values in scores.items()}
    left = {layer: signed[layer][half.kept[layer]] for layer in signed}
    further = plan_further(model, half, left, target_macs=0.4, cost_aware="macs")
    assert further.macs_after <= 0.4 * further.macs_before < half.macs_after
    assert all(set(kept) <= set(half.kept[layer]) for layer, kept in further.kept.items())
    with pytest.raises(ValueError, match="one per filter that is kept"):
        plan_further(model, half, scores, prune_ratio=0.5)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_grouped_convolution_of_one_group_stays_as_it_is(multiplier):
    """It owns no filters in the first model, and does in the slim one, where it is scored too."""
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.Conv2D(4 * multiplier, 3, groups=4, name="grouped")(x)
    x = layers.Conv2D(6, 3, name="last")(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(x))))
    scores = {"conv": np.arange(4.0), "last": 9.0 + np.arange(6.0)}
    plan = plan_pruning(model, scores, 0.3, prune_ratio_limit=0.8)
    assert list(plan.kept["conv"]) == [3]
    slim = prune(model, plan)
    assert slim.get_layer("grouped").groups == 1
    scores = {**random_scores(slim), "last": np.arange(6.0)}
    assert "grouped" in scores
    further = plan_further(model, plan, scores, prune_ratio=0.6, prune_ratio_limit=0.8)
    assert list(further.kept["conv"]) == [3] and len(further.kept["last"]) < 6
    slimmer = prune(slim, plan_on_slim(slim, plan, further))
    at_once = prune(model, further)
    assert slimmer.count_params() == at_once.count_params() == further.params_after
    assert relative_error(slimmer(batch(model)), at_once(batch(model))) < ROUNDING
    with pytest.raises(ValueError, match="nowhere"):
        plan_further(model, plan, {**scores, "nowhere": np.ones(2)}, prune_ratio=0.6)
