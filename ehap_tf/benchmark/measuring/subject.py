"""What is measured: a model and a sample of a data set, by flags that all benchmarks share."""

from __future__ import annotations

import argparse
import pathlib
import warnings
from typing import Any

import numpy as np
import tf_keras

from ehap_tf.data import (
    DATASET_NAMES,
    ImageDataset,
    Split,
    evaluation_batches,
    load_dataset,
    sample_arrays,
)
from ehap_tf.models import MODEL_NAMES, Readout, build_model, load_model

SUBJECT_FLAGS = ("model", "dataset", "data_dir", "examples", "seed")


def add_subject_arguments(
    parser: argparse.ArgumentParser,
    model: str = "resnet32",
    examples: int = 128,
    several: bool = False,
    noise: bool = False,
) -> None:
    """Adds the flags in `SUBJECT_FLAGS`.

    Args:
        parser: of the benchmark.
        model: the default.
        examples: the default.
        several: `--model` and `--examples` give lists, of what stands between commas.
        noise: `--dataset=noise` is offered, which `load_subject` knows and `load_images` does not.
    """
    random = ", or noise (random images and labels)" if noise else ""
    listed = ", or several, separated by commas" if several else ""
    parser.add_argument(
        "--model",
        type=_names if several else str,
        default=model,
        help="a built-in name (trained where saved_models/NAME_DATASET/baseline.keras exists, else "
        f"with random weights) or the path of a saved model{listed}; default {model}",
    )
    parser.add_argument(
        "--dataset",
        default="digits",
        help=f"{', '.join(DATASET_NAMES)}{random}; default digits",
    )
    parser.add_argument("--data_dir", default=None, help="TFDS data directory")
    parser.add_argument(
        "--examples",
        type=_numbers if several else int,
        default=str(examples),
        help=f"in the Hessian batch{listed}; default {examples}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the probes")


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def subject_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The shared flags as keyword arguments of `load_subject`."""
    return {name: getattr(options, name) for name in SUBJECT_FLAGS}


def load_subject(
    model: str, dataset: str, data_dir: str | None, examples: int, seed: int
) -> tuple[tf_keras.Model, tuple[np.ndarray, np.ndarray], tf_keras.losses.Loss]:
    """The model, `(x, y)` arrays and the loss.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: a path that leads nowhere.
    """
    if dataset != "noise":
        network, loaded, loss = load_images(model, dataset, data_dir, seed)
        return network, sample_arrays(loaded, examples, seed), loss
    source = trained_source(model, dataset)
    network = load_model(source) if source is not None else build_model(model, seed=seed)
    return network, _noise(network, examples, seed), _loss(network)


def load_images(
    model: str, dataset: str, data_dir: str | None, seed: int
) -> tuple[tf_keras.Model, ImageDataset, tf_keras.losses.Loss]:
    """The model, all of the data set and the loss.

    The split into training and validation images is that of seed 0, on which models were trained,
    whatever `seed` is. A built-in model that was not trained before has random weights, with a
    warning.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: a path that leads nowhere.
    """
    source = trained_source(model, dataset)
    loaded = load_dataset(dataset, data_dir)
    if source is not None:
        network = load_model(source)
    else:
        warnings.warn(
            f"{model} has random weights: there is no {_shipped(model, dataset)} here",
            stacklevel=2,
        )
        network = build_model(model, loaded.num_classes, loaded.input_shape, seed)
    return network, loaded, _loss(network)


def some_arrays(dataset: ImageDataset, split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split, as a model takes them, and their labels; all where 0."""
    some = split.take(np.arange(min(count or len(split), len(split))))
    batches = evaluation_batches(some, dataset, 256).as_numpy_iterator()
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images, labels


def divergence(wanted: np.ndarray, found: np.ndarray) -> float:
    """Kullback-Leibler, of log-probabilities (examples, classes) from others: mean, in nats."""
    return float((np.exp(wanted) * (wanted - found)).sum(-1).mean())


def log_probabilities(network: tf_keras.Model, inputs: np.ndarray, are_outputs: bool) -> np.ndarray:
    """Of every class, float64.

    Args:
        network: a classifier, quantized or not.
        inputs: of it.
        are_outputs: it returns probabilities, not logits.
    """
    outputs = network.predict(inputs, batch_size=256, verbose=0).astype(np.float64)
    if are_outputs:
        outputs = np.log(np.maximum(outputs, 1e-30))
    outputs -= outputs.max(-1, keepdims=True)
    return outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))


def _loss(network: tf_keras.Model) -> tf_keras.losses.Loss:
    return Readout.of(network).loss()


def trained_source(model: str, dataset: str) -> pathlib.Path | None:
    """The file or folder of the trained model; None for a network with random weights."""
    if model in MODEL_NAMES:
        shipped = _shipped(model, dataset)
        return shipped if shipped.exists() else None
    path = pathlib.Path(model)
    if not path.exists():
        raise ValueError(
            f"model must be one of {', '.join(MODEL_NAMES)}, or the path of a saved model. "
            f"Received: {model}"
        )
    return path


def _shipped(model: str, dataset: str) -> pathlib.Path:
    return pathlib.Path("saved_models") / f"{model}_{dataset}" / "baseline.keras"


def _noise(model: tf_keras.Model, examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, *model.input_shape[1:])).astype(np.float32)
    return x, rng.integers(0, model.output_shape[-1], examples)
