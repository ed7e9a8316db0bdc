"""Small networks, one for every layer and spelling that quantization must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.models.keras3.activations import OF_KERAS3

layers = tf_keras.layers

SHAPE = (8, 8, 3)
SEQUENCE = (16, 3)


def images(count: int = 64, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def sequences(count: int = 64, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SEQUENCE)).astype(np.float32)


def randomize(model: tf_keras.Model, seed: int = 0) -> tf_keras.Model:
    """Gives every weight, statistics included, a random value of a sensible size."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if not weight.dtype.is_floating:
            continue
        noise = rng.standard_normal(weight.shape).astype(np.float32)
        if "variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "kernel" in weight.name:
            weight.assign(noise * np.sqrt(2.0 / max(1, np.prod(weight.shape[:-1]))))
        else:
            weight.assign(0.3 * noise + ("gamma" in weight.name))
    return model


def conv(x: Any, filters: int = 6, **options: Any) -> Any:
    return layers.Conv2D(filters, 3, padding="same", **options)(x)


def conv_norm(x: Any, filters: int = 6) -> Any:
    return layers.ReLU()(layers.BatchNormalization()(conv(x, filters, use_bias=False)))


def head(x: Any) -> Any:
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


def squeeze_excite(x: Any) -> Any:
    x = conv(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(2, 1, activation="relu")(s)
    s = layers.Conv2D(6, 1, activation="sigmoid")(s)
    return head(layers.Multiply()([x, s]))


def scattered(positions: list[int]) -> Callable[[Any], Any]:
    """A narrow tensor with two readers in a wider sum: its scatter cannot be folded."""

    def body(x: Any) -> Any:
        x = conv_norm(x, 4)
        return head(layers.Add()([ScatterChannels(positions, 6)(x), conv(x, 6)]))

    return body


def union_block(x: Any) -> Any:
    """A narrow branch in a residual sum, as union pruning leaves it."""
    x = conv_norm(x, 6)
    y = layers.BatchNormalization()(conv(x, 3, use_bias=False))
    return head(layers.ReLU()(layers.Add()([x, ScatterChannels([4, 0, 3], 6)(y)])))


def grouped_union(x: Any) -> Any:
    """A narrow grouped branch, whose channels go to places of another group."""
    y = layers.Conv2D(4, 3, padding="same", groups=2)(conv(x))
    return head(layers.Add()([conv(x), ScatterChannels([5, 0, 3, 2], 6)(layers.ReLU()(y))]))


def transposed_dilated(x: Any) -> Any:
    x = layers.Conv2DTranspose(5, 3, dilation_rate=2, padding="same")(x)
    return head(layers.Conv2DTranspose(6, (2, 3), dilation_rate=3)(x))


def sums(x: Any) -> Any:
    x = layers.Add()([conv(x), conv(x), conv(x)])
    return head(layers.Average()([conv(x), conv(x), conv(x), x]))


def shared(x: Any) -> Any:
    layer = layers.Conv2D(3, 3, padding="same")
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layer(x)))
    return head(x)


def nested(x: Any) -> Any:
    inner = tf_keras.Sequential(
        [
            layers.Conv2D(6, 3, padding="same", input_shape=SHAPE),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3),
        ]
    )
    return head(conv(inner(x)))


def inception(x: Any) -> Any:
    y = layers.AveragePooling2D(3, 1, padding="same")(x)
    z = layers.MaxPooling2D(3, 1, padding="same")(conv_norm(x))
    return head(conv(layers.Concatenate()([conv_norm(y), z, x])))


def pre_activation(x: Any) -> Any:
    y = layers.Add()([conv(x), conv(x)])
    return head(conv(layers.ReLU()(layers.BatchNormalization()(y))))


