"""Gates on what goes together: one factor alpha = 1 for all filters that a sum lines up.

Where branches of a sum keep the same channels, a channel goes from all of them at once. Its gate
sits on the sum: whatever reads the channel, a convolution at its input or the model's output, reads
alpha times it. Each way from the channel to the loss passes one gate, behind every BatchNorm and
activation on it, so that alpha -> 0 is what surgery does; what reads the channel to make another
part of the same sum is gated as well. The curvature is that of the common alpha: with the cross
terms between the filters, which no sum over filters has.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from ehap_tf.channels import Flags, Ids, TracedCall, trace_channels
from ehap_tf.sensitivity.network.network import Network
from ehap_tf.sensitivity.statistics import Floats

Places = npt.NDArray[np.int64]

NOBODY = -1
"""The group of a channel that is not gated."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which filters go together, and who reads them.

    Attributes:
        count: number of groups.
        of_filter: the group of each scored filter, layers end to end.
        readers: `id()` of a node -> for each of its input channels the group, or `count` for none.
        outputs: the same for the model's output.
        blocks: the groups of each layer; those of layers that share groups are one block.
    """

    count: int
    of_filter: Places
    readers: Mapping[int, Places]
    outputs: Places
    blocks: tuple[Places, ...]

    def shares(self, values: Floats) -> Floats:
        """One number per filter of one per group; those of a group add up to its own."""
        members = np.bincount(self.of_filter, minlength=self.count)
        shared: Floats = (values / members)[self.of_filter]
        return shared


# Keyed by the private copy of the model; forgotten with it.
_GROUPS: weakref.WeakKeyDictionary[tf_keras.Model, Groups] = weakref.WeakKeyDictionary()


def find_groups(network: Network) -> Groups:
    """The groups of a network's filters in tied mode.

    Raises:
        ValueError: a layer's channels cannot be followed.
    """
    if network.model not in _GROUPS:
        _GROUPS[network.model] = _find(network)
    return _GROUPS[network.model]


def grouped_forward(
    network: Network, constants: Mapping[int, Floats] | None = None
) -> Callable[[Any, tf.Tensor], tf.Tensor]:
    """The network with a gate on every group.

    Args:
        network: what to put gates into.
        constants: for each reader what its input channels are when their gates are closed; None
            for zeros.

    Returns:
        `(inputs, alpha)` -> outputs; alpha has shape (batch, groups) or (1, groups).

    Raises:
        ValueError: a layer's channels cannot be followed.
    """
    groups = find_groups(network)

    def forward(inputs: Any, alpha: tf.Tensor) -> tf.Tensor:
        # The last column stands for channels without a gate.
        padded = tf.concat([alpha, tf.ones_like(alpha[:, :1])], axis=1)

        def scaled(tensor: tf.Tensor, places: Places, closed: Floats | None = None) -> tf.Tensor:
            factors = tf.cast(tf.gather(padded, places, axis=1), tensor.dtype)
            ones = [1] * (tensor.shape.rank - 2)
            shape = tf.concat([tf.shape(factors)[:1], ones, tf.shape(factors)[1:]], 0)
            if closed is None:
                return tensor * tf.reshape(factors, shape)
            constant = tf.constant(closed, tensor.dtype)
            return constant + (tensor - constant) * tf.reshape(factors, shape)

        def gate(node: Any, tensor: Any) -> Any:
            places = groups.readers.get(id(node))
            if places is None:
                return tensor
            return scaled(tensor, places, constants[id(node)] if constants else None)

        outputs = network.forward(inputs, before=gate)
        if (groups.outputs < groups.count).any():
            outputs = scaled(outputs, groups.outputs)
        return outputs

    return forward


def _find(network: Network) -> Groups:
    graph = trace_channels(network.model, "tied")
    roots = []
    for layer in network.layers:
        if layer.name not in graph.ids.atoms:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer.layer).__name__}) has no gate: its channels "
                "cannot be followed; use a criterion on weights, such as 'hessian_trace'"
            )
        roots.append(graph.ids.groups(graph.ids.atoms[layer.name]))
    numbers, of_filter = np.unique(np.concatenate(roots), return_inverse=True)

    def places(channels: npt.NDArray[np.int64]) -> Places:
        found = np.minimum(np.searchsorted(numbers, channels), len(numbers) - 1)
        return np.where(numbers[found] == channels, found, len(numbers))

    readers = {}
    for node, call in graph.calls.items():
        ends = _ending(call, graph.ids.atoms.get(call.path, np.zeros(0, np.int64)))
        if ends.any():
            gated = places(np.where(ends, graph.ids.groups(call.effect.inputs[0]), NOBODY))
            if (gated < len(numbers)).any():
                readers[node] = gated
    ((_, wanted),) = graph.outputs
    blocks: list[set[int]] = []
    for root in roots:
        mine = set(np.searchsorted(numbers, root).tolist())
        for other in [block for block in blocks if block & mine]:
            blocks.remove(other)
            mine |= other
        blocks.append(mine)
    return Groups(
        len(numbers),
        of_filter,
        readers,
        places(graph.ids.groups(wanted)),
        tuple(np.array(sorted(block)) for block in blocks),
    )


def _ending(call: TracedCall, own: Ids) -> Flags:
    """Which of a call's input channels its outputs, but for filters of its own, do not carry on."""
    if len(call.effect.inputs) != 1:
        # Sums, products and concatenations carry on; what else takes several keeps them all.
        return np.zeros(0, np.bool_)
    # By filters and not by groups: a branch begins with what it is added to.
    carried = np.setdiff1d(np.concatenate(call.effect.outputs), own)
    return ~np.isin(call.effect.inputs[0], carried)
