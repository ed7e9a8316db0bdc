"""What the model sees: data sets by name, augmentation, and streams of batches."""

from ehap_tf.data.arrays import (
    DEFAULT_BATCH_SIZE,
    as_arrays,
    as_dataset,
    check_labels,
    count_batches,
    example_weights,
    has_weights,
    only_array,
    require_end,
)
from ehap_tf.data.batches import (
    FEWEST_STEPS,
    evaluation_batches,
    fitting_batch,
    sample_arrays,
    steps_per_epoch,
    training_batches,
)
from ehap_tf.data.catalogue import DATASET_NAMES, load_dataset
from ehap_tf.data.image_dataset import ImageDataset, Split
from ehap_tf.data.image_files import ImageFiles
from ehap_tf.data.normalization import (
    CONVENTIONS,
    conventions_for,
    formula,
    in_convention,
    normalize,
)
from ehap_tf.data.sizes import RESIZES, Shape, image_of_shape, images_of_shape

__all__ = [
    "CONVENTIONS",
    "DATASET_NAMES",
    "DEFAULT_BATCH_SIZE",
    "FEWEST_STEPS",
    "RESIZES",
    "ImageDataset",
    "ImageFiles",
    "Shape",
    "Split",
    "as_arrays",
    "as_dataset",
    "check_labels",
    "conventions_for",
    "count_batches",
    "evaluation_batches",
    "example_weights",
    "fitting_batch",
    "formula",
    "has_weights",
    "image_of_shape",
    "images_of_shape",
    "in_convention",
    "load_dataset",
    "normalize",
    "only_array",
    "require_end",
    "sample_arrays",
    "steps_per_epoch",
    "training_batches",
]
