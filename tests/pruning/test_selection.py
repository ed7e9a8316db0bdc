import warnings

import numpy as np
import pytest
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.models import build_model
from ehap_tf.pruning import (
    PruningPlan,
    count_macs,
    count_parameters,
    plan_further,
    plan_pruning,
    prune,
)
from ehap_tf.pruning.plan.units import _savings
from tests.pruning.nets import random_scores, small_residual_net

layers = tf_keras.layers


def chain(*widths):
    x = inputs = layers.Input((6, 6, 3))
    for number, width in enumerate(widths):
        x = layers.Conv2D(width, 3, padding="same", name=f"c{number}")(x)
    return tf_keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x)))


def test_threshold_is_the_formula_of_the_paper():
    model = chain(10, 10)
    scores = random_scores(model)
    everything = np.sort(np.concatenate(list(scores.values())))
    assert len(everything) == 22  # the rows of the classifier stand in the list, too
    threshold = everything[int(0.5 * 22)]
    plan = plan_pruning(model, scores, prune_ratio=0.5)
    for layer in ("c0", "c1"):
        assert plan.kept[layer].tolist() == np.flatnonzero(scores[layer] > threshold).tolist()
    assert plan.kept["logits"].tolist() == [0, 1]


def test_of_equal_scores_as_many_go_as_the_ratio_says_and_alike_from_all_layers():
    model = chain(10, 20)
    even = {name: np.ones(len(values)) for name, values in random_scores(model).items()}
    # 10 of 32 go: 3 of c0, 6 of c1 and one row of the classifier, which comes back.
    plan = plan_pruning(model, even, prune_ratio=0.3)
    assert {layer: len(kept) for layer, kept in plan.kept.items()} == {
        "c0": 7, "c1": 14, "logits": 2,
    }  # fmt: skip


def test_a_block_of_equal_scores_at_the_top_does_not_go_as_a_whole():
    """As `bn_scale` gives the largest score to every layer without a BatchNorm."""
    model = chain(10, 10)
    scores = {"c0": np.arange(10.0), "c1": np.full(10, 9.0), "logits": np.full(2, 9.0)}
    plan = plan_pruning(model, scores, prune_ratio=0.6)  # 14 of 22: 9 below, 5 of 13 equal ones
    assert plan.kept["c0"].tolist() == [9]
    assert len(plan.kept["c1"]) == 6


def test_limit_keeps_the_best_filters_of_a_layer():
    model = chain(10, 10)
    scores = {"c0": np.arange(10.0), "c1": np.arange(10.0) + 100, "logits": np.array([1e3, 1e3])}
    plan = plan_pruning(model, scores, prune_ratio=0.45, prune_ratio_limit=0.8)
    assert plan.kept["c0"].tolist() == [8, 9]
    plan = plan_pruning(model, scores, prune_ratio=0.45, prune_ratio_limit=1.0)
    assert plan.kept["c0"].tolist() == [9]


def test_tied_filters_share_the_sum_of_their_scores():
    model = small_residual_net()
    scores = {name: np.full(len(v), 10.0) for name, v in random_scores(model).items()}
    # Apart, stem 0 would go and b 0 would stay; together they are worth 11 and stay.
    scores["stem"] = np.array([1.0, 2, 3, 10, 10, 10])
    scores["b"] = np.array([10.0, 2, 3, 10, 10, 10])
    tied = plan_pruning(model, scores, prune_ratio=0.2, residual="tied")
    assert tied.kept["stem"].tolist() == tied.kept["b"].tolist() == [0, 3, 4, 5]
    union = plan_pruning(model, scores, prune_ratio=0.2, residual="union")
    assert union.kept["stem"].tolist() == [3, 4, 5]
    assert union.kept["b"].tolist() == [0, 3, 4, 5]


@pytest.mark.parametrize("residual", ["union", "tied"])
@pytest.mark.parametrize("what", ["params", "macs"])
def test_target_is_met_within_one_filter(residual, what):
    model = build_model("resnet20")
    plan = plan_pruning(model, random_scores(model), residual=residual, **{f"target_{what}": 0.4})
    before = {"params": count_parameters(model), "macs": count_macs(model)}[what]
    after = plan.params_after if what == "params" else plan.macs_after
    assert after <= 0.4 * before
    # One unit less would have missed it: the widest unit here costs under 4% of the model.
    assert after > 0.36 * before


