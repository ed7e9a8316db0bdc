from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.sensitivity.network import hessian_batch
from ehap_tf.sensitivity.network.hessian_batch import HessianBatch


def data(count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count * 2.0).reshape(count, 2), np.arange(count)


@pytest.mark.parametrize("size", [1, 3, 10, 50, None])
@pytest.mark.parametrize("block", [1, 4, 32])
@pytest.mark.parametrize("stream", [None, 1, 3, 20])
def test_blocks_are_cut_at_fixed_places(size: int | None, block: int, stream: int | None) -> None:
    x, y = data()
    source: Any = (x, y)
    if stream:
        source = tf.data.Dataset.from_tensor_slices(source).batch(stream)
    found = list(HessianBatch(source, size).blocks(block))
    assert len(found) == -(-10 // block)
    for number, pieces in enumerate(found):
        assert pieces[0].first == number * block
        assert all(len(piece) <= min(block, size or block) for piece in pieces)
        joined = np.concatenate([piece.inputs for piece in pieces])
        np.testing.assert_array_equal(joined, x[number * block : (number + 1) * block])
        labels = np.concatenate([piece.labels for piece in pieces])
        np.testing.assert_array_equal(labels, y[number * block : (number + 1) * block])


def test_weights_travel_with_their_examples() -> None:
    x, y = data()
    found = list(HessianBatch((x, y, y / 10), 4))
    assert [batch.first for batch in found] == [0, 4, 8]
    np.testing.assert_array_equal(found[2].weights, [0.8, 0.9])
    stream = tf.data.Dataset.from_tensor_slices((x, y, y / 10)).batch(4)
    np.testing.assert_array_equal(list(HessianBatch(stream))[1].weights, [0.4, 0.5, 0.6, 0.7])


def test_data_beyond_the_memory_limit_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian_batch, "_MEMORY_LIMIT", 50)
    batch = HessianBatch(data(), 3)
    assert batch.examples == 10
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([b.labels for b in batch]), np.arange(10))


def test_a_later_pass_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian_batch, "_MEMORY_LIMIT", 50)
    passes = []

    def examples() -> Any:
        passes.append(1)
        for i in range(6):
            # The first micro-batch is always the same; the check at the start sees no difference.
            yield np.full(2, i + (len(passes) > 2 and i > 3), np.float32), i

    stream = tf.data.Dataset.from_generator(
        examples, output_signature=(tf.TensorSpec([2]), tf.TensorSpec([], tf.int64))
    )
    batch = HessianBatch(stream.batch(2))
    with pytest.raises(ValueError, match="micro-batch 2 differs"):
        list(batch)


def test_shuffled_data_are_refused() -> None:
    stream = tf.data.Dataset.from_tensor_slices(data(100)).shuffle(100).batch(10)
    with pytest.raises(ValueError, match="same examples in every pass"):
        HessianBatch(stream)


def test_a_stream_of_unknown_length_has_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehap_tf.data.arrays.ENDLESS", 6)

    def examples(count: int | None) -> tf.data.Dataset:
        def generate() -> Any:
            i = 0
            while count is None or i < count:
                yield np.zeros(2, np.float32), i
                i += 1

        signature = (tf.TensorSpec([2]), tf.TensorSpec([], tf.int64))
        return tf.data.Dataset.from_generator(generate, output_signature=signature).batch(2)

    with pytest.raises(ValueError, match="more than 6 examples"):
        HessianBatch(examples(None))
    assert HessianBatch(examples(6)).examples == 6
    told = examples(10).apply(tf.data.experimental.assert_cardinality(5))
    assert HessianBatch(told).examples == 10


def test_weights_in_a_column_or_none() -> None:
    x, y = data()
    column = next(iter(HessianBatch((x, y, y[:, np.newaxis] / 10))))
    np.testing.assert_array_equal(column.weights, y / 10)
    np.testing.assert_array_equal(next(iter(HessianBatch((x, y, None)))).weights, np.ones(10))


def test_blocks_of_a_stream_are_no_larger_than_its_batches() -> None:
    stream = tf.data.Dataset.from_tensor_slices(data(70)).batch(4)
    found = HessianBatch(stream)
    assert found.largest == 4
    assert max(len(piece) for pieces in found.blocks(32) for piece in pieces) == 4


def test_examples_of_different_sizes_are_refused() -> None:
    def generate() -> Any:
        for size in (4, 5):
            yield np.zeros((1, size, 2), np.float32), np.zeros(1)

    signature = (tf.TensorSpec([None, None, 2]), tf.TensorSpec([None]))
    stream = tf.data.Dataset.from_generator(generate, output_signature=signature)
    with pytest.raises(ValueError, match=r"inputs of one shape. Received: \[\(5, 2\)\].*example 1"):
        HessianBatch(stream)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "data must be given"),
        ((np.zeros((0, 2)), np.zeros(0)), "empty"),
        ((np.array([[1.0, np.nan]]), np.zeros(1)), "finite"),
        ((np.zeros((2, 2)), np.zeros(2), np.array([1.0, -1.0])), "not negative"),
        ((np.zeros((2, 2)), np.zeros(2), np.array([1.0, np.nan])), "finite"),
        ((np.zeros((2, 2)), np.zeros(2), np.zeros(2)), "above 0 for some example"),
        (tf.data.Dataset.from_tensors((np.zeros((2, 2)), np.zeros(2))).repeat(), "endless"),
        (tf.data.Dataset.from_tensors((np.zeros((2, 2)), np.zeros(2))).take(0), "empty"),
    ],
)
def test_bad_data(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HessianBatch(bad)
