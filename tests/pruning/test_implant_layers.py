import numpy as np
import pytest
import tf_keras

from ehap_tf.pruning import (
    PruningPlan,
    count_macs,
    count_parameters,
    mask,
    plan_pruning,
    prune,
    remove_blocks,
)
from tests.pruning.nets import (
    ROUNDING,
    batch,
    random_scores,
    relative_error,
    shake,
    small_residual_net,
)

layers = tf_keras.layers


def strided_net(padding, strides, kernel, dilation=1, size=9):
    inputs = layers.Input((size, size, 3))
    x = layers.Conv2D(
        8, kernel, strides=strides, dilation_rate=dilation, padding=padding, name="c"
    )(inputs)
    x = layers.ReLU(name="r")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(4, 1, name="point")(x)
    return shake(tf_keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x))))


@pytest.mark.parametrize("init", ["zero", "center"])
@pytest.mark.parametrize(
    ("padding", "strides", "kernel", "dilation", "size"),
    [
        ("same", 1, 3, 1, 9),
        ("same", 2, 3, 1, 8),
        ("same", 2, 3, 1, 9),
        ("same", 2, (5, 3), 1, 8),
        ("same", 1, 3, 2, 9),
        ("same", 1, 2, 1, 8),
        ("valid", 1, 3, 1, 9),
        ("valid", 2, 3, 1, 10),
        ("valid", 3, 5, 1, 13),
    ],
)
def test_slim_equals_full_size_twin_with_centre_kernels(
    init, padding, strides, kernel, dilation, size
):
    model = strided_net(padding, strides, kernel, dilation, size)
    plan = plan_pruning(
        model, random_scores(model, 2), prune_ratio=0.6, implant_ratio=0.5, implant_init=init
    )
    assert len(plan.implanted["c"]) > 0
    slim, x = prune(model, plan), batch(model)
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    assert count_parameters(slim) == plan.params_after
    assert count_macs(slim) == plan.macs_after


@pytest.mark.parametrize(
    ("padding", "kernel", "dilation"),
    [
        ("valid", 2, 2),
        ("same", 2, 2),
        ("same", 4, 3),
        ("same", (3, 2), 2),
        ("same", (3, 2), (2, 1)),
    ],
)
def test_dilated_kernels_of_even_size_have_implants_where_their_centre_can_be_met(
    padding, kernel, dilation
):
    model = strided_net(padding, 1, kernel, dilation, 13)
    plan = plan_pruning(
        model, random_scores(model, 2), prune_ratio=0.6, implant_ratio=0.5, implant_init="center"
    )
    assert ("c" in plan.implanted) == (padding == "valid" or dilation == (2, 1))
    assert (
        relative_error(prune(model, plan)(batch(model)), mask(model, plan)(batch(model))) < ROUNDING
    )


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_residual_nets_and_iterated_pruning(residual):
    model = small_residual_net()
    plan = plan_pruning(
        model, random_scores(model, 1), prune_ratio=0.5, implant_ratio=0.5, residual=residual
    )
    assert sum(map(len, plan.implanted.values())) > 0
    slim, x = prune(model, plan), batch(model)
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    again = plan_pruning(slim, random_scores(slim, 2), prune_ratio=0.4, residual=residual)
    assert relative_error(prune(slim, again)(x), mask(slim, again)(x)) < ROUNDING
    assert count_parameters(prune(slim, again)) == again.params_after


def test_band_is_the_best_of_what_goes():
    model = strided_net("same", 1, 3)
    scores = {"c": np.arange(8.0), "point": np.full(4, 99.0), "logits": np.full(2, 99.0)}
    # 14 scores: the threshold is sorted[int(0.45 * 14)] and the band starts above sorted[3].
    plan = plan_pruning(model, scores, prune_ratio=0.45, implant_ratio=0.5, prune_ratio_limit=1.0)
    assert plan.implanted["c"].tolist() == [4, 5, 6]
    assert plan.kept["c"].tolist() == [7]


def test_1x1_layer_has_no_implants():
    model = strided_net("same", 1, 3)
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.6, implant_ratio=1.0)
    assert "point" not in plan.implanted
    assert len(plan.kept["point"]) < 4


def test_calls_that_belong_to_other_models_do_not_count():
    """A Sequential model that was pruned has layers that the surgery called on its way, too."""
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="c"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(2, name="logits"),
        ]
    )
    slim = prune(model, plan_pruning(model, random_scores(model), prune_ratio=0.0))
    assert type(slim) is tf_keras.Sequential
    scores = random_scores(model)
    plans = [plan_pruning(one, scores, prune_ratio=0.5, implant_ratio=0.5) for one in (model, slim)]
    assert len(plans[0].implanted["c"]) > 0
    assert plans[1].to_json() == plans[0].to_json()


