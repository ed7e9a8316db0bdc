import pytest
import tf_keras

from ehap_tf.channels import trace_channels
from ehap_tf.graph import layer_paths

layers = tf_keras.layers


def backbone_beside(name):
    """A layer of that name behind a model "backbone" that has a layer "conv1"."""
    backbone = tf_keras.Sequential(
        [layers.Input((6, 6, 3)), layers.Conv2D(4, 3, name="conv1")], name="backbone"
    )
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(2, 3, name=name)(backbone(inputs))
    return tf_keras.Model(inputs, layers.Flatten()(x), name="whole")


def test_a_path_begins_with_the_models_around_a_layer():
    model = backbone_beside("conv1")
    paths = layer_paths(model)
    assert paths[id(model.get_layer("conv1"))] == "conv1"
    assert paths[id(model.get_layer("backbone").get_layer("conv1"))] == "backbone/conv1"
    assert set(trace_channels(model).ids.atoms) == {"conv1", "backbone/conv1"}


def test_two_layers_of_one_path_are_refused():
    with pytest.raises(ValueError, match="Received: 'backbone/conv1'") as caught:
        trace_channels(backbone_beside("backbone/conv1"))
    for place in ("'backbone/conv1' of model 'whole'", "'conv1' of model 'backbone'"):
        assert f"layer {place}" in str(caught.value)
