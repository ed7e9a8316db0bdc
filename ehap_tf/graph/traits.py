"""What a layer is, whoever asks: one table of Keras' classes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import tf_keras
from tf_keras.src.applications.convnext import StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda

layers = tf_keras.layers

# A subclass that overrides one of these computes something else than its base.
_COMPUTATION = ("call", "build", "convolution_op")

TrainingOnly = Literal["scaling", "noise", "augmentation", "loss"]
"""What an identity at inference does in training: it multiplies by numbers that are not negative,
disturbs in another way, transforms images, or changes loss or gradient at most."""


@dataclasses.dataclass(frozen=True)
class LayerTraits:
    """What holds for every layer of a class.

    Attributes:
        piecewise_linear: the outputs are piecewise linear in the inputs and in each weight, the
            activation function left aside, at inference.
        training_only: what the layer does in training, where it is the identity at inference;
            None where it is not.
        moves: the layer does nothing but put numbers elsewhere.
        adds: it sums its inputs up, "plain" or "scaled": all but the first times a number.
        looks_up: it cuts its input's numbers to integers, of whatever type they come.
    """

    piecewise_linear: bool = False
    training_only: TrainingOnly | None = None
    moves: bool = False
    adds: Literal["plain", "scaled"] | None = None
    looks_up: bool = False


_TRAITS: dict[type, LayerTraits] = {}


def register_traits(*classes: type, linear: bool = True, **traits: Any) -> None:
    """Says what the layers of some classes are, and those of subclasses that compute the same.

    Args:
        *classes: of layers.
        linear: they are piecewise linear.
        **traits: others of `LayerTraits`.
    """
    _TRAITS.update(dict.fromkeys(classes, LayerTraits(linear, **traits)))


def traits_of(layer: tf_keras.layers.Layer) -> LayerTraits:
    """The traits of the class that a layer's class derives from first, if it computes the same."""
    base = next((base for base in type(layer).__mro__ if base in _TRAITS), None)
    return _TRAITS[base] if base is not None and computes_like(layer, base) else LayerTraits()


def is_identity_at_inference(layer: tf_keras.layers.Layer) -> bool:
    """Whether a layer returns its input at inference, whatever it does in training."""
    return traits_of(layer).training_only is not None


def is_noise(layer: tf_keras.layers.Layer) -> bool:
    """Whether a layer disturbs what it reads at random, position by position, in training only."""
    return traits_of(layer).training_only in ("scaling", "noise")


def relu_limit(layer: tf_keras.layers.Layer) -> float | None:
    """The limit of a ReLU, min(max(x, 0), limit), or of an Activation of it; perhaps infinity.

    None for other layers, and for functions with a limit of their own such as `tf.nn.relu6`.
    """
    if computes_like(layer, layers.Activation):
        return math.inf if layer.activation is tf_keras.activations.relu else None
    if not computes_like(layer, layers.ReLU) or layer.negative_slope or layer.threshold:
        return None
    return math.inf if layer.max_value is None else float(layer.max_value)


def computes_like(layer: tf_keras.layers.Layer, base: type) -> bool:
    """Whether a layer computes what the class that it derives from does."""
    return all(
        getattr(type(layer), name, None) is getattr(base, name, None) for name in _COMPUTATION
    )


register_traits(
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    StochasticDepth, training_only="scaling",
)  # fmt: skip
register_traits(
    layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise, training_only="noise"
)
register_traits(
    layers.RandomBrightness, layers.RandomContrast, layers.RandomFlip, layers.RandomHeight,
    layers.RandomRotation, layers.RandomTranslation, layers.RandomWidth, layers.RandomZoom,
    training_only="augmentation",
)  # fmt: skip
register_traits(layers.ActivityRegularization, layers.Identity, training_only="loss")
register_traits(layers.Concatenate, layers.Flatten, layers.Permute, layers.Reshape, moves=True)
register_traits(layers.Add, adds="plain")
register_traits(CustomScaleLayer, adds="scaled")
register_traits(
    layers.CategoryEncoding, layers.Embedding, layers.HashedCrossing, layers.Hashing,
    layers.IntegerLookup, linear=False, looks_up=True,
)  # fmt: skip
register_traits(
    SlicingOpLambda,
    layers.Activation, layers.Average, layers.AveragePooling1D, layers.AveragePooling2D,
    layers.AveragePooling3D, layers.BatchNormalization, layers.Conv1D, layers.Conv1DTranspose,
    layers.Conv2D, layers.Conv2DTranspose, layers.Conv3D, layers.Conv3DTranspose,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.Dense, layers.DepthwiseConv1D,
    layers.DepthwiseConv2D, layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D, layers.InputLayer, layers.LeakyReLU, layers.Maximum,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D, layers.Minimum,
    layers.Normalization, layers.PReLU, layers.ReLU, layers.RepeatVector, layers.Rescaling,
    layers.SeparableConv1D, layers.SeparableConv2D, layers.Subtract, layers.ThresholdedReLU,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.ZeroPadding1D,
    layers.ZeroPadding2D, layers.ZeroPadding3D, layers.experimental.SyncBatchNormalization,
)  # fmt: skip
