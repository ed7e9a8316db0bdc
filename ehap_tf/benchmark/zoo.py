"""Surgery on every architecture family of `tf_keras.applications`: is it exact, and how fast?

Random weights and random scores: what is measured is the graph, not what the models know.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import RESIDUAL_MODES, trace_channels
from ehap_tf.pruning import count_macs, count_parameters, mask, plan_pruning, prune

# Family -> (constructor's name, smallest input side that the family takes, in steps of 16).
FAMILIES = {
    "VGG": ("VGG16", 32),
    "ResNet": ("ResNet50", 32),
    "ResNetV2": ("ResNet50V2", 32),
    "Inception": ("InceptionV3", 80),
    "InceptionResNet": ("InceptionResNetV2", 80),
    "Xception": ("Xception", 80),
    "MobileNet": ("MobileNet", 32),
    "MobileNetV2": ("MobileNetV2", 32),
    "MobileNetV3": ("MobileNetV3Small", 32),
    "DenseNet": ("DenseNet121", 32),
    "NASNet": ("NASNetMobile", 32),
    "EfficientNet": ("EfficientNetB0", 32),
    "EfficientNetV2": ("EfficientNetV2B0", 32),
    "ConvNeXt": ("ConvNeXtTiny", 32),
    "RegNetX": ("RegNetX002", 32),
    "RegNetY": ("RegNetY002", 32),
    "ResNetRS": ("ResNetRS50", 32),
}


@dataclasses.dataclass(frozen=True)
class SurgeryRow:
    """One surgery on one family, checked.

    Attributes:
        family, residual, prune_ratio: what was done.
        filters: filters of the model; `prunable` is the share of them that may go.
        params_before, params_after, macs_before, macs_after: counted on the models themselves.
        error: largest difference of the outputs of the slim and the masked model, relative.
        plan_seconds, target_seconds, surgery_seconds: a plan at a ratio, a plan to half of the
            MACs, and building the slim model.
        saved_and_loaded, trained: the slim model came back from a .keras file with the same
            outputs, and took a step of SGD that left finite weights.
        frozen: layer -> why its channels stay.
    """

    family: str
    residual: str
    prune_ratio: float
    filters: int
    prunable: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    error: float
    plan_seconds: float
    target_seconds: float
    surgery_seconds: float
    saved_and_loaded: bool
    trained: bool
    frozen: dict[str, str]


def build_family(family: str) -> tf_keras.Model:
    """The smallest member on its smallest input, with random weights and norm statistics."""
    name, side = FAMILIES[family]
    constructor: Any = None
    for module in (tf_keras.applications, *vars(tf_keras.applications).values()):
        constructor = constructor or getattr(module, name, None)
    model = constructor(weights=None, input_shape=(side, side, 3), classes=10)
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            for weight in layer.weights:
                low = 0.5 if "variance" in weight.name else -0.5
                weight.assign(rng.uniform(low, low + 1.0, weight.shape))
    return model


def operate(family: str, model: tf_keras.Model, residual: str, prune_ratio: float) -> SurgeryRow:
    """One surgery, with everything that a row says about it."""
    rng = np.random.default_rng(1)
    graph = trace_channels(model, residual)
    scores = {layer: rng.random(len(ids)) for layer, ids in graph.ids.atoms.items()}
    atoms = [atom for ids in graph.ids.atoms.values() for atom in ids.tolist()]
    free = sum(graph.ids.frozen_reason(atom) is None for atom in atoms)
    plan, plan_seconds = _timed(
        lambda: plan_pruning(model, scores, prune_ratio=prune_ratio, residual=residual)
    )
    _, target_seconds = _timed(
        lambda: plan_pruning(model, scores, target_macs=0.5, residual=residual)
    )
    slim, surgery_seconds = _timed(lambda: prune(model, plan))
    side = int(model.inputs[0].shape[1])
    x = rng.uniform(0, 1, (2, side, side, 3)).astype(np.float32)
    expected, actual = np.asarray(mask(model, plan)(x)), np.asarray(slim(x))
    return SurgeryRow(
        family=family,
        residual=residual,
        prune_ratio=prune_ratio,
        filters=len(atoms),
        prunable=free / len(atoms),
        params_before=count_parameters(model),
        params_after=count_parameters(slim),
        macs_before=count_macs(model),
        macs_after=count_macs(slim),
        error=float(np.abs(actual - expected).max() / np.abs(expected).max()),
        plan_seconds=plan_seconds,
        target_seconds=target_seconds,
        surgery_seconds=surgery_seconds,
        saved_and_loaded=_survives_saving(slim, x, actual),
        trained=_trains(slim, x),
        frozen=dict(plan.frozen),
    )


def _timed(function: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _survives_saving(model: tf_keras.Model, x: np.ndarray, expected: np.ndarray) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/slim.keras"
        model.save(path)
        loaded = tf_keras.models.load_model(path, compile=False)
    return bool(np.array_equal(np.asarray(loaded(x)), expected))


def _trains(model: tf_keras.Model, x: np.ndarray) -> bool:
    labels = tf.constant([0, 1])
    with tf.GradientTape() as tape:
        probabilities = model(x, training=True)
        loss = tf.reduce_mean(
            tf_keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    steps = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True)]
    tf_keras.optimizers.SGD(0.01).apply_gradients(steps)
    return all(np.isfinite(weight.numpy()).all() for weight in model.trainable_variables)


def zoo(families: list[str], prune_ratios: tuple[float, ...] = (0.3, 0.6)) -> list[SurgeryRow]:
    """All surgeries on the families, printed as they are done."""
    rows = []
    for family in families:
        model = build_family(family)
        for residual in RESIDUAL_MODES:
            for prune_ratio in prune_ratios:
                row = operate(family, model, residual, prune_ratio)
                print(_line(row), flush=True)
                rows.append(row)
        tf_keras.backend.clear_session()
    return rows


def _line(row: SurgeryRow) -> str:
    checks = row.error < 1e-4 and row.saved_and_loaded and row.trained
    frozen = f"; frozen: {'; '.join(sorted(set(row.frozen.values())))[:200]}" if row.frozen else ""
    return (
        f"{row.family:16} {row.residual:5} {row.prune_ratio:.0%}  "
        f"{'ok' if checks else 'FAILED'}  error {row.error:.1e}  "
        f"parameters {row.params_before / 1e6:.2f}M -> {row.params_after / 1e6:.2f}M  "
        f"MACs {row.macs_before / 1e6:.0f}M -> {row.macs_after / 1e6:.0f}M  "
        f"prunable {row.prunable:.1%}  plan {row.plan_seconds:.2f} s, to a target "
        f"{row.target_seconds:.2f} s, surgery {row.surgery_seconds:.2f} s{frozen}"
    )
