"""The study: every criterion, some amounts, some seeds; pruned, recalibrated and fine-tuned.

One cell is one network: filters go by one criterion until a share of the multiply-accumulates is
left, BatchNorm's statistics are re-estimated, and the network is fine-tuned for as long as all
others. Iterative cells remove in parts, rank anew before each, and divide the same fine-tuning
among the parts. Accuracies are those on validation images, which criteria may be chosen by; the
test images are looked at once a cell, at the end.

Each cell is written to --directory when it is done, and fine-tuning goes on after its last whole
epoch: the same command after a kill does the rest, on another machine too if records.json went with
it. The cells that tell most come first: criteria and amounts in the order that they are given in,
all of them for one seed before the next. With --table_only it measures nothing; the table says what
is missing.

A cell whose fine-tuning diverges is recorded as failed, and the others go on. The same settings
would diverge again, so that it is not tried again while records.json has its entry.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import pathlib
import shutil
import time
from collections.abc import Sequence

import numpy as np
import tf_keras

from ehap_tf.benchmark.measuring.contenders import (
    Clock,
    RefusedError,
    add_contender_arguments,
    rank,
    require_criteria,
)
from ehap_tf.benchmark.measuring.records import Records, Row, digest
from ehap_tf.benchmark.measuring.subject import add_subject_arguments, load_images, trained_source
from ehap_tf.benchmark.ranking import study_table
from ehap_tf.benchmark.ranking.study_table import ITERATIVE, ONE_SHOT, Cell
from ehap_tf.data import (
    ImageDataset,
    Split,
    evaluation_batches,
    sample_arrays,
)
from ehap_tf.models import clone_with_policy
from ehap_tf.models.precision import policy_of, resolve_precision
from ehap_tf.pipeline.training.adaptation import adapted, adapting_data
from ehap_tf.pipeline.training.evaluation import Evaluator
from ehap_tf.pipeline.training.fitting import TrainingRecipe, fit
from ehap_tf.pruning import count_macs, count_parameters, plan_pruning, prune

SETTINGS = (
    "dataset",
    "examples",
    "probes",
    "residual",
    "round_to",
    "cost_aware",
    "recalibrate_batches",
    "finetune_epochs",
    "finetune_steps",
    "learning_rate",
    "weight_decay",
    "finetune_batch",
    "parts",
    "validation_images",
    "test_images",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, examples=512)
    add_contender_arguments(parser)
    add = parser.add_argument
    add("--directory", default="study", help="of the records, table and plot; default study")
    add("--table_only", action="store_true", help="measure nothing, write the table")
    add(
        "--removed",
        nargs="+",
        type=float,
        default=[0.5, 0.75, 0.25],
        help="shares of the multiply-accumulates that go, in the order of measuring; default 0.5 "
        "0.75 0.25",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1], help="default 0 1")
    add(
        "--best",
        type=int,
        default=3,
        help="how many criteria, the best after fine-tuning, are run iteratively too; default 3",
    )
    add("--parts", type=int, default=3, help="of an iterative removal; default 3")
    _add_training_arguments(parser)
    add("--residual", default="union", help="union or tied; default union")
    add("--round_to", type=int, default=4, help="widths in multiples of this; default 4")
    add(
        "--cost_aware",
        choices=["macs", "params"],
        default=None,
        help="scores count per cost that a filter causes; default: they count as they are",
    )
    add("--recalibrate_batches", type=int, default=32, help="default 32")
    add(
        "--repair_images",
        type=int,
        default=0,
        help="repair by least squares on so many training images in place of re-estimating "
        "BatchNorm; default 0, no repair",
    )
    add("--validation_images", type=int, default=0, help="default 0, for all of them")
    add("--test_images", type=int, default=0, help="default 0, for all of them")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--finetune_epochs", type=int, default=2, help="of fine-tuning; default 2")
    add(
        "--finetune_steps",
        type=int,
        default=0,
        help="of fine-tuning in all, on a random part of the training images; default 0: every "
        "epoch sees all of them",
    )
    add("--finetune_batch", type=int, default=128, help="images per step; default 128")
    add("--learning_rate", type=float, default=0.05, help="highest of fine-tuning; default 0.05")
    add("--weight_decay", type=float, default=0.0005, help="default 0.0005")
    add("--train_precision", default="auto", help="fp32, bf16, fp16 or auto; default auto")


def run(options: argparse.Namespace) -> None:
    """Measures the cells that are missing, then writes table and plot.

    Where a criterion cannot rank a network the cell is left out, and where fine-tuning diverges it
    is recorded as failed; the table says why.
    """
    require_criteria(options.criteria)
    directory = pathlib.Path(options.directory)
    settings = {"model": digest(trained_source(options.model, options.dataset), options.seed)}
    settings |= {name: getattr(options, name) for name in SETTINGS}
    if options.repair_images:  # records of before there was repair go on
        settings |= {"repair_images": options.repair_images}
    # "auto" is another precision on another machine.
    settings |= {"train_precision": resolve_precision(options.train_precision)}
    records = Records(directory, settings, options.rankings)
    refused: dict[str, str] = {}
    if not options.table_only:
        study = Study(options, records)
        refused = study.refused
        for count in range(1, len(options.seeds) + 1):
            seeds = options.seeds[:count]
            study.measure(cells_of(options, ONE_SHOT, options.criteria, seeds))
            study.measure(cells_of(options, ITERATIVE, best_criteria(options, records), seeds))
    if not records.rows():
        raise ValueError(f"no cell of the study is done. Received: --directory={directory}")
    cells = cells_of(options, ONE_SHOT, options.criteria, options.seeds)
    best = best_criteria(options, records)
    cells += [
        cell
        for cell in cells_of(options, ITERATIVE, options.criteria, options.seeds)
        # Criteria that were among the best of an earlier seed are shown, too.
        if cell.criterion in best or cell.name in records.rows()
    ]
    study_table.write(directory, records, cells, refused)


def cells_of(
    options: argparse.Namespace, mode: str, criteria: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """Whole rounds first: a study that is cut short compares all criteria on fewer seeds."""
    return [
        Cell(criterion, mode, removed, seed)
        for seed in seeds
        for removed in options.removed
        for criterion in criteria
    ]


def best_criteria(options: argparse.Namespace, records: Records) -> list[str]:
    """The criteria that are run iteratively too, as far as the one-shot cells say."""
    cells = cells_of(options, ONE_SHOT, options.criteria, options.seeds)
    return study_table.best_criteria(study_table.collect(records, cells), options.best)


class Study:
    """The network, its data, and the cells that are done.

    Attributes:
        refused: names of cells whose criterion cannot rank a network -> why.
    """

    def __init__(self, options: argparse.Namespace, records: Records) -> None:
        self._options, self._records = options, records
        self.refused: dict[str, str] = {}
        self._model, dataset, self._loss = load_images(
            options.model, options.dataset, options.data_dir, options.seed
        )
        self._dataset = dataclasses.replace(
            dataset,
            validation=_first(dataset.validation, options.validation_images),
            test=_first(dataset.test, options.test_images),
        )
        self._precision = resolve_precision(options.train_precision)

    def measure(self, cells: list[Cell]) -> None:
        """Measures the cells that are not there, and the whole network."""
        self._records.row(study_table.WHOLE, self._whole)
        clock = Clock(len(cells))
        for cell in cells:
            done = cell.name in self._records.rows()
            try:
                row = self._records.row(cell.name, functools.partial(self._made, cell))
            except RefusedError as error:
                self.refused[cell.name] = str(error)
                clock.tick(f"{cell.name}: refused: {error}")
                continue
            gc.collect()  # each cell leaves compiled graphs behind
            if "failed" in row:
                said = f"failed: {row['failed']}"
            else:
                said = " -> ".join(f"{row[key]:.4f}" for key in study_table.ACCURACIES)
            clock.tick(f"{cell.name}: {said}{' (was there)' if done else ''}")

    def _whole(self) -> Row:
        evaluator = Evaluator(self._model)
        return {
            "validation": self._accuracy(evaluator, self._dataset.validation),
            "test": self._accuracy(evaluator, self._dataset.test),
            "macs": count_macs(self._model),
            "params": count_parameters(self._model),
        }

    def _made(self, cell: Cell) -> Row:
        """What the cell measured, or why it failed."""
        try:
            row = self._measured(cell)
        except FloatingPointError as error:
            # Behind the semicolon stands where the checkpoint lies: no record holds a path.
            row = dataclasses.asdict(cell) | {"failed": str(error).partition(";")[0]}
        shutil.rmtree(self._checkpoints(cell), ignore_errors=True)
        return row

    def _measured(self, cell: Cell) -> Row:
        began = time.monotonic()
        parts = 1 if cell.mode == ONE_SHOT else self._options.parts
        model, rank_seconds, row = self._model, 0.0, dataclasses.asdict(cell)
        whole = count_macs(self._model)
        for part in range(1, parts + 1):
            name = f"{cell.name}_part{part}" if part > 1 else None
            sample = sample_arrays(self._dataset, self._options.examples, cell.seed)
            scores = rank(
                self._records, model, sample, self._loss, cell.criterion, self._options, cell.seed,
                name,
            )  # fmt: skip
            rank_seconds += scores.seconds
            left = 1 - cell.removed * part / parts
            plan = plan_pruning(
                model,
                scores,
                target_macs=min(1.0, left * whole / count_macs(model)),
                residual=self._options.residual,
                round_to=self._options.round_to,
                cost_aware=self._options.cost_aware,
            )
            slim = prune(model, plan)
            pruned = self._accuracy(Evaluator(slim), self._dataset.validation)
            images, count = self._options.repair_images, self._options.recalibrate_batches
            if images or count:
                data = adapting_data(
                    self._dataset, repair_images=images, seed=cell.seed,
                    batch_size=self._options.finetune_batch, order=0,
                )  # fmt: skip
                slim = adapted(
                    slim, model, plan, data, repair_images=images, seed=cell.seed, batches=count
                )
            evaluator = Evaluator(slim)
            recalibrated = self._accuracy(evaluator, self._dataset.validation)
            finetune_began = time.monotonic()
            self._finetune(slim, cell, part, parts)
            model = slim
            row |= {"finetune_seconds": time.monotonic() - finetune_began}
        return row | {
            "macs_left": count_macs(model) / whole,
            "params_left": count_parameters(model) / count_parameters(self._model),
            "pruned": pruned,
            "recalibrated": recalibrated,
            **({"repair_images": images} if images else {}),
            "finetuned": self._accuracy(evaluator, self._dataset.validation),
            "test": self._accuracy(evaluator, self._dataset.test),
            "rank_seconds": rank_seconds,
            "seconds": time.monotonic() - began,
        }

    def _finetune(self, slim: tf_keras.Model, cell: Cell, part: int, parts: int) -> None:
        """Trains in place, so that what is compiled for `slim` measures it afterwards too."""
        options = self._options
        if options.finetune_epochs == 0:
            return
        dataset = self._portion(cell.seed + 1_000 * part, parts)
        recipe = TrainingRecipe(
            epochs=options.finetune_epochs,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            batch_size=options.finetune_batch,
        )
        trained = clone_with_policy(slim, policy_of(self._precision))
        folder = self._checkpoints(cell) / f"part{part}"
        fit(trained, dataset, recipe, directory=folder, seed=cell.seed)
        slim.set_weights(trained.get_weights())

    def _portion(self, seed: int, parts: int) -> ImageDataset:
        """The training images that one fine-tuning sees in each of its epochs."""
        options = self._options
        images = len(self._dataset.train)
        if options.finetune_steps:
            images = options.finetune_steps * options.finetune_batch // options.finetune_epochs
        count = min(len(self._dataset.train), max(options.finetune_batch, images // parts))
        order = np.random.default_rng(seed).permutation(len(self._dataset.train))
        train = self._dataset.train.take(np.sort(order[:count]))
        return dataclasses.replace(self._dataset, train=train)

    def _accuracy(self, evaluator: Evaluator, split: Split) -> float:
        return evaluator(evaluation_batches(split, self._dataset, 256))

    def _checkpoints(self, cell: Cell) -> pathlib.Path:
        return self._records.folder(f"{cell.name}_checkpoints")


def _first(split: Split, count: int) -> Split:
    return split.take(np.arange(min(count, len(split)))) if count else split
