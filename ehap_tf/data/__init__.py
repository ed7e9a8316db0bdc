"""What the model sees: data sets by name, augmentation, and streams of batches."""

from ehap_tf.data.arrays import (
    as_arrays,
    as_dataset,
    check_labels,
    count_batches,
    example_weights,
    has_weights,
    only_array,
    require_end,
)
from ehap_tf.data.augmentation import normalize
from ehap_tf.data.batches import (
    evaluation_batches,
    sample_arrays,
    steps_per_epoch,
    training_batches,
)
from ehap_tf.data.catalogue import DATASET_NAMES, load_dataset
from ehap_tf.data.image_dataset import ImageDataset, Split

__all__ = [
    "DATASET_NAMES",
    "ImageDataset",
    "Split",
    "as_arrays",
    "as_dataset",
    "check_labels",
    "count_batches",
    "evaluation_batches",
    "example_weights",
    "has_weights",
    "load_dataset",
    "normalize",
    "only_array",
    "require_end",
    "sample_arrays",
    "steps_per_epoch",
    "training_batches",
]
