"""Rules of the operators that move, repeat or select values: slices, stacks, gathers, resizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels, slice_entries
from ehap_tf.graph import is_symbolic
from ehap_tf.quantization.integer_rules.builder import GraphBuilder
from ehap_tf.quantization.integer_rules.own_layers import EhapSlice

layers = tf_keras.layers


def _is_fixed(*values: Any) -> bool:
    """Whether no value, nor a part of one, is a tensor of the graph."""
    return not any(is_symbolic(part) for part in tf.nest.flatten(values))


def _integers(values: Any) -> list[int]:
    return [int(value) for value in np.ravel(values)]


def _reshape(builder: GraphBuilder, name: str, x: Any, shape: Any) -> Any:
    if not _is_fixed(shape):
        return None
    batch, *target = _integers(shape)
    # Anything else moves what lies in the batch axis.
    if batch not in (-1, x.shape[0]) or (batch == -1 and np.prod(target) != np.prod(x.shape[1:])):
        return None
    return builder.call(layers.Reshape, name, x, target)


def _concat(builder: GraphBuilder, name: str, values: Any, axis: Any) -> Any:
    if not all(is_symbolic(value) for value in values):
        return None
    return builder.call(layers.Concatenate, name, values, int(axis))


def _stack(builder: GraphBuilder, name: str, values: Any, axis: Any = 0) -> Any:
    if not all(is_symbolic(value) for value in values):
        return None
    axis = int(axis) % (values[0].shape.rank + 1)
    if axis == 0:
        return None
    if len(values) == 1:
        return _expand_dims(builder, name, values[0], axis)
    return builder.operate("stack", name, *values, axis=axis)


def _unstack(builder: GraphBuilder, name: str, value: Any, num: Any = None, axis: int = 0) -> Any:
    del num
    axis = int(axis) % value.shape.rank
    if axis == 0:
        return None
    everything = (slice(None),) * axis
    return [
        _getitem(builder, f"{name}_{index}", value, (*everything, index))
        for index in range(value.shape[axis])
    ]


def _slices(builder: GraphBuilder, name: str, x: Any, parts: list[slice]) -> Any:
    """The part of `x` within one slice for each axis but the batch."""
    indices = [part.indices(size) for part, size in zip(parts, x.shape[1:], strict=True)]
    return builder.call(EhapSlice, name, x, *zip(*indices, strict=True))


def _split(
    builder: GraphBuilder,
    name: str,
    x: Any,
    num_or_size_splits: Any,
    axis: int = 0,
    num: Any = None,
) -> Any:
    del num
    axis = int(axis) % x.shape.rank
    if not axis or not _is_fixed(num_or_size_splits):
        return None
    size = x.shape[axis]
    if np.ndim(num_or_size_splits):
        given = _integers(num_or_size_splits)
        sizes = [size - sum(given) - 1 if part < 0 else part for part in given]
    else:
        sizes = [size // num_or_size_splits] * int(num_or_size_splits)
    ends = np.cumsum(sizes).tolist()
    everything = [slice(None)] * (x.shape.rank - 1)
    return [
        _slices(
            builder,
            f"{name}_{index}",
            x,
            [*everything[: axis - 1], slice(end - part, end), *everything[axis:]],
        )
        for index, (part, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def _getitem(builder: GraphBuilder, name: str, x: Any, slice_spec: Any, var: Any = None) -> Any:
    """Slices; an index, a turn and a new axis are a slice and a reversal or a reshape."""
    del var
    entries = slice_entries(slice_spec, x.shape.rank)
    if not _is_fixed([[e.start, e.stop, e.step] if isinstance(e, slice) else e for e in entries]):
        return None
    if not all(e is None or isinstance(e, slice | int | np.integer) for e in entries):
        return None
    if entries[0] != slice(None):
        return None
    parts: list[slice] = []
    turned: list[int] = []
    shape: list[int] = []
    for entry in entries[1:]:
        if entry is None:
            shape.append(1)
            continue
        size = x.shape[len(parts) + 1]
        if isinstance(entry, slice):
            start, stop, step = entry.indices(size)
            if step < 0:
                turned.append(len(parts) + 1)
                start, stop, step = size - 1 - start, size - 1 - stop, -step
            parts.append(slice(start, stop, step))
            shape.append(len(range(start, stop, step)))
        else:
            index = int(entry) % size
            parts.append(slice(index, index + 1))
    if turned:
        x = builder.operate("reverse", f"{name}_turn", x, axis=turned)
    if any(range(*p.indices(n)) != range(n) for p, n in zip(parts, x.shape[1:], strict=True)):
        x = _slices(builder, name, x, parts)
    if shape != list(x.shape[1:]):
        x = builder.call(layers.Reshape, name, x, shape)
    return x


def _pad(
    builder: GraphBuilder,
    name: str,
    x: Any,
    paddings: Any,
    mode: str = "CONSTANT",
    constant_values: Any = 0,
) -> Any:
    if not _is_fixed(paddings, constant_values) or np.size(constant_values) != 1:
        return None
    sizes = np.asarray(paddings).tolist()
    batch, *image, (before, after) = sizes
    if any(batch):
        return None
    if mode.upper() != "CONSTANT":
        return builder.operate("mirror_pad", name, x, paddings=sizes, mode=mode.upper())
    if float(np.ravel(constant_values)[0]) or x.shape.rank not in (3, 4):
        value = float(np.ravel(constant_values)[0])
        return builder.operate("pad_with", name, x, paddings=sizes, value=value)
    if any(map(any, image)):
        height, width = image if len(image) == 2 else ((0, 0), *image)

        def zeros_around(y: Any) -> Any:
            return builder.call(layers.ZeroPadding2D, name, y, (tuple(height), tuple(width)))

        x = builder.as_image(zeros_around, x, name)
    if before or after:
        channels = x.shape[-1]
        places = range(before, before + channels)
        x = builder.call(ScatterChannels, name, x, places, before + channels + after)
    return x


def _transpose(
    builder: GraphBuilder, name: str, x: Any, perm: Any = None, conjugate: bool = False
) -> Any:
    del conjugate
    if perm is None or not _is_fixed(perm) or perm[0]:
        return None
    return builder.call(layers.Permute, name, x, tuple(int(axis) for axis in perm[1:]))


def _squeeze(builder: GraphBuilder, name: str, x: Any, axis: Any = None) -> Any:
    shape = list(x.shape)
    axes = range(1, len(shape)) if axis is None else [a % len(shape) for a in _integers(axis)]
    kept = [n for a, n in enumerate(shape) if not (a in axes and n == 1)]
    return builder.call(layers.Reshape, name, x, kept[1:])


def _expand_dims(builder: GraphBuilder, name: str, x: Any, axis: int) -> Any:
    shape = list(x.shape)
    place = int(axis) % (len(shape) + 1)
    shape.insert(place, 1)
    return builder.call(layers.Reshape, name, x, shape[1:]) if place else None


def _tile(builder: GraphBuilder, name: str, x: Any, multiples: Any) -> Any:
    if not _is_fixed(multiples) or _integers(multiples)[0] != 1:
        return None
    return builder.operate("tile", name, x, multiples=_integers(multiples))


def _repeat(builder: GraphBuilder, name: str, x: Any, repeats: Any, axis: Any = None) -> Any:
    """Repeats every element in its place: tiles of size 1 in an axis of their own."""
    if axis is None or not _is_fixed(repeats) or np.size(repeats) != 1:
        return None
    axis, times = int(axis) % x.shape.rank, _integers(repeats)[0]
    if axis == 0:
        return None
    apart = [*x.shape[1 : axis + 1], 1, *x.shape[axis + 1 :]]
    y = builder.call(layers.Reshape, f"{name}_apart", x, apart)
    multiples = [times if place == axis else 1 for place in range(len(apart))]
    y = builder.operate("tile", name, y, multiples=[1, *multiples])
    together = [size * times if a == axis else size for a, size in enumerate(x.shape)]
    return builder.call(layers.Reshape, f"{name}_together", y, together[1:])


def _gather(
    builder: GraphBuilder,
    name: str,
    x: Any,
    indices: Any,
    validate_indices: Any = None,
    axis: Any = None,
    batch_dims: int = 0,
) -> Any:
    del validate_indices
    if not is_symbolic(x) or not _is_fixed(indices) or axis is None or batch_dims:
        return None
    axis = int(axis) % x.shape.rank
    places = np.asarray(indices)
    if axis == 0 or places.size == 0:
        return None
    places = np.where(places < 0, places + x.shape[axis], places)
    return builder.operate("gather", name, x, indices=places, axis=axis)


def _reverse(builder: GraphBuilder, name: str, x: Any, axis: Any) -> Any:
    axes = [a % x.shape.rank for a in _integers(axis)] if _is_fixed(axis) else [0]
    return None if 0 in axes else builder.operate("reverse", name, x, axis=axes)


def _flip(axis: int) -> Any:
    """A rule for turning images round along an axis counted from the last."""

    def rule(builder: GraphBuilder, name: str, x: Any) -> Any:
        return _reverse(builder, name, x, axis) if x.shape.rank == 4 else None

    return rule


def _central_crop(builder: GraphBuilder, name: str, image: Any, central_fraction: Any) -> Any:
    if image.shape.rank != 4 or not _is_fixed(central_fraction):
        return None
    fraction = float(central_fraction)
    starts = [int((size - size * fraction) / 2) for size in image.shape[1:3]]
    sizes = zip(starts, image.shape[1:3], strict=True)
    parts = [slice(start, size - start) for start, size in sizes]
    return _slices(builder, name, image, [*parts, slice(None)])


def _roll(builder: GraphBuilder, name: str, x: Any, shift: Any, axis: Any) -> Any:
    if not _is_fixed(shift, axis):
        return None
    axes = [a % x.shape.rank for a in _integers(axis)]
    if 0 in axes:
        return None
    return builder.operate("roll", name, x, shift=_integers(shift), axis=axes)


def _blocks(operator: str) -> Any:
    """A rule for `depth_to_space` and `space_to_depth`."""

    def rule(
        builder: GraphBuilder, name: str, x: Any, block_size: int, data_format: str = "NHWC"
    ) -> Any:
        if data_format != "NHWC":
            return None
        return builder.operate(operator, name, x, block_size=int(block_size))

    return rule


def resize(builder: GraphBuilder, name: str, x: Any, size: Any, method: Any = "bilinear") -> Any:
    """Returns images of another size, or None; of a whole multiple by `UpSampling2D`."""
    if not _is_fixed(size) or method not in ("bilinear", "nearest") or x.shape.rank != 4:
        return None
    to = _integers(size)
    factors = [n / at for n, at in zip(to, x.shape[1:3], strict=True)]
    if all(factor == int(factor) for factor in factors):
        whole = tuple(int(factor) for factor in factors)
        return builder.call(layers.UpSampling2D, name, x, whole, interpolation=method)
    return builder.operate(f"resize_{method}", name, x, size=to, method=method)


MOVING_OPERATORS = {
    "central_crop": _central_crop,
    "concat": _concat,
    "depth_to_space": _blocks("depth_to_space"),
    "expand_dims": _expand_dims,
    "flip_left_right": _flip(-2),
    "flip_up_down": _flip(-3),
    "gather": _gather,
    "getitem": _getitem,
    "pad": _pad,
    "repeat": _repeat,
    "reshape": _reshape,
    "resize": resize,
    "reverse": _reverse,
    "roll": _roll,
    "space_to_depth": _blocks("space_to_depth"),
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
"""Last part of the operator's name -> its rule; a rule returns None where it does not apply."""
