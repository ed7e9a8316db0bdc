import pathlib
import re
import weakref

import numpy as np
import tensorflow as tf
import tf_keras

import ehap_tf
from ehap_tf.graph import arguments, nodes_in_order, operator_symbol, propagate, replay

layers = tf_keras.layers


def several_ways():
    """Two inputs and outputs in dicts; a shared layer, a tensor read twice, one by keyword."""
    a, b = layers.Input((4,), name="a"), layers.Input((4,), name="b")
    shared = layers.Dense(4, name="shared")
    twice = layers.Concatenate(name="twice")([shared(a), b, shared(a)])
    masked = tf.where(condition=b > 0, x=shared(b), y=a)
    halves = tf.split(twice, 2, axis=-1)
    outputs = {"sum": layers.Add(name="total")([masked, a, a]), "half": halves[1]}
    return tf_keras.Model({"a": a, "b": b}, outputs)


def test_calls_repeated_on_numbers_give_what_the_model_does():
    model = several_ways()
    x = [np.random.default_rng(n).normal(size=(3, 4)).astype(np.float32) for n in range(2)]
    outputs = replay(model, list(map(tf.constant, x)), lambda layer, args, kw: layer(*args, **kw))
    expected = model(dict(zip("ab", x, strict=True)))
    for found, name in zip(outputs, sorted(expected), strict=True):
        np.testing.assert_array_equal(found, expected[name])


def test_values_of_any_kind_are_carried_in_the_order_of_the_inputs():
    def path(node, given):
        name = operator_symbol(node.layer) or node.layer.name
        return [f"{name}({','.join(given)})"] * len(tf.nest.flatten(node.outputs))

    half, total = propagate(several_ways(), ["a", "b"], path)
    assert half == "split(twice(shared(a),b,shared(a)))"
    assert total.startswith("total(where(") and total.endswith(",shared(b),a),a,a)")


def test_a_tensor_read_twice_can_become_two_others():
    (node,) = (n for n in nodes_in_order(several_ways()) if n.layer.name == "total")
    ((tensors,), kwargs) = arguments(node, [1, 2, 3])
    assert (tensors, kwargs) == ([1, 2, 3], {})


def test_a_value_is_dropped_after_its_last_reader():
    class Value:
        pass

    inputs = x = layers.Input((1,))
    for _ in range(4):
        x = layers.ReLU()(x)
    model, alive = tf_keras.Model(inputs, x), []

    def visit(node, given):
        del given
        assert sum(each() is not None for each in alive) <= 1
        made = Value()
        alive.append(weakref.ref(made))
        return [made]

    first = Value()
    assert [type(value) for value in propagate(model, [first], visit)] == [Value]


def test_keras_nodes_are_named_in_one_room():
    root = pathlib.Path(ehap_tf.__file__).parent
    private = re.compile("_nodes_by_depth|_keras_history|_inbound_nodes|map_arguments")
    naming = {
        path.relative_to(root) for path in root.rglob("*.py") if private.search(path.read_text())
    }
    assert {path.parts[0] for path in naming} == {"graph"}
