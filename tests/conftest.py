"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def cifar10_data_dir() -> pathlib.Path:
    """A TFDS data directory in which CIFAR-10 is prepared; skips the test where there is none."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""))
    if (folder / "cifar10").is_dir():
        return folder
    pytest.skip("no prepared CIFAR-10: set TFDS_DATA_DIR to a TFDS data directory that has it")
