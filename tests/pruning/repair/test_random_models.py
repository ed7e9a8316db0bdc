"""Repair on models drawn at random: 8, with `-m families` 25 more.

EHAP_TF_RANDOM_MODELS=5000 draws that many in place of the 25.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import tf_keras
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

import ehap_tf as ehap
from ehap_tf.graph import kernel_of
from tests.pruning.nets import random_scores, shake
from tests.pruning.random_models import SIZE, build, recipes
from tests.pruning.repair.nets import images

EXAMPLES = int(os.environ.get("EHAP_TF_RANDOM_MODELS", "25"))


@pytest.mark.parametrize("examples", [8, pytest.param(EXAMPLES, marks=pytest.mark.families)])
def test_no_layer_is_further_from_the_dense_one(examples: int) -> None:
    @seed(examples)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        recipe=recipes(),
        head=st.sampled_from(["flatten", "pool", "keepdims", "two"]),
        residual=st.sampled_from(["union", "tied"]),
        prune_ratio=st.floats(0.1, 0.7),
        implant_ratio=st.sampled_from([0.0, 0.0, 0.5]),
        seed=st.integers(0, 99),
    )
    def check(**drawn: Any) -> None:
        assert_repair_is_right(**drawn)

    check()


def assert_repair_is_right(
    recipe: Any, head: str, residual: str, prune_ratio: float, implant_ratio: float, seed: int
) -> None:
    model = shake(build(recipe, head), seed)
    plan = ehap.plan_pruning(
        model,
        random_scores(model, seed),
        prune_ratio,
        residual=residual,
        implant_ratio=implant_ratio,
        implant_init="center",
    )
    note(plan.summary())
    slim = ehap.prune(model, plan)
    weights = model.get_weights()
    x = images((SIZE, SIZE, 3), 8, seed)
    reported: list[dict[str, float]] = []
    fixed = ehap.repair(
        slim, model, plan, x, progress=lambda done, total, figures: reported.append(dict(figures))
    )
    assert all(np.isfinite(weight).all() for weight in fixed.get_weights())
    assert all(map(np.array_equal, weights, model.get_weights()))
    for figures in reported:
        assert figures["error_left"] <= figures["error"] * (1 + 1e-5)
    for name in comparable_layers(model, slim):
        before, after = layer_errors(model, plan, slim, fixed, name, x)
        note(f"{name}: {before} -> {after}")
        assert after <= before * (1 + 1e-4) + 1e-9


def comparable_layers(model: tf_keras.Model, slim: tf_keras.Model) -> list[str]:
    """Layers that own kernels, are called once, end in no activation and in no sum or ReLU.

    Before a sum a layer makes up for the other branch, too, and before a ReLU it matches what that
    tells apart (of which `error_left` tells).
    """
    names = {layer.name for layer in slim.layers} & set(random_scores(model))
    found = (model.get_layer(name) for name in names if "/" not in name)
    return [
        layer.name
        for layer in found
        if kernel_of(layer) is not None
        and len(layer.inbound_nodes) == 1
        and layer.activation is tf_keras.activations.linear
        and not _is_seen_otherwise(layer)
    ]


def _is_seen_otherwise(layer: tf_keras.layers.Layer) -> bool:
    kinds = tf_keras.layers.Add | tf_keras.layers.ReLU | tf_keras.layers.Activation
    behind = [node.layer for node in layer.outbound_nodes]
    norms = [one for one in behind if isinstance(one, tf_keras.layers.BatchNormalization)]
    return any(isinstance(one, kinds) for one in behind) or any(map(_is_seen_otherwise, norms))


def layer_errors(
    model: tf_keras.Model,
    plan: ehap.PruningPlan,
    slim: tf_keras.Model,
    fixed: tf_keras.Model,
    name: str,
    x: np.ndarray,
) -> tuple[float, float]:
    """Mean square errors of a layer on the repaired network's inputs, unrepaired and repaired.

    Without the mean, which may be left to a BatchNorm.
    """
    stays = plan.flags()[name]
    if len(plan.implanted.get(name, ())) and len(plan.kept[name]):
        stays = np.isin(np.arange(len(stays)), plan.kept[name])
    wanted = np.asarray(tf_keras.Model(model.inputs, model.get_layer(name).output)(x))
    wanted = wanted[..., stays]
    after = fixed.get_layer(name)
    hidden = tf_keras.Model(fixed.inputs, after.input)(x)
    errors = []
    for layer in (slim.get_layer(name), after):
        lacks = np.asarray(layer(hidden)) - wanted
        lacks = lacks.reshape(-1, lacks.shape[-1]).astype(np.float64)
        errors.append(float(np.square(lacks - lacks.mean(0)).sum(1).mean()))
    return errors[0], errors[1]
