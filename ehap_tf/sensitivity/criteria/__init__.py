"""What a filter is worth: one criterion per module. `ehap_tf.criteria` is the list of them."""

from ehap_tf.sensitivity.criteria.request import Request, Result

__all__ = ["Request", "Result"]
