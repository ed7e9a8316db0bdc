"""The computation of the integer file, written out from a QAT model.

The TFLite converter could fold BatchNorm by itself, and does so for most models. Doing it here
keeps what a QAT model computes and what the file computes the same in the cases where the
converter gives up (a gamma of 0, dilated and transposed convolutions) or overflows (the int32
bias of a nearly dead channel), and lets `ScatterChannels` disappear into the convolution that feeds
it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)

from ehap_tf.channels import ScatterChannels
from ehap_tf.graph import (
    is_identity_at_inference,
    is_plain_batch_norm,
    layer_of,
    producers,
    replay,
)
from ehap_tf.models import output_names
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization.integer_rules.flat_graph import output_layers, readers_in_file
from ehap_tf.quantization.integer_rules.integer_kernels import keeps_grid, multiplies, product_of
from ehap_tf.quantization.integer_rules.integer_operators import EhapOperator
from ehap_tf.quantization.integer_rules.own_layers import EhapFloatLayer
from ehap_tf.quantization.integer_rules.wrappers import NAME_PREFIX, has_default_name, unwrapped
from ehap_tf.quantization.plan.passes import is_plain_relu
from ehap_tf.quantization.plan.quantizers import (
    fake_quantize_activation,
)
from ehap_tf.quantization.tflite.folding import FoldedKernel, fold
from ehap_tf.quantization.tflite.output_grids import Range, activation_bits, output_range

Observer = Callable[[tf_keras.layers.Layer, tf.Tensor, tf.Tensor], None]
LARGEST_SELECTION = 2**16
"""Weights of a convolution that only moves channels. Beyond it costs more than the GATHER it stands
for: a trunk of 2,048 channels would bring 4 MB into the file, and as many products per position."""
SMALLEST_DIFFERENCE = 1e-6
"""Of two kernels, relative, that the converter must not take for one."""

ALMOST_ZERO = 1e-30
"""A bias that is integer 0: the converter drops one of zeros, and then leaves a ReLU behind a
TRANSPOSE_CONV in float."""


class IntegerGraph:
    """Computes what the file computes; call it inside a `tf.function` to be converted.

    Args:
        qat: a calibrated or trained model from `quantize`.
        rounding: False computes in float what the file computes in integers.
        round_kernels: whether the kernels are rounded all the same; None is as `rounding`.
        observe: called as `observe(layer, x, y)` with every layer's first input and its output; a
            convolution's output includes its BatchNorm.
    """

    def __init__(
        self,
        qat: tf_keras.Model,
        rounding: bool = True,
        observe: Observer | None = None,
        round_kernels: bool | None = None,
    ) -> None:
        self._qat = qat
        self._rounding = rounding
        self._round_kernels = rounding if round_kernels is None else round_kernels
        self._observe = observe
        self.activation_bits = activation_bits(qat)
        self._coarse = False
        self._readers = readers_in_file(qat)
        self._sources = producers(qat)
        self._layers = {layer.name: layer for layer in qat.layers}
        self._scatters = self._find_foldable_scatters()
        # Read here, because variables have no values inside the function being converted.
        # In float there are none, and need not be.
        self._limits = {
            layer.name: output_range(layer) if rounding else None for layer in qat.layers
        }
        self.kernels = {
            layer.name: self._kernel(layer) for layer in qat.layers if multiplies(unwrapped(layer))
        }
        self._repeated = self._times_before()
        self._slopes = {
            layer.name: _slopes(layer, self._round_kernels)
            for layer in qat.layers
            if layer_kind(unwrapped(layer)) == "PReLU" and hasattr(layer, "_weight_vars")
        }
        self.stored: dict[str, FoldedKernel] = {}
        """After a call: the kernels whose inputs are integers, as the file stores them."""
        self._grids: dict[str, Range | None] = {}
        for layer in qat.layers:
            if layer.name in self.kernels:
                self._widen_outputs(layer)
            kept = self._input_grid(layer.name) if keeps_grid(unwrapped(layer)) else None
            self._grids[layer.name] = self._limits[layer.name] or kept

    def __call__(self, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the outputs of the model for one example."""
        return replay(self._qat, inputs, self.compute)

    def _input_grid(self, name: str) -> Range | None:
        """The range of the integers that the layer called `name` reads first; None for floats."""
        sources = self._sources[name]
        return self._grids[sources[0]] if sources else None

    def _widen_outputs(self, wrapper: QuantizeWrapper) -> None:
        """Gives outputs that are all but constant, as of a dead ReLU, the range a file needs."""
        name, kernel = wrapper.name, self.kernels[wrapper.name]
        grid = self._input_grid(name)
        if grid is None or not kernel.bits:
            return
        while (limits := self._limits[name]) is None:
            readers = self._readers[name]
            if len(readers) != 1 or readers[0] not in self._limits:
                return
            (name,) = readers
        narrowest = kernel.narrowest_range(grid)
        self._limits[name] = limits[0], max(limits[1], limits[0] + narrowest)

    def compute(
        self, layer: tf_keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Returns what a call of one layer of the QAT model computes."""
        x, inner = args[0], unwrapped(layer)
        kind = layer_kind(inner)
        is_folded = isinstance(inner, QuantizeLayer) or is_plain_batch_norm(inner)
        if is_folded or is_identity_at_inference(inner):
            y = x
        elif multiplies(inner):
            y = self.products(layer, x)
        elif layer.name in self._slopes:
            # In the shape in which the converter sees its PRELU.
            y = tf.nn.relu(x) + (-self._slopes[layer.name]) * tf.nn.relu(-x)
        elif isinstance(inner, EhapOperator):
            y = inner.in_file(x)
        elif isinstance(inner, ScatterChannels):
            y = x if layer.name in self._scatters.values() else self._scatter(layer, x)
        elif self._rounding and is_plain_relu(inner) and self._ends_with_range(layer):
            # An upper limit is the end of the output's range already, and costs nothing there.
            y = tf.nn.relu(x)
        else:
            if inner._expects_training_arg:
                kwargs = {**kwargs, "training": False}  # A layer's own default can be True.
            with _plain_loops(inner):
                y = inner(*args, **kwargs)
            if self._is_rounded_float(layer):
                y = tf.nest.map_structure(_stays_in_float, y)
        y = self.on_grid(layer.name, y)
        grid = self._grids[layer.name]
        if kind == "EhapOperator" and self._limits[layer.name] is None and grid is not None:
            # The converter takes a grid through some of its moving operators only.
            y = self._rounded(y, grid)
        if self._observe is not None:
            self._observe(layer, x, y)
        return y

    def on_grid(self, name: str, y: Any) -> Any:
        """The outputs of a layer, rounded to its range where it has one."""
        limits = self._limits[name]
        return y if limits is None else self._rounded(y, limits)

    def _rounded(self, y: Any, limits: Range) -> Any:
        if self.activation_bits > 8 and not self._coarse:
            return fake_quantize_activation(y, *limits, self.activation_bits)
        return tf.quantization.fake_quant_with_min_max_args(y, *limits)

    @contextlib.contextmanager
    def as_eight_bits(self) -> Iterator[None]:
        """Inside, activations of 16 bits are rounded to 8, which is all that the converter knows.

        Kernels and biases are those of 8 bits at any time.
        """
        self._coarse = True
        try:
            yield
        finally:
            self._coarse = False

    def _is_rounded_float(self, layer: tf_keras.layers.Layer) -> bool:
        """Whether a layer that the caller keeps in float hands its output to integers."""
        readers = (self._layers.get(name) for name in self._readers[layer.name])
        return isinstance(layer, EhapFloatLayer) and not all(
            isinstance(reader, EhapFloatLayer) for reader in readers
        )

    def _ends_with_range(self, layer: tf_keras.layers.Layer) -> bool:
        """Whether an output gets a range that was observed on it alone."""
        readers = self._readers[layer.name]
        quantized = len(readers) == 1 and isinstance(self._layers.get(readers[0]), QuantizeLayer)
        return quantized or self._limits[layer.name] is not None

    def _kernel(self, wrapper: QuantizeWrapper) -> FoldedKernel:
        """The kernel of a convolution or Dense, its BatchNorm folded in, its scatter spread out."""
        norm = self.batch_norm_of(wrapper.name)
        kernel = fold(wrapper, norm, self._round_kernels)
        if not (np.isfinite(kernel.values).all() and np.isfinite(kernel.bias).all()):
            # Of finite weights: a variance below zero, a gain beyond float32.
            name = unwrapped(wrapper).name
            folded = "" if norm is None else f" with its BatchNorm {norm.name!r}"
            raise ValueError(
                f"the kernel of layer {name!r}{folded} must be finite numbers when it is rounded. "
                "Received: NaN or infinite values"
            )
        scatter = self._layers.get(self._scatters.get(wrapper.name, ""))
        if scatter is None:
            return kernel
        return kernel.scattered(scatter.layer.positions, scatter.layer.channels)

    def fold_again(self, wrapper: QuantizeWrapper) -> None:
        """Takes over the weights of a convolution or Dense, which have changed."""
        self.kernels[wrapper.name] = self._kernel(wrapper)

    def products(self, wrapper: QuantizeWrapper, x: tf.Tensor) -> tf.Tensor:
        """What the accumulators of a convolution or Dense hold, BatchNorm and bias included."""
        kernel, grid = self.kernels[wrapper.name], self._input_grid(wrapper.name)
        if grid is not None:
            low, high = grid
            kernel = kernel.on_input_grid((high - low) / 255.0)
            # The converter computes equal products once, in float where their biases differ.
            trace = 1.0 + self._repeated[wrapper.name] * SMALLEST_DIFFERENCE
            kernel = dataclasses.replace(kernel, limits=kernel.limits * np.float32(trace))
            self.stored[wrapper.name] = kernel
        bias = kernel.bias
        if product_of(wrapper.layer).needs_bias and not bias.any():
            bias = np.full_like(bias, ALMOST_ZERO)
        elif bias.size > 1 and bias.any() and np.ptp(bias) == 0.0:
            # The converter writes one integer for all channels, in spite of their scales.
            bias = np.append(bias[:-1], np.nextafter(bias[-1], np.float32(0.0)))
        return kernel.operate(wrapper.layer, x) + bias

    def _times_before(self) -> dict[str, int]:
        """Of each kernel, how many equal ones read the same before it."""
        seen: collections.Counter[Any] = collections.Counter()
        found = {}
        for name, kernel in self.kernels.items():
            key = (self._sources[name][0], kernel.shape, kernel.values.tobytes())
            found[name], seen[key] = seen[key], seen[key] + 1
        return found

    def batch_norm_of(self, name: str) -> Any:
        """The BatchNorm that is folded into the layer called `name`, or None."""
        readers = self._readers[name]
        reader = unwrapped(self._layers[readers[0]]) if len(readers) == 1 and readers[0] else None
        return reader if is_plain_batch_norm(reader) else None

    def bias_rounding(self, name: str) -> np.ndarray:
        """What storing it in int32 adds to the bias of the layer called `name`, by its channels."""
        return self.own_channels(name, self.stored[name].bias - self.kernels[name].bias)

    def own_channels(self, name: str, values: np.ndarray) -> np.ndarray:
        """Of one value for each channel of `products`, those that the layer itself has."""
        scatter = self._layers.get(self._scatters.get(name, ""))
        return values if scatter is None else values[list(scatter.layer.positions)]

    def behind(self, name: str) -> list[tf_keras.layers.Layer]:
        """The layers from the `products` of a layer to the integers that are stored of them.

        BatchNorm and ReLU; the last has a range, unless something else comes first or several
        layers read the values.
        """
        found: list[tf_keras.layers.Layer] = []
        while self._limits[name] is None and len(self._readers[name]) == 1:
            (name,) = self._readers[name]
            layer = self._layers.get(name)
            inner = unwrapped(layer)
            if not (
                isinstance(inner, QuantizeLayer)
                or is_plain_relu(inner)
                or is_plain_batch_norm(inner)
            ):
                break
            found.append(layer)
        return found

    # -- ScatterChannels ------------------------------------------------------------------------

    def _find_foldable_scatters(self) -> dict[str, str]:
        """Convolution -> the scatter that, through `_keeps_zeros`, is its only reader."""
        found: dict[str, str] = {}
        for layer in self._qat.layers:
            if not isinstance(unwrapped(layer), ScatterChannels):
                continue
            (name,) = self._sources[layer.name]
            while len(self._readers[name]) == 1:
                inner = unwrapped(self._layers[name])
                if multiplies(inner):
                    # Scattered, the channels of a group would be those of another.
                    if product_of(inner).spreads and getattr(inner, "groups", 1) == 1:
                        found[name] = layer.name
                    break
                if not _keeps_zeros(inner):
                    break
                (name,) = self._sources[name]
        return found

    def _scatter(self, wrapper: QuantizeWrapper, x: tf.Tensor) -> tf.Tensor:
        """A scatter that no convolution takes in: a PAD, or else a 1x1 selection convolution.

        Both are exact, and both run in XNNPACK, as the PAD and GATHER of the layer itself do not;
        with many channels these two are cheaper all the same.
        """
        scatter, grid = unwrapped(wrapper), self._input_grid(wrapper.name)
        positions, channels = scatter.positions, scatter.channels
        first = positions[0]
        if positions == tuple(range(first, first + len(positions))):
            padding = [[0, 0]] * (x.shape.rank - 1)
            return tf.pad(x, [*padding, [first, channels - first - len(positions)]])
        wide = len(positions) * channels > LARGEST_SELECTION
        if wide or x.shape.rank != 4 or grid is None:
            return scatter(x)
        selection = np.zeros((1, 1, len(positions), channels), np.float32)
        selection[0, 0, range(len(positions)), positions] = 1.0
        kernel = FoldedKernel(
            values=selection,
            limits=np.ones(channels, np.float32),
            bias=np.zeros(channels, np.float32),
            bits=8,
            grouping="channel",
            shape=selection.shape,
        )
        y = tf.nn.conv2d(x, kernel.constant(), 1, "VALID")
        return self._rounded(y, grid)


@contextlib.contextmanager
def _plain_loops(layer: tf_keras.layers.Layer) -> Iterator[None]:
    """Lets LSTM and GRU layers, `layer` or inside it, compute step by step.

    The converter recognises Keras's other way and makes an operator with a state of it, which it
    then fails to copy among quantized ones.
    """
    attribute = "_could_use_gpu_kernel"
    parts = [part for part in layer._flatten_layers() if getattr(part, attribute, False)]
    for part in parts:
        setattr(part, attribute, False)
    try:
        yield
    finally:
        for part in parts:
            setattr(part, attribute, True)


def _stays_in_float(y: tf.Tensor) -> tf.Tensor:
    """`y`, so that the converter leaves in float what makes it.

    Between two quantizations it makes an integer operator of all that has one. SIGN has none, and
    what is read by others than a quantization has no range.
    """
    return tf.sign(y) * tf.abs(y) if y.dtype.is_floating else y


def _keeps_zeros(layer: tf_keras.layers.Layer) -> bool:
    """Whether channels of zeros stay so, beside others that are computed as without them.

    A folded BatchNorm has no shift for a channel that was scattered.
    """
    return (
        is_identity_at_inference(layer)
        or layer_kind(layer) == "MaxPooling2D"
        or is_plain_batch_norm(layer)
        or is_plain_relu(layer)
    )


def _slopes(wrapper: QuantizeWrapper, rounding: bool) -> np.ndarray:
    """The slopes of the PReLU inside `wrapper`."""
    slopes, quantizer, _ = wrapper._weight_vars[0]
    return quantizer(slopes, False, {}).numpy() if rounding else slopes.numpy()


def float_output_names(qat: tf_keras.Model) -> list[str]:
    """What the float model calls the outputs, in the model's order."""
    called = list(qat.output_names)
    if output_names(qat) != called:
        return output_names(qat)  # The keys of a dict.
    makers = output_layers(qat)
    for index, (layer, tensor) in enumerate(zip(makers, qat.outputs, strict=True)):
        if layer_of(tensor) is not layer:
            called[index] = layer.name  # In the place of the quantization behind it.
        if has_default_name(layer):
            called[index] = called[index].removeprefix(NAME_PREFIX)
    return called
