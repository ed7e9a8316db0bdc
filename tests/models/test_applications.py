"""Networks of tf_keras.applications by name, and weights of a file for them."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf import data
from ehap_tf.models import APPLICATIONS, load_imagenet, load_pretrained
from ehap_tf.models.networks.applications import build_application


@pytest.fixture(scope="module")
def small():
    return build_application("mobilenet_v2", 5, (32, 32, 3), 3, 0.35)


def test_every_network_of_keras_has_a_name():
    functions = inspect.getmembers(tf_keras.applications, inspect.isfunction)
    assert {name for name, _ in functions} == {known.builder for known in APPLICATIONS.values()}
    assert len(APPLICATIONS) == len(functions)
    assert {known.normalization for known in APPLICATIONS.values()} <= set(data.CONVENTIONS)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenet_v2", "mobilenet_v2"), ("resnet50", "resnet"), ("resnet50_v2", "resnet_v2"),
        ("vgg19", "vgg19"), ("densenet121", "densenet"), ("efficientnet_b0", "efficientnet"),
        ("mobilenet_v3_small", "mobilenet_v3"), ("inception_v3", "inception_v3"),
        ("xception", "xception"), ("nasnet_mobile", "nasnet"), ("convnext_tiny", "convnext"),
        ("regnet_x002", "regnet"), ("resnet_rs50", "resnet_rs"), ("mobilenet", "mobilenet"),
        ("efficientnet_v2_b0", "efficientnet_v2"), ("vgg16_applications", "vgg16"),
        ("inception_resnet_v2", "inception_resnet_v2"),
    ],
)  # fmt: skip
def test_the_normalisation_is_that_of_preprocess_input(name, module):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    split = data.Split(pixels[None], np.zeros(1, np.int64))
    dataset = data.ImageDataset(
        "some", split, split, split, 1, ("a",), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    )
    wanted = getattr(tf_keras.applications, module).preprocess_input(pixels.astype(np.float32))
    known = data.in_convention(dataset, APPLICATIONS[name].normalization)
    np.testing.assert_allclose(data.normalize(pixels, known), wanted, atol=1e-3)


def test_a_network_by_name_ends_in_logits_of_the_classes(small):
    model = ehap.build_model("mobilenet_v2", 5, (32, 32, 3), seed=3, width=0.35)
    assert model.output_shape == (None, 5)
    assert model.layers[-1].activation is tf_keras.activations.linear
    for one, other in zip(model.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_hang_on_the_seed_alone(small):
    tf.random.set_seed(1)
    other = build_application("mobilenet_v2", 5, (32, 32, 3), 4, 0.35)
    kernels = [
        (a, b) for a, b in zip(small.weights, other.weights, strict=True) if "kernel" in a.name
    ]
    assert len(kernels) == 53
    assert all(np.any(a.numpy() != b.numpy()) for a, b in kernels)
    tf.random.set_seed(1)
    before = tf.random.uniform([3]).numpy()
    tf.random.set_seed(1)
    build_application("mobilenet", 2, (32, 32, 3), 0, 0.25)
    np.testing.assert_array_equal(tf.random.uniform([3]).numpy(), before)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("classes", [5, 7])
def test_weights_of_a_file_and_a_new_head(small, tmp_path, suffix, classes):
    path = tmp_path / f"trained{suffix}"
    (small.save_weights if suffix == ".h5" else small.save)(path)
    model = build_application("mobilenet_v2", classes, (32, 32, 3), 9, 0.35)
    head = model.layers[-1].get_weights()
    assert load_pretrained(model, path) == ([] if classes == 5 else ["predictions"])
    for one, other in zip(small.layers[:-1], model.layers[:-1], strict=True):
        for wanted, found in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(found, wanted)
    wanted = small.layers[-1].get_weights() if classes == 5 else head
    np.testing.assert_array_equal(model.layers[-1].get_weights()[0], wanted[0])


def test_weights_of_another_network_are_refused_and_nothing_is_lost(small, tmp_path):
    small.save_weights(tmp_path / "other.h5")
    model = build_application("mobilenet", 5, (32, 32, 3), 0, 0.25)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"not those of mobilenet.*55 of 55 layers got none"):
        load_pretrained(model, tmp_path / "other.h5")
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(FileNotFoundError, match=r"weights must be a file.*nowhere\.h5"):
        load_pretrained(model, "nowhere.h5")


def test_weights_of_imagenet_where_there_is_no_network(small, monkeypatch):
    def offline(**_):
        raise Exception("URL fetch failure on https://...: None -- no route")

    monkeypatch.setattr(tf_keras.applications, "MobileNetV2", offline)
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(URL fetch.*--weights=PATH"):
        load_imagenet(small, "mobilenet_v2")


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"built-in networks and mobilenet, .*Received: resnet50"):
        ehap.build_model("resnet50", input_shape=(32, 32, 3), width=2)
    with pytest.raises(
        ValueError, match=r"width must be an integer of at least 1\. Received: 0\.5"
    ):
        ehap.build_model("resnet8", width=0.5)
    with pytest.raises(ValueError, match=r"nasnet_mobile cannot be built.*16, 16"):
        ehap.build_model("nasnet_mobile", input_shape=(16, 16, 3))
    with pytest.raises(ValueError, match=r"tf_keras\.applications: mobilenet, .*'mobilenet_v9'"):
        ehap.build_model("mobilenet_v9")
