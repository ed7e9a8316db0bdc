"""Which channels of a functional model line up, and where a removal acts."""

from ehap_tf.channels.convolution_rules import is_depthwise
from ehap_tf.channels.graph import (
    RESIDUAL_MODES,
    ChannelGraph,
    TracedCall,
    trace_channels,
    weight_axes,
)
from ehap_tf.channels.ids import ZERO, ChannelIds, Flags, Ids
from ehap_tf.channels.rules import (
    Call,
    Effect,
    MacTerm,
    frozen,
    pass_on,
    register_channel_rule,
    weight_of,
)
from ehap_tf.channels.scatter import ScatterChannels
from ehap_tf.channels.slices import saved_arguments, slice_entries
from ehap_tf.channels.tried_activations import zero_at_zero

__all__ = [
    "RESIDUAL_MODES",
    "ZERO",
    "Call",
    "ChannelGraph",
    "ChannelIds",
    "Effect",
    "Flags",
    "Ids",
    "MacTerm",
    "ScatterChannels",
    "TracedCall",
    "frozen",
    "is_depthwise",
    "pass_on",
    "register_channel_rule",
    "saved_arguments",
    "slice_entries",
    "trace_channels",
    "weight_axes",
    "weight_of",
    "zero_at_zero",
]
