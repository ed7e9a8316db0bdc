"""The curves of a training as TensorBoard reads them."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import tensorflow as tf

from ehap_tf.pipeline.training.fitting import EpochLog

# What tensorboard's scalar plugin looks for: `tf.summary.scalar` needs the tensorboard package,
# which is for people who want to look, not for this one.
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class="DATA_CLASS_SCALAR",
)


@contextlib.contextmanager
def epoch_log(folder: pathlib.Path | None) -> Iterator[EpochLog]:
    """A function that writes the figures of whole epochs to `folder`, or nowhere when it is None.

    The folder starts empty: a training that goes on reports its past epochs, too, and the points
    of an epoch that was lost with a killed process would stand there twice.
    """
    if folder is None:
        yield lambda figures: None
        return
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))

    def log(figures: Mapping[str, float]) -> None:
        with writer.as_default(step=int(figures["epoch"])):
            for name, value in figures.items():
                if name != "epoch":
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=_SCALAR)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()
