"""Rules and counts of recurrent layers: their inputs can lose channels, their units all stay."""

from __future__ import annotations

import dataclasses

import tf_keras

from ehap_tf.channels.macs import Work, multiplies, places_of, size_of, work_of
from ehap_tf.channels.rules import Call, Effect, channels, frozen, one_input, rule_for

layers = tf_keras.layers

_PLAIN = (layers.LSTM, layers.GRU, layers.SimpleRNN)


@rule_for(layers.LSTM, layers.GRU, layers.SimpleRNN)
@one_input
def recurrent(call: Call) -> Effect:
    """The input kernel, (inputs, units or gates * units), reads the channels that arrive."""
    return _reads_channels(call, ["cell.kernel"])


@rule_for(layers.Bidirectional)
@one_input
def bidirectional(call: Call) -> Effect:
    """Both directions read the same channels."""
    directions = {name: getattr(call.layer, name) for name in ("forward_layer", "backward_layer")}
    if any(type(layer) not in _PLAIN for layer in directions.values()):
        return frozen(call, f"no channel rule for the layers inside {call.path!r} (Bidirectional)")
    return _reads_channels(call, [f"{name}.cell.kernel" for name in directions])


def _reads_channels(call: Call, kernels: list[str]) -> Effect:
    (ids,) = call.inputs
    reason = f"{type(call.layer).__name__} {call.path!r} keeps all its units"
    outputs = [call.ids.constants(channels(shape), reason) for shape in call.output_shapes]
    return Effect([ids], outputs, weights=dict.fromkeys(kernels, (ids, None)), note=reason)


@multiplies(layers.LSTM, layers.GRU, layers.SimpleRNN)
def _recurrent(call: Call) -> Work:
    steps = size_of(call.input_shapes[0][0 if call.layer.time_major else 1])
    return Work({"cell.kernel": steps, "cell.recurrent_kernel": steps})


@multiplies(layers.RNN)
def _recurrent_cells(call: Call) -> Work:
    """A cell, or several on top of each other."""
    cell = call.layer.cell
    stacked = isinstance(cell, layers.StackedRNNCells)
    cells = dict(enumerate(cell.cells)) if stacked else {None: cell}
    kinds = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
    if others := [type(each).__name__ for each in cells.values() if type(each) not in kinds]:
        return Work(uncounted=f"what {', '.join(others)} multiplies is not known")
    steps = size_of(call.input_shapes[0][0 if call.layer.time_major else 1])
    names = ["cell" if number is None else f"cell.cells.{number}" for number in cells]
    parts = ("kernel", "recurrent_kernel")
    return Work({f"{name}.{part}": steps for name in names for part in parts})


@multiplies(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def _convolutional_recurrent(call: Call) -> Work:
    """Both kernels are convolved once per step, at the positions of the state."""
    layer = call.layer
    shape = call.output_shapes[0]
    spatial = shape[2:] if layer.return_sequences else shape[1:]
    uses = size_of(call.input_shapes[0][1]) * places_of(call, (None, *spatial))
    return Work({"cell.kernel": uses, "cell.recurrent_kernel": uses})


@multiplies(layers.Bidirectional)
def _bidirectional(call: Call) -> Work:
    def part(attribute: str) -> Work:
        layer = getattr(call.layer, attribute)
        return work_of(dataclasses.replace(call, layer=layer)).inside(attribute)

    return part("forward_layer") + part("backward_layer")
