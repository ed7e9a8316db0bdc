"""Are neural implants worth their parameters? The same number of parameters, with and without.

Every network is pruned to the same parameters, BatchNorm is re-estimated, and all are fine-tuned
alike. Accuracies are those on validation images, and once, at the end, on test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.benchmark.measuring.contenders import Clock, rank
from ehap_tf.benchmark.measuring.output import add_output_arguments, save, show
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside, digest
from ehap_tf.benchmark.measuring.subject import add_subject_arguments, load_images, trained_source
from ehap_tf.data import ImageDataset, sample_arrays, training_batches
from ehap_tf.pipeline.training.evaluation import accuracy
from ehap_tf.pipeline.training.fitting import TrainingRecipe, fit
from ehap_tf.pruning import count_macs, count_parameters, plan_pruning, prune, recalibrate

SETTINGS = (
    "dataset",
    "examples",
    "criterion",
    "probes",
    "residual",
    "round_to",
    "implant_ratio",
    "finetune_epochs",
    "finetune_images",
    "learning_rate",
    "weight_decay",
)
BATCH_SIZE = 128
RECALIBRATION_BATCHES = 32


@dataclasses.dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        implants: "none", or how they start: "zero", "center".
        params: share of the parameters kept.
        seed: of the ranking and of fine-tuning.
    """

    implants: str
    params: float
    seed: int

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.implants}_{self.params:g}_seed{self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, examples=512)
    add = parser.add_argument
    add("--target_params", nargs="+", type=float, default=[0.5, 0.25], help="default 0.5 0.25")
    add("--implant_ratio", type=float, default=0.1, help="default 0.1, HAP's")
    add("--seeds", nargs="+", type=int, default=[0], help="default 0")
    add("--criterion", default="hessian_trace", help="default hessian_trace, HAP's")
    add("--probes", type=int, default=32, help="of the Gauss-Newton sketch; default 32")
    add("--residual", default="union", help="union or tied; default union")
    add(
        "--round_to",
        type=int,
        default=1,
        help="keep a multiple of this many filters in each layer (8 trains fastest on a CPU); "
        "default 1",
    )
    add("--finetune_epochs", type=int, default=2, help="default 2")
    add(
        "--finetune_images",
        type=int,
        default=0,
        help="training images of every epoch; default 0, for all of them",
    )
    add("--learning_rate", type=float, default=0.05, help="highest of fine-tuning; default 0.05")
    add("--weight_decay", type=float, default=0.0005, help="default 0.0005")
    parser.set_defaults(batch_size=BATCH_SIZE)
    add_records_argument(parser)
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measures the cases that are missing and prints the table."""
    settings = {"model": digest(trained_source(options.model, options.dataset), options.seed)}
    settings |= {name: getattr(options, name) for name in SETTINGS}
    records = Records(beside(options.output, options.records), settings)
    model, dataset, loss = load_images(
        options.model, options.dataset, options.data_dir, options.seed
    )
    cases = [
        Case(implants, params, seed)
        for seed in options.seeds
        for params in options.target_params
        for implants in ("none", "zero", "center")
    ]
    clock, rows = Clock(len(cases)), []
    for case in cases:
        make = functools.partial(_measured, case, model, dataset, loss, records, options)
        rows.append(records.row(case.name, make))
        clock.tick(f"{case.name}: {rows[-1]['finetuned']:.4f} after fine-tuning")
    show("Neural implants at equal parameters", rows, _COLUMNS)
    save(options, "implants", rows)


def _measured(
    case: Case,
    model: tf_keras.Model,
    dataset: ImageDataset,
    loss: tf_keras.losses.Loss,
    records: Records,
    options: argparse.Namespace,
) -> Row:
    sample = sample_arrays(dataset, options.examples, case.seed)
    scores = rank(records, model, sample, loss, options.criterion, options, case.seed)
    implants: dict[str, Any] = {}
    if case.implants != "none":
        implants = {"implant_ratio": options.implant_ratio, "implant_init": case.implants}
    plan = plan_pruning(
        model,
        scores,
        target_params=case.params,
        residual=options.residual,
        round_to=options.round_to,
        **implants,
    )
    slim = prune(model, plan)
    batches = training_batches(dataset, BATCH_SIZE, case.seed, epochs=1_000)
    slim = recalibrate(slim, batches, batches=RECALIBRATION_BATCHES)
    row = dataclasses.asdict(case) | {
        "implanted": sum(len(filters) for filters in plan.implanted.values()),
        "params_left": count_parameters(slim),
        "macs_left": count_macs(slim),
        "recalibrated": accuracy(slim, dataset.validation, dataset),
    }
    training = dataset
    if options.finetune_images:
        order = np.random.default_rng(case.seed).permutation(len(dataset.train))
        part = dataset.train.take(np.sort(order[: options.finetune_images]))
        training = dataclasses.replace(dataset, train=part)
    recipe = TrainingRecipe(
        options.finetune_epochs, options.learning_rate, options.weight_decay, BATCH_SIZE
    )
    folder = records.folder(f"{case.name}_checkpoints")
    fit(slim, training, recipe, directory=folder, seed=case.seed)
    shutil.rmtree(folder, ignore_errors=True)
    return row | {
        "finetuned": accuracy(slim, dataset.validation, dataset),
        "test": accuracy(slim, dataset.test, dataset),
    }


_COLUMNS = {
    "implants": "implants",
    "seed": "seed",
    "params_left": "parameters",
    "macs_left": "MACs",
    "implanted": "implanted filters",
    "recalibrated": "BatchNorm re-estimated",
    "finetuned": "fine-tuned",
    "test": "test images",
}