@pytest.mark.parametrize("nested", [False, True])
def test_implants_of_a_sequential_model(nested):
    body = [
        layers.Input((8, 8, 3)),
        layers.Conv2D(8, 3, name="c"),
        layers.ReLU(name="r"),
        layers.Conv2D(6, 3, strides=2, padding="same", name="d"),
        layers.Flatten(name="f"),
    ]
    end = layers.Dense(2, name="logits")
    if nested:
        body = [layers.Input((8, 8, 3)), tf_keras.Sequential(body, name="body")]
    model = shake(tf_keras.Sequential([*body, end]))
    plan = plan_pruning(
        model, random_scores(model, 1), 0.6, implant_ratio=0.5, implant_init="center"
    )
    assert all(len(plan.implanted[f"body/{name}" if nested else name]) for name in "cd")
    slim, x = prune(model, plan), batch(model)
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    assert count_parameters(slim) == plan.params_after
    # Where nothing stands side by side the chain stays one.
    assert isinstance(slim, tf_keras.Sequential) == nested
    assert isinstance(mask(model, plan), tf_keras.Sequential)


def test_a_layer_has_implants_once_its_other_call_is_gone():
    inputs = layers.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = layers.ReLU()(shared(inputs))
    x = layers.Add(name="block")([x, shared(x)])
    x = layers.Conv2D(4, 3, name="next")(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x))))
    short = remove_blocks(model, "block")
    implanted = [
        set(plan_pruning(one, random_scores(one), 0.6, implant_ratio=1.0).implanted)
        for one in (model, short)
    ]
    assert implanted == [{"next"}, {"shared", "next"}]


def test_target_counts_implants():
    model = strided_net("same", 1, 3)
    plan = plan_pruning(model, random_scores(model), target_macs=0.5, implant_ratio=0.4)
    assert count_macs(prune(model, plan)) == plan.macs_after <= 0.5 * plan.macs_before
    assert sum(map(len, plan.implanted.values())) > 0


def test_saves_and_loads(tmp_path):
    model = small_residual_net()
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.5, implant_ratio=0.5)
    slim = prune(model, PruningPlan.from_json(plan.to_json()))
    slim.save(tmp_path / "slim.keras")
    loaded = tf_keras.models.load_model(tmp_path / "slim.keras")
    assert relative_error(loaded(batch(model)), slim(batch(model))) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"implant_ratio": 1.5}, r"implant_ratio must be in \[0, 1\]"),
        ({"implant_init": "centre"}, "implant_init must be one of zero, center"),
        ({"cost_aware": "flops"}, "cost_aware must be one of macs, params"),
    ],
)
def test_bad_arguments(arguments, message):
    model = small_residual_net()
    with pytest.raises(ValueError, match=message):
        plan_pruning(model, random_scores(model), prune_ratio=0.5, **arguments)


def test_cost_aware_prefers_what_is_dear():
    model = strided_net("same", 1, 3)
    even = {name: np.ones_like(values) for name, values in random_scores(model).items()}
    even["c"] = even["c"] * 1.5  # worth more, and far more expensive
    plain = plan_pruning(model, even, prune_ratio=0.3, prune_ratio_limit=0.5)
    dear = plan_pruning(model, even, prune_ratio=0.3, prune_ratio_limit=0.5, cost_aware="macs")
    assert len(plain.kept["c"]) == 8
    assert len(dear.kept["c"]) == 4


def test_summary_is_a_line_a_layer_with_its_reason():
    model = small_residual_net()
    plan = plan_pruning(
        model, random_scores(model, 1), prune_ratio=0.5, implant_ratio=0.5, keep_layers=["stem"]
    )
    lines = {line.split()[0]: line for line in plan.summary().splitlines()}
    assert lines["layer"].split() == [
        "layer", "kept", "1x1", "removed", "parameters", "MACs", "why", "filters", "stay",
    ]  # fmt: skip
    # The last line says why less goes than the ratio asks for.
    assert set(lines) == {"layer", "model", *plan.costs, "prune_ratio=0.5"}
    for layer in ("a", "b"):
        kept, small = len(plan.kept[layer]), len(plan.implanted[layer])
        whole = model.get_layer(layer).filters
        params, left, macs, macs_left = plan.costs[layer]
        assert small
        assert lines[layer].split() == [
            layer, str(kept), str(small), str(whole - kept - small),
            f"{params:,.0f}", "->", f"{left:,.0f}", f"{macs:,.0f}", "->", f"{macs_left:,.0f}",
        ]  # fmt: skip
    assert lines["stem"].endswith("keep_layers names it or a layer that it lives with")
    assert lines["logits"].endswith("model output")
    assert "24 -> " in lines["stem_bn"] and len(lines["stem_bn"].split()) == 4
    assert f"{plan.params_before:,} -> {plan.params_after:,}" in lines["model"]
    assert sum(c[1] for c in plan.costs.values()) == plan.params_after
    assert PruningPlan.from_json(plan.to_json()).summary() == plan.summary()


def test_implants_compute_in_the_precision_of_their_layer():
    inputs = layers.Input((8, 8, 3), dtype="float64")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="c", dtype="float64")(inputs)
    x = layers.Flatten(dtype="float64")(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2, name="logits", dtype="float64")(x)))
    plan = plan_pruning(
        model, random_scores(model, 2), prune_ratio=0.6, implant_ratio=0.5, implant_init="center"
    )
    assert len(plan.implanted["c"]) and len(plan.kept["c"])
    slim = prune(model, plan)
    assert {layer.dtype_policy.name for layer in slim.layers} == {"float64"}
    x = batch(model).astype(np.float64)
    assert relative_error(slim(x), mask(model, plan)(x)) < 1e-12
