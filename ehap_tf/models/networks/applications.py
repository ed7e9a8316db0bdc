"""The networks of `tf_keras.applications`, by name, with weights of one's own or none."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.models.networks.blocks import seed_of

_REGNETS = tuple(f"{size:03d}" for size in (2, 4, 6, 8, 16, 32, 40, 64, 80, 120, 160, 320))


@dataclasses.dataclass(frozen=True)
class Application:
    """A network of `tf_keras.applications`.

    Attributes:
        builder: name of the function there.
        normalization: in which it was trained, a name in `ehap_tf.data.CONVENTIONS`; "none" where
            the network has its preprocessing inside.
        has_width: whether it takes a multiplier of its channels.
    """

    builder: str
    normalization: str
    has_width: bool = False


APPLICATIONS: dict[str, Application] = {
    "mobilenet": Application("MobileNet", "-1..1", has_width=True),
    "mobilenet_v2": Application("MobileNetV2", "-1..1", has_width=True),
    "mobilenet_v3_small": Application("MobileNetV3Small", "none", has_width=True),
    "mobilenet_v3_large": Application("MobileNetV3Large", "none", has_width=True),
    **{f"resnet{depth}": Application(f"ResNet{depth}", "caffe") for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": Application(f"ResNet{depth}V2", "-1..1") for depth in (50, 101, 152)},
    **{
        f"resnet_rs{depth}": Application(f"ResNetRS{depth}", "none")
        for depth in (50, 101, 152, 200, 270, 350, 420)
    },
    # The built-in vgg16 is the one for images of 32 pixels.
    "vgg16_applications": Application("VGG16", "caffe"),
    "vgg19": Application("VGG19", "caffe"),
    **{
        f"densenet{depth}": Application(f"DenseNet{depth}", "imagenet") for depth in (121, 169, 201)
    },
    **{f"efficientnet_b{size}": Application(f"EfficientNetB{size}", "none") for size in range(8)},
    **{
        f"efficientnet_v2_{size.lower()}": Application(f"EfficientNetV2{size}", "none")
        for size in ("B0", "B1", "B2", "B3", "S", "M", "L")
    },
    "inception_v3": Application("InceptionV3", "-1..1"),
    "inception_resnet_v2": Application("InceptionResNetV2", "-1..1"),
    "xception": Application("Xception", "-1..1"),
    "nasnet_mobile": Application("NASNetMobile", "-1..1"),
    "nasnet_large": Application("NASNetLarge", "-1..1"),
    **{
        f"convnext_{size.lower()}": Application(f"ConvNeXt{size}", "none")
        for size in ("Tiny", "Small", "Base", "Large", "XLarge")
    },
    **{
        f"regnet_{kind.lower()}{size}": Application(f"RegNet{kind}{size}", "none")
        for kind in "XY"
        for size in _REGNETS
    },
}
"""By the name that `build_model` and --model take."""


def build_application(
    name: str, num_classes: int, input_shape: tuple[int, int, int], seed: int, width: float = 1.0
) -> tf_keras.Model:
    """An untrained network of `tf_keras.applications` that ends in logits.

    Args:
        name: one of `APPLICATIONS`.
        num_classes: number of logits.
        input_shape: (height, width, channels) of one image.
        seed: of the initial weights, which are drawn as the network's layers say.
        width: multiplies the number of channels, of the MobileNets alone.

    Raises:
        ValueError: the network does not take the width or the shape.
    """
    known = APPLICATIONS[name]
    options: dict[str, Any] = {"alpha": width} if known.has_width else {}
    if width != 1 and not known.has_width:
        takers = ", ".join(one for one, other in APPLICATIONS.items() if other.has_width)
        raise ValueError(f"width is for the built-in networks and {takers}. Received: {name}")
    try:
        model = getattr(tf_keras.applications, known.builder)(
            weights=None, include_top=True, input_shape=input_shape, classes=num_classes,
            classifier_activation=None, **options,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{name} cannot be built for images of {input_shape}: {error}") from error
    draw_weights(model, seed)
    return model


def draw_weights(model: tf_keras.Model, seed: int) -> None:
    """Draws every kernel anew, by its layer's own initializer, a seed and the layer's name."""
    for name, weight, initializer in _drawn_weights(model):
        config = initializer.get_config()
        if "seed" in config:
            drawn = type(initializer).from_config(config | {"seed": seed_of(seed, name)})
            weight.assign(drawn(weight.shape, weight.dtype))


def _drawn_weights(model: tf_keras.Model) -> Iterator[tuple[str, Any, Any]]:
    for layer in model._flatten_layers(include_self=False):
        for part in ("kernel", "depthwise", "pointwise"):
            weight = getattr(layer, part if part == "kernel" else f"{part}_kernel", None)
            initializer = getattr(layer, f"{part}_initializer", None)
            if weight is not None and hasattr(initializer, "get_config"):
                yield f"{layer.name}/{part}", weight, initializer


def load_imagenet(model: tf_keras.Model, name: str) -> list[str]:
    """Gives an application the weights that were trained on ImageNet, fetched where they are not.

    Returns:
        As `load_pretrained`.

    Raises:
        FileNotFoundError: they are not on this machine and cannot be fetched.
    """
    known = APPLICATIONS[name]
    classes = model.output_shape[-1]
    options: dict[str, Any] = {"classes": 1000} if classes == 1000 else {}
    try:
        source = getattr(tf_keras.applications, known.builder)(
            weights="imagenet", include_top=classes == 1000, input_shape=model.input_shape[1:],
            **options,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{name} has no weights of ImageNet for this shape: {error}") from error
    except Exception as error:  # Keras raises a bare one where there is no network.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FileNotFoundError(
            f"the weights of {name} on ImageNet are not here and cannot be fetched ({reason}). "
            "Give a file of them, --weights=PATH, or none"
        ) from error
    _copy_by_name(source, model)
    return [] if classes == 1000 else [_with_weights(model)[-1].name]


def load_pretrained(model: tf_keras.Model, weights: str | os.PathLike[str]) -> list[str]:
    """Gives a network the weights of a file, as far as they fit.

    Args:
        model: gets them in place.
        weights: a file of Keras weights (.h5, also of an application without its top), or a saved
            model of the same layers' names.

    Returns:
        The names of the layers with weights that got none: a head for other classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no weights of it fit, or layers before the last one got none.
    """
    path = pathlib.Path(weights)
    if not path.exists():
        raise FileNotFoundError(f"weights must be a file. Received: {os.fspath(weights)!r}")
    with_weights = _with_weights(model)
    before = {layer.name: layer.get_weights() for layer in with_weights}
    # Marks what is not loaded: no trained weight is NaN.
    for layer in with_weights:
        layer.set_weights([np.full_like(value, np.nan) for value in before[layer.name]])
    if path.suffix == ".h5":
        model.load_weights(path, by_name=True, skip_mismatch=True)
    else:
        _copy_by_name(tf_keras.models.load_model(path, compile=False), model)
    missing = []
    for layer in with_weights:
        if any(np.isnan(value).any() for value in layer.get_weights()):
            layer.set_weights(before[layer.name])
            missing.append(layer.name)
    head = with_weights[-1].name
    if set(missing) - {head}:
        raise ValueError(
            f"the weights in {path} are not those of {model.name}: {len(missing)} of "
            f"{len(with_weights)} layers got none, the first {missing[0]}"
        )
    return missing


def _with_weights(model: tf_keras.Model) -> list[Any]:
    return [layer for layer in model.layers if layer.weights]


def _copy_by_name(source: tf_keras.Model, model: tf_keras.Model) -> None:
    found = {layer.name: layer.get_weights() for layer in source.layers}
    for layer in model.layers:
        values = found.get(layer.name, [])
        if [value.shape for value in values] == [weight.shape for weight in layer.weights]:
            layer.set_weights(values)
