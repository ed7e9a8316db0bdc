"""Measurements on the user's own hardware: `python -m ehap_tf.benchmark NAME`."""
