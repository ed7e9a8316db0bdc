"""Runs the stages that have to run, in order, and remembers what is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from ehap_tf import files
from ehap_tf.native_output import NativeErrorOutput
from ehap_tf.pipeline.command.config import STAGE_NAMES, PipelineConfig
from ehap_tf.pipeline.command.console import RunConsole
from ehap_tf.pipeline.command.job import Job, Stage
from ehap_tf.pipeline.command.multi_worker import call, call_off, follow
from ehap_tf.pipeline.command.report_content import run_content
from ehap_tf.pipeline.command.run_directory import NOT_A_RUN, RunDirectory, digest
from ehap_tf.pipeline.command.stage_records import (
    StageRecord,
    changed_settings,
    damaged_outputs,
    fingerprint,
    read_records,
    reasons_to_run,
    write_records,
)
from ehap_tf.pipeline.command.stages import STAGES
from ehap_tf.pipeline.training.workers import lost_connections
from ehap_tf.report import device_table, summary_table
from ehap_tf.report.environment import environment


def run(
    config: PipelineConfig,
    console: RunConsole | None = None,
    command: str = "",
    native_output: NativeErrorOutput | None = None,
) -> dict[str, StageRecord]:
    """Does the stages of `config.stages` that are not done yet.

    Args:
        config: the settings.
        console: where messages go; by default the terminal.
        command: the command line, for the report.
        native_output: the captured output of C++ code, which then goes to a log file.

    Returns:
        The record of every finished stage of the run directory, by name; empty in the processes
        that follow the chief of a job on several machines.

    Raises:
        ConnectionError: another process of the job is gone.
        ValueError: the run directory belongs to another model or data set, a stage lacks the file
            that it reads, or a setting or file is unusable; the message says what to do.
        OSError: a file cannot be read or written.
        FloatingPointError: a training diverged.
    """
    directory = RunDirectory(config.run_path)
    job = Job(config, directory, console or RunConsole(config.verbosity), command=command)
    with lost_connections(job.workers):
        if job.workers.is_chief:
            _run_as_chief(job, native_output)
        else:
            with _warnings_to(job.console):
                follow(job, STAGES)
    return job.records


def _run_as_chief(job: Job, native_output: NativeErrorOutput | None) -> None:
    config, directory = job.config, job.run
    if not config.resume:
        if directory.path.is_dir():
            with directory.locked():  # raises where another process is still at work
                pass
        moved = directory.move_aside()
        if moved:
            job.console.say(f"{directory.path} moved to {moved}")
    elif directory.path.exists() and not directory.path.is_dir():
        raise ValueError(f"{directory.path} is a file. Give another --output_dir")
    with directory.locked(), job.console.logging_to(directory.log), _warnings_to(job.console):
        if native_output:
            native_output.to_file(directory.native_log)
        if job.command:
            job.console.say(job.command, level=2)
        directory.remove_partial_files()
        _claim(job)
        job.records = _read_or_set_aside(job)
        job.config = _as_begun(job)
        for stage in STAGES:
            if stage.name in config.stages:
                _run_if_needed(job, stage)
        call_off(job)
        _print_table(job)


def _claim(job: Job) -> None:
    """Writes config.json, after a check that the directory is not another experiment's."""
    try:
        before = job.run.read_json(job.run.config)
    except files.CorruptFileError as error:
        job.console.say(f"{error}; kept as {files.set_aside(job.run.config)}", level=0)
        before = {}
    now = job.config.to_dict()
    settings = before.get("settings", {})
    differing = [
        f"--{name} was {settings[name]} and is {now[name]}"
        for name in ("model", "dataset")
        if name in settings and settings[name] != now[name]
    ]
    # A directory in which nothing was finished belongs to nobody: a mistyped name costs nothing.
    if differing and job.run.has_results:
        raise ValueError(
            f"{job.run.path} belongs to other flags: {'; '.join(differing)}; {NOT_A_RUN}"
        )
    if settings != now:
        content = {"command": job.command, "settings": now, "environment": environment()}
        job.run.write_json(job.run.config, content)


def _as_begun(job: Job) -> PipelineConfig:
    """The settings, without repair where the network was pruned without and no flag asks for it.

    So that what stands on it, hours of training perhaps, still holds.
    """
    record = job.records.get("prune")
    if job.config.repair_images is not None or record is None:
        return job.config
    was_repaired = "repair_images" in record.settings
    return job.config if was_repaired else dataclasses.replace(job.config, repair_images=0)


def _read_or_set_aside(job: Job) -> dict[str, StageRecord]:
    try:
        return read_records(job.run)
    except files.CorruptFileError as error:
        kept = files.set_aside(job.run.records)
        job.console.say(f"{error}; kept as {kept}. All stages run again", level=0)
        return {}


