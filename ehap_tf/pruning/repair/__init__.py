"""Repair by least squares: kernels of a slim network solved again for the dense one's outputs."""

from ehap_tf.pruning.repair.repairing import repair

__all__ = ["repair"]
