"""What a user may get wrong about models, data and files, through the runner."""

import io
import pathlib

import numpy as np
import pytest
import rich.console
import tensorflow as tf
import tf_keras

from ehap_tf.models import build_model, load_model, save_model
from ehap_tf.pipeline.command import job, recipes, runner
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.console import RunConsole
from ehap_tf.pipeline.command.run_directory import RunDirectory, digest
from ehap_tf.pipeline.command.stage_records import read_records
from ehap_tf.sensitivity import FilterScores


@pytest.fixture
def run(tmp_path, monkeypatch, eagerly):
    """Runs the train stage of the digits with no saved models around; returns what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(**settings):
        text = io.StringIO()
        defaults = {"model": "resnet8", "dataset": "digits", "stages": ("train",)}
        config = PipelineConfig(**{**defaults, "output_dir": "run", "train_epochs": 0, **settings})
        runner.run(config, RunConsole(1, rich.console.Console(file=text, width=300)))
        return text.getvalue()

    return run


def small(classes=10, shape=(32, 32, 3), seed=0):
    return build_model("resnet8", classes, shape, seed=seed)


def test_an_unknown_model_lists_the_known_ones(run):
    with pytest.raises(ValueError, match=r"model must be one of resnet8.*Received: resnet9"):
        run(model="resnet9")
    run(model="resnet8")


def test_an_unknown_dataset_lists_the_known_ones(run):
    with pytest.raises(ValueError, match="dataset must be one of cifar10, cifar100, digits"):
        run(dataset="mnist")


@pytest.mark.parametrize("flag", ["model", "baseline"])
def test_a_path_where_nothing_lies(run, flag):
    with pytest.raises(FileNotFoundError, match=rf"--{flag}=nets/mine.keras: there is no such"):
        run(**{flag: "nets/mine.keras"})


def test_a_truncated_model_file_is_named(run):
    save_model(small(), "mine.keras")
    content = pathlib.Path("mine.keras").read_bytes()
    pathlib.Path("mine.keras").write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"mine\.keras is damaged or truncated"):
        run(model="mine.keras")


def test_a_model_for_other_classes(run):
    save_model(small(classes=7), "mine.keras")
    with pytest.raises(ValueError, match=r"output has shape \(7,\).*10 classes"):
        run(model="mine.keras")


def test_images_are_brought_to_the_size_and_channels_of_the_model(run):
    save_model(small(shape=(16, 24, 1)), "mine.keras")
    run(model="mine.keras", force=True)
    figures = read_records(RunDirectory(pathlib.Path("run")))["train"].figures
    assert figures["image_shape"] == [16, 24, 1]


def test_a_model_whose_input_is_no_image(run):
    x = tf_keras.Input((32, 32, 2))
    y = tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(x))
    save_model(tf_keras.Model(x, y), "mine.keras")
    with pytest.raises(ValueError, match=r"1 or 3 channels.*Received: an input of .*32, 32, 2"):
        run(model="mine.keras")


def test_a_built_in_model_of_another_size(run):
    text = run(image_size=16)
    assert "skipped" not in text
    model = load_model("run/baseline.keras")
    assert model.input_shape == (None, 16, 16, 3)
    with pytest.raises(ValueError, match="image_size goes with a built-in model"):
        run(model="run/baseline.keras", image_size=16, output_dir="other")


def test_a_model_with_nan_in_its_weights(run):
    model = small()
    kernel = model.layers[1].get_weights()
    kernel[0][0] = float("nan")
    model.layers[1].set_weights(kernel)
    save_model(model, "mine.keras")
    with pytest.raises(ValueError, match=r"NaN or infinit"):
        run(model="mine.keras")


def test_a_model_with_two_outputs(run):
    model = small()
    save_model(tf_keras.Model(model.input, [model.output, model.output]), "mine.keras")
    with pytest.raises(ValueError, match="one input and one output"):
        run(model="mine.keras")


def test_a_model_with_its_output_in_a_dict(run):
    model = small()
    save_model(tf_keras.Model(model.input, {"logits": model.output}), "mine.keras")
    with pytest.raises(ValueError, match=r"a dict with logits; save tf_keras\.Model"):
        run(model="mine.keras")


def test_a_saved_model_is_taken_as_it_is(run):
    model = small()
    save_model(model, "mine.keras")
    with pytest.raises(ValueError, match=r"no better than chance.*caffe \d.*--force"):
        run(model="mine.keras")
    assert not pathlib.Path("run/baseline.keras").exists()
    text = run(model="mine.keras", force=True)
    assert "no better than chance" in text and "going on" in text
    assert "skipped, the trained model is mine.keras" in text
    assert (
        pathlib.Path("run/baseline.keras").read_bytes() == pathlib.Path("mine.keras").read_bytes()
    )
    save_model(small(seed=1), "mine.keras")
    again = run(model="mine.keras", force=True, normalization="dataset")
    assert "the content of --model" in again


def test_a_published_baseline_is_taken_and_named(run):
    save_model(small(), "saved_models/resnet8_digits/baseline.keras")
    assert "skipped, the trained model is saved_models/resnet8_digits" in run(
        force=True, normalization="dataset"
    )
    assert "skipped" not in run(baseline="train", output_dir="other")


def test_the_baseline_of_another_run_is_taken_when_its_training_was_the_same(run):
    run(output_dir="saved_models/first")
    assert "saved_models/first/baseline.keras" in run(output_dir="second")
    assert "skipped" not in run(output_dir="third", seed=1)


def test_a_start_afresh_does_not_take_what_it_moved_aside(run):
    run(output_dir="saved_models/first")
    assert "skipped" not in run(output_dir="saved_models/first", resume=False)
    assert pathlib.Path("saved_models/first.old/baseline.keras").exists()


def test_a_run_trains_again_where_its_own_baseline_would_be_published(run):
    own = "saved_models/resnet8_digits"
    run(output_dir=own)
    assert "skipped" not in run(output_dir=own, seed=1)
    # Another run takes it as it is, and nobody takes it from there as trained with seed 2.
    assert f"{own}/baseline.keras" in run(output_dir="saved_models/second", seed=2)
    pathlib.Path(own).rename("elsewhere")
    assert "skipped" not in run(output_dir="saved_models/third", seed=2)


def test_a_folder_with_other_images_is_another_data_set(run, monkeypatch):
    monkeypatch.setattr(job, "_folder_digest", lambda folder: digest(pathlib.Path(folder)))
    for number in range(24):
        for name in "ab":
            path = pathlib.Path(f"images/{name}/{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(np.full((32, 32, 3), number, np.uint8)).numpy())
    settings = {"dataset": "folder:images", "batch_size": 8, "hessian_batch_size": 8}
    run(**settings)
    assert "done before" in run(**settings)
    path.unlink()
    assert "the content of --dataset is another" in run(**settings)


def test_where_there_are_fewer_images_all_are_ranked_on(run):
    run(hessian_batch_size=2000, criterion="taylor_fo", stages=("train", "rank"))
    scores = FilterScores.load("run/scores.npz")
    assert scores.provenance.examples == 1294


def test_a_layer_without_integer_kernel_is_said_before_training(run):
    inputs = tf_keras.Input((32, 32, 3))
    x = tf_keras.layers.Conv2D(4, 3, strides=4)(inputs)
    x = tf_keras.layers.GlobalAveragePooling2D()(tf_keras.layers.ThresholdedReLU(0.3)(x))
    save_model(tf_keras.Model(inputs, tf_keras.layers.Dense(10)(x)), "mine.keras")
    stages = ("train", "quantize")
    with pytest.raises(ValueError, match=r"is not supported in integers.*allow_float"):
        run(model="mine.keras", stages=stages)
    assert not pathlib.Path("run/baseline.keras").exists()
    run(model="mine.keras", force=True)
    pathlib.Path("run/slim.keras").write_bytes(pathlib.Path("mine.keras").read_bytes())
    with pytest.raises(ValueError, match=r"is not supported in integers.*allow_float"):
        run(model="mine.keras", stages=("finetune", "quantize"))
    assert not pathlib.Path("run/finetuned.keras").exists()
    with pytest.raises(ValueError, match="stage quantize needs"):
        run(model="mine.keras", stages=stages, allow_float=True)


def test_a_batch_that_leaves_few_steps_is_made_smaller(run):
    text = run(batch_size=100_000, train_epochs=1)
    assert "train: batches of 64 instead of 100000, for 20 steps in an epoch of 1294" in text


MOBILENET = {"model": "mobilenet", "width": 0.25, "weights": "trained.h5", "image_size": 32}


def test_a_network_of_keras_from_a_file_of_weights(run, monkeypatch):
    source = build_model("mobilenet", 3, (32, 32, 3), seed=7, width=0.25)
    with pytest.raises(FileNotFoundError, match=r"weights must be a file.*trained\.h5"):
        run(**MOBILENET)
    source.save_weights("trained.h5")
    trained, train_as = [], recipes.train_as

    def recorded(job, model, stage, checkpoints, epochs=None):
        learns = [layer.name for layer in model.layers if layer.trainable and layer.weights]
        trained.append((epochs, learns if len(learns) < 3 else len(learns), checkpoints.name))
        return train_as(job, model, stage, checkpoints, epochs=0)

    monkeypatch.setattr(recipes, "train_as", recorded)
    text = run(**MOBILENET, train_epochs=11)
    assert "conv_preds is new, for 10 classes" in text
    head, whole = trained
    assert head == (2, ["conv_preds"], "head")
    assert whole[:2] == (None, 55)
    made = load_model("run/baseline.keras")
    for one, other in zip(source.layers, made.layers, strict=True):
        if one.name != "conv_preds":
            for wanted, found in zip(one.get_weights(), other.get_weights(), strict=True):
                np.testing.assert_array_equal(found, wanted)
    figures = read_records(RunDirectory(pathlib.Path("run")))["train"].figures
    assert figures["normalization"] == "-1..1"


def test_width_and_weights_are_for_networks_by_name(run):
    save_model(small(), "mine.keras")
    for setting in ({"width": 2.0}, {"weights": "imagenet"}):
        with pytest.raises(ValueError, match="width and weights go with a network by its name"):
            run(model="mine.keras", **setting)
    with pytest.raises(ValueError, match=r"weights .* tf_keras\.applications"):
        run(weights="imagenet")


def test_how_training_changes_images_follows_their_size():
    def changes(**settings):
        config = PipelineConfig(model="resnet8", dataset="digits", **settings)
        size = config.image_size
        made = job.Job(config, RunDirectory(pathlib.Path("nowhere")), RunConsole(0))
        dataset = made.load_images((size, size, None))
        return dataset.augment, dataset.crop, dataset.flip

    assert changes() == (True, False, False)
    assert changes(image_size=63) == (True, False, False)
    assert changes(image_size=64, mirror_images=True) == (True, True, True)
    assert changes(augmentation="crop") == (True, True, False)
    assert changes(augmentation="none", image_size=64)[0] is False
