"""Correlation with the oracle: the coefficients, what is left out, and going on after a kill."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tf_keras

from ehap_tf.benchmark.__main__ import main
from ehap_tf.benchmark.measuring import contenders
from ehap_tf.benchmark.measuring.contenders import removable
from ehap_tf.benchmark.ranking.correlation import compare
from ehap_tf.sensitivity import FilterScores, Provenance
from tests.pruning.nets import shake
from tests.sensitivity.networks import residual_net


def scores_of(signed: dict[str, list[float]]) -> FilterScores:
    values = {name: np.array(numbers) for name, numbers in signed.items()}
    return FilterScores(
        {name: np.abs(v) for name, v in values.items()}, Provenance("oracle"), signed=values
    )


def test_coefficients_signed_and_absolute_by_layer_and_overall() -> None:
    oracle = scores_of({"a": [-3.0, 1.0, 2.0], "b": [4.0], "end": [9.0, -9.0]})
    monotone = scores_of({"a": [-27.0, 1.0, 8.0], "b": [64.0], "end": [0.0, 0.0]})
    rows = {row["layer"]: row for row in compare("cubes", monotone, oracle, ["a", "b"])}
    assert list(rows) == ["all", "a", "b"]
    assert rows["all"]["spearman signed"] == pytest.approx(1)
    assert rows["all"]["kendall absolute"] == pytest.approx(1)
    assert 0.5 < rows["all"]["pearson signed"] < 0.999
    assert rows["b"]["spearman signed"] is None  # one filter has no correlation
    magnitudes = FilterScores({"a": np.array([1.0, 2.0, 3.0])}, Provenance("other"))
    (row, _) = compare("other", magnitudes, oracle, ["a"])
    assert row["spearman signed"] == pytest.approx(1.0)
    assert row["spearman absolute"] == pytest.approx(-0.5)


def test_the_classifier_cannot_be_removed() -> None:
    model = residual_net(dtype="float32")
    assert removable(model, ["first", "second", "classifier"]) == ["first", "second"]


def test_a_criterion_that_refuses_is_left_out_and_a_name_is_checked_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tf_keras.layers.Input((6, 6, 2))
    x = tf_keras.layers.Flatten()(tf_keras.layers.Conv2D(3, 3, name="conv")(inputs))
    tf_keras.Model(inputs, tf_keras.layers.Dense(4)(x)).save(tmp_path / "net.keras")
    arguments = [
        "correlation",
        f"--model={tmp_path / 'net.keras'}",
        "--dataset=noise",
        "--examples=12",
        f"--output={tmp_path / 'correlation.json'}",
        "--criteria",
        "bn_scale",
        "magnitude",
    ]
    assert main(arguments) == 0
    reason = "criterion 'bn_scale' needs layers that are followed by a BatchNormalization"
    assert f"bn_scale: refused: {reason}" in capsys.readouterr().out
    rows = json.loads((tmp_path / "correlation.json").read_text())["rows"]
    overall = {row["criterion"]: row for row in rows if row["layer"] == "all"}
    assert list(overall) == ["oracle", "magnitude", "bn_scale"]
    assert overall["bn_scale"]["refused"].startswith(reason)
    assert overall["magnitude"]["filters"] == 3 and "refused" not in overall["magnitude"]
    assert reason in (tmp_path / "correlation.md").read_text()

    def measured(*arguments: object, **options: object) -> None:
        raise AssertionError("measured before the names are checked")

    monkeypatch.setattr("ehap_tf.benchmark.ranking.correlation.oracle_importance", measured)
    assert main([*arguments[:4], "--criteria", "magnitude", "hesian_trace"]) == 1
    assert "Received: 'hesian_trace'" in capsys.readouterr().err


def test_the_command_goes_on_where_it_was(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = residual_net(dtype="float32")
    model.save(tmp_path / "net.keras")
    out = tmp_path / "correlation.json"
    arguments = [
        "correlation",
        f"--model={tmp_path / 'net.keras'}",
        "--dataset=noise",
        "--examples=12",
        f"--output={out}",
        "--criteria",
        "quadratic",
        "magnitude",
    ]
    assert main(arguments) == 0
    content = json.loads(out.read_text())
    rows = {(row["criterion"], row["layer"]): row for row in content["rows"]}
    assert rows["quadratic", "all"]["filters"] == 6
    assert rows["quadratic", "all"]["spearman signed"] > 0.7
    assert rows["quadratic", "first"]["filters"] == 3
    assert rows["oracle", "all"]["seconds"] > 0
    assert out.with_suffix(".png").read_bytes()[1:4] == b"PNG"

    def again(*arguments: object, **options: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr("ehap_tf.benchmark.ranking.correlation.oracle_importance", again)
        with patched.context() as ranking_too:
            ranking_too.setattr(contenders, "rank_filters", again)
            assert main(arguments) == 0
        assert json.loads(out.read_text())["rows"] == content["rows"]
        # Fewer probes are another ranking, and the same oracle.
        assert main([*arguments, "--probes=5"]) == 0
    fewer = json.loads(out.read_text())
    assert fewer["rows"][0] == content["rows"][0] and fewer["rows"] != content["rows"]
    assert fewer["model_digest"] == content["model_digest"] and len(fewer["model_digest"]) == 16
    # Another network has an oracle of its own, although the folder is the same.
    shake(residual_net(dtype="float32"), 1).save(tmp_path / "net.keras")
    assert (
        main(
            [
                *arguments,
                f"--rankings={out.with_name('correlation_records') / 'rankings'}",
                f"--records={tmp_path / 'other'}",
            ]
        )
        == 0
    )
    other = json.loads(out.read_text())
    assert other["model_digest"] != content["model_digest"]
    (quadratic,) = [
        row for row in other["rows"] if (row["criterion"], row["layer"]) == ("quadratic", "all")
    ]
    assert quadratic["spearman signed"] > 0.7
    tf_keras.backend.clear_session()
