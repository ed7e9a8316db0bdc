"""Small networks of kinds that run on devices, trained for seconds on made-up data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

layers = tf_keras.layers

CLASSES = 4


def conv_block(x: Any, filters: int, size: Any = 3, strides: Any = 1) -> Any:
    """Convolution, BatchNorm, ReLU."""
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def keyword(x: Any) -> Any:
    """A depthwise separable CNN on a spectrogram, as MLPerf Tiny's keyword spotting."""
    x = conv_block(x, 32, (10, 4), 2)
    for _ in range(3):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = conv_block(layers.ReLU()(layers.BatchNormalization()(x)), 32, 1)
    return layers.Dense(CLASSES)(layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x)))


def mobilenet(x: Any) -> Any:
    """MobileNetV1 with a quarter of its width, as MLPerf Tiny's visual wake words."""
    base = tf_keras.applications.MobileNet(
        x.shape[1:], alpha=0.25, include_top=False, weights=None, input_tensor=x
    )
    return layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(base.output))


def resnet8(x: Any) -> Any:
    """Three residual blocks, as MLPerf Tiny's image classification."""
    x = conv_block(x, 16)
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(filters, 3, padding="same")(conv_block(x, filters, 3, strides))
        short = x if strides == 1 else layers.Conv2D(filters, 1, strides, padding="same")(x)
        x = layers.ReLU()(layers.Add()([layers.BatchNormalization()(y), short]))
    return layers.Dense(CLASSES, "softmax")(layers.GlobalAveragePooling2D()(x))


def autoencoder(x: Any) -> Any:
    """Dense layers with BatchNorm, as MLPerf Tiny's anomaly detection."""
    size = x.shape[-1]
    for units in (128, 128, 8, 128, 128):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(x)))
    return layers.Dense(size)(x)


def heartbeat(x: Any) -> Any:
    """Conv1D layers with dropout, as of electrocardiograms."""
    for filters in (16, 24, 32):
        x = layers.BatchNormalization()(layers.Conv1D(filters, 7, padding="same")(x))
        x = layers.ReLU()(layers.Dropout(0.1)(x))
        x = layers.MaxPooling1D(2)(x)
    return layers.Dense(CLASSES)(layers.Dense(32, "relu")(layers.Flatten()(x)))


def denoiser(x: Any) -> Any:
    """A chain of convolutions that finds the noise, which is taken off the image."""
    y = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    for _ in range(3):
        y = conv_block(y, 16)
    return layers.Subtract()([x, layers.Conv2D(x.shape[-1], 3, padding="same")(y)])


def style(x: Any) -> Any:
    """Instance normalization, transposed convolutions and upsampling, as of style transfer."""

    def normalized(y: Any) -> Any:
        return layers.ReLU()(layers.GroupNormalization(groups=-1)(y))

    channels = x.shape[-1]
    x = normalized(layers.Conv2D(8, 5, padding="same")(x))
    x = normalized(layers.Conv2D(16, 3, 2, padding="same")(x))
    x = layers.Add()([x, normalized(layers.Conv2D(16, 3, padding="same")(x))])
    x = layers.Conv2DTranspose(12, 3, 2, padding="same", activation="relu")(x)
    x = layers.Conv2D(12, 3, 2, padding="same", activation="relu")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.UpSampling2D()(x))
    return layers.Conv2D(channels, 5, padding="same", activation="tanh")(x)


def face(x: Any) -> Any:
    """PReLU and several outputs, as of cascaded face detection."""
    for filters in (16, 24, 32):
        x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(filters, 3)(x))
        x = layers.MaxPooling2D(2)(x)
    x = layers.PReLU()(layers.Dense(64)(layers.Flatten()(x)))
    return [layers.Dense(CLASSES, "softmax")(x), layers.Dense(4)(x), layers.Dense(10)(x)]


def mobilenet_v2(x: Any) -> Any:
    """Inverted residuals with ReLU6."""

    def capped(y: Any) -> Any:
        return layers.ReLU(6.0)(layers.BatchNormalization()(y))

    x = capped(layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(x))
    for filters, strides in ((8, 1), (12, 2), (12, 1), (16, 2)):
        y = capped(layers.Conv2D(4 * x.shape[-1], 1, use_bias=False)(x))
        y = capped(layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if strides == 1 and filters == x.shape[-1] else y
    return layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))


def heartbeat_residual(x: Any) -> Any:
    """A residual network of Conv1D layers, as of electrocardiograms."""
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(16, 15, padding="same")(x)))
    for filters, strides in ((16, 1), (24, 2), (32, 2)):
        y = layers.Conv1D(filters, 7, strides, padding="same")(x)
        y = layers.Dropout(0.2)(layers.ReLU()(layers.BatchNormalization()(y)))
        y = layers.BatchNormalization()(layers.Conv1D(filters, 7, padding="same")(y))
        short = x if strides == 1 else layers.Conv1D(filters, 1, strides, padding="same")(x)
        x = layers.ReLU()(layers.Add()([y, short]))
    return layers.Dense(CLASSES, "softmax")(layers.GlobalAveragePooling1D()(x))


def heartbeat_groups(x: Any) -> Any:
    """Group normalization and swish."""
    for filters in (16, 32):
        x = layers.Conv1D(filters, 7, 2, padding="same")(x)
        x = layers.Activation("swish")(layers.GroupNormalization(4)(x))
    return layers.Dense(CLASSES, "sigmoid")(layers.GlobalMaxPooling1D()(x))


