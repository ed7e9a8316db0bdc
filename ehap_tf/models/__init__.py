"""Networks by name and by path, under another precision, and in the other Keras."""

from ehap_tf.models.checks import (
    require_finite_weights,
    require_functional,
    require_inputs,
    require_loaded,
    require_rankable,
    weights_that_are_not_finite,
)
from ehap_tf.models.cloning import clone_with_policy, copy_model
from ehap_tf.models.keras3 import either_keras, is_keras3_model, to_keras3, to_tf_keras
from ehap_tf.models.networks.applications import APPLICATIONS, load_imagenet, load_pretrained
from ehap_tf.models.networks.built_in import MODEL_NAMES, build_model
from ehap_tf.models.outputs import Readout, ends_in_sigmoid, ends_in_softmax, output_names
from ehap_tf.models.precision import PRECISIONS, policy_of, resolve_precision
from ehap_tf.models.saving import load_model, save_model

__all__ = [
    "APPLICATIONS",
    "MODEL_NAMES",
    "PRECISIONS",
    "Readout",
    "build_model",
    "clone_with_policy",
    "copy_model",
    "either_keras",
    "ends_in_sigmoid",
    "ends_in_softmax",
    "is_keras3_model",
    "load_imagenet",
    "load_model",
    "load_pretrained",
    "output_names",
    "policy_of",
    "require_finite_weights",
    "require_functional",
    "require_inputs",
    "require_loaded",
    "require_rankable",
    "resolve_precision",
    "save_model",
    "to_keras3",
    "to_tf_keras",
    "weights_that_are_not_finite",
]
