"""The runner with stages that write text: which of them run, and when."""

import dataclasses
import io
import json
import logging
import os
import signal

import pytest
import rich.console
import tensorflow as tf

from ehap_tf import files
from ehap_tf.pipeline.command import runner
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.console import RunConsole
from ehap_tf.pipeline.command.job import Stage
from ehap_tf.pipeline.command.run_directory import RunDirectory


class FakeJob:
    """Three stages in a chain, `train -> rank -> prune`, and a log of what ran."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.ran = []
        self.fail_in = None
        self.text = io.StringIO()
        self._monkeypatch = monkeypatch
        self.stages(
            self._stage("train", ("learning_rate",), (), "baseline"),
            self._stage("rank", ("probes",), ("baseline",), "scores"),
            self._stage("prune", ("residual",), ("baseline", "scores"), "slim"),
        )

    def stages(self, *stages):
        self._monkeypatch.setattr(runner, "STAGES", stages)

    def _stage(self, name, flags, inputs, output):
        def run(job, fingerprint):
            self.ran.append(name)
            target = getattr(job.run, output)
            content = [getattr(job.run, i).read_text() for i in inputs]
            content += [str(getattr(job.config, f)) for f in flags]
            files.write_text(target, f"{name}({','.join(content)})")
            if self.fail_in == name:
                raise KeyboardInterrupt
            return {f"{name}_figure": 1}

        return Stage(
            name,
            settings=lambda config: {f: getattr(config, f) for f in flags},
            inputs=lambda run: tuple(getattr(run, i) for i in inputs),
            outputs=lambda run: (getattr(run, output),),
            run=run,
        )

    def __call__(self, **settings):
        self.ran.clear()
        self.text.truncate(0)
        settings = {"stages": ("train", "rank", "prune"), "output_dir": str(self.folder)} | settings
        console = RunConsole(1, rich.console.Console(file=self.text, width=200))
        runner.run(PipelineConfig(**settings), console, command="fake")
        return list(self.ran)


@pytest.fixture
def job(tmp_path, monkeypatch):
    return FakeJob(tmp_path / "run", monkeypatch)


def test_a_second_call_does_nothing(job):
    assert job() == ["train", "rank", "prune"]
    assert job() == []
    assert job.text.getvalue().count("done before") == 3


def test_a_changed_flag_runs_its_stage_and_what_follows(job):
    job()
    assert job(probes=7) == ["rank", "prune"]
    assert "probes was 300 and is 7" in job.text.getvalue()
    assert job(probes=7, residual="tied") == ["prune"]
    assert job(probes=7, residual="tied", learning_rate=0.3) == ["train", "rank", "prune"]


def test_a_change_that_reaches_no_stage_runs_none(job):
    job()
    assert job(finetune_epochs=99) == []


def test_what_comes_out_the_same_stops_the_chain(job):
    """A stage that is made again with the same result leaves what is built on it alone."""
    job()
    (job.folder / "baseline.keras").unlink()
    assert job() == ["train"]


@pytest.mark.parametrize("stage", ["train", "rank", "prune"])
def test_an_interrupted_stage_runs_again_and_no_finished_one(job, stage):
    job.fail_in = stage
    with pytest.raises(KeyboardInterrupt):
        job()
    job.fail_in = None
    names = ["train", "rank", "prune"]
    assert job() == names[names.index(stage) :]


@pytest.mark.parametrize("write", range(1, 8))
def test_killed_at_any_write_it_goes_on_from_the_last_whole_file(job, tmp_path, write):
    """Seven files are written: config.json, and per stage its own and stages.json."""
    child = os.fork()
    if not child:
        replace, count = os.replace, iter(range(1, 100))

        def replace_or_die(source, target):
            if next(count) == write:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = replace_or_die
        job()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finished = (write - 2) // 2
    assert job() == ["train", "rank", "prune"][max(finished, 0) :]
    unbroken = FakeJob(tmp_path / "unbroken", job._monkeypatch)
    unbroken()
    for name in ("baseline.keras", "scores.npz", "slim.keras"):
        assert (job.folder / name).read_text() == (unbroken.folder / name).read_text()
    assert not list(job.folder.glob("**/.*.partial*"))


@pytest.mark.parametrize(
    ("name", "stages"),
    [("baseline.keras", ["train"]), ("scores.npz", ["rank"]), ("slim.keras", ["prune"])],
)
def test_a_damaged_file_is_kept_and_made_again(job, name, stages):
    job()
    original = (job.folder / name).read_text()
    (job.folder / name).write_text(original[:3])
    assert job() == stages
    assert (job.folder / name).read_text() == original
    assert (job.folder / f"{name}.corrupt").read_text() == original[:3]
    assert name in job.text.getvalue() and ".corrupt" in job.text.getvalue()


@pytest.mark.parametrize("content", ["{", "[]", '{"train": {"x": 1}}', "\x00"])
def test_damaged_records_are_kept_and_everything_runs(job, content):
    job()
    (job.folder / "stages.json").write_text(content)
    assert job() == ["train", "rank", "prune"]
    assert (job.folder / "stages.json.corrupt").read_text() == content


def test_a_damaged_config_is_kept_and_written_again(job):
    job()
    (job.folder / "config.json").write_text("{")
    assert job() == []
    assert json.loads((job.folder / "config.json").read_text())["settings"]["model"] == "resnet32"


def test_another_model_is_refused_with_the_way_out(job):
    job()
    with pytest.raises(ValueError, match=r"--model was resnet32 and is resnet8.*--output_dir"):
        job(model="resnet8")
    assert job() == []


def test_starting_afresh_keeps_the_old_directory(job):
    job()
    assert job(model="resnet8", resume=False) == ["train", "rank", "prune"]
    kept = job.folder.with_name("run.old")
    assert json.loads((kept / "config.json").read_text())["settings"]["model"] == "resnet32"
    job(resume=False)
    assert job.folder.with_name("run.old2").exists()


def test_a_part_of_the_stages_uses_the_files_that_are_there(job):
    assert job(stages=("train",)) == ["train"]
    assert job(stages=("rank",)) == ["rank"]
    assert job() == ["prune"]


def test_a_part_without_its_input_says_which_stage_makes_it(job):
    with pytest.raises(ValueError, match=r"rank needs .*baseline\.keras.*--stages=train,rank"):
        job(stages=("rank",))


def test_all_the_missing_stages_are_named_at_once(job):
    with pytest.raises(ValueError, match=r"prune needs .*--stages=train,rank,prune"):
        job(stages=("prune",))
    job(stages=("train",))
    with pytest.raises(ValueError, match=r"prune needs .*scores\.npz.*--stages=rank,prune"):
        job(stages=("prune",))


def test_a_part_refuses_an_input_of_other_flags(job):
    job()
    with pytest.raises(ValueError, match=r"scores\.npz was made under other flags.*probes 300"):
        job(stages=("prune",), probes=7)


def test_a_part_refuses_an_input_of_a_flag_that_is_gone(job):
    """Settings are left out where they are at their default."""
    rank, probes = runner.STAGES[1], 7
    settings = rank.settings
    optional = dataclasses.replace(
        rank, settings=lambda c: settings(c) if c.probes == probes else {}
    )
    job.stages(runner.STAGES[0], optional, runner.STAGES[2])
    job(probes=probes)
    with pytest.raises(ValueError, match=r"scores\.npz was made under other flags.*now None"):
        job(stages=("prune",))
    assert job(stages=("prune",), probes=probes) == []


def test_a_part_refuses_an_input_that_stands_on_another_file(job):
    job()
    job(stages=("train",), learning_rate=0.3)
    with pytest.raises(ValueError, match=r"scores.npz was made of another .*--stages=rank,prune"):
        job(stages=("prune",), learning_rate=0.3)


def test_a_part_refuses_an_input_far_behind_other_flags(job):
    rank, prune = runner.STAGES[1:]
    job.stages(runner.STAGES[0], rank, dataclasses.replace(prune, inputs=lambda run: (run.scores,)))
    job()
    with pytest.raises(ValueError, match=r"keras was made under.*--stages=train,rank,prune"):
        job(stages=("prune",), learning_rate=0.3)
    (job.folder / "baseline.keras").unlink()  # Scores may be all that is left.
    assert job(stages=("prune",), learning_rate=0.3) == []


def test_a_part_refuses_a_damaged_input(job):
    job()
    (job.folder / "scores.npz").write_text("x")
    with pytest.raises(ValueError, match=r"scores\.npz is damaged.*--stages=rank,prune"):
        job(stages=("prune",), residual="tied")
    assert (job.folder / "scores.npz.corrupt").exists()


def test_a_second_process_is_kept_out(job):
    with (
        RunDirectory(job.folder).locked(),
        pytest.raises(ValueError, match="another process is working"),
    ):
        job()


def test_a_directory_in_use_is_not_moved_aside(job):
    job()
    with (
        RunDirectory(job.folder).locked(),
        pytest.raises(ValueError, match="another process is working"),
    ):
        job(resume=False)
    assert job.folder.exists()


def test_leftovers_of_a_killed_writer_are_removed(job):
    job()
    leftover = job.folder / ".slim-abc.partial.keras"
    leftover.write_text("half")
    job()
    assert not leftover.exists()


def test_a_file_in_place_of_the_directory(job):
    job.folder.write_text("I am a file")
    with pytest.raises(ValueError, match="is a file"):
        job()


def test_everything_said_is_in_the_log(job):
    job()
    job(probes=7)
    assert "probes was 300 and is 7" in (job.folder / "logs" / "run.log").read_text()


def test_what_tensorflow_warns_of_goes_to_the_log_alone(job, monkeypatch):
    printed = io.StringIO()
    # tensorflow-datasets gives the root logger a handler while a stage reads its data.
    root = logging.StreamHandler(printed)
    train = runner.STAGES[0]

    def run(stage_job, fingerprint):
        logging.getLogger().addHandler(root)
        tf.get_logger().warning("something to look at later")
        return train.run(stage_job, fingerprint)

    stages = (dataclasses.replace(train, run=run), *runner.STAGES[1:])
    monkeypatch.setattr(runner, "STAGES", stages)
    propagated = tf.get_logger().propagate
    try:
        job()
    finally:
        logging.getLogger().removeHandler(root)
    assert printed.getvalue() == ""
    assert "something to look at later" in (job.folder / "logs" / "run.log").read_text()
    assert "something to look at later" not in job.text.getvalue()
    assert tf.get_logger().propagate == propagated
