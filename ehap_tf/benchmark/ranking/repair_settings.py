"""What repair takes: how many images, which ones, how large a ridge and how many positions.

One network, pruned by one criterion, is repaired many times; each row changes one setting. Beside
the accuracy on validation images stands the Kullback-Leibler divergence of the whole network's
probabilities from the repaired one's, which tells apart what accuracy cannot on so few images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import tf_keras

from ehap_tf.benchmark.measuring import output
from ehap_tf.benchmark.measuring.contenders import Clock, add_ranking_arguments, rank
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside, digest
from ehap_tf.benchmark.measuring.subject import (
    add_subject_arguments,
    divergence,
    load_images,
    log_probabilities,
    some_arrays,
    trained_source,
)
from ehap_tf.criteria import find_criterion
from ehap_tf.data import as_dataset, sample_arrays
from ehap_tf.models import ends_in_softmax
from ehap_tf.pruning import plan_pruning, prune, recalibrate, repair

COLUMNS = {
    "what": "network",
    "accuracy": "accuracy",
    "divergence": "divergence, nats",
    "seconds": "seconds",
}

SOURCES = ("mirrored", "noise")
"""Images other than those of the training set, or more of them."""

SETTINGS = (
    "dataset",
    "examples",
    "probes",
    "criterion",
    "target_macs",
    "cost_aware",
    "residual",
    "validation_images",
    "seed",
)

Variant = tuple[str, str, int, dict[str, float]]
"""A row: its name, where the images are from, how many, and settings of `repair`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, examples=512)
    add_ranking_arguments(parser, probes=16)
    add = parser.add_argument
    add("--criterion", default="obs_joint", help="default obs_joint")
    add("--target_macs", type=float, default=0.5, help="share that is kept; default 0.5")
    add("--cost_aware", default="macs", choices=["macs", "params"], help="default macs")
    add("--residual", default="union", help="union or tied; default union")
    add(
        "--images",
        nargs="+",
        type=int,
        default=[512, 64, 128, 256, 1024, 2048, 4096],
        help="how many; all other rows have as many as the first; default 512 64 ... 4096",
    )
    add("--ridges", nargs="+", type=float, default=[0.001, 0.1], help="default 0.001 0.1")
    add("--positions", nargs="+", type=int, default=[10_000, 100_000], help="default 10000 100000")
    add(
        "--sources",
        nargs="*",
        choices=SOURCES,
        default=list(SOURCES),
        help="mirrored: with the mirror image of each; noise: normal random numbers with the mean "
        "and deviation of each channel; default both",
    )
    add("--validation_images", type=int, default=0, help="default 0, for all of them")
    output.add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, prints the table, writes what --output asks for."""
    find_criterion(options.criterion)
    if min(options.images) < 1:
        raise ValueError(f"--images must be at least 1. Received: {min(options.images)}")
    subject = Subject(options)
    variants = list(variants_of(options))
    clock = Clock(len(variants))
    rows = subject.unrepaired()
    for variant in variants:
        rows.append(subject.repaired(variant))
        clock.tick(variant[0])
    output.show(f"Repaired, {subject.images} validation images", rows, COLUMNS)
    table = output.markdown(rows, COLUMNS)
    output.save(options, "repair_settings", rows, table=table, model=subject.digest)


def variants_of(options: argparse.Namespace) -> Iterator[Variant]:
    """The rows: one setting is changed at a time."""
    first = options.images[0]
    for images in options.images:
        yield f"{images} images", "training", images, {}
    for source in options.sources:
        yield f"{first} images, {source}", source, first, {}
    for ridge in options.ridges:
        yield f"{first} images, ridge {ridge:g}", "training", first, {"ridge": ridge}
    for positions in options.positions:
        name = f"{first} images, {positions:,} positions"
        yield name, "training", first, {"positions": positions}


class Subject:
    """A network, what is left of it when filters went, and images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._model, self._dataset, self._loss = load_images(
            options.model, options.dataset, options.data_dir, options.seed
        )
        self._inputs, self._labels = some_arrays(
            self._dataset, self._dataset.validation, options.validation_images
        )
        self.images = len(self._labels)
        self.digest = digest(trained_source(options.model, options.dataset), options.seed)
        settings = {"model": self.digest} | {name: getattr(options, name) for name in SETTINGS}
        self._records = Records(beside(options.output, options.records), settings, options.rankings)
        self._wanted = self._log_probabilities(self._model)
        sample = sample_arrays(self._dataset, options.examples, options.seed)
        scores = rank(
            self._records, self._model, sample, self._loss, options.criterion, options, options.seed
        )
        self._plan = plan_pruning(
            self._model,
            scores,
            target_macs=options.target_macs,
            residual=options.residual,
            cost_aware=options.cost_aware,
        )
        self._slim = prune(self._model, self._plan)

    def unrepaired(self) -> list[Row]:
        """The whole network, and the pruned one without repair."""
        slim, images = self._slim, self._options.images[0]
        stream = as_dataset(sample_arrays(self._dataset, images, self._options.seed), 128)
        return [
            self._row("whole", lambda: self._model, timed=False),
            self._row("pruned", lambda: slim, timed=False),
            self._row("BatchNorm re-estimated", lambda: recalibrate(slim, stream, len(stream))),
        ]

    def repaired(self, variant: Variant) -> Row:
        """The pruned network repaired in one way."""
        name, source, count, settings = variant

        def make() -> tf_keras.Model:
            images = self._images(source, count)
            return repair(self._slim, self._model, self._plan, images, len(images), **settings)  # type: ignore[arg-type]

        return self._row(name, make)

    def _row(self, name: str, make: Callable[[], tf_keras.Model], timed: bool = True) -> Row:
        def measure() -> Row:
            began = time.monotonic()
            model = make()
            seconds = time.monotonic() - began
            found = self._log_probabilities(model)
            accuracy = float((found.argmax(-1) == self._labels).mean())
            return {
                "what": name,
                "accuracy": accuracy,
                "divergence": divergence(self._wanted, found),
                **({"seconds": seconds} if timed else {}),
            }

        return self._records.row(name, measure)

    def _images(self, source: str, count: int) -> np.ndarray:
        images, _ = sample_arrays(self._dataset, count, self._options.seed)
        if source == "mirrored":
            return np.concatenate([images, images[:, :, ::-1]])
        if source == "noise":
            rng = np.random.default_rng(self._options.seed)
            mean, deviation = images.mean((0, 1, 2)), images.std((0, 1, 2))
            return rng.normal(mean, deviation, images.shape).astype(np.float32)
        return images

    def _log_probabilities(self, model: tf_keras.Model) -> np.ndarray:
        return log_probabilities(model, self._inputs, ends_in_softmax(model))
