"""Channel rules of recurrent layers: their inputs can lose channels, their units all stay."""

from __future__ import annotations

import tf_keras

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
