"""Fixtures that several rooms share."""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

# Before NumPy and TensorFlow are loaded: two test processes share two cores, and threads of the
# small products here wait for each other, spinning, for longer than they compute.
for _variable in (
    "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
):  # fmt: skip
    os.environ.setdefault(_variable, "1")

from tests.fresh_processes import FreshProcesses  # noqa: E402

QUICK = (
    "benchmark/test_contenders.py",
    "benchmark/test_convert.py",
    "benchmark/test_main.py",
    "channels/test_ids.py",
    "channels/test_scatter.py",
    "data/test_arrays.py",
    "data/test_augmentation.py",
    "data/test_catalogue.py",
    "docs/test_pages.py::test_every_page",
    "docs/test_pages.py::test_the_reference",
    "graph/test_calls.py",
    "models/test_kinds.py",
    "pipeline/test_compress.py::test_one_call",
    "pipeline/test_config.py",
    "pipeline/test_console.py",
    "pipeline/test_devices.py",
    "pipeline/test_runner.py",
    "pruning/test_plan.py",
    "pruning/test_surgery.py::test_brute_force",
    "quantization/test_integer_arithmetic.py",
    "quantization/test_quantizers.py",
    "sensitivity/test_estimators.py::test_exact_is",
    "sensitivity/test_estimators.py::test_estimates_are",
    "sensitivity/test_probes.py",
    "sensitivity/test_statistics.py",
    "test_main.py",
    "test_startup.py",
)
"""Beginnings of the names of the tests that `pytest -m quick` runs: something of every room."""


def pytest_configure() -> None:
    folder = pathlib.Path(__file__).parent
    if missing := [name for name in QUICK if not (folder / name.split("::")[0]).is_file()]:
        raise pytest.UsageError(f"QUICK names files that are not there: {', '.join(missing)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(QUICK):
            item.add_marker(pytest.mark.quick)


def draw_the_same() -> None:
    """Seeds Python, NumPy and both Keras, so that an initial weight is the same in every run.

    Before each fixture and each test: what either draws depends on nothing that ran before it,
    and a test that fails fails again when it runs alone.
    """
    if "tf_keras" in sys.modules:
        sys.modules["tf_keras"].utils.set_random_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    draw_the_same()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    draw_the_same()


@pytest.fixture(scope="session")
def cifar10_data_dir() -> pathlib.Path:
    """A TFDS data directory in which CIFAR-10 is prepared; skips the test where there is none."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""))
    if (folder / "cifar10").is_dir():
        return folder
    pytest.skip("no prepared CIFAR-10: set TFDS_DATA_DIR to a TFDS data directory that has it")


@pytest.fixture(scope="session")
def fresh_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcesses]:
    """Runs programs, each in a process in which nothing has run before."""
    processes = FreshProcesses(tmp_path_factory.mktemp("fresh_processes"))
    yield processes
    processes.close()


@pytest.fixture
def eagerly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs functions without compiling them, where a few small steps are all that a test takes.

    A test marked `compiled`, in a module whose others run so, takes many steps.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(not request.node.get_closest_marker("compiled"))
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def own_rules(monkeypatch) -> None:
    """Whatever a test registers for its layers is forgotten afterwards."""
    for name in (
        "ehap_tf.channels.rules._RULES",
        "ehap_tf.quantization.integer_rules.rewriting._RULES",
        "ehap_tf.quantization.integer_rules.rewriting._UNCHECKED",
        "ehap_tf.quantization.integer_rules.integer_kernels._KERNELS",
    ):
        module, _, attribute = name.rpartition(".")
        held = getattr(importlib.import_module(module), attribute)
        monkeypatch.setattr(name, type(held)(held))
