"""Keras 3 models in, Keras 3 models out: the rest of the package computes with tf_keras.

Nothing here imports Keras 3 before a Keras 3 model is there or TensorFlow has loaded it anyway.
"""

from ehap_tf.models.keras3.boundary import either_keras
from ehap_tf.models.keras3.detection import is_keras3_model, register_layers
from ehap_tf.models.keras3.from_keras3 import to_tf_keras
from ehap_tf.models.keras3.to_keras3 import to_keras3

__all__ = ["either_keras", "is_keras3_model", "register_layers", "to_keras3", "to_tf_keras"]
