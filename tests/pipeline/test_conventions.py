"""The preprocessing of somebody's model is found, whatever it is."""

import dataclasses

import numpy as np
import pytest
import tf_keras

from ehap_tf.data import (
    CONVENTIONS,
    evaluation_batches,
    in_convention,
    load_dataset,
    normalize,
)
from ehap_tf.data.image_dataset import Split, channel_statistics
from ehap_tf.pipeline.training.conventions import is_chance, try_conventions
from ehap_tf.pipeline.training.evaluation import accuracy

L = tf_keras.layers


@pytest.fixture(scope="module")
def colours():
    """Digits in the three colours, so that the order of the channels matters."""
    digits = load_dataset("digits", shape=(16, 16, 3))

    def coloured(split: Split) -> Split:
        chosen = np.random.default_rng(len(split)).integers(0, 3, len(split))
        images = (split.images * (0.3 + 0.7 * np.eye(3)[chosen])[:, None, None]).astype(np.uint8)
        # The label is the colour for half of the digits: a model must tell the channels apart.
        return Split(images, np.where(split.labels < 5, chosen, 3 + split.labels % 2))

    train, validation, test = map(coloured, (digits.train, digits.validation, digits.test))
    mean, std = channel_statistics(train.images)
    return dataclasses.replace(
        digits, train=train, validation=validation, test=test, num_classes=5,
        class_names=tuple("abcde"), mean=mean, std=std,
    )  # fmt: skip


def trained(dataset, inside=(), epochs=12, softmax=False):
    images, labels = normalize(dataset.train.images, dataset), dataset.train.labels
    model = tf_keras.Sequential(
        [
            L.Input(dataset.input_shape),
            *inside,
            L.Conv2D(8, 5, 2),
            L.BatchNormalization(),
            L.ReLU(),
            L.Conv2D(16, 3, activation="relu"),
            L.Flatten(),
            L.Dense(dataset.num_classes, activation="softmax" if softmax else None),
        ]
    )
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile(tf_keras.optimizers.Adam(0.003), loss, ["accuracy"])
    model.fit(images, labels, 32, epochs=epochs, verbose=0)
    return model


@pytest.mark.parametrize(
    ("convention", "inside"),
    [
        ("none", (L.Rescaling(1 / 255),)),
        ("none", (L.Normalization(mean=(70, 70, 70), variance=(6000, 6000, 6000)),)),
        *((name, ()) for name in CONVENTIONS if name != "none"),
    ],
)
@pytest.mark.parametrize("softmax", [False, True])
def test_the_convention_of_a_model_is_found(colours, convention, inside, softmax):
    right = in_convention(colours, convention)
    model = trained(right, inside, softmax=softmax)
    trials = try_conventions(model, colours)
    found = next(iter(trials))
    batches = evaluation_batches(colours.test, right, 64)
    own = model.evaluate(batches, verbose=0, return_dict=True)["accuracy"]
    assert own > 0.85
    assert accuracy(model, colours.test, in_convention(colours, found)) == pytest.approx(
        own, abs=1e-3
    )
    assert not trials[found].is_chance
    assert found == convention


def test_a_grey_model_is_found():
    grey = load_dataset("digits", shape=(16, 16, 1))
    model = trained(in_convention(grey, "0..1"))
    assert next(iter(try_conventions(model, grey))) == "0..1"


def test_a_model_of_other_classes_is_at_chance_in_all(colours):
    rng = np.random.default_rng(0)
    shuffled = dataclasses.replace(
        colours, train=Split(colours.train.images, rng.permutation(colours.train.labels))
    )
    model = trained(shuffled, epochs=1)
    assert all(trial.is_chance for trial in try_conventions(model, colours).values())


def test_outputs_that_are_not_finite_are_no_answer(colours):
    x = L.Input(colours.input_shape)
    y = L.Dense(5)(L.Flatten()(L.Lambda(lambda t: t / 0.0)(x)))
    trials = try_conventions(tf_keras.Model(x, y), colours, images=32)
    assert all(trial.is_chance and trial.loss == np.inf for trial in trials.values())


def test_chance_is_that_of_the_commonest_class():
    labels = np.repeat([0, 1], [90, 10])
    assert is_chance(0.9, labels) and is_chance(0.95, labels) and not is_chance(0.97, labels)
    balanced = np.arange(1000) % 10
    assert is_chance(0.11, balanced) and not is_chance(0.13, balanced)


def test_validation_images_that_are_too_few_are_joined_by_training_images(colours):
    few = dataclasses.replace(colours, validation=colours.validation.take(np.arange(2)))
    model = trained(colours, epochs=3)
    progress = []
    trials = try_conventions(
        model, few, 64, lambda done, total, figures: progress.append((done, total))
    )
    assert progress == [(done, 6) for done in range(1, 7)]
    assert 0.5 < trials["dataset"].accuracy < 1
    assert trials["dataset"].accuracy * 64 == round(trials["dataset"].accuracy * 64)