def dense_norm(x: Any) -> Any:
    x = layers.Dense(7, use_bias=False)(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return layers.Dense(4, activation=tf.nn.softmax)(layers.BatchNormalization()(x))


def after(layer: Any) -> Callable[[Any], Any]:
    """A net with `layer` behind a convolution."""
    return lambda x: head(conv(layer(conv(x))))


def hard_swish_operators(x: Any) -> Any:
    x = conv(x)
    return head(x * tf.nn.relu6(x + 3.0) / 6.0)


def operators(x: Any) -> Any:
    x = tf.nn.relu(conv(x) - 0.1)
    y = tf.concat([1.0 - x, tf.math.multiply(x, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])], axis=-1)
    return layers.Dense(4)(tf.reduce_mean(y, axis=[1, 2]))


def parts(x: Any) -> Any:
    """A split whose parts are read, joined and shuffled, and slices of channels and positions."""
    a, b, c = tf.split(conv(x, filters=12), [3, 3, -1], axis=-1)
    x = tf.concat([conv(a), b, c[..., 1:-2]], axis=-1)
    x = tf.reshape(tf.transpose(tf.reshape(x, [-1, 8, 8, 2, 6]), [0, 1, 2, 4, 3]), [-1, 8, 8, 12])
    return head(conv(x[:, 1:-1, ::2, :10]))


def moving_operators(x: Any) -> Any:
    x = tf.pad(conv(x), [[0, 0], [1, 2], [0, 1], [2, 1]])
    x = tf.image.resize(tf.clip_by_value(conv(x), 0.0, 1.5), [22, 18], method="nearest")
    x = tf.math.add_n([x, tf.square(x), -conv(x)])
    x = tf.squeeze(tf.expand_dims(tf.reduce_max(x, [1, 2], keepdims=True), 1), [1, 2])
    return layers.Dense(4)(tf.squeeze(x, 1))


def functions(x: Any) -> Any:
    return tf.nn.softmax(head(tf.nn.leaky_relu(conv(x), 0.1)))


def keras3_activations(x: Any) -> Any:
    """Functions of Keras 3 that tf_keras lacks or defines differently."""
    for name in ("hard_silu", "hard_sigmoid", "leaky_relu", "relu6"):
        x = layers.Activation(OF_KERAS3[name])(conv(x, activation=OF_KERAS3[name]))
    return head(x)


def activation_layers(x: Any) -> Any:
    """Layers in the place of activation functions, with and without weights of their own."""
    x = conv(x, activation=layers.LeakyReLU(0.1))
    y = layers.SeparableConv2D(6, 3, activation=layers.PReLU(shared_axes=[1, 2]))(x)
    z = layers.Dense(5, activation=layers.PReLU(shared_axes=[1, 2]))(x)
    z = layers.Activation(layers.ReLU(1.5))(z)
    return layers.Add()([head(y), head(z)])


def augmented(x: Any) -> Any:
    """Layers that do nothing in inference."""
    x = layers.RandomZoom(0.2)(layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(x)))
    x = layers.RandomTranslation(0.1, 0.1)(x)
    x = layers.RandomBrightness(0.2)(layers.RandomContrast(0.2)(x))
    x = layers.RandomWidth(0.2)(layers.RandomHeight(0.2)(x))
    return head(conv(layers.Identity()(conv(x))))


