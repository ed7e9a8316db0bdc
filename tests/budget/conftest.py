"""Networks as files, each written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import tf_keras

from tests.budget.nets import exported


@pytest.fixture(scope="session")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """A function from one of `NETS` to its model, its integer file and inputs."""

    @functools.cache
    def made(make: Callable[[], tf_keras.Model]) -> Any:
        tf_keras.utils.set_random_seed(0)
        model = make()
        path = tmp_path_factory.mktemp("net") / "net.tflite"
        return (model, *exported(model, path))

    return made
