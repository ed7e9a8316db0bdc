"""Images that are read when they are wanted, for sets that do not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ehap_tf.data.sizes import tensor_of_shape


class ImageFiles:
    """Images of one shape in files, in the place of an array of them.

    It has an array's `shape`, `dtype` and `ndim`; a part of it (`images[3:9]`, `images[indices]`)
    is of the same kind, and `np.asarray` reads all of it.

    Args:
        paths: of JPEG, PNG, BMP or GIF files.
        shape: (height, width, channels) that each image is brought to.
        resize: how, see `image_of_shape`.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, paths: Sequence[str] | np.ndarray, shape: tuple[int, int, int], resize: str = "crop"
    ) -> None:
        self.paths = np.asarray(paths, dtype=object)
        self.shape = (len(self.paths), *shape)
        self._resize = resize

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: Any) -> ImageFiles:
        return ImageFiles(self.paths[which], self.shape[1:], self._resize)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = np.empty(self.shape, np.uint8)
        files = tf.data.Dataset.from_tensor_slices(tf.constant(list(self.paths), tf.string))
        stream = files.map(self.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        for number, image in enumerate(stream.as_numpy_iterator()):
            found[number] = image
        return found if dtype is None else found.astype(dtype)

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} files, {'x'.join(map(str, self.shape[1:]))})"

    def read(self, path: tf.Tensor) -> tf.Tensor:
        """The image in one file, uint8 of the shape."""
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, 3))
        return tensor_of_shape(image, self.shape[1:], self._resize)

    def read_batch(self, paths: tf.Tensor) -> tf.Tensor:
        """The images in some files, uint8, shape (files, height, width, channels)."""
        spec = tf.TensorSpec(self.shape[1:], tf.uint8)
        return tf.map_fn(self.read, paths, fn_output_signature=spec)
