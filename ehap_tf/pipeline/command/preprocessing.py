"""How images become the input of a run's network, which its model decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tf_keras

from ehap_tf.data import Shape

AS_THEY_ARE: Shape = (None, None, None)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What the stages behind `train` must know about the images; JSON in its figures.

    Attributes:
        shape: (height, width, channels) that images are brought to; None is what they have.
        normalization: of the pixels, a name in `ehap_tf.data.CONVENTIONS`.
    """

    shape: Shape = AS_THEY_ARE
    normalization: str = "dataset"

    def figures(self) -> dict[str, Any]:
        """As JSON values, under the names that a report has."""
        return {"image_shape": list(self.shape), "normalization": self.normalization}

    @classmethod
    def from_figures(cls, figures: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `figures`; the defaults for a stage of before that knew of none."""
        shape = tuple(figures.get("image_shape", AS_THEY_ARE))
        return cls(shape, figures.get("normalization", "dataset"))


def input_shape(model: tf_keras.Model) -> Shape:
    """What images must be for a model; None where it takes any.

    Raises:
        ValueError: its input is no image of 1 or 3 channels.
    """
    shape = tuple(model.inputs[0].shape[1:])
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(
            "the command takes models of images, (height, width, channels) with 1 or 3 channels. "
            f"Received: an input of shape {shape}. The library's functions take others"
        )
    return shape
