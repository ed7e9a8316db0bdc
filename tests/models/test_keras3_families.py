"""The families of keras.applications: outputs equal there and back, random weights."""

from __future__ import annotations

import keras
import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str):
    side = FAMILIES[family]
    build = getattr(keras.applications, family)
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
