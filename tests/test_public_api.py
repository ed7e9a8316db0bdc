import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ehap_tf
from ehap_tf.pruning import plan_pruning, prune
from tests.pruning.nets import batch, random_scores, small_residual_net


def test_every_public_name_can_be_had():
    for name in ehap_tf.__all__:
        assert getattr(ehap_tf, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = ehap_tf.prunes


def test_dir_shows_the_interface_alone():
    assert dir(ehap_tf) == sorted(ehap_tf.__all__)


def _takers(kind: str) -> Iterator[tuple[str, str]]:
    """The public functions that take a model or data, and the names of those parameters."""
    for name in ehap_tf.__all__:
        function = getattr(ehap_tf, name)
        if not inspect.isfunction(function) or name == "build_model":
            continue
        for parameter in inspect.signature(function).parameters.values():
            is_model = parameter.name == "model" or "tf_keras.Model" in str(parameter.annotation)
            is_data = parameter.name.endswith("data") and "Any" in str(parameter.annotation)
            if is_model if kind == "model" else is_data:
                yield name, parameter.name


def _called_with(name: str, parameter: str, value: Any) -> Any:
    function = getattr(ehap_tf, name)
    parameters = inspect.signature(function).parameters.values()
    needed = {p.name: None for p in parameters if p.default is p.empty and p.kind != p.VAR_KEYWORD}
    return function(**{**needed, parameter: value})


@pytest.mark.parametrize(("name", "parameter"), _takers("model"))
def test_a_path_in_the_place_of_a_model_is_refused_with_the_way_out(name: str, parameter: str):
    with pytest.raises(TypeError, match=rf"'m\.keras'; load it first: {parameter} = ehap_tf\.load"):
        _called_with(name, parameter, "m.keras")


@pytest.mark.parametrize(("name", "parameter"), _takers("data"))
def test_a_generator_is_refused_with_the_way_out(name: str, parameter: str):
    def batches() -> Iterator[Any]:
        yield np.zeros((2, 4)), np.zeros(2)

    for value in (batches(), batches):
        with pytest.raises(TypeError, match=rf"{parameter} is read more than once.*from_generator"):
            _called_with(name, parameter, value)


@pytest.mark.slow
def test_slim_models_load_in_a_process_that_only_imports_the_package(tmp_path, fresh_processes):
    model = small_residual_net()
    slim = prune(model, plan_pruning(model, random_scores(model, 1), prune_ratio=0.4))
    assert any("scatter" in layer.name for layer in slim.layers)
    x = batch(model)
    np.save(tmp_path / "x.npy", x)
    for name in ("slim.keras", "slim.h5", "slim"):
        slim.save(tmp_path / name)
    code = """
import sys, numpy as np, ehap_tf, tf_keras
x = np.load("x.npy")
for name in ("slim.keras", "slim.h5", "slim"):
    np.save(name.replace(".", "_") + "_y.npy", tf_keras.models.load_model(name, compile=False)(x))
"""
    fresh_processes.run(code, cwd=tmp_path).check_returncode()
    for name in ("slim_keras", "slim_h5", "slim"):
        assert (np.load(tmp_path / f"{name}_y.npy") == np.asarray(slim(x))).all()
