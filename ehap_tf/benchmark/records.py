"""One file a measurement, in a folder: what is there is not measured again."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from ehap_tf.files import CorruptFileError, set_aside, write_text
from ehap_tf.sensitivity import FilterScores

Row = dict[str, Any]


class Records:
    """The measurements of one benchmark under one group of settings.

    Every measurement is written as soon as it is made, whole or not at all, so that a benchmark
    that was killed goes on where it was. A damaged file is set aside and measured again.

    Args:
        directory: made if need be; None keeps the records in a folder that goes away.
        settings: what every measurement depends on, as JSON values.

    Raises:
        ValueError: the folder holds measurements under other settings.
    """

    def __init__(self, directory: pathlib.Path | None, settings: Mapping[str, Any]) -> None:
        self._temporary = tempfile.TemporaryDirectory() if directory is None else None
        self.directory = (
            pathlib.Path(self._temporary.name) if self._temporary else pathlib.Path(directory or "")
        )
        path = self.directory / "settings.json"
        if not path.exists():
            write_text(path, json.dumps(settings, indent=1))
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(settings))
        differing = [
            f"{key}: {found.get(key)} -> {wanted.get(key)}"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        ]
        if differing:
            raise ValueError(
                f"the records in {self.directory} were measured under other settings; use another "
                f"folder or remove this one. Received: {'; '.join(differing)}"
            )

    def row(self, name: str, make: Callable[[], Row]) -> Row:
        """The measurement called `name`, made if it is not there."""
        path = self.path(name, ".json")
        if path.exists():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                set_aside(path)
        row = make()
        write_text(path, json.dumps(row))
        return row

    def has(self, name: str) -> bool:
        """Whether a measurement is there already."""
        return self.path(name, ".json").exists()

    def scores(self, name: str, make: Callable[[], FilterScores]) -> FilterScores:
        """The ranking called `name`, made if it is not there."""
        path = self.path(name, ".npz")
        if path.exists():
            try:
                return FilterScores.load(path)
            except CorruptFileError:
                set_aside(path)
        scores = make()
        scores.save(path)
        return scores

    def path(self, name: str, suffix: str) -> pathlib.Path:
        """Where a record lies."""
        return self.directory / (re.sub(r"[^\w.+-]+", "_", name) + suffix)


def add_records_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --records."""
    parser.add_argument(
        "--records",
        default=None,
        help="folder of what is measured already; default FILE_records beside --output=FILE.json",
    )


def beside(output: str | None, records: str | None = None) -> pathlib.Path | None:
    """The folder of records: the one that is named, or the one that belongs to an --output file."""
    if records is not None:
        return pathlib.Path(records)
    if output is None:
        return None
    path = pathlib.Path(output)
    return path.with_name(path.stem + "_records")


def digest(path: pathlib.Path | None) -> str:
    """Tells one model file from another; of a folder, the digest of its files."""
    if path is None:
        return "random weights"
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    value = hashlib.sha256()
    for file in files:
        value.update(file.read_bytes())
    return value.hexdigest()[:16]
