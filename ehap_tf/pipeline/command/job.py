"""What a stage is, and what it works with."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ehap_tf.data import (
    ImageDataset,
    ImageFiles,
    Shape,
    in_convention,
    load_dataset,
    sample_arrays,
)
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.console import RunConsole
from ehap_tf.pipeline.command.preprocessing import Preprocessing
from ehap_tf.pipeline.command.run_directory import RunDirectory, digest
from ehap_tf.pipeline.command.stage_records import StageRecord
from ehap_tf.pipeline.training.devices import make_strategy
from ehap_tf.pipeline.training.workers import Workers

CROPPED_FROM = 64
"""Pixels of the smaller side from which training takes parts of images instead of shifts."""

Figures = dict[str, Any]
"""What a stage measured, as JSON values; those named in the contract go into report.json."""


@dataclasses.dataclass
class Job:
    """One run: its settings, its directory, its console, and the data, loaded when first used.

    Attributes:
        config: the settings.
        run: the run directory.
        console: where messages and progress go.
        records: the finished stages so far; the runner keeps it up to date.
        current: those of them that hold for these settings and files.
        command: the command line, for the report; empty from the library.
    """

    config: PipelineConfig
    run: RunDirectory
    console: RunConsole
    records: dict[str, StageRecord] = dataclasses.field(default_factory=dict)
    current: dict[str, StageRecord] = dataclasses.field(default_factory=dict)
    command: str = ""
    _preprocessing: Preprocessing | None = dataclasses.field(default=None, init=False)
    _loaded: tuple[Shape, ImageDataset] | None = dataclasses.field(default=None, init=False)

    @property
    def dataset(self) -> ImageDataset:
        """The data set, as the network of the run takes its images.

        What stage `train` has found of that, now or in an earlier call, holds.
        """
        known = self.preprocessing
        return in_convention(self.load_images(known.shape), known.normalization)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input; stage `train` sets it."""
        if self._preprocessing is None:
            train = self.records.get("train")
            self._preprocessing = Preprocessing.from_figures(train.figures if train else {})
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self._preprocessing = value

    def load_images(self, shape: Shape) -> ImageDataset:
        """The images in a shape, normalised by the data set's own mean and deviation.

        Its validation images do not change with --seed (see `load_dataset`).
        """
        if self._loaded is None or self._loaded[0] != shape:
            config = self.config
            dataset = load_dataset(
                config.dataset, config.data_dir, shape=shape, resize=config.resize
            )
            if config.mirror_images is not None:
                dataset = dataclasses.replace(dataset, flip=config.mirror_images)
            how = config.augmentation
            if how == "auto":
                how = "crop" if min(dataset.input_shape[:2]) >= CROPPED_FROM else "shift"
            dataset = dataclasses.replace(dataset, augment=how != "none", crop=how == "crop")
            if isinstance(dataset.train.images, ImageFiles):
                self.console.say(
                    f"{dataset.name}: {len(dataset.train):,} training images do not fit into "
                    "memory; they are read from their files whenever they are wanted"
                )
            self._loaded = shape, dataset
        return self._loaded[1]

    def sample(self, examples: int) -> tuple[np.ndarray, np.ndarray]:
        """So many training images with their labels, as `sample_arrays`; all where they are fewer.

        Which ones hangs on --seed.
        """
        examples = min(examples, len(self.dataset.train))
        return sample_arrays(self.dataset, examples, self.config.seed)

    @functools.cached_property
    def strategy(self) -> Any:
        """The tf.distribute strategy of --strategy, or None."""
        return make_strategy(self.config.strategy)

    @functools.cached_property
    def workers(self) -> Workers:
        """The processes of the job; without --strategy=multi_worker this one alone."""
        return Workers(self.strategy)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the job.

    Attributes:
        name: as in --stages.
        settings: what its result depends on besides the files that it reads, from the settings.
        inputs: the files that it reads.
        outputs: the files that it writes.
        run: does the work. Receives the job and the fingerprint of all that the stage depends on,
            writes the outputs and returns what it measured.
        always: runs every time; its work is cheap and depends on everything.
        shared: every process of a job on several machines does it, the chief alone otherwise.
    """

    name: str
    settings: Callable[[PipelineConfig], Mapping[str, Any]]
    inputs: Callable[[RunDirectory], tuple[pathlib.Path, ...]]
    outputs: Callable[[RunDirectory], tuple[pathlib.Path, ...]]
    run: Callable[[Job, str], Figures]
    always: bool = False
    shared: bool = False


def select(config: PipelineConfig, *names: str) -> dict[str, Any]:
    """Some settings by name; with the data what is done to images, and a folder's content."""
    values = {name: getattr(config, name) for name in names}
    if "dataset" in names:
        # Those that are as ever are left out: what was made before there were flags holds.
        values |= config.image_settings
    folder = str(values.get("dataset", "")).partition("folder:")[2]
    if folder and pathlib.Path(folder).is_dir():
        values["--dataset digest"] = _folder_digest(folder)
    return values


@functools.cache
def _folder_digest(folder: str) -> str:
    """Once a process, which loads the images once, too."""
    return digest(pathlib.Path(folder))
