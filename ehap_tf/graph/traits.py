"""What a layer is, whoever asks: one table of Keras' classes."""

from __future__ import annotations

import dataclasses

import tf_keras
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda

from ehap_tf.graph.identities import IDENTITIES

layers = tf_keras.layers

# A subclass that overrides one of these computes something else than its base.
_COMPUTATION = ("call", "build", "convolution_op")


@dataclasses.dataclass(frozen=True)
class LayerTraits:
    """What holds for every layer of a class.

    Attributes:
        filters: attribute of the weight that owns the layer's filters, and the axis that counts
            them; None where it owns none.
        piecewise_linear: the outputs are piecewise linear in the inputs and in each weight, the
            activation function left aside, at inference.
    """

    filters: tuple[str, int] | None = None
    piecewise_linear: bool = False


_TRAITS: dict[type, LayerTraits] = {}


def register_traits(*classes: type, filters: tuple[str, int] | None, linear: bool) -> None:
    """Says what the layers of some classes are, and those of subclasses that have no other traits.

    Args:
        *classes: of layers.
        filters: as in `LayerTraits`.
        linear: they are piecewise linear.
    """
    _TRAITS.update(dict.fromkeys(classes, LayerTraits(filters, linear)))


def traits_of(layer: tf_keras.layers.Layer) -> LayerTraits:
    """The traits of a layer's class; a subclass that computes something else is not linear."""
    for base in type(layer).__mro__:
        if base in _TRAITS:
            linear = _TRAITS[base].piecewise_linear and computes_like(layer, base)
            return dataclasses.replace(_TRAITS[base], piecewise_linear=linear)
    return LayerTraits()


def computes_like(layer: tf_keras.layers.Layer, base: type) -> bool:
    """Whether a layer computes what the class that it derives from does."""
    return all(
        getattr(type(layer), name, None) is getattr(base, name, None) for name in _COMPUTATION
    )


register_traits(
    layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense, filters=("kernel", -1), linear=True
)
register_traits(
    layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose,
    filters=("kernel", -2), linear=True,
)  # fmt: skip
register_traits(
    layers.SeparableConv1D, layers.SeparableConv2D, filters=("pointwise_kernel", -1), linear=True
)
register_traits(
    *IDENTITIES, SlicingOpLambda,
    layers.Activation, layers.Add, layers.Average, layers.AveragePooling1D, layers.AveragePooling2D,
    layers.AveragePooling3D, layers.BatchNormalization, layers.Concatenate, layers.Cropping1D,
    layers.Cropping2D, layers.Cropping3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D,
    layers.Flatten, layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D, layers.Identity, layers.InputLayer, layers.LeakyReLU, layers.Maximum,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D, layers.Minimum,
    layers.Normalization, layers.PReLU, layers.Permute, layers.ReLU, layers.RepeatVector,
    layers.Rescaling, layers.Reshape, layers.Subtract, layers.ThresholdedReLU, layers.UpSampling1D,
    layers.UpSampling2D, layers.UpSampling3D, layers.ZeroPadding1D, layers.ZeroPadding2D,
    layers.ZeroPadding3D, layers.experimental.SyncBatchNormalization,
    filters=None, linear=True,
)  # fmt: skip