NETS: dict[str, Callable[[Any], Any]] = {
    "activation_layers": activation_layers,
    "augmented": augmented,
    "axis_norm": after(lambda x: layers.ReLU()(layers.BatchNormalization(axis=1)(x))),
    "average": lambda x: head(layers.Average()([conv(x), conv(x)])),
    "dense_norm": dense_norm,
    "dense_on_images": after(layers.Dense(5, activation="relu")),
    "dilated": lambda x: head(layers.BatchNormalization()(conv(x, dilation_rate=2))),
    "functions": functions,
    "gelu": after(layers.Activation("gelu")),
    "global_max": lambda x: layers.Dense(4)(layers.GlobalMaxPooling2D()(conv(x))),
    "group_norm": after(layers.GroupNormalization(groups=3)),
    "grouped": lambda x: head(layers.Conv2D(6, 3, groups=3)(x)),
    "grouped_union": grouped_union,
    "hard_sigmoid": after(layers.Activation("hard_sigmoid")),
    "hard_swish_operators": hard_swish_operators,
    "elu": lambda x: head(layers.ELU(0.5)(conv(x, activation="elu"))),
    "selu": lambda x: head(tf.nn.selu(conv(x, activation="exponential"))),
    "softplus": lambda x: head(tf.nn.softplus(conv(x, activation="softsign"))),
    "mish": after(layers.Activation("mish")),
    "inception": inception,
    "keras3_activations": keras3_activations,
    "layer_norm": after(layers.LayerNormalization()),
    "leaky": after(layers.LeakyReLU(0.1)),
    "min_max": lambda x: head(
        layers.Minimum()([layers.Maximum()([conv(x), conv(x)]), layers.Subtract()([conv(x)] * 2)])
    ),
    "moving_operators": moving_operators,
    "nested": nested,
    "normalization": lambda x: head(
        conv(layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 0.5, 0.25])(x))
    ),
    "operators": operators,
    "parts": parts,
    "pools": lambda x: head(
        layers.AveragePooling2D(2)(layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(conv(x))))
    ),
    "pre_activation": pre_activation,
    "prelu": after(layers.PReLU(shared_axes=[1, 2])),
    "relu_slope": after(layers.ReLU(negative_slope=0.1)),
    "rescaling": lambda x: head(conv(layers.Rescaling(0.5, offset=-1.0)(x))),
    "scatter_contiguous": scattered([1, 2, 3, 4]),
    "scatter_scattered": scattered([5, 0, 3, 2]),
    "separable": lambda x: head(layers.SeparableConv2D(6, 3, activation="relu")(x)),
    "shared": shared,
    "squeeze_excite": squeeze_excite,
    "sums": sums,
    "swish": lambda x: head(conv(x, activation="swish")),
    "tanh": after(layers.Activation("tanh")),
    "transposed": lambda x: head(
        layers.BatchNormalization()(layers.Conv2DTranspose(5, 3, strides=2, padding="same")(x))
    ),
    "transposed_dilated": transposed_dilated,
    "union_block": union_block,
    "upsampled": after(layers.UpSampling2D(2, interpolation="bilinear")),
}


def build(name: str) -> tf_keras.Model:
    """The net called `name`, with random weights."""
    inputs = layers.Input(SHAPE)
    return randomize(tf_keras.Model(inputs, NETS[name](inputs), name=name))


def side_by_side(
    nets: Mapping[str, Callable[[Any], Any]], names: Sequence[str], shape: tuple[int, ...]
) -> tf_keras.Model:
    """One model with an output for each of these nets, whose weights are those of the net alone."""
    inputs = layers.Input(shape)
    outputs = [nets[name](inputs) for name in names]
    for output in outputs:
        randomize(tf_keras.Model(inputs, output))
    return tf_keras.Model(inputs, outputs)


def groups(nets: Mapping[str, Any], size: int = 9) -> list[list[str]]:
    """The names of nets, in groups for `side_by_side`."""
    parts = np.array_split(sorted(nets), -(-len(nets) // size))
    return [part.tolist() for part in parts]


def norm_relu(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization()(x))


def sequence_head(x: Any) -> Any:
    return layers.Dense(4)(layers.GlobalAveragePooling1D()(x))


def residual_sequence(x: Any) -> Any:
    """Causal, strided, dilated and grouped convolutions, and a sum."""
    x = norm_relu(
        layers.Conv1D(6, 3, padding="causal", dilation_rate=2, use_bias=False, name="causal")(x)
    )
    x = norm_relu(layers.Conv1D(6, 3, strides=2, padding="same", name="strided")(x))
    y = norm_relu(layers.DepthwiseConv1D(3, padding="same", dilation_rate=2, name="depthwise")(x))
    y = layers.Conv1D(6, 3, padding="same", groups=2, name="grouped")(y)
    return sequence_head(layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)])))


