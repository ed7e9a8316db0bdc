from __future__ import annotations

import os

import pytest

from ehap_tf.benchmark.measuring.isolation import MeasurementError, measure

HERE = "tests.benchmark.test_isolation"


def process_number(offset: int) -> list[int]:
    return [os.getpid(), offset]


def fail() -> None:
    raise RuntimeError("no such luck")


def test_runs_in_a_process_of_its_own() -> None:
    pid, offset = measure(f"{HERE}:process_number", {"offset": 3})
    assert pid != os.getpid() and offset == 3


def test_a_failure_is_told_in_one_line() -> None:
    with pytest.raises(MeasurementError, match=r"^RuntimeError: no such luck$"):
        measure(f"{HERE}:fail", {})
