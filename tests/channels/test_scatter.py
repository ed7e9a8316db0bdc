import numpy as np
import pytest

from ehap_tf.channels import ScatterChannels


def test_places_channels_and_zeros_elsewhere():
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3) + 1
    y = np.asarray(ScatterChannels([4, 0, 2], 5)(x))
    truth = np.zeros((2, 2, 5))
    truth[..., [4, 0, 2]] = x
    assert (y == truth).all()


@pytest.mark.parametrize("positions", [[0, 0], [0, 5], [-1, 1]])
def test_bad_positions(positions):
    with pytest.raises(ValueError, match="distinct and in"):
        ScatterChannels(positions, 5)


def test_wrong_width_names_the_layer():
    with pytest.raises(ValueError, match="'s' expects 2 input channels"):
        ScatterChannels([0, 1], 5, name="s")(np.zeros((1, 3), np.float32))


def test_config_round_trip():
    layer = ScatterChannels([1, 3], 5, name="s")
    again = ScatterChannels.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