def test_unreachable_target_says_how_far_it_goes():
    model = chain(10, 10)
    with pytest.raises(ValueError, match=r"at least 0\.\d+ is left") as caught:
        plan_pruning(model, random_scores(model), target_params=0.01, keep_layers=["c1"])
    assert "c1 (keep_layers names it" in str(caught.value)
    assert "logits (model output)" in str(caught.value)


def test_cost_aware_of_a_model_whose_input_has_any_size():
    x = inputs = layers.Input((None, None, 3))
    for name in ("c0", "c1"):
        x = layers.Conv2D(8, 3, name=name)(x)
    model = tf_keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    scores = random_scores(model)
    plan = plan_pruning(model, scores, target_params=0.5, cost_aware="params")
    assert plan.params_after <= 0.5 * plan.params_before
    with pytest.raises(ValueError, match="fixed size"):
        plan_pruning(model, scores, prune_ratio=0.5, cost_aware="macs")


def test_a_shared_layer_costs_its_parameters_once():
    """Called twice, a layer is as dear in parameters as its twin that is called once."""
    inputs = layers.Input((6, 6, 8))
    shared = layers.Conv2D(8, 3, padding="same", name="shared")
    x = shared(shared(inputs))
    x = layers.Conv2D(8, 3, padding="same", name="single")(x)
    model = tf_keras.Model(inputs, layers.Dense(2, name="end")(layers.Flatten()(x)))
    graph = trace_channels(model)
    savings = _savings(graph, "params")
    assert savings[graph.ids.atoms["single"]][0] == 73 + 36 * 2
    # It makes the channel, reads it, and the single one reads it.
    assert savings[graph.ids.atoms["shared"]][0] == 73 + 72 + 72


@pytest.mark.parametrize("cost_aware", [None, "macs"])
def test_a_nested_model_called_twice_costs_what_its_layers_called_twice_cost(cost_aware):
    def net(nested):
        steps = [
            layers.Conv2D(8, 3, name="c"),
            layers.Conv2D(6, 3, name="d"),
            layers.GlobalAveragePooling2D(name="pool"),
        ]
        backbone = tf_keras.Sequential([layers.Input((8, 8, 3)), *steps], name="backbone")

        def chain(x):
            for step in steps:
                x = step(x)
            return x

        inputs = [layers.Input((8, 8, 3)) for _ in range(3)]
        tower = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, name="tower")(inputs[2]))
        both = [(backbone if nested else chain)(x) for x in inputs[:2]]
        x = layers.Concatenate()([*both, tower])
        return tf_keras.Model(inputs, layers.Dense(2, name="logits")(x))

    flat, nested = net(False), net(True)
    macs = 2 * (36 * 27 * 8 + 16 * 72 * 6) + 36 * 27 * 16 + 28 * 2
    assert count_macs(nested) == count_macs(flat) == macs
    assert count_parameters(nested) == count_parameters(flat)
    path = {"c": "backbone/c", "d": "backbone/d", "tower": "tower", "logits": "logits"}
    scores = random_scores(flat)
    plan = plan_pruning(flat, scores, target_macs=0.5, cost_aware=cost_aware)
    scores = {path[layer]: values for layer, values in scores.items()}
    twin = plan_pruning(nested, scores, target_macs=0.5, cost_aware=cost_aware)
    for layer, kept in plan.kept.items():
        assert twin.kept[path[layer]].tolist() == kept.tolist()
    slim = prune(nested, twin)
    assert count_macs(slim) == twin.macs_after == plan.macs_after <= 0.5 * macs
    assert count_parameters(slim) == twin.params_after == plan.params_after


def test_round_to_keeps_multiples():
    model = chain(32, 24)
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.6, round_to=8)
    assert {len(plan.kept[layer]) % 8 for layer in ("c0", "c1")} == {0}
    assert len(plan.kept["c0"]) < 32


def test_keep_layers_by_pattern():
    model = chain(10, 10)
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.7, keep_layers=["c*1"])
    assert len(plan.kept["c1"]) == 10
    assert len(plan.kept["c0"]) < 10


