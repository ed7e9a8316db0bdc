"""The names that the settings repeat, to answer --help without TensorFlow, are the rooms'."""

import inspect

import pytest

from ehap_tf.budget import TARGETS
from ehap_tf.data import CONVENTIONS, RESIZES
from ehap_tf.models import PRECISIONS
from ehap_tf.pipeline.command import config
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.stages import STAGES
from ehap_tf.pruning import plan_pruning
from ehap_tf.quantization.apply.qat import ROUNDINGS
from ehap_tf.sensitivity import ESTIMATOR_NAMES, rank_filters


def test_names_agree_with_the_rooms():
    assert set(config.ESTIMATORS) == set(ESTIMATOR_NAMES)
    assert set(config.PRECISIONS) == set(PRECISIONS)
    assert config.ROUNDINGS == ROUNDINGS
    assert config.TARGETS == TARGETS
    assert config.RESIZES == RESIZES
    assert ("auto", *CONVENTIONS) == config.NORMALIZATIONS
    assert tuple(stage.name for stage in STAGES) == config.STAGE_NAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_bytes": 9, "weight_bits": 4}, "target_bytes chooses the bits"),
        ({"target_bytes": 0}, "target_bytes must be at least 1"),
        ({"target": "ethos-u55-64", "weight_bits": 4}, "takes kernels of 8 bits alone"),
        ({"target": "ethos-u55-64", "target_bytes": 9}, "leave weight_bits and target_bytes out"),
        ({"activation_bits": 12}, "activation_bits must be 8 or 16. Received: 12"),
        ({"activation_bits": 16, "weight_bits": 4}, "kernels of 8 bits, .* weight_bits=4"),
        ({"activation_bits": 16, "target_bytes": 9}, "Received: target_bytes"),
        ({"activation_bits": 16, "target_latency_ms": 9.0}, "Received: target_latency_ms"),
        ({"target": "esp32"}, "target must be one of litert, tflm, ethos-u55-32"),
    ],
)
def test_settings_of_the_device_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        PipelineConfig(**settings)


def test_defaults_agree_with_the_library():
    settings = config.PipelineConfig()
    for function, names in (
        (rank_filters, ("criterion", "estimator", "probes", "tolerance", "seed")),
        (
            plan_pruning,
            ("prune_ratio_limit", "residual", "implant_ratio", "round_to", "cost_aware"),
        ),
    ):
        parameters = inspect.signature(function).parameters
        for name in names:
            assert parameters[name].default == getattr(settings, name), name


def test_every_file_of_the_job_has_one_stage_that_writes_it(tmp_path):
    from ehap_tf.pipeline.command.run_directory import RunDirectory

    run = RunDirectory(tmp_path)
    written = [path for stage in STAGES for path in stage.outputs(run)]
    assert len(set(written)) == len(written)
    assert {path for stage in STAGES for path in stage.inputs(run)} <= set(written)
    assert set(run.models()) <= set(written)


def test_counting_per_cost_touches_the_pruning_of_runs_that_ask_for_it_alone():
    from ehap_tf.pipeline.command.rounds import plan_options
    from ehap_tf.pipeline.command.stages import prune

    plain, counted = config.PipelineConfig(), config.PipelineConfig(cost_aware="macs")
    # Runs of before the flag are not pruned again.
    assert "cost_aware" not in prune.settings(plain)
    assert prune.settings(counted) == prune.settings(plain) | {"cost_aware": "macs"}
    assert plan_options(counted)["cost_aware"] == "macs"


@pytest.mark.parametrize(("flag", "mirrored"), [(None, False), (True, True), (False, False)])
def test_images_are_mirrored_as_the_flag_says(flag, mirrored):
    from ehap_tf.pipeline.command.job import Job

    settings = PipelineConfig(dataset="digits", mirror_images=flag)
    assert Job(settings, None, None).dataset.flip is mirrored


def test_mirroring_touches_the_stages_of_runs_that_ask_for_it_alone():
    plain, asked = PipelineConfig(), PipelineConfig(mirror_images=False)
    for stage in STAGES:
        before, after = dict(stage.settings(plain)), dict(stage.settings(asked))
        assert "mirror_images" not in before
        # Each stage that reads the images, and no other.
        assert after == before | ({"mirror_images": False} if "dataset" in before else {})


def test_float_layers_touch_the_file_of_runs_that_allow_them_alone():
    plain, asked = PipelineConfig(), PipelineConfig(allow_float=True)
    for stage in STAGES:
        before, after = dict(stage.settings(plain)), dict(stage.settings(asked))
        assert "allow_float" not in before
        touched = stage.name in ("quantize", "export")
        assert after == before | ({"allow_float": True} if touched else {})


def test_a_saved_model_is_not_trained_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "saved_model.pb").touch()
    for model in ("mine.keras", "nets/mine", "mine"):
        with pytest.raises(ValueError, match=f"baseline=train goes with.*Received: model={model}"):
            PipelineConfig(model=model, baseline="train")


def test_rounding_reaches_the_stage_that_rounds_and_no_other():
    plain, gptq = (PipelineConfig(qat_epochs=0, rounding=way) for way in ("nearest", "gptq"))
    changed = [s.name for s in STAGES if s.settings(plain) != s.settings(gptq)]
    assert changed == ["quantize"]
    (stage,) = (s for s in STAGES if s.name == "quantize")
    # As in run directories from before there was a choice.
    assert "rounding" not in stage.settings(plain)
