"""One process of the job on two machines that `test_multi_worker` starts twice.

`python -m tests.pipeline.one_worker TASK FOLDER`, with TF_CONFIG set; prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import sys
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.pipeline.command import job as job_module
from ehap_tf.pipeline.command import runner
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.training.devices import make_strategy
from ehap_tf.pipeline.training.fitting import fit
from ehap_tf.pipeline.training.workers import Workers, lost_connections
from ehap_tf.sensitivity import rank_filters

STRATEGY = make_strategy("multi_worker")  # before anything else uses TensorFlow
WORKERS = Workers(STRATEGY)

from tests.pipeline.test_training import RECIPE, small_digits, small_net  # noqa: E402
from tests.sensitivity.networks import cross_entropy, examples, joined, residual_net  # noqa: E402

# An odd batch, of which the devices get unequal parts.
# Gentle enough that an epoch is better than the start, whose weights would be kept otherwise.
TRAINING = dataclasses.replace(RECIPE, epochs=3, batch_size=9, learning_rate=0.005)
STEPS = 18


def rank() -> dict[str, Any]:
    """The largest relative difference between the scores of two processes and those of one."""
    model, data = residual_net(), examples(21)

    def scores(strategy: Any) -> Any:
        loss, options = cross_entropy(), {"probes": 3, "batch_size": 8}
        return joined(rank_filters(model, data, loss, strategy=strategy, **options))

    two = scores(STRATEGY)
    # One process is enough to compare with.
    return {"difference": float(np.abs(two / scores(None) - 1).max())} if WORKERS.is_chief else {}


def net() -> Any:
    """Without the statistics of a batch, of which every device has its own."""
    model = small_net()
    model.get_layer("bn").trainable = False
    return model


def train(folder: pathlib.Path, kill_at: int | None = None) -> dict[str, Any]:
    """Trains; worker 1 may kill itself on the way."""
    model = net()

    def progress(done: int, total: int, figures: Any) -> None:
        if kill_at is not None and done >= kill_at and WORKERS.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with lost_connections(WORKERS):
        result = fit(
            model,
            small_digits(),
            TRAINING,
            directory=folder / f"checkpoints{WORKERS.index}",
            seed=1,
            strategy=STRATEGY,
            progress=progress,
        )
    if not WORKERS.is_chief:
        return {"resumed": result.resumed_epochs}
    alone = net()
    fit(alone, small_digits(), TRAINING, directory=folder / "alone", seed=1)
    pairs = list(zip(model.get_weights(), alone.get_weights(), net().get_weights(), strict=True))
    return {
        "resumed": result.resumed_epochs,
        "difference": max(float(np.abs(a - b).max()) for a, b, _ in pairs),
        "moved": max(float(np.abs(a - b).max()) for a, _, b in pairs),
    }


def command(folder: pathlib.Path) -> dict[str, Any]:
    """Rank and prune in two steps, with training between them, through the runner."""
    job_module.make_strategy = lambda name: STRATEGY  # a process has one
    own = folder / f"run{WORKERS.index}"
    if WORKERS.is_chief:
        layers = tf_keras.layers
        inputs = layers.Input((32, 32, 3))
        x = layers.Conv2D(6, 3, strides=4, activation="relu")(inputs)
        x = layers.Conv2D(6, 3, strides=2, activation="relu")(x)
        x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
        tf_keras.Model(inputs, x).save(folder / "tiny.keras")
    config = PipelineConfig(
        model=str(folder / "tiny.keras"),
        dataset="digits",
        normalization="dataset",
        force=True,
        strategy="multi_worker",
        criterion="obd",
        estimator="gauss_newton",
        probes=1,
        prune_ratio=0.3,
        batch_size=64,
        prune_steps=2,
        prune_step_epochs=1,
        repair_images=0,
        recalibrate_batches=2,
        train_precision="fp32",
        precision="fp32",
        stages=("train", "rank", "prune"),
        output_dir=str(own),
    )
    records = runner.run(config)
    return {"stages": sorted(records), "wrote": own.exists()}


def main() -> None:
    """Does the tasks that are named, separated by commas."""
    names, folder = sys.argv[1].split(","), pathlib.Path(sys.argv[2])
    results: dict[str, Any] = {}
    try:
        for name in names:
            if name == "rank":
                results["ranking"] = rank()
            elif name == "command":
                results |= command(folder)
            else:
                results |= train(folder, STEPS + 10 if name == "killed" else None)
    except ConnectionError as error:
        results["lost"] = str(error)
    print("results", json.dumps(results))


if __name__ == "__main__":
    main()
