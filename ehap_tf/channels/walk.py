"""The layers and calls of a functional model, those of the models nested in it included.

A layer knows all its calls, also those that belong to other models. Here only those count that the
model computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tf_keras


def is_nested_model(layer: tf_keras.layers.Layer) -> bool:
    """Whether a layer is itself a functional graph that can be looked into."""
    return isinstance(layer, tf_keras.Model) and bool(getattr(layer, "_nodes_by_depth", None))


def nodes_in_order(model: tf_keras.Model) -> Iterator[Any]:
    """The nodes of a functional model, inputs before what uses them; nested models stay shut."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def nodes_as_computed(model: tf_keras.Model) -> Iterator[Any]:
    """All nodes in the order of computation, those of a nested model again at each of its calls."""
    for node in nodes_in_order(model):
        yield node
        if is_nested_model(node.layer):
            yield from nodes_as_computed(node.layer)


def layer_paths(model: tf_keras.Model) -> dict[int, str]:
    """`id()` of each layer and nested model -> its name, models around it first: "backbone/conv1".

    What is used in several places is named by the first.

    Raises:
        ValueError: two layers have the same path.
    """
    paths: dict[int, str] = {}
    _collect_paths(model, "", paths, {})
    return paths


def _collect_paths(
    model: tf_keras.Model, prefix: str, paths: dict[int, str], places: dict[str, str]
) -> None:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for layer in (node.layer for node in model._nodes_by_depth[depth]):
            if id(layer) in paths:
                continue
            path, place = prefix + layer.name, f"layer {layer.name!r} of model {model.name!r}"
            if path in places:
                raise ValueError(
                    "layers must have different names, those of the models around them before "
                    f"theirs. Received: {path!r} for {places[path]} and for {place}; rename one"
                )
            paths[id(layer)], places[path] = path, place
            if is_nested_model(layer):
                _collect_paths(layer, f"{path}/", paths, places)