def _run_if_needed(job: Job, stage: Stage) -> None:
    run = job.run
    settings = _settings(job, stage)
    record = job.records.get(stage.name)
    reasons = reasons_to_run(run, record, settings)
    if record and not stage.always:
        for path in damaged_outputs(run, record):
            if reasons:
                continue
            kept = files.set_aside(path)
            job.console.say(
                f"{path} is damaged (it is not what stage {stage.name} wrote); kept as {kept}, "
                "made again",
                level=0,
            )
            reasons = [f"{run.name(path)} is missing"]
        if not reasons:
            job.console.say(f"{stage.name}: done before")
            return
        job.console.say(f"{stage.name}: runs again, {'; '.join(reasons)}")
    if stage.always:
        job.current = _current(job)
    start = time.monotonic()
    if stage.shared:
        call(job, stage, fingerprint(settings))
    figures = stage.run(job, fingerprint(settings))
    job.records[stage.name] = StageRecord(
        stage=stage.name,
        settings=settings,
        outputs={run.name(path): digest(path) for path in stage.outputs(run)},
        figures=figures,
        seconds=round(time.monotonic() - start, 3),
    )
    write_records(run, job.records)
    run.clear_checkpoints(stage.name)
    seconds = job.records[stage.name].seconds
    job.console.say(f"{stage.name}: finished in {seconds:.1f} s", level=2 if seconds < 1 else 1)


def _current(job: Job) -> dict[str, StageRecord]:
    """The records that hold for the settings, each on top of files that hold."""
    current: dict[str, StageRecord] = {}
    for stage in STAGES:
        record = job.records.get(stage.name)
        paths = stage.inputs(job.run)
        makers = {s.name for s in STAGES for path in paths if path in s.outputs(job.run)}
        if record is None or stage.always or not makers <= set(current):
            continue
        settings = dict(stage.settings(job.config)) | {
            f"{job.run.name(path)} digest": digest(path) for path in paths if path.exists()
        }
        if not reasons_to_run(job.run, record, settings):
            current[stage.name] = record
    return current


def _print_table(job: Job) -> None:
    current = _current(job)
    if any(name.endswith("accuracy") for r in current.values() for name in r.figures):
        content = run_content(job.run, current)
        job.console.table(summary_table(content))
        files = device_table(content)
        if files is not None:
            job.console.table(files)
    if "report" in job.config.stages:
        job.console.say(f"report: {job.run.report_page}")


def _settings(job: Job, stage: Stage) -> dict[str, Any]:
    """All that the stage depends on: settings, and the content of the files that it reads."""
    values = dict(stage.settings(job.config))
    for path in stage.inputs(job.run):
        _require(job, stage, path)
        values[f"{job.run.name(path)} digest"] = digest(path)
    return values


def _require(job: Job, stage: Stage, path: pathlib.Path, between: tuple[str, ...] = ()) -> None:
    """Raises when an input file is absent, damaged, or was made under other settings.

    So too when the files that it was made of were, as far as they are still there.

    Args:
        job: the run.
        stage: reads the file.
        path: of the file.
        between: the stages that have to run again when the one that writes the file does.
    """
    maker = next(s for s in STAGES if path in s.outputs(job.run))
    missing = {maker.name, *between} if path.exists() else _missing_makers(job, stage)
    stages = [s for s in STAGE_NAMES if s in {*job.config.stages, *missing}]
    remedy = f"Run with --stages={','.join(stages)}"
    if not path.exists():
        raise ValueError(f"stage {stage.name} needs {path}, which is not there. {remedy}")
    record = job.records.get(maker.name)
    if record is None or maker.name in job.config.stages:
        return
    if path in damaged_outputs(job.run, record):
        kept = files.set_aside(path)
        raise ValueError(
            f"{path} is damaged (it is not what stage {maker.name} wrote); kept as {kept}. {remedy}"
        )
    wanted = maker.settings(job.config)
    # The files that the maker read may be gone.
    made = {
        name: value
        for name, value in record.settings.items()
        if name in wanted or not name.endswith(" digest")
    }
    changed = [
        f"{name} {then}, now {now}" for name, (then, now) in changed_settings(made, wanted).items()
    ]
    if changed:
        raise ValueError(
            f"{path} was made under other flags ({'; '.join(changed)}). {remedy}, or give the "
            "flags that made it"
        )
    for source in maker.inputs(job.run):
        if not source.exists():
            continue
        made_of = record.settings.get(f"{job.run.name(source)} digest")
        if made_of not in (None, digest(source)):
            raise ValueError(f"{path} was made of another {source}. {remedy}")
        _require(job, maker, source, (maker.name, *between))


def _missing_makers(job: Job, stage: Stage) -> set[str]:
    """A stage, and those that make what it reads and what is not there."""
    absent = [path for path in stage.inputs(job.run) if not path.exists()]
    makers = [s for s in STAGES for path in absent if path in s.outputs(job.run)]
    return {stage.name}.union(*(_missing_makers(job, maker) for maker in makers))


@contextlib.contextmanager
def _warnings_to(console: RunConsole) -> Iterator[None]:
    """Sends Python's and TensorFlow's warnings to the log file, our own to the terminal too."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object
    ) -> None:
        ours = "ehap_tf" in filename
        console.say(f"{category.__name__}: {message}", level=1 if ours else 3)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.say(f"{record.name}: {record.getMessage()}", level=3)

    logger = tf.get_logger()
    before, propagated = list(logger.handlers), logger.propagate
    logger.handlers[:] = [Handler()]
    # Reading a data set gives the root logger a handler of its own, which prints.
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.handlers[:] = before
        logger.propagate = propagated
