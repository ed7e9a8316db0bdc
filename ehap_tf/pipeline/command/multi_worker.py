"""A job on several machines: the chief calls its stages out, the other processes follow.

The chief alone decides what has to run, reads and writes the run directory. The others get the
files that a stage reads over the network and work in a temporary folder, so that the machines
need no disk in common.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from ehap_tf import files
from ehap_tf.pipeline.command.job import Job, Stage
from ehap_tf.pipeline.command.preprocessing import Preprocessing
from ehap_tf.pipeline.command.run_directory import RunDirectory
from ehap_tf.pipeline.training.fitting import CHECKPOINTS

_LOCAL_SETTINGS = ("data_dir", "output_dir", "resume", "stages", "verbosity", "baseline")


def call(job: Job, stage: Stage, fingerprint: str) -> None:
    """Chief: has the other processes do `stage`, too, on the files that it reads."""
    if job.workers.count == 1:
        return
    kept = job.run.checkpoints(stage.name, fingerprint)
    # What a stage keeps of its own steps; the checkpoints of a training are `fit`'s to share.
    steps = [path for path in sorted(kept.glob("*")) if path.is_file()]
    paths = [*stage.inputs(job.run), *(path for path in steps if path.name not in CHECKPOINTS)]
    names = [job.run.name(path) for path in paths]
    order: dict[str, Any] = {"stage": stage.name, "fingerprint": fingerprint, "files": names}
    # A worker has no records; stage `train` finds the same by itself.
    order["images"] = None if stage.name == "train" else job.preprocessing.figures()
    job.workers.value_from_chief(order | {"settings": _common_settings(job)})
    for path in paths:
        job.workers.from_chief(path.read_bytes())


def call_off(job: Job) -> None:
    """Chief: lets the other processes end."""
    job.workers.value_from_chief({"stage": None})


def follow(job: Job, stages: Sequence[Stage]) -> None:
    """Any other process: does what the chief calls out, until it calls off.

    Raises:
        ValueError: this process was started with other flags than the chief.
    """
    name = f"worker {job.workers.index}"
    with tempfile.TemporaryDirectory() as folder:
        job.run = RunDirectory(pathlib.Path(folder))
        job.console.say(f"{name}: follows the chief, which writes the run directory")
        while True:
            order = job.workers.value_from_chief(None)
            if order["stage"] is None:
                break
            _check_settings(job, order["settings"])
            if order["images"] is not None:
                job.preprocessing = Preprocessing.from_figures(order["images"])
            for file in order["files"]:
                files.write_bytes(job.run.file(file), job.workers.from_chief(b""))
            stage = next(stage for stage in stages if stage.name == order["stage"])
            job.console.say(f"{name}: {stage.name}")
            stage.run(job, order["fingerprint"])
        job.console.say(f"{name}: the chief is done")


def _common_settings(job: Job) -> dict[str, Any]:
    """The settings that the processes have to agree on."""
    settings = job.config.to_dict()
    return {name: value for name, value in settings.items() if name not in _LOCAL_SETTINGS}


def _check_settings(job: Job, chief: dict[str, Any]) -> None:
    own = _common_settings(job)
    differing = [
        f"--{field.name} is {own[field.name]}, the chief's is {chief.get(field.name)}"
        for field in dataclasses.fields(job.config)
        if field.name in own and own[field.name] != chief.get(field.name)
    ]
    if differing:
        raise ValueError(
            f"every worker needs the chief's flags. On worker {job.workers.index}: "
            f"{'; '.join(differing)}"
        )
