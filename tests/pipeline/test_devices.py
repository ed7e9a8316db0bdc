"""How a batch is divided, who the chief is, and what is asked of TF_CONFIG; in one process."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Job, Stage
from ehap_tf.pipeline.command.multi_worker import call, call_off, follow
from ehap_tf.pipeline.command.run_directory import RunDirectory
from ehap_tf.pipeline.training.devices import distributed_batches, divided_batch, make_strategy
from ehap_tf.pipeline.training.tensorboard import epoch_log
from ehap_tf.pipeline.training.workers import Workers, lost_connections, require_cluster
from tests.pipeline.test_console import make


class Devices:
    """Stands in for a strategy of several processes: gives what one of them would see."""

    def __init__(self, devices: int, processes: int, process: int) -> None:
        self.num_replicas_in_sync = devices
        self.context = SimpleNamespace(num_input_pipelines=processes, input_pipeline_id=process)

    def distribute_datasets_from_function(self, function):
        return function(self.context)


def parts(devices: int, processes: int, process: int, batch: int) -> list[list[int]]:
    numbers = tf.data.Dataset.range(2 * batch).batch(batch).map(lambda x: (x, x))
    strategy = Devices(devices, processes, process)
    return [
        x.numpy().tolist()
        for x, y in distributed_batches(numbers, batch, strategy)  # type: ignore
    ]


@pytest.mark.parametrize(("devices", "processes", "batch"), [(4, 2, 8), (4, 2, 10), (3, 3, 7)])
def test_the_devices_share_every_batch(devices: int, processes: int, batch: int):
    each = [parts(devices, processes, process, batch) for process in range(processes)]
    local = devices // processes
    assert all(len(pieces) == 2 * local for pieces in each)
    for step in range(2):
        pieces = [p for own in each for p in own[step * local : (step + 1) * local]]
        assert [row for piece in pieces for row in piece] == list(
            range(step * batch, (step + 1) * batch)
        )
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_one_device_gets_the_batches_as_they_are():
    assert parts(1, 1, 0, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_batch_smaller_than_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"at least the number of devices, 4\. Received: 3"):
        parts(4, 1, 0, 3)


def test_what_is_said_about_the_batch():
    assert divided_batch(64, None) == ""
    text = divided_batch(64, Devices(4, 1, 0))  # type: ignore[arg-type]
    assert "16 images on each of 4 devices" in text and "learning rate is not scaled" in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_an_unusable_tf_config_says_what_is_wanted(text: str):
    with pytest.raises(ValueError, match=r"TF_CONFIG.*\"cluster\""):
        require_cluster({"TF_CONFIG": text})


def test_the_command_needs_tf_config_for_several_machines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG is not set"):
        make_strategy("multi_worker")
    assert make_strategy("none") is None


def test_alone_a_process_is_the_chief():
    for strategy in (None, tf.distribute.MirroredStrategy(["/cpu:0"])):
        workers = Workers(strategy)
        assert (workers.count, workers.index, workers.is_chief) == (1, 0, True)
        assert workers.from_chief(b"abc") == b"abc"
        assert workers.value_from_chief({"a": 1}) == {"a": 1}


def test_only_several_processes_lose_each_other():
    error = tf.errors.UnavailableError(None, None, "Socket closed\nmore")
    several = SimpleNamespace(count=2, index=1)
    with (
        pytest.raises(ConnectionError, match=r"worker 1 of 2 lost.*Socket closed\)"),
        lost_connections(several),  # type: ignore[arg-type]
    ):
        raise error
    with pytest.raises(tf.errors.UnavailableError), lost_connections(Workers()):
        raise error


class Wire:
    """What the chief sends, read by another process in order."""

    def __init__(self) -> None:
        self.sent: list = []

    def end(self, chief: bool) -> SimpleNamespace:
        def value(own):
            if chief:
                self.sent.append(own)
                return own
            return self.sent.pop(0)

        return SimpleNamespace(
            count=2, index=int(not chief), is_chief=chief, value_from_chief=value, from_chief=value
        )


def job(folder: pathlib.Path, workers: SimpleNamespace, **settings) -> Job:
    config = PipelineConfig(strategy="multi_worker", output_dir=str(folder), **settings)
    made = Job(config, RunDirectory(folder), make()[0])
    made.__dict__["workers"] = workers
    return made


def stage(done: list) -> Stage:
    def run(job: Job, fingerprint: str) -> dict:
        kept = job.run.checkpoints("rank", fingerprint)
        done.append((job.run.baseline.read_bytes(), sorted(p.name for p in kept.glob("*"))))
        return {}

    return Stage("rank", lambda config: {}, lambda run: (run.baseline,), lambda run: (), run)


def test_the_others_get_the_files_and_follow(tmp_path: pathlib.Path):
    wire, done = Wire(), []
    chief = job(tmp_path / "run", wire.end(chief=True))
    kept = chief.run.checkpoints("rank", "f" * 64)
    (kept / "training_1").mkdir(parents=True)
    chief.run.baseline.write_bytes(b"a model")
    (kept / "round_1.json").write_text("{}")
    (kept / "last.npz").write_text("fit shares this one")
    call(chief, stage(done), "f" * 64)
    call_off(chief)
    follower = job(tmp_path / "unused", wire.end(chief=False), verbosity=2)
    follow(follower, [stage(done)])
    assert done == [(b"a model", ["round_1.json"])]
    assert not (tmp_path / "unused").exists() and not follower.run.path.exists()


def test_other_flags_on_another_machine_are_refused(tmp_path: pathlib.Path):
    wire = Wire()
    chief = job(tmp_path / "run", wire.end(chief=True), probes=7)
    chief.run.path.mkdir()
    chief.run.baseline.write_bytes(b"a model")
    call(chief, stage([]), "f" * 64)
    follower = job(tmp_path / "unused", wire.end(chief=False), probes=8)
    with pytest.raises(ValueError, match=r"--probes is 8, the chief's is 7"):
        follow(follower, [stage([])])


def test_curves_for_tensorboard(tmp_path: pathlib.Path):
    """Written twice, as by a training that goes on: every epoch is there once."""
    for epochs in (1, 2):
        with epoch_log(tmp_path / "train") as log:
            for epoch in range(epochs):
                log({"epoch": epoch + 1, "loss": 0.5 / (epoch + 1), "validation_accuracy": 0.9})
    (file,) = (tmp_path / "train").iterdir()
    events = [
        tf.compat.v1.Event.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(file))
    ]
    points = {
        (event.step, value.tag): float(tf.make_ndarray(value.tensor))
        for event in events
        for value in event.summary.value
    }
    assert all(
        value.metadata.plugin_data.plugin_name == "scalars"
        for event in events
        for value in event.summary.value
    )
    assert sum(len(event.summary.value) for event in events) == len(points)
    np.testing.assert_allclose(
        [points[1, "loss"], points[2, "loss"], points[2, "validation_accuracy"]], [0.5, 0.25, 0.9]
    )
    with epoch_log(None) as log:
        log({"epoch": 1})
