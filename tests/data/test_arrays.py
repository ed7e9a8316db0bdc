from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from ehap_tf.data import as_dataset, check_labels, count_batches

X = np.arange(14, dtype=np.float32).reshape(7, 2)
Y = np.arange(7)


def test_arrays_become_batches_in_order():
    batches = [(x.numpy(), y.numpy()) for x, y in as_dataset((X, Y), 3)]
    assert [len(y) for _, y in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), Y)


def test_a_model_with_several_inputs():
    (first, second), y = next(iter(as_dataset(((X, X + 1), Y), 4)))
    assert first.shape == second.shape == (4, 2)
    assert y.shape == (4,)


def test_a_dataset_passes_through_and_can_be_batched_anew():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    assert [len(y) for _, y in as_dataset(data)] == [2, 2, 2, 1]
    assert [len(y) for _, y in as_dataset(data, 5)] == [5, 2]


def test_batches_are_counted_until_the_stream_is_taken_for_endless(monkeypatch):
    def rows(count):
        for i in itertools.count() if count is None else range(count):
            yield X[i % 7], i

    def stream(count):
        signature = (tf.TensorSpec([2]), tf.TensorSpec([], tf.int64))
        generated = tf.data.Dataset.from_generator(lambda: rows(count), output_signature=signature)
        return generated.batch(2)

    assert count_batches(as_dataset((X, Y), 3)) == 3
    monkeypatch.setattr("ehap_tf.data.arrays.ENDLESS", 6)
    assert count_batches(stream(6)) == 3
    with pytest.raises(ValueError, match=r"images must end.*6 examples; .*images\.take\(batches\)"):
        count_batches(stream(None), "images")
    told = stream(None).apply(tf.data.experimental.assert_cardinality(5))
    assert count_batches(told) == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:0], Y[:0]), "empty"),
        ((X, Y[:3]), r"as many examples. Received: \[7, 3\]"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).repeat(), "endless"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).take(0), "empty"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).filter(lambda x, y: False), "empty"),
        (tf.data.Dataset.from_tensor_slices(X).batch(2), "pairs"),
        (tf.data.Dataset.from_tensor_slices((X, Y)), "batched"),
        (
            tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(2),
            r"map\(lambda e: \(e\['image'\], e\['label'\]\)\)",
        ),
        ((X[0], tf.constant(0)), "the scalar 0"),
        ((X[0], Y[0]), r"scalar 0; give one example a batch axis, \(x\[None\]"),
    ],
    ids=[
        "empty",
        "lengths",
        "endless",
        "none",
        "filtered",
        "unlabelled",
        "unbatched",
        "dictionaries",
        "one label",
        "one example",
    ],
)
def test_unusable_data_is_refused(data, message: str):
    with pytest.raises(ValueError, match=message):
        as_dataset(data)


def test_another_type_is_refused():
    with pytest.raises(TypeError, match=r"pair .* Received: tuple of 3"):
        as_dataset((X, Y, Y))


def test_the_message_names_the_argument():
    with pytest.raises(TypeError, match=r"validation_data must be a pair .* Received: NoneType"):
        as_dataset(None, name="validation_data")


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ((X.astype(str), Y), "str"),
        ((X, Y.astype(str)), "str"),
        ((X.astype(object), Y), "object"),
        ((X, Y.astype("datetime64[s]")), "datetime64"),
        (tf.data.Dataset.from_tensor_slices((X, Y.astype(str))).batch(2), "string"),
    ],
    ids=["inputs", "labels", "objects", "dates", "dataset"],
)
def test_what_is_no_number_is_refused(data, dtype: str):
    with pytest.raises(TypeError, match=f"must hold numbers. Received: dtype {dtype}"):
        as_dataset(data)


def test_lists_of_numbers_are_arrays():
    x, y = next(iter(as_dataset((X.tolist(), Y.tolist()), 7)))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    inputs, _ = next(iter(as_dataset(({"a": X.tolist(), "b": X}, Y), 7)))
    np.testing.assert_array_equal(inputs["a"], X)


@pytest.mark.parametrize("labels", [[0, 10], [-1, 2]])
def test_labels_out_of_range(labels: list[int]):
    with pytest.raises(ValueError, match=rf"0 to 9.*Received: {min(labels)} to {max(labels)}"):
        check_labels(np.array(labels), 10)


def test_labels_in_range_and_whole_floats_pass():
    check_labels(np.arange(10), 10)
    check_labels(np.arange(10.0), 10)


def test_labels_with_fractions():
    with pytest.raises(ValueError, match="whole numbers"):
        check_labels(np.array([0.5]), 10)


def test_a_list_of_arrays_is_several_inputs_or_outputs():
    """As in `model.fit`; a tf.data.Dataset would make one tensor of it, or fail."""
    x, y = [np.zeros((4, 2)), np.zeros((4, 3))], [np.arange(4), np.zeros((4, 1))]
    inputs, labels = next(iter(as_dataset((x, y), 4)))
    assert [part.shape for part in inputs] == [(4, 2), (4, 3)]
    assert [part.shape for part in labels] == [(4,), (4, 1)]
