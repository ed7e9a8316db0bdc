"""The families of keras.applications: outputs equal there and back, random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras.src.applications import mobilenet_v3
from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.efficientnet import EfficientNet
from keras.src.applications.nasnet import NASNet

from ehap_tf.models import to_keras3, to_tf_keras
from tests.models.keras3_nets import arrays, distance, outputs

# Family -> smallest side of its input, in steps of 16.
FAMILIES = {
    "ResNet50": 32,
    "ResNet50V2": 32,
    "MobileNetV2": 32,
    "VGG16": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "MobileNetV3Small": 32,
    "InceptionV3": 80,
    "Xception": 80,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
}

# Of every block one, where the family lets itself be built so.
SHORT: dict[str, Callable[..., Any]] = {
    "NASNet": functools.partial(
        NASNet, penultimate_filters=96, num_blocks=1, stem_block_filters=8, skip_reduction=False,
        filter_multiplier=2, default_size=32,
    ),
    "ConvNeXt": functools.partial(ConvNeXt, depths=(1,) * 4, projection_dims=(8, 8, 12, 12)),
    "EfficientNet": functools.partial(
        EfficientNet, width_coefficient=0.25, depth_coefficient=0.1, default_size=32
    ),
    "MobileNetV3": functools.partial(
        mobilenet_v3.MobileNetV3,
        lambda x, kernel, activation, squeeze: mobilenet_v3._inverted_res_block(
            x, 2, 16, kernel, 1, squeeze, activation, 1
        ),
        32,
    ),
}  # fmt: skip

LAYER_CLASSES = {
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D",
    "Cropping2D", "Dense", "DepthwiseConv2D", "Dropout", "Flatten", "GlobalAveragePooling2D",
    "InputLayer", "LayerNormalization", "LayerScale", "MaxPooling2D", "Multiply", "Normalization",
    "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Sequential", "ZeroPadding2D",
}  # fmt: skip
"""The layers and operators that the families are made of."""


def there_and_back(build: Callable[..., Any], side: int) -> set[str]:
    """Carries a network over and back; the names of its classes of layers."""
    model = build(weights=None, input_shape=(side, side, 3), classes=10, include_top=True)
    x = arrays(model)
    expected = outputs(model, x)

    copy = to_tf_keras(model)
    assert distance(expected, outputs(copy, x)) < 1e-5
    assert copy.count_params() == model.count_params()
    names = [operation.name for operation in model.operations]
    assert [layer.name for layer in copy.layers] == names

    back = to_keras3(copy)
    assert distance(expected, outputs(back, x)) < 1e-5
    assert [operation.name for operation in back.operations] == names
    return {type(operation).__name__ for operation in model.operations}


def test_every_layer_class_of_the_families_there_and_back():
    found = set().union(*(there_and_back(build, 32) for build in SHORT.values()))
    assert found == LAYER_CLASSES


@pytest.mark.families
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str):
    classes = there_and_back(getattr(keras.applications, family), FAMILIES[family])
    assert classes <= LAYER_CLASSES