def residual_row(x: Any) -> Any:
    """The same by hand, on images of one row."""
    x = layers.ZeroPadding2D(((0, 0), (4, 0)))(x)
    x = layers.Conv2D(6, (1, 3), dilation_rate=(1, 2), use_bias=False, name="causal")(x)
    x = norm_relu(x)
    x = layers.Conv2D(6, (1, 3), strides=(1, 2), padding="same", name="strided")(x)
    x = norm_relu(x)
    y = layers.DepthwiseConv2D((1, 3), padding="same", dilation_rate=(1, 2), name="depthwise")(x)
    y = layers.Conv2D(6, (1, 3), padding="same", groups=2, name="grouped")(norm_relu(y))
    return head(layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)])))


def separable_sequence(x: Any) -> Any:
    x = layers.SeparableConv1D(
        6, 3, strides=2, padding="causal", depth_multiplier=2, activation="relu"
    )(x)
    x = norm_relu(layers.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2)(x))
    x = layers.SeparableConv1D(6, 3, padding="same", dilation_rate=2)(x)
    return sequence_head(norm_relu(x))


def pooled_sequence(x: Any) -> Any:
    x = norm_relu(layers.Conv1D(6, 3)(layers.ZeroPadding1D((2, 1))(x)))
    x = layers.Cropping1D((1, 0))(layers.MaxPooling1D(3, 2, padding="same")(x))
    x = layers.UpSampling1D(2)(layers.AveragePooling1D(3, 1, padding="same")(x))
    x = layers.Conv1D(5, 2)(layers.SpatialDropout1D(0.3)(x))
    return layers.Dense(4)(layers.GlobalMaxPooling1D()(x))


def transposed_sequence(x: Any) -> Any:
    x = norm_relu(layers.Conv1DTranspose(6, 3, strides=2, padding="same")(x))
    x = norm_relu(layers.Conv1DTranspose(5, 3, strides=2, output_padding=1)(x))
    return layers.Dense(4)(layers.Flatten()(layers.GlobalAveragePooling1D(keepdims=True)(x)))


def sequence_union(x: Any) -> Any:
    """A narrow branch in a residual sum, as union pruning leaves it."""
    x = norm_relu(layers.Conv1D(6, 3, padding="same")(x))
    y = layers.BatchNormalization()(layers.Conv1D(3, 3, padding="same", use_bias=False)(x))
    x = layers.ReLU()(layers.Add()([x, ScatterChannels([4, 0, 3], 6)(y)]))
    return layers.Dense(4)(layers.Flatten()(x))


def mixer(x: Any) -> Any:
    """Dense layers along both axes of sequences, each behind a normalization."""
    x = layers.Dense(8)(x)
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Permute((2, 1))(layers.Dense(16)(layers.Dense(7, activation="gelu")(y)))
    x = layers.Add()([x, y])
    y = layers.Dense(8)(layers.Dense(9, activation="relu")(layers.LayerNormalization()(x)))
    return sequence_head(layers.Add()([x, y]))


def sequence_operators(x: Any) -> Any:
    x = tf.nn.relu(layers.Conv1D(6, 3)(tf.pad(x, [[0, 0], [1, 2], [0, 1]])) * 2.0)
    x = layers.PReLU(shared_axes=[1])(layers.Conv1D(6, 3, activation="swish")(x))
    return layers.Dense(4)(tf.concat([tf.reduce_mean(x, 1), tf.reduce_max(x, [-2])], -1))


SEQUENCE_NETS: dict[str, Callable[[Any], Any]] = {
    "mixer": mixer,
    "pooled_sequence": pooled_sequence,
    "residual_sequence": residual_sequence,
    "separable_sequence": separable_sequence,
    "sequence_operators": sequence_operators,
    "sequence_union": sequence_union,
    "transposed_sequence": transposed_sequence,
}


def build_sequence(name: str) -> tf_keras.Model:
    """The net for sequences called `name`, with random weights."""
    inputs = layers.Input(SEQUENCE)
    return randomize(tf_keras.Model(inputs, SEQUENCE_NETS[name](inputs), name=name))
