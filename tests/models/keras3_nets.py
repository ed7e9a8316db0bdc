"""Small Keras 3 models, one for each thing that the two Keras say differently."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

layers = keras.layers


def with_random_weights(model: Any, seed: int = 0) -> Any:
    """The model, its float weights drawn at random (variances positive)."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            is_variance = "variance" in weight.path
            draw = rng.uniform(0.2, 0.8, weight.shape)
            weight.assign(draw if is_variance else rng.normal(0, 0.3, weight.shape))
    return model


def arrays(model: Any, seed: int = 1, examples: int = 2) -> Any:
    """An input for the model: an array, or a list of them."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(examples, *t.shape[1:])).astype(np.float32) for t in model.inputs]
    return x[0] if len(x) == 1 else x


def outputs(model: Any, x: Any) -> list[np.ndarray]:
    """All outputs of a model of either Keras, in inference mode."""
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest value of each output."""
    assert [a.shape for a in one] == [b.shape for b in other]
    return max(
        float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(one, other, strict=True)
    )


def shared_convolution() -> Any:
    """One convolution called twice, and a sum."""
    inputs = keras.Input((8, 8, 3))
    convolution = layers.Conv2D(3, 3, padding="same", name="shared")
    x = convolution(inputs)
    x = layers.Add(name="sum")([convolution(x), x])
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def operators() -> Any:
    """Arithmetic, slices, reductions and shapes written as operators."""
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="second")(inputs)
    z = x * 2 + y
    z = 1.0 - z / 3.0 + 2 * z - 1 / (z * z + 1)
    z = keras.ops.maximum(z, -y) * keras.ops.sigmoid(x) + keras.ops.silu(y) ** 2
    z = keras.ops.concatenate([z[..., :2], abs(x)], axis=-1)
    z = keras.ops.pad(z, [[0, 0], [1, 1], [0, 0], [0, 0]])
    first, second = keras.ops.split(z, 2, axis=-1)
    z = keras.ops.transpose(first, (0, 2, 1, 3))[:, :, :8] * second[:, 1:9]
    pooled = keras.ops.mean(z, axis=(1, 2), keepdims=True)
    flat = keras.ops.reshape(pooled, (-1, 3))
    return keras.Model(inputs, [keras.ops.relu(flat), keras.ops.clip(flat, -0.1, 0.1)])


def choices() -> Any:
    """Comparisons and what they choose between; deviations; repeated values."""
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    z = keras.ops.where(x > 0, x, 0.1 * x) + keras.ops.where(x <= 0.2, 1.0, x)
    z = keras.ops.where(keras.ops.greater_equal(z, x), z, keras.ops.where(z < 0.3, x, -1.0))
    z = z * keras.ops.std(z, axis=-1, keepdims=True) - keras.ops.var(z, axis=(1, 2), keepdims=True)
    z = keras.ops.tile(keras.ops.repeat(z, 2, axis=1), (1, 1, 2, 1))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(z))


def moves_and_pools() -> Any:
    """Functions that move values, normalize them, or pool them."""
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    z = keras.ops.flip(x, axis=1) + keras.ops.normalize(x, axis=-1)
    z = keras.ops.take(z, [0, 2, -1, 5], axis=2)
    z = keras.ops.max_pool(z, 2, strides=1, padding="same") - keras.ops.average_pool(z, (1, 1))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(z))


def activations() -> Any:
    """Every activation whose name or definition differs, and slopes under other names."""
    x = inputs = keras.Input((8, 8, 3))
    for name in (
        "hard_sigmoid", "hard_swish", "silu", "swish", "relu6", "leaky_relu", "gelu", "mish",
        "softsign", "log_softmax", "celu", "squareplus", "tanh_shrink", "log_sigmoid", "hard_tanh",
    ):  # fmt: skip
        x = layers.Conv2D(4, 1, activation=name, name=f"conv_{name}")(x)
    x = layers.LeakyReLU(0.1, name="leaky")(layers.Conv2D(4, 1)(x))
    x = layers.ReLU(max_value=3, negative_slope=0.2, threshold=0.1, name="relu")(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.ELU(0.7)(x))
    x = keras.ops.hard_sigmoid(keras.ops.hard_silu(x))
    return keras.Model(inputs, layers.Softmax()(layers.Flatten()(x)))


def normalised() -> Any:
    """Normalization layers, depthwise and separable convolutions, padding and pooling."""
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Rescaling(1 / 128, offset=-1)(x)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 3])(x)
    x = layers.ZeroPadding2D(((0, 1), (1, 0)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same")(x)
    x = layers.BatchNormalization(momentum=0.8, epsilon=1e-4)(x)
    x = layers.SeparableConv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.GroupNormalization(4)(x)
    x = layers.LayerNormalization()(x)
    x = layers.Conv2D(8, 3, groups=2, dilation_rate=2, padding="same")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.Cropping2D(1)(layers.AveragePooling2D(3, strides=2, padding="same")(x))
    x = layers.SpatialDropout2D(0.2)(layers.Dropout(0.3)(layers.MaxPooling2D()(x)))
    return keras.Model(inputs, layers.Reshape((-1,))(layers.Permute((2, 1, 3))(x)))


def nested() -> Any:
    """A Sequential inside a Functional inside a Functional with two inputs and named outputs."""
    chain = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("relu"),
        ],
        name="chain",
    )
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, layers.MaxPooling2D()(chain(inputs)), name="backbone")
    image, side = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="side")
    x = layers.GlobalAveragePooling2D(name="pool")(backbone(image))
    x = layers.Concatenate(name="both")([x, side])
    ends = {"low": layers.Dense(2, name="low")(x), "high": layers.Dense(3, name="high")(x)}
    return keras.Model([image, side], ends, name="outer")


def sequential() -> Any:
    """A Sequential with another one inside that has no input of its own."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            keras.Sequential([layers.MaxPooling2D(), layers.Dropout(0.2)], name="inner"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax", name="classes"),
        ],
        name="chain",
    )


def residual() -> Any:
    """A small residual classifier: convolutions, BatchNorm, a sum by an operator, logits."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="left")(x)
    y = layers.BatchNormalization()(y)
    z = layers.Conv2D(8, 1, padding="same", use_bias=False, name="right")(x)
    z = layers.BatchNormalization()(z)
    x = layers.ReLU()(y + z)
    x = layers.Conv2D(6, 3, padding="same", name="last")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(x), name="residual")


NETS = {
    net.__name__: net
    for net in (
        shared_convolution, operators, choices, moves_and_pools, activations, normalised, nested,
        sequential, residual,
    )
}  # fmt: skip
