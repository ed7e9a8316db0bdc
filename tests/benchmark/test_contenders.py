from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest

from ehap_tf.benchmark.measuring import contenders
from ehap_tf.benchmark.measuring.contenders import RefusedError, line_look, rank
from ehap_tf.benchmark.measuring.records import Records


def test_lines_of_many_criteria_can_be_told_apart():
    looks = {tuple(line_look(number).values()) for number in range(30)}
    assert len(looks) == 30


@pytest.mark.parametrize("error", [ValueError, FloatingPointError])
def test_a_ranking_that_fails_is_a_criterion_that_refuses(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    def fails(*arguments: Any, **options: Any) -> None:
        raise error("no such luck")

    monkeypatch.setattr(contenders, "rank_filters", fails)
    options = argparse.Namespace(dataset="digits", probes=2, batch_size=4, residual="union")
    sample = (np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(RefusedError, match="no such luck"):
        rank(Records(None, {}), None, sample, None, "obd", options, seed=0)
