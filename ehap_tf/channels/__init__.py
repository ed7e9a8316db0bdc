"""Which channels of a functional model line up, and where a removal acts."""

from ehap_tf.channels.scatter import ScatterChannels

__all__ = ["ScatterChannels"]
