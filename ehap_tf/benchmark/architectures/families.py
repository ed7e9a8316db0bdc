"""The architecture families of `tf_keras.applications`, with random weights."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.graph import batch_norms

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


def add_family_arguments(parser: argparse.ArgumentParser, ratios: str) -> None:
    """Adds --families and --ratios, whose default is `ratios`."""
    parser.add_argument(
        "--families", default=",".join(FAMILIES), help="comma-separated; all of them by default"
    )
    parser.add_argument(
        "--ratios",
        default=ratios,
        help=f"shares of the filters to remove, comma-separated; default {ratios}",
    )


def families_and_ratios(options: argparse.Namespace) -> tuple[list[str], list[float]]:
    """The values of the flags of `add_family_arguments`.

    Raises:
        ValueError: a family that is not known, or a ratio that is no number.
    """
    families = options.families.split(",")
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise ValueError(
            f"families must be among {', '.join(FAMILIES)}. Received: {', '.join(unknown)}"
        )
    return families, [float(ratio) for ratio in options.ratios.split(",")]


def build_family(family: str, activation: str | None = "softmax") -> tf_keras.Model:
    """The smallest member on its smallest input, with random weights and norm statistics.

    Args:
        family: one of `FAMILIES`.
        activation: of the classifier; None gives logits.
    """
    name, side = FAMILIES[family]
    constructor: Any = None
    for module in (tf_keras.applications, *vars(tf_keras.applications).values()):
        constructor = constructor or getattr(module, name, None)
    model = constructor(
        weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=activation
    )
    rng = np.random.default_rng(0)
    for norm in batch_norms(model):
        for weight in norm.weights:
            low = 0.5 if "variance" in weight.name else -0.5
            weight.assign(rng.uniform(low, low + 1.0, weight.shape))
    return model
