"""Neural implants (HAP, arXiv 2101.08940): k x k filters that shrink to 1x1 instead of going.

The 1x1 filter looks at the position that the centre of the k x k kernel looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tf_keras

IMPLANT_INITS = ("zero", "center")


def center(kernel: npt.NDArray[Any]) -> tuple[int, ...]:
    """The spatial index of the centre of a kernel (..., inputs, filters)."""
    return tuple((size - 1) // 2 for size in kernel.shape[:-2])


def config(of_layer: Mapping[str, Any], filters: int) -> dict[str, Any]:
    """The configuration of the 1x1 convolution beside a k x k one."""
    rank = len(of_layer["kernel_size"])
    return {
        **of_layer,
        "filters": filters,
        "kernel_size": (1,) * rank,
        "dilation_rate": (1,) * rank,
        "padding": "valid",
    }


def weights(
    of_layer: Mapping[str, npt.NDArray[Any]], indices: npt.NDArray[np.int64], init: str
) -> list[npt.NDArray[Any]]:
    """The weights of the 1x1 convolution: kernel, then bias where the layer has one.

    Args:
        of_layer: "kernel" (..., inputs, filters) and perhaps "bias" of the k x k convolution.
        indices: which of its filters shrink.
        init: "zero", or "center" for the centre of the k x k kernel.
    """
    kernel = of_layer["kernel"]
    rank = kernel.ndim - 2
    at_center = kernel[center(kernel)][..., indices]
    small = at_center if init == "center" else np.zeros_like(at_center)
    values = [small.reshape((1,) * rank + small.shape)]
    if "bias" in of_layer:
        values.append(of_layer["bias"][indices])
    return values


def crop(
    tensor: Any,
    layer: tf_keras.layers.Layer,
    input_shape: tuple[int | None, ...],
    fresh_name: Callable[[str], str],
) -> Any:
    """Cuts the input so that a strided 1x1 kernel meets the centres of the k x k kernel."""
    amounts = [
        _crop_of_axis(*axis, layer.padding)
        for axis in zip(
            input_shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
        )
    ]
    if not any(before or after for before, after in amounts):
        return tensor
    name = fresh_name(f"{layer.name}_implant_crop")
    rank = len(amounts)
    cropping = amounts[0] if rank == 1 else tuple(amounts)
    cropping_class = getattr(tf_keras.layers, f"Cropping{rank}D")
    return cropping_class(cropping, name=name, dtype=layer.dtype_policy)(tensor)


def _crop_of_axis(
    size: int | None, kernel: int, stride: int, dilation: int, padding: str
) -> tuple[int, int]:
    extent = dilation * (kernel - 1)
    middle = dilation * ((kernel - 1) // 2)
    if padding == "valid":
        return middle, extent - middle
    if stride == 1 or size is None:
        return 0, 0
    outputs = -(-size // stride)
    padded = max((outputs - 1) * stride + extent + 1 - size, 0)
    first = middle - padded // 2
    return first, size - first - ((outputs - 1) * stride + 1)