def denoising_unet(x: Any) -> Any:
    """An encoder and a decoder with connections between them."""
    channels, before = x.shape[-1], []
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        before.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(24, 3, padding="same", activation="relu")(x)
    for filters in (16, 8):
        up = layers.Conv2DTranspose(filters, 2, 2, padding="same")(x)
        x = layers.Concatenate()([up, before.pop()])
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return layers.Conv2D(channels, 1)(x)


def style_residual(x: Any) -> Any:
    """Instance normalization behind every convolution, and residual blocks."""
    channels = x.shape[-1]

    def convolved(y: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
        y = layers.Conv2D(filters, size, strides, padding="same")(y)
        return layers.GroupNormalization(groups=-1)(y)

    for filters, size, strides in ((8, 9, 1), (16, 3, 2), (24, 3, 2)):
        x = layers.ReLU()(convolved(x, filters, size, strides))
    for _ in range(3):
        x = layers.Add()([x, convolved(layers.ReLU()(convolved(x, 24)), 24)])
    for filters in (16, 8):
        x = layers.Conv2DTranspose(filters, 3, 2, padding="same")(x)
        x = layers.ReLU()(layers.GroupNormalization(groups=-1)(x))
    return layers.Conv2D(channels, 9, padding="same", activation="tanh")(x)


def face_anchors(x: Any) -> Any:
    """5x5 depthwise convolutions in residual blocks, scores and boxes of places."""
    x = conv_block(x, 16, 5, 2)
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 2)):
        y = layers.DepthwiseConv2D(5, strides, padding="same")(x)
        y = layers.BatchNormalization()(layers.Conv2D(filters, 1)(y))
        short = x if strides == 1 else layers.MaxPooling2D(2)(x)
        short = short if filters == short.shape[-1] else layers.Conv2D(filters, 1)(short)
        x = layers.ReLU()(layers.Add()([y, short]))
    scores = layers.Conv2D(2, 1, activation="sigmoid")(x)
    return [layers.Flatten()(scores), layers.Flatten()(layers.Conv2D(8, 1)(x))]


NETWORKS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "keyword DS-CNN": (keyword, (49, 10, 1)),
    "MobileNet 0.25": (mobilenet, (64, 64, 3)),
    "ResNet-8": (resnet8, (32, 32, 3)),
    "Dense autoencoder": (autoencoder, (160,)),
    "ECG Conv1D": (heartbeat, (128, 1)),
    "denoising": (denoiser, (32, 32, 1)),
    "style transfer": (style, (32, 32, 3)),
    "face detection": (face, (48, 48, 3)),
    "MobileNetV2": (mobilenet_v2, (48, 48, 3)),
    "ECG residual": (heartbeat_residual, (180, 1)),
    "ECG GroupNorm": (heartbeat_groups, (128, 2)),
    "denoising U-Net": (denoising_unet, (32, 32, 1)),
    "style transfer residual": (style_residual, (32, 32, 3)),
    "face anchors": (face_anchors, (64, 64, 3)),
}
"""Name -> what it makes of its input, and the shape of that."""


def signals(
    shape: tuple[int, ...], count: int, seed: int, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Waves of `CLASSES` wavelengths, of any phase and size, and noise; and which wavelength.

    Args:
        shape: of one example: steps, or steps and channels, or rows, columns and channels.
        count: of examples.
        seed: of the random numbers.
        noise: its standard deviation.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    extent, channels = (shape[:-1], shape[-1]) if len(shape) > 1 else (shape, 1)
    axes = np.meshgrid(*(np.arange(size) for size in extent), indexing="ij")
    ones = (1,) * len(extent)
    columns = []
    for _ in range(channels):
        angle = sum(axis * rng.normal(1.0, 0.2, (count, *ones)) for axis in axes) * (
            0.2 * (1 + labels)
        ).reshape(-1, *ones)
        size = rng.lognormal(0.0, 0.5, (count, *ones))
        columns.append(size * np.sin(angle + rng.uniform(0.0, 2.0 * np.pi, (count, *ones))))
    x = np.stack(columns, axis=-1).reshape(count, *shape)
    return (x + noise * rng.standard_normal(x.shape)).astype(np.float32), labels


def trained(name: str, steps: int, seed: int = 0) -> tf_keras.Model:
    """A network of `NETWORKS` after so many steps of Adam on batches of 32."""
    body, shape = NETWORKS[name]
    tf_keras.utils.set_random_seed(seed)
    inputs = layers.Input(shape)
    model = tf_keras.Model(inputs, body(inputs))
    x, labels = signals(shape, 32 * steps, seed)
    targets = [_targets(x, labels, output) for output in model.outputs]
    model.compile(tf_keras.optimizers.Adam(2e-3), "mse")
    model.fit(x, targets if len(targets) > 1 else targets[0], batch_size=32, verbose=0)
    return model


def _targets(x: np.ndarray, labels: np.ndarray, output: Any) -> np.ndarray:
    """The input itself where the output has its shape, else a code of the class."""
    shape = tuple(output.shape[1:])
    if shape == x.shape[1:]:
        return np.tanh(x)
    codes = np.eye(CLASSES)[:, np.arange(shape[-1]) % CLASSES]
    return codes[labels].astype(np.float32)
