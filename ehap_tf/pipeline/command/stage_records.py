"""What is known about finished stages, and whether a stage must run again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ehap_tf import files
from ehap_tf.pipeline.command.run_directory import RunDirectory, digest


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    Attributes:
        stage: its name.
        settings: what it depended on, by name: settings, and digests of the files that it read.
        outputs: digest of each file that it wrote, by name in the run directory.
        figures: what it measured, as JSON values.
        seconds: wall-clock time of the call that finished it.
    """

    stage: str
    settings: Mapping[str, Any]
    outputs: Mapping[str, str]
    figures: Mapping[str, Any]
    seconds: float


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A digest of everything that a stage depends on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_records(run: RunDirectory) -> dict[str, StageRecord]:
    """The records of a run directory by stage.

    Raises:
        CorruptFileError: the file with the records is damaged.
    """
    records = {}
    for stage, values in run.read_json(run.records).items():
        try:
            records[stage] = StageRecord(stage=stage, **values)
        except TypeError as error:
            raise files.CorruptFileError(f"{run.records} cannot be read: {error}") from error
    return records


def write_records(run: RunDirectory, records: Mapping[str, StageRecord]) -> None:
    """Writes all records, whole or not at all."""
    content = {}
    for stage, record in records.items():
        content[stage] = dataclasses.asdict(record)
        del content[stage]["stage"]
    run.write_json(run.records, content)


def reasons_to_run(
    run: RunDirectory, record: StageRecord | None, settings: Mapping[str, Any]
) -> list[str]:
    """Why a stage has to run; empty when its files are still what these settings make."""
    if record is None:
        return ["it has not run yet"]
    reasons = []
    for name, (then, now) in changed_settings(record.settings, settings).items():
        if name.endswith(" digest"):
            reasons.append(f"the content of {name.removesuffix(' digest')} is another")
        else:
            reasons.append(f"{name} was {then} and is {now}")
    for name in record.outputs:
        if not run.file(name).exists():
            reasons.append(f"{name} is missing")
    return reasons


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is not the same in two sets of settings; a setting that is not there counts as None."""
    return {
        name: (then.get(name), now.get(name))
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    }


def damaged_outputs(run: RunDirectory, record: StageRecord) -> list[pathlib.Path]:
    """The files of a stage that exist and are not what it wrote."""
    return [
        run.file(name)
        for name, expected in record.outputs.items()
        if run.file(name).exists() and digest(run.file(name)) != expected
    ]
