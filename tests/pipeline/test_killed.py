"""Killed in the middle of trainings, the command ends with the files of an unbroken run."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tf_keras

from ehap_tf.pipeline.command.report_content import REPORT_KEYS
from ehap_tf.quantization import load_qat
from ehap_tf.sensitivity import FilterScores

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Imports the package once, then runs the command for every line `KILL FOLDER FLAGS` of its input in
# a child that has run nothing before. The child kills itself when a stage's progress has come to a
# number, or at the moment when a finished temporary file would take the place of a file.
DRIVER = """
import contextlib, os, signal, sys, traceback
flags = sys.argv[1:]
sys.argv[0] = "-m"
from ehap_tf import main
from ehap_tf.pipeline.command import console, job

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def arm(kind, name, count):
    if kind == "write":
        replace = os.replace
        def replace_or_die(source, target):
            if os.path.basename(target) == name:
                die()
            replace(source, target)
        os.replace = replace_or_die
    elif kind == "progress":
        original = console.RunConsole.progress
        @contextlib.contextmanager
        def progress(self, title, unit):
            with original(self, title, unit) as callback:
                def report(done, total, figures):
                    callback(done, total, figures)
                    if title == name and done >= int(count):
                        die()
                yield report
        console.RunConsole.progress = progress

def command(kill, folder, *more):
    log = os.open(folder + ".txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    arm(*kill.split(":"))
    try:
        return main.main(["main", *flags, *more, "--output_dir=" + folder])
    except SystemExit as stop:
        return stop.code
    except BaseException:
        traceback.print_exc()
        return 1

for line in iter(sys.stdin.readline, ""):
    child = os.fork()
    if not child:
        signal.alarm(1800)
        code = command(*line.split())
        sys.stdout.flush()
        os._exit(code or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

FLAGS = (
    f"--flagfile={ROOT / 'flags' / 'quickstart.cfg'}",
    "--nomirror_images",
    "--batch_size=32",
    "--baseline=train",
    "--estimator=hutchinson",
    "--criterion=hessian_trace",
    "--probes=4",
    "--hessian_batch_size=64",
    "--train_epochs=3",
    "--finetune_epochs=2",
    "--qat_epochs=2",
)
STEPS = ("--prune_steps=2", "--prune_step_epochs=2")

# 16 steps per epoch: 40 is in the middle of the third, 25 of the second.
# Kills at the write of every other file are in test_runner.py, where a run takes milliseconds.
# A run that stops in a step of pruning is in test_rounds.py.
KILLS = ("progress:quantize:25",)
MORE_KILLS = (
    "progress:train:40",
    "progress:prune_1:25",
    "progress:prune_2_rank:1",
    "progress:finetune:25",
    "progress:quantize:25",
    "write:model_int8.tflite:",
)
EPOCHS = {"train": 2, "prune_1": 1, "finetune": 1, "quantize": 1}


@pytest.fixture
def images(tmp_path):
    """A folder with 72 digits of each kind, of 16x16 pixels."""
    digits = sklearn.datasets.load_digits()
    for label in range(10):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True)
        for number, grey in enumerate(digits.images[digits.target == label][:72]):
            pixels = np.kron(grey * 15, np.ones((2, 2))).astype(np.uint8)
            png = tf.io.encode_png(np.stack([pixels] * 3, axis=-1))
            (folder / f"{number}.png").write_bytes(png.numpy())
    return tmp_path / "digits"


@pytest.fixture
def run(images, kills):
    """Runs the command in a folder; returns its exit code and what it printed."""
    steps = STEPS if kills is MORE_KILLS else ()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *FLAGS, *steps, f"--dataset=folder:{images}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def command(folder, kill="none::", *more):
        driver.stdin.write(" ".join([kill, str(folder), *more]) + "\n")
        driver.stdin.flush()
        code = int(driver.stdout.readline())
        return code, pathlib.Path(f"{folder}.txt").read_text()

    yield command
    driver.stdin.close()
    driver.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [KILLS, pytest.param(MORE_KILLS, marks=pytest.mark.families)])
def test_killed_in_a_training_it_ends_with_the_same_files(tmp_path, run, kills):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    if kills is KILLS:
        # Up to where it is killed one run does for both.
        code, printed = run(unbroken, "none::", "--stages=train,rank,prune,finetune")
        assert code == 0, printed
        shutil.copytree(unbroken, broken)
    code, printed = run(unbroken)
    assert code == 0, printed
    assert_contract(unbroken, kills)
    for kill in kills:
        code, printed = run(broken, kill)
        assert code == -signal.SIGKILL, f"{kill}: {printed}"
    code, printed = run(broken)
    assert code == 0, printed
    assert_contract(broken, kills)
    log = (broken / "logs" / "run.log").read_text()
    for stage in {kill.split(":")[1] for kill in kills} & set(EPOCHS):
        assert f"{stage}: went on after epoch {EPOCHS[stage]}" in log
    assert_same_results(unbroken, broken)


OTHER_FILES = ("baseline", "baseline_int8", "slim")


def assert_contract(folder, kills):
    names = "config.json baseline.keras scores.npz plan.json slim.keras finetuned.keras qat.h5 "
    names += "model_int8.tflite report.json report.html logs"
    assert {path.name for path in folder.iterdir()} >= set(names.split())
    report = json.loads((folder / "report.json").read_text())
    steps = ("prune_steps",) if kills is MORE_KILLS else ()
    images = ("image_shape", "normalization", "preprocessing")
    others = [f"{file}_tflite_{of}" for file in OTHER_FILES for of in ("bytes", "arena_bytes")]
    latencies = [f"{file}_latency_ms" for file in OTHER_FILES if file != "baseline"]
    optional = (*steps, "accuracy_before_repair", "tflite_arena_bytes", "baseline_int8_accuracy")
    assert set(report) == {*REPORT_KEYS, *optional, *others, *latencies, *images}
    assert tuple(report)[: len(REPORT_KEYS)] == REPORT_KEYS
    assert report["tflite_float_ops"] == 0
    assert report["tflite_bytes"] == (folder / "model_int8.tflite").stat().st_size
    assert report["params_after"] <= 0.4 * report["params_before"]
    measured = json.loads((folder / "stages.json").read_text())["export"]["figures"]
    assert measured["quantization"]["layers"] and measured["slim_latency_ms"] > 0
    page = (folder / "report.html").read_text()
    assert 'class="quantization"' in page and 'class="latency"' in page
    for stage in ("train", "finetune", "quantize"):
        assert len(list((folder / "logs" / "tensorboard" / stage).iterdir())) == 1
    assert not (folder / "checkpoints").exists()
    assert not list(folder.glob("**/.*.partial*"))


def assert_same_results(one, other):
    for name in ("baseline.keras", "slim.keras", "finetuned.keras"):
        assert_same_weights(*(tf_keras.models.load_model(f / name) for f in (one, other)))
    assert_same_weights(*(load_qat(folder / "qat.h5") for folder in (one, other)))
    scores, others = (FilterScores.load(folder / "scores.npz") for folder in (one, other))
    for layer in scores:
        np.testing.assert_array_equal(scores[layer], others[layer])
    assert (one / "plan.json").read_text() == (other / "plan.json").read_text()
    assert (one / "model_int8.tflite").read_bytes() == (other / "model_int8.tflite").read_bytes()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, other)]
    same = [{k: v for k, v in r.items() if k.endswith("accuracy")} for r in reports]
    assert same[0] == same[1]


def assert_same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
