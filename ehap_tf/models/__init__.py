"""Networks by name and by path, and the same network under another precision."""

from ehap_tf.models.zoo import MODEL_NAMES, build_model

__all__ = ["MODEL_NAMES", "build_model"]
