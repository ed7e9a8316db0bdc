"""How a long operation tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

ProgressCallback = Callable[[int, int, Mapping[str, float]], None]
"""Called as `progress(done, total, figures)`; `figures` holds the newest measurements by name."""


def no_progress(done: int, total: int, figures: Mapping[str, float]) -> None:
    """The callback of a caller who does not want to know."""
    del done, total, figures
