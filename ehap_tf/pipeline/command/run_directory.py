"""The run directory: the only code that knows its file names."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from ehap_tf import files

NOT_A_RUN = "give another --output_dir, or --resume=false to move this one aside and start afresh"


class RunDirectory:
    """The files of one run, written atomically and read back with a check.

    Args:
        path: the folder; it is made when something is written.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.records = path / "stages.json"
        self.baseline = path / "baseline.keras"
        self.scores = path / "scores.npz"
        self.plan = path / "plan.json"
        self.slim = path / "slim.keras"
        self.finetuned = path / "finetuned.keras"
        self.quantization_plan = path / "quantization_plan.json"
        self.qat = path / "qat.h5"
        self.tflite = path / "model_int8.tflite"
        self.tflite_metadata = path / "model_int8.tflite.json"
        self.report = path / "report.json"
        self.report_page = path / "report.html"
        self.logs = path / "logs"
        self.log = self.logs / "run.log"
        self.native_log = self.logs / "tensorflow.log"

    def models(self) -> tuple[pathlib.Path, ...]:
        """The network through the stages."""
        return (self.baseline, self.slim, self.finetuned, self.qat, self.tflite)

    @property
    def has_results(self) -> bool:
        """Whether a stage has finished here, or a training is under way."""
        return self.records.exists() or (self.path / "checkpoints").exists()

    def history(self, stage: str) -> pathlib.Path:
        """The training curve of a stage, JSON."""
        return self.logs / f"{stage}_history.json"

    def events(self, stage: str) -> pathlib.Path:
        """The folder of a training's curves for TensorBoard."""
        return self.logs / "tensorboard" / stage

    def checkpoints(self, stage: str, fingerprint: str) -> pathlib.Path:
        """Where a training stage keeps its checkpoints until it is finished.

        The name holds the fingerprint of what the training depends on, so that a checkpoint is
        never taken up under other settings.
        """
        return self.path / "checkpoints" / f"{stage}-{fingerprint[:12]}"

    def clear_checkpoints(self, stage: str) -> None:
        """Removes the checkpoints of a stage that is finished."""
        for folder in self.path.glob(f"checkpoints/{stage}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / "checkpoints").rmdir()

    def file(self, name: str) -> pathlib.Path:
        """The path of a file that a record names relative to the run directory."""
        return self.path / name

    def name(self, path: pathlib.Path) -> str:
        """The inverse of `file`."""
        return path.relative_to(self.path).as_posix()

    def read_json(self, path: pathlib.Path) -> dict[str, Any]:
        """The JSON object in `path`, empty when the file does not exist.

        Raises:
            CorruptFileError: the file is no JSON object.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise files.CorruptFileError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise files.CorruptFileError(f"{path} cannot be read: it holds no JSON object")
        return content

    def write_json(self, path: pathlib.Path, content: Mapping[str, Any]) -> None:
        """Writes a JSON object, whole or not at all."""
        files.write_text(path, json.dumps(content, indent=2) + "\n")

    def remove_partial_files(self) -> None:
        """Removes the temporary files of a process that was killed while writing."""
        for leftover in self.path.glob("**/.*.partial*"):
            leftover.unlink(missing_ok=True)

    def move_aside(self) -> pathlib.Path | None:
        """Renames an existing folder to `NAME.old` (`NAME.old2`, ...); nothing is deleted."""
        if not self.path.exists():
            return None
        target = self.path.with_name(self.path.name + ".old")
        number = 2
        while target.exists():
            target = self.path.with_name(f"{self.path.name}.old{number}")
            number += 1
        self.path.rename(target)
        return target

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out; the system lifts the lock when this process dies.

        Raises:
            ValueError: another process works in this directory.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process is working in {self.path}. Wait for it, or give another "
                    "--output_dir"
                ) from error
            yield


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, or of all files of a folder and their names."""
    if path.is_dir():
        total = hashlib.sha256()
        for part in sorted(p for p in path.rglob("*") if p.is_file()):
            total.update(f"{part.relative_to(path).as_posix()}:{digest(part)}\n".encode())
        return total.hexdigest()
    with open(path, "rb") as content:
        return (
            hashlib.file_digest(content, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(content.read()).hexdigest()
        )
