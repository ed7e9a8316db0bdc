"""Times of operators: what is timed, how a table is read, and that it travels."""

from __future__ import annotations

import ast
import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.benchmark.__main__ import main
from ehap_tf.budget import operator_timing
from tests.budget.nets import NETS, exported

layers = tf_keras.layers
SHIPPED = pathlib.Path(__file__).parents[2] / "saved_models/resnet32_cifar10/model_int8.tflite"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> pathlib.Path:
    inputs = layers.Input((16, 16, 3))
    x = layers.Conv2D(24, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(24, 3, padding="same")(x)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, 2)(x))
    model = tf_keras.Model(inputs, layers.Dense(10)(x))
    return exported(model, tmp_path_factory.mktemp("file") / "net.tflite")[0].path


@pytest.fixture(scope="module")
def table(file) -> ehap.LatencyTable:
    return ehap.measure_operators(file, rounds=3)


def test_a_table_predicts_the_network_that_it_was_made_for(file, table):
    assert table.predict_ms(file) == pytest.approx(table.network_ms)
    assert table.network_ms > 0.0 and table.device and table.untimed == []
    kinds = {json.loads(family)["kind"] for family in table.families}
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN"} <= kinds
    grids = {
        json.loads(text)["kind"]: family["widths"]
        for text, family in table.families.items()
        if json.loads(text)["output"] == [1, 16, 16]
    }
    # One family of convolutions: the first reads 3 channels, the second 24.
    assert grids["CONV_2D"] == [[3, 8, 16, 24], [8, 16, 24]] and grids["ADD"] == [[8, 16, 24]]


def test_it_travels_as_json(table):
    again = ehap.LatencyTable.from_json(table.to_json())
    assert dataclasses.asdict(again) == dataclasses.asdict(table)
    with pytest.raises(ValueError, match="latency table"):
        ehap.LatencyTable.from_json("{}")


@pytest.mark.parametrize("make", NETS)
def test_every_operator_of_a_network_is_timed(file_of, make):
    _, file, _ = file_of(make)
    table = ehap.measure_operators(file.path, rounds=1)
    assert table.untimed == []
    assert table.predict_ms(file.path) == pytest.approx(table.network_ms)


def test_between_its_widths_a_table_interpolates_full_blocks_of_eight():
    found = [op for op in operator_timing.operators(SHIPPED) if len(op.widths) == 2]
    (one,) = (op for op in found if json.loads(op.family)["groups"] == 1 and op.place == 0)
    values = [[10.0, 20.0], [30.0, 50.0]]
    table = {
        "constant_ms": 1.0,
        "families": {one.family: {"widths": [[8, 16], [8, 24]], "ms": np.ravel(values).tolist()}},
    }

    def predicted(*widths: int) -> float:
        return operator_timing.predicted_ms(table, [dataclasses.replace(one, widths=widths)])

    assert predicted(8, 8) == 11.0 and predicted(16, 24) == 51.0
    assert predicted(8, 16) == 16.0 and predicted(8, 9) == predicted(8, 16)
    assert predicted(16, 16) == 41.0
    assert predicted(24, 24) == 81.0  # Beyond the grid the line goes on.


def test_surgery_may_bring_operators_that_the_table_does_not_have(table, tmp_path):
    inputs = layers.Input((16, 16, 3))
    x = layers.Conv2D(24, 1, activation="relu")(inputs)
    x = layers.ZeroPadding2D()(x)
    net = tf_keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    file, _ = exported(net, tmp_path / "other.tflite")
    # The 1x1 convolution is a ninth of a 3x3 one.
    assert table.constant_ms < table.predict_ms(file.path) < table.network_ms
    transposed = tf_keras.Model(inputs, layers.Conv2DTranspose(4, 2, 2)(inputs))
    file, _ = exported(transposed, tmp_path / "transposed.tflite")
    with pytest.raises(ValueError, match=r"has no operator TRANSPOSE_CONV: .* another network"):
        table.predict_ms(file.path)


def test_the_script_stands_alone(file, tmp_path):
    source = pathlib.Path(operator_timing.__file__)
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported - sys.stdlib_module_names == {"numpy", "flatbuffers", "ai_edge_litert"}
    output = tmp_path / "table.json"
    operator_timing.main([str(file), f"--output={output}", "--rounds=1"])
    table = ehap.LatencyTable.from_json(output.read_text())
    assert table.threads == 1 and table.predict_ms(file) == pytest.approx(table.network_ms)


def test_the_command_times_a_file(file, tmp_path, capfd):
    output = tmp_path / "table.json"
    assert main(["operators", f"--model={file}", "--rounds=1", f"--output={output}"]) == 0
    assert "its operators one by one" in capfd.readouterr().out
    assert ehap.LatencyTable.from_json(output.read_text()).families