def test_layers_without_scores_stay():
    model = chain(10, 10)
    scores = random_scores(model)
    del scores["c1"]
    assert len(plan_pruning(model, scores, prune_ratio=0.7).kept["c1"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune_ratio": 1.0}, r"prune_ratio must be in \[0, 1\)"),
        ({"prune_ratio": -0.1}, r"prune_ratio must be in \[0, 1\)"),
        ({"prune_ratio": float("nan")}, r"prune_ratio must be in \[0, 1\)"),
        ({}, "exactly one of"),
        ({"prune_ratio": 0.5, "target_macs": 0.5}, "exactly one of"),
        ({"target_macs": 0.0}, "target_macs must be in"),
        ({"prune_ratio": 0.5, "residual": "both"}, "residual must be one of"),
        ({"prune_ratio": 0.5, "round_to": 0}, "round_to"),
        ({"prune_ratio": 0.5, "keep_layers": ["nope"]}, "nope"),
        ({"prune_ratio": 0.5, "prune_ratio_limit": 2}, "prune_ratio_limit"),
    ],
)
def test_bad_arguments(arguments, message):
    model = chain(4, 4)
    with pytest.raises(ValueError, match=message):
        plan_pruning(model, random_scores(model), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c9": np.ones(4)}, "c9"),
        ({"c0": np.ones(5)}, r"shape \(4,\)"),
        ({"c0": np.array([1, np.nan, 1, 1])}, "finite"),
    ],
)
def test_scores_that_do_not_fit(change, message):
    model = chain(4, 4)
    with pytest.raises(ValueError, match=message):
        plan_pruning(model, {**random_scores(model), **change}, prune_ratio=0.5)


def test_a_layer_whose_channels_cannot_be_followed_stays_whatever_its_scores() -> None:
    x = inputs = layers.Input((3, 6, 6))
    x = layers.Conv2D(4, 3, data_format="channels_first", name="first")(x)
    x = layers.Conv2D(5, 3, name="second")(layers.Permute((2, 3, 1))(x))
    model = tf_keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x)))
    scores = {"first": np.zeros(4), "second": np.arange(5.0), "logits": np.full(2, 9.0)}
    plan = plan_pruning(model, scores, prune_ratio=0.3)
    assert "first" not in plan.kept and "channels_first" in plan.frozen["first"]
    # The threshold is that of the seven others.
    assert plan.kept["second"].tolist() == [3, 4]
    further = plan_further(model, plan, {**scores, "second": np.ones(2)}, prune_ratio=0.3)
    assert further.to_json() == plan.to_json()
    with pytest.raises(ValueError, match=r"can be removed. Received: \['first'\]"):
        plan_pruning(model, {"first": np.zeros(4)}, prune_ratio=0.3)


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_a_plan_that_removes_much_less_than_asked_says_so_and_why(residual):
    """The filters of a transformer's MLP are worth more than the frozen ones around it."""
    x = inputs = layers.Input((6, 8))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    hidden = layers.Dense(16, activation="relu", name="mlp")(layers.LayerNormalization()(x))
    x = layers.LayerNormalization(name="norm")(
        layers.Add()([x, layers.Dense(8, name="back")(hidden)])
    )
    model = tf_keras.Model(inputs, layers.Dense(2, name="end")(layers.GlobalAveragePooling1D()(x)))
    scores = {"mlp": np.full(16, 5.0), "back": np.ones(8), "end": np.ones(2)}
    with pytest.warns(UserWarning, match=r"and 0 of them are removed.*give target_params") as said:
        plan = plan_pruning(model, scores, 0.3, residual=residual)
    assert len([w for w in said if "prune_ratio" in str(w.message)]) == 1
    assert plan.shortfall.startswith("prune_ratio=0.3 puts 8 of 26 filters below the threshold")
    reason = {"union": "LayerNormalization 'norm' takes means", "tied": "model input"}[residual]
    assert f"6 of back ({reason}" in plan.shortfall
    assert plan.shortfall in plan.summary()
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert plan_further(model, plan, scores, prune_ratio=0.3).shortfall == plan.shortfall
    # The ways out that it names.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = plan_pruning(model, {"mlp": scores["mlp"]}, 0.3, residual=residual)
        target = plan_pruning(model, scores, target_params=0.8, residual=residual)
    assert len(without.kept["mlp"]) == 11 and not without.shortfall
    assert len(target.kept["mlp"]) < 16
    with pytest.warns(UserWarning, match=r"puts 15 of 26.*12 by prune_ratio_limit=0.2"):
        plan_pruning(model, {**scores, "mlp": np.zeros(16)}, 0.55, prune_ratio_limit=0.2)
