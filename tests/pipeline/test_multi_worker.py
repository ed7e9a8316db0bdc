"""Two processes over loopback train and rank like one; one dies, and the job goes on after it."""

from __future__ import annotations

import json
import pathlib
import signal
import socket

import pytest

from tests.fresh_processes import FreshProcesses

WORKER = 'import runpy; runpy.run_module("tests.pipeline.one_worker", run_name="__main__")'


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def two_workers(
    processes: FreshProcesses, tasks: str, folder: pathlib.Path
) -> list[tuple[int, dict]]:
    """Exit status and results of both processes."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    started = []
    for index in range(2):
        configuration = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CONFIG": json.dumps(configuration)}
        started.append(processes.start(WORKER, tasks, folder, environment=environment))
    outcomes = []
    try:
        for process in started:
            done = process.wait()
            lines = [line for line in done.stdout.splitlines() if line.startswith("results ")]
            assert lines or done.returncode < 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            results = json.loads(lines[0].removeprefix("results ")) if lines else {}
            outcomes.append((done.returncode, results))
    finally:
        for process in started:
            process.kill()
    return outcomes


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_survive_a_death(
    tmp_path: pathlib.Path, fresh_processes: FreshProcesses
):
    (status, chief), (killed, nothing) = two_workers(fresh_processes, "rank,killed", tmp_path)
    assert (status, killed, nothing) == (0, -signal.SIGKILL, {})
    assert chief["ranking"]["difference"] < 1e-9
    assert "worker 0 of 2 lost the others" in chief["lost"]
    assert "Start the same command again on every worker" in chief["lost"]
    assert (tmp_path / "checkpoints0" / "last.npz").exists()

    (status, chief), (other, follower) = two_workers(fresh_processes, "train,command", tmp_path)
    assert (status, other) == (0, 0)
    assert chief["resumed"] == follower["resumed"] == 1
    assert chief["difference"] < 1e-4 < 1e-2 < chief["moved"]
    assert not (tmp_path / "checkpoints1").exists(), "only the chief writes checkpoints"

    assert chief["stages"] == ["prune", "rank", "train"] and chief["wrote"]
    assert follower["stages"] == [] and not follower["wrote"]
    run = tmp_path / "run0"
    for name in ("baseline.keras", "scores.npz", "plan.json", "slim.keras"):
        assert (run / name).exists()
    log = (run / "logs" / "run.log").read_text()
    assert "prune_1: 32 images on each of 2 devices" in log
    assert "the learning rate is not scaled" in log
