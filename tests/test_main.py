import dataclasses
import os
import subprocess
import sys

import pytest

import ehap_tf
from ehap_tf import main as command
from ehap_tf.pipeline.command.config import STAGE_NAMES, PipelineConfig

# fmt: off
CONTRACT_FLAGS = [
    "model", "dataset", "data_dir", "precision", "criterion", "estimator", "probes", "tolerance",
    "hessian_batch_size", "prune_ratio", "target_params", "target_macs", "prune_ratio_limit",
    "residual", "implant_ratio", "round_to", "train_epochs", "finetune_epochs", "qat_epochs",
    "batch_size", "learning_rate", "weight_decay", "weight_bits", "train_precision", "strategy",
    "seed", "stages", "output_dir", "resume",
]
# fmt: on


def parse(*arguments):
    return command.parse_config(["main", *arguments])


def test_every_flag_of_the_contract_is_a_setting_and_every_setting_a_flag():
    settings = {field.name for field in dataclasses.fields(PipelineConfig)}
    assert set(CONTRACT_FLAGS) <= settings
    flags = command.define_flags()
    assert settings <= set(flags)


def test_no_flags_mean_the_defaults_of_the_settings():
    assert parse() == PipelineConfig()


def test_flags_reach_the_settings():
    config = parse(
        "--model=resnet8", "--probes=7", "--tolerance=0.1", "--noresume", "--stages=train, rank",
        "--target_params=0.4", "--data_dir=/data",
    )  # fmt: skip
    assert config.model == "resnet8" and config.probes == 7 and config.tolerance == 0.1
    assert config.resume is False and config.stages == ("train", "rank")
    assert config.amount == {"target_params": 0.4} and config.data_dir == "/data"


def test_none_takes_back_what_a_flag_file_gives(pytestconfig):
    recipe = f"--flagfile={pytestconfig.rootpath / 'flags' / 'resnet56_cifar10.cfg'}"
    assert parse(recipe, "--prune_ratio=none", "--target_macs=0.5").amount == {"target_macs": 0.5}
    config = parse("--cost_aware=macs", "--cost_aware=none", "--data_dir=none", "--tolerance=none")
    assert config == PipelineConfig()
    with pytest.raises(ValueError, match="=none for one that a --flagfile gives"):
        parse(recipe, "--target_macs=0.5")
    with pytest.raises(ValueError, match="--probes=none"):
        parse("--probes=none")


def test_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = parse(
        "--model=~/net.keras", "--output_dir=~/run", "--dataset=folder:~/images",
        "--baseline=~/trained.h5", "--data_dir=~/tfds",
    )  # fmt: skip
    paths = (config.model, config.output_dir, config.dataset, config.baseline, config.data_dir)
    names = ("net.keras", "run", "images", "trained.h5", "tfds")
    expected = [f"/home/me/{name}" for name in names]
    assert [path.removeprefix("folder:") for path in paths] == expected


