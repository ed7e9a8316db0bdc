"""VGG-16 for CIFAR: 13 convolutions with batch normalisation and one linear layer."""

from __future__ import annotations

import tf_keras

from ehap_tf.models.networks.blocks import Blocks

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def build_vgg16(
    num_classes: int,
    input_shape: tuple[int, int, int],
    seed: int,
    width: int = 1,
    name: str | None = None,
) -> tf_keras.Model:
    """Builds the CIFAR form of VGG-16 (Simonyan and Zisserman, arXiv 1409.1556), as HAP prunes it.

    Args:
        num_classes: number of logits.
        input_shape: (height, width, channels), at least 16 pixels on each side.
        seed: fixes the initial weights.
        width: multiplies the channels of every layer.
        name: the model's name.
    """
    blocks = Blocks(seed)
    inputs = x = tf_keras.Input(input_shape, name="image")
    for stage, convolutions in enumerate(STAGES, start=1):
        if stage > 1:
            x = tf_keras.layers.MaxPooling2D(2, name=f"stage{stage}_downsample")(x)
        for number, filters in enumerate(convolutions, start=1):
            block = f"stage{stage}_{number}"
            x = blocks.convolution(x, filters * width, 3, 1, f"{block}_conv")
            x = blocks.normalized_relu(x, block)
    return tf_keras.Model(inputs, blocks.logits(x, num_classes), name=name)
