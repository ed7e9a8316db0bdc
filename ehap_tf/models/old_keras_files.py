"""`.keras` files of TensorFlow 2.13 and 2.14, whose weights lie where tf_keras does not look.

Those versions reached a model's layers through the attribute `_layer_checkpoint_dependencies`,
which tf_keras leaves out; what is below a layer they named and numbered as it does.
"""

from __future__ import annotations

import io
import json
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import h5py  # type: ignore[import-untyped]
import tf_keras
from tf_keras.src.saving import saving_lib, serialization_lib
from tf_keras.src.utils.generic_utils import to_snake_case

_WEIGHTS = "model.weights.h5"
_LAYERS = "_layer_checkpoint_dependencies"


def has_old_layout(path: pathlib.Path) -> bool:
    """Whether a `.keras` file holds the weights of its layers as TensorFlow 2.13 wrote them."""
    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS not in archive.namelist():
            return False
        with h5py.File(io.BytesIO(archive.read(_WEIGHTS)), "r") as weights:
            return _LAYERS in weights


def read_old_layout(
    path: pathlib.Path, compile: bool = True, safe_mode: bool = True
) -> tf_keras.Model:
    """The model in such a file.

    Args:
        path: of the file.
        compile: whether the model comes back compiled, with the state of its optimizer.
        safe_mode: refuses Lambda layers whose function is in the file as code.

    Raises:
        ValueError: the file lacks weights of a layer, or has those of another shape.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        version = json.loads(archive.read("metadata.json"))["keras_version"]
        weights = io.BytesIO(archive.read(_WEIGHTS))
    if not compile:
        config["compile_config"] = None
    with serialization_lib.ObjectSharingScope():
        model = serialization_lib.deserialize_keras_object(config, safe_mode=safe_mode)
    with h5py.File(weights, "r") as file:
        _Reading(file, version).load(model, "")
    return model


class _Reading:
    """One file being read; each layer is loaded where it is met first."""

    def __init__(self, file: h5py.File, version: str) -> None:
        self._file = file
        # Until 2.13, a layer that a list holds twice counted twice in the numbering.
        self._counts_again = tuple(int(part) for part in version.split(".")[:2]) < (2, 14)
        self._visited: set[int] = set()

    def load(self, owner: Any, place: str) -> None:
        """Loads the variables of a layer or optimizer and of what is below it."""
        if id(owner) in self._visited:
            return
        self._visited.add(id(owner))
        if not isinstance(owner, tf_keras.metrics.Metric) and hasattr(owner, "load_own_variables"):
            owner.load_own_variables(self._file.get(f"{place}/vars", {}))
        for name, child in self._children(owner):
            self.load(child, f"{place}/{name}")

    def _children(self, owner: Any) -> Iterator[tuple[str, Any]]:
        for attribute in sorted(dir(owner)):
            skipped = attribute in saving_lib.ATTR_SKIPLIST and attribute != _LAYERS
            if attribute.startswith("__") or skipped:
                continue
            try:
                value = getattr(owner, attribute)
            except Exception:  # properties that raise before something has happened
                continue
            if saving_lib._is_keras_trackable(value):
                yield attribute, value
            elif isinstance(value, (dict, list, tuple, set)):
                items = value.values() if isinstance(value, dict) else value
                for name, item in self._numbered(items):
                    yield f"{attribute}/{name}", item

    def _numbered(self, items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
        counts: dict[str, int] = {}
        for item in filter(saving_lib._is_keras_trackable, list(items)):
            if id(item) in self._visited and not self._counts_again:
                continue
            name = to_snake_case(type(item).__name__)
            count = counts[name] = counts.get(name, -1) + 1
            yield f"{name}_{count}" if count else name, item
