"""The devices of a job: the strategy that a flag names, and how a batch is divided among them."""

from __future__ import annotations

import tensorflow as tf

from ehap_tf.pipeline.training.workers import require_cluster


def make_strategy(name: str) -> tf.distribute.Strategy | None:
    """The `tf.distribute` strategy that `--strategy` names; None for the default device.

    That of several processes has to be made before anything else uses TensorFlow.

    Raises:
        ValueError: TF_CONFIG does not say where the workers are.
    """
    if name == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    require_cluster()
    return tf.distribute.MultiWorkerMirroredStrategy()


def divided_batch(batch_size: int, strategy: tf.distribute.Strategy | None) -> str:
    """How a batch is divided, in words; empty for one device."""
    devices = 1 if strategy is None else strategy.num_replicas_in_sync
    if devices == 1:
        return ""
    each = f"{batch_size / devices:g}"
    return (
        f"{each} images on each of {devices} devices, whose BatchNorm statistics are those of "
        "their own images; the learning rate is not scaled with the number of devices"
    )


def distributed_batches(
    stream: tf.data.Dataset, batch_size: int, strategy: tf.distribute.Strategy
) -> tf.data.Dataset:
    """Divides every batch of `stream` among the devices of a strategy.

    Every process reads the whole stream and keeps its devices' rows of each batch, so that a step
    sees the same images however many devices there are.

    Raises:
        ValueError: there are more devices than images in a batch.
    """
    devices = strategy.num_replicas_in_sync
    if batch_size < devices:
        raise ValueError(
            f"batch_size must be at least the number of devices, {devices}. Received: {batch_size}"
        )

    def of_this_process(context: tf.distribute.InputContext) -> tf.data.Dataset:
        if devices == 1:
            return stream
        own = devices // context.num_input_pipelines
        first = context.input_pipeline_id * own

        def pieces(images: tf.Tensor, labels: tf.Tensor) -> tf.data.Dataset:
            def piece(device: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                rows = slice(batch_size * device // devices, batch_size * (device + 1) // devices)
                return images[rows], labels[rows]

            return tf.data.Dataset.range(first, first + own).map(piece)

        return stream.flat_map(pieces).prefetch(2)

    return strategy.distribute_datasets_from_function(of_this_process)
