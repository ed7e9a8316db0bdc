from __future__ import annotations

import pathlib
import warnings

import pytest

from ehap_tf.benchmark.__main__ import main, module_of
from ehap_tf.benchmark.measuring.subject import load_images
from ehap_tf.models import build_model


def test_random_weights_are_not_taken_for_trained_ones(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="resnet8 has random weights: there is no saved_models"):
        load_images("resnet8", "digits", None, seed=0)

    baseline = tmp_path / "saved_models" / "resnet8_digits" / "baseline.keras"
    baseline.parent.mkdir(parents=True)
    build_model("resnet8", 10, (32, 32, 3)).save(baseline)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_images("resnet8", "digits", None, seed=0)


@pytest.mark.parametrize(
    "name", ["correlation", "fidelity", "trace", "removal", "study", "implants"]
)
def test_noise_is_offered_where_it_is_taken(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    takes_it = hasattr(module_of(name), "load_subject")
    assert ("noise (random images" in " ".join(capsys.readouterr().out.split())) == takes_it
