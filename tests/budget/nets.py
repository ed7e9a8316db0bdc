"""Small networks of kinds that run on microcontrollers."""

from __future__ import annotations

import pathlib

import numpy as np
import tf_keras

import ehap_tf as ehap

layers = tf_keras.layers


def exported(model: tf_keras.Model, path: pathlib.Path) -> tuple[ehap.TFLiteFile, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((40, *i.shape[1:])).astype(np.float32) for i in model.inputs]
    data = (dict(zip(model.input_names, x, strict=True)) if len(x) > 1 else x[0],)
    qat = ehap.quantize(model, "ptq", representative_data=data)
    return ehap.export_tflite(qat, path), x


def relu(layer, x):
    return layers.ReLU()(layers.BatchNormalization()(layer(x)))


def mobile_net() -> tf_keras.Model:
    """Depthwise and pointwise convolutions: tensors of equal sizes follow each other."""
    inputs = layers.Input((32, 32, 3))
    x = relu(layers.Conv2D(8, 3, 2, padding="same"), inputs)
    for width, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        x = relu(layers.DepthwiseConv2D(3, stride, padding="same"), x)
        x = relu(layers.Conv2D(width, 1), x)
    return tf_keras.Model(inputs, layers.Softmax()(layers.Dense(2)(layers.Flatten()(x))))


def keyword_net() -> tf_keras.Model:
    inputs = layers.Input((25, 10, 1))
    x = relu(layers.Conv2D(16, (10, 4), 2, padding="same"), inputs)
    for _ in range(2):
        x = relu(layers.DepthwiseConv2D(3, padding="same"), x)
        x = relu(layers.Conv2D(16, 1), x)
    return tf_keras.Model(inputs, layers.Dense(12)(layers.GlobalAveragePooling2D()(x)))


def autoencoder() -> tf_keras.Model:
    x = inputs = layers.Input((160,))
    for width in (32, 32, 4, 32, 32):
        x = relu(layers.Dense(width), x)
    return tf_keras.Model(inputs, layers.Dense(160)(x))


def u_net() -> tf_keras.Model:
    inputs = layers.Input((16, 16, 3))
    wide = relu(layers.Conv2D(8, 3, padding="same"), inputs)
    deep = relu(layers.Conv2D(16, 3, padding="same"), layers.MaxPooling2D()(wide))
    joined = layers.Concatenate()([wide, layers.Conv2DTranspose(8, 2, 2)(deep)])
    return tf_keras.Model(inputs, layers.Conv2D(2, 1)(joined))


def signal_net() -> tf_keras.Model:
    inputs = layers.Input((64, 2))
    x = relu(layers.Conv1D(16, 5, padding="same"), inputs)
    x = layers.Add()([x, relu(layers.Conv1D(16, 5, padding="same"), x)])
    return tf_keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def two_inputs_and_outputs() -> tf_keras.Model:
    a, b = layers.Input((8, 8, 3), name="z_image"), layers.Input((5,), name="a_numbers")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(a))
    joined = layers.Concatenate()([x, layers.Dense(6, activation="relu")(b)])
    return tf_keras.Model([a, b], [layers.Dense(3)(joined), layers.Dense(1)(x)])


def residual_net() -> tf_keras.Model:
    return ehap.build_model("resnet8", num_classes=10, input_shape=(32, 32, 3), seed=0)


NETS = (
    mobile_net,
    keyword_net,
    autoencoder,
    u_net,
    signal_net,
    two_inputs_and_outputs,
    residual_net,
)
