"""The measurements of a benchmark in one small JSON file: what is there is not measured again.

The file holds no date and no path (but that of a `folder:` data set), so that it can be committed
and a benchmark goes on elsewhere. The rankings lie beside it; they are only needed to measure more.
"""

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
from ehap_tf.report.environment import environment
from ehap_tf.sensitivity import FilterScores

Row = dict[str, Any]

FILE = "records.json"


class Records:
    """The measurements of one benchmark under one group of settings.

    Every measurement is written as soon as it is made, so that a benchmark that was killed goes on
    where it was. Each says which processor made it.

    Args:
        directory: made if need be; None keeps the records in a folder that goes away.
        settings: what every measurement depends on, as JSON values; "model" is the `digest` of the
            network, where there is one.
        rankings: folder of rankings that several benchmarks share; None keeps them in `directory`.

    Raises:
        CorruptFileError: the file cannot be read.
        ValueError: the folder holds measurements under other settings, of another network perhaps.
    """

    def __init__(
        self,
        directory: pathlib.Path | None,
        settings: Mapping[str, Any],
        rankings: str | pathlib.Path | None = None,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory() if directory is None else None
        self.directory = (
            pathlib.Path(self._temporary.name) if self._temporary else pathlib.Path(directory or "")
        )
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._rankings = self.directory / "rankings"
        # By network: the rankings of one are never taken for those of another.
        network = _file_name(self.settings.get("model", ""))
        self._shared = pathlib.Path(rankings or self._rankings) / network
        if not (self.directory / FILE).exists():
            return
        found = self._content()["settings"]
        differing = [
            f"{key}: {found.get(key)} -> {self.settings.get(key)}"
            for key in sorted({*found, *self.settings})
            if found.get(key) != self.settings.get(key)
        ]
        if differing:
            raise ValueError(
                f"the records in {self.directory} were measured under other settings; use another "
                f"folder or remove this one. Received: {'; '.join(differing)}"
            )

    def row(self, name: str, make: Callable[[], Row]) -> Row:
        """The measurement called `name`, made if it is not there."""
        rows = self.rows()
        if name in rows:
            return rows[name]
        row = make() | {"processor": environment()["processor"]}
        # Read again: another process may have measured something meanwhile.
        content = {"settings": self.settings, "rows": self.rows() | {name: row}}
        write_text(self.directory / FILE, json.dumps(content, indent=1) + "\n")
        return row

    def find(self, name: str) -> Row | None:
        """The measurement called `name`, or None where there is none."""
        return self.rows().get(name)

    def rows(self) -> dict[str, Row]:
        """All measurements that are there, by name."""
        return dict(self._content()["rows"]) if (self.directory / FILE).exists() else {}

    def scores(
        self, name: str, make: Callable[[], FilterScores], shared: bool = False
    ) -> FilterScores:
        """The ranking called `name`, made if it is not there; a damaged one is set aside."""
        path = self.ranking(name, shared)
        if path.exists():
            try:
                return FilterScores.load(path)
            except CorruptFileError:
                set_aside(path)
        scores = make()
        scores.save(path)
        return scores

    def ranking(self, name: str, shared: bool = False) -> pathlib.Path:
        """Where a ranking lies.

        Args:
            name: what it is called.
            shared: it is one of the whole network, and its name says all that it depends on.
        """
        return (self._shared if shared else self._rankings) / (_file_name(name) + ".npz")

    def folder(self, name: str) -> pathlib.Path:
        """A folder for what a measurement needs while it is made."""
        return self.directory / _file_name(name)

    def _content(self) -> dict[str, Any]:
        path = self.directory / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {"settings": dict(content["settings"]), "rows": dict(content["rows"])}
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptFileError(
                f"{path} is not a readable file of records: {error}; restore or remove it"
            ) from error


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


def digest(path: pathlib.Path | None, seed: int = 0) -> str:
    """Tells one network from another: by its file or folder, or by the seed of random weights."""
    if path is None:
        return f"random weights of seed {seed}"
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    value = hashlib.sha256()
    for file in files:
        value.update(file.read_bytes())
    return value.hexdigest()[:16]


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