def test_help_names_every_flag_with_its_default(capsys):
    assert command.main(["main", "--helpfull"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(PipelineConfig):
        assert f"--{field.name}\n" in text
    assert "unit: epochs; default: 30" in text


def test_help_shows_the_everyday_flags_in_groups(capsys):
    assert command.main(["main", "--help"]) == 0
    text = capsys.readouterr().out
    names = [name for group in command.EVERYDAY_FLAGS.values() for name in group]
    assert [line[4:] for line in text.splitlines() if line.startswith("  --")] == names
    examples = [line.split()[3:] for line in text.splitlines() if line.startswith("  python -m")]
    assert len(examples) == 3 and "--helpfull" in text
    for flags in examples:
        parse(*flags)


MISTYPED = [
    (("--criterion=obd_joined",), "Did you mean obd_joint?"),
    (("--modle=resnet8",), "Did you mean: model"),
    (("--criterion=hesian",), "hessian_trace, obd"),
    (("--precision=fp8",), "fp32, fp16, bf16, auto"),
    (("--estimator=x",), "hutchinson, gauss_newton, exact"),
    (("--residual=x",), "union, tied"),
    (("--stages=train,finetun",), ", ".join(STAGE_NAMES)),
    (("--stages=",), "stages"),
    (("--probes=many",), "--probes=many"),
    (("--probes=0",), "probes must be at least 1"),
    (("--prune_ratio=1",), "prune_ratio must be at least 0 and below 1. Received: 1.0"),
    (("--prune_ratio=-0.1",), "prune_ratio"),
    (("--prune_ratio=nan",), "prune_ratio"),
    (("--target_macs=0",), "target_macs must be above 0"),
    (("--target_macs=0.5", "--target_params=0.5"), "exclude each other"),
    (("--tolerance=0.1", "--criterion=obd_joint"), "criteria hessian_trace, obd, quadratic"),
    (("--batch_size=0",), "batch_size"),
    (("--learning_rate=inf",), "learning_rate"),
    (("--weight_bits=16",), "weight_bits"),
    (("--rounding=gptq",), "goes with qat_epochs=0. Received: rounding=gptq, qat_epochs=3"),
    (("--flagfile=no_such.cfg",), "no_such.cfg"),
    (("resnet32",), "every argument is a flag"),
    (("--model=",), "model is empty"),
]


@pytest.mark.parametrize(("arguments", "text"), MISTYPED, ids=lambda value: str(value)[:40])
def test_mistyped_arguments_end_in_one_line(arguments, text, capsys):
    assert command.main(["main", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert text in captured.err


def test_flag_files_are_valid_and_hold_what_was_published(pytestconfig):
    folder = pytestconfig.rootpath / "flags"
    configs = {path.stem: parse(f"--flagfile={path}") for path in sorted(folder.glob("*.cfg"))}
    ratios = {
        "resnet32_cifar10": 0.77,
        "resnet32_cifar100": 0.78,
        "resnet56_cifar10": 0.8087,
        "resnet56_cifar100": 0.81239,
        "wrn28_8_cifar10": 0.76,
        "wrn28_8_cifar100": 0.78,
    }
    assert set(configs) >= {*ratios, "quickstart"}
    for name, ratio in ratios.items():
        config = configs[name]
        assert config.amount == {"prune_ratio": ratio}
        assert (config.train_epochs, config.finetune_epochs, config.qat_epochs) == (300, 300, 30)
        assert config.probes == 300 and config.hessian_batch_size == 512
        assert f"{config.model}_{config.dataset}" == name
        assert (config.batch_size, config.qat_learning_rate) == (128, 1e-4)
        assert config.qat_weight_decay == 1e-4
    assert configs["quickstart"].qat_epochs == 2


def test_the_yardstick_sees_each_image_as_often(pytestconfig):
    folder = pytestconfig.rootpath / "flags"
    pruned, whole = (
        parse(f"--flagfile={folder}/mlperf_tiny_{name}.cfg") for name in ("resnet32", "resnet8")
    )
    assert whole.train_epochs == pruned.train_epochs + pruned.finetune_epochs
    same = ("dataset", "qat_epochs", "batch_size", "learning_rate", "weight_decay")
    assert all(getattr(whole, name) == getattr(pruned, name) for name in same)
    assert whole.amount == {"prune_ratio": 0.0}


def test_a_setting_survives_json():
    config = parse("--stages=train", "--target_macs=0.5")
    assert PipelineConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("model", "dataset", "name"),
    [
        ("resnet8", "digits", "resnet8_digits_auto"),
        ("../nets/mine.keras", "folder:/data/cats/", "mine_cats_auto"),
    ],
)
def test_default_run_directory(model, dataset, name):
    config = PipelineConfig(model=model, dataset=dataset)
    assert config.run_path.parts == ("saved_models", name)


@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--probes=x", 1)])
def test_flags_are_read_before_tensorflow_is_loaded(flag, status):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ehap_tf.main", flag],
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert "ehap_tf.pipeline.command.config" in done.stderr and "tensorflow" not in done.stderr


def test_recipes_by_name_from_any_folder(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (pytestconfig.rootpath / "flags").glob("*.cfg"):
        assert parse(f"--recipe={path.stem}") == parse(f"--flagfile={path}")
    config = parse("--probes=7", "--recipe", "quickstart", "--seed=3")
    assert (config.probes, config.seed, config.dataset) == (7, 3, "digits")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe=quickstrat"], "Did you mean quickstart?"),
        (["--recipe"], "Received: no name"),
        (["--recipe=quickstart", "--recipe=resnet56_cifar10"], "given twice"),
    ],
)
def test_wrong_recipes(arguments, text, capsys):
    assert command.main(["main", *arguments]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and text in line


WRONG_PATHS = [
    ("--model=absent/net.keras", "--model=absent/net.keras: there is no such file"),
    ("--model=net.keras", "--model=net.keras: there is no such file"),
    ("--model=net.h5", "--model=net.h5: there is no such file"),
    ("--baseline=net.keras", "--baseline=net.keras: there is no such file"),
    ("--dataset=folder:absent", "--dataset=folder:absent: there is no folder absent"),
    ("--dataset=./images", "Did you mean --dataset=folder:./images?"),
    ("--flagfile=absent.cfg", "absent.cfg"),
]


@pytest.mark.parametrize(("flag", "text"), WRONG_PATHS)
def test_wrong_paths_are_one_line_and_leave_nothing(flag, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("the run was begun"))
    assert command.main(["main", flag]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and text in line
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_begun_does_not_need_its_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(command, "_run", lambda *_: None)
    assert command.main(["main", "--dataset=folder:absent", "--output_dir=run"]) == 0


def test_wrong_paths_are_found_before_tensorflow_is_loaded(tmp_path, pytestconfig):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ehap_tf.main", "--model=net.keras"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
    )
    assert done.returncode == 1 and "tensorflow" not in done.stderr


@pytest.mark.parametrize(("flag", "status"), [("--version", 0), ("--probes=x", 1)])
@pytest.mark.parametrize("way", ["ehap_tf", "script"])
def test_other_names_of_the_command(flag, status, way, tmp_path):
    script = tmp_path / "ehap-tf"
    script.write_text("import sys\nfrom ehap_tf.main import main\nsys.exit(main())\n")
    named = ["-m", "ehap_tf"] if way == "ehap_tf" else [str(script)]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *named, flag], capture_output=True, text=True
    )
    assert done.returncode == status and "tensorflow" not in done.stderr
    assert done.stdout == ("" if status else f"ehap_tf {ehap_tf.__version__}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad\n  value"), "error: bad value\n"),
        (OSError(28, "No space left on device", "a/b.npz"), "error: a/b.npz: No space left"),
        (FileNotFoundError("--model=x: there is no such file"), "error: --model=x: there is no"),
        (MemoryError("too much"), "error: MemoryError: too much (run/logs/run.log has more)"),
        (KeyError("layer"), "error: KeyError: 'layer' (run/logs/run.log has more)"),
    ],
)
def test_every_error_ends_in_one_line_and_status_1(error, line, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(command, "_run", fail)
    assert command.main(["main", "--output_dir=run"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and captured.err.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    assert command.main(["main"]) == 130
    assert "same command goes on" in capsys.readouterr().err


def test_a_preset_gives_what_no_flag_does(tmp_path):
    default = command.parse_config([""])
    assert command.parse_config(["", "--preset=ehap"]) == default
    best = command.parse_config(["", "--preset=best"])
    assert (best.criterion, best.estimator, best.amount) == (
        "obs_joint", "gauss_newton", {"target_macs": 0.5},
    )  # fmt: skip
    assert best.cost_aware == "macs"
    own = command.parse_config(
        ["", "--preset=best", "--criterion=magnitude", "--target_params=0.3"]
    )
    assert own.criterion == "magnitude" and own.amount == {"target_params": 0.3}
    (tmp_path / "mine.cfg").write_text("--probes=7\n--prune_ratio=0.4\n")
    recipe = command.parse_config(["", f"--flagfile={tmp_path / 'mine.cfg'}", "--preset=best"])
    assert recipe.probes == 7 and recipe.amount == {"prune_ratio": 0.4}
    taken_back = command.parse_config(["", "--preset=best", "--prune_ratio=none"])
    assert taken_back.amount == {"target_macs": 0.5}
    with pytest.raises(ValueError, match=r"preset must be one of ehap, best\. Received: fast"):
        command.parse_config(["", "--preset=fast"])
