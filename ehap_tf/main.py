"""The command line: `python -m ehap_tf.main --model=resnet32 --precision=fp16`.

`python -m ehap_tf` and the console script `ehap-tf` are the same command.

Flags are built from the fields of `PipelineConfig`. Whatever goes wrong ends in one line
`error: ...` on stderr and exit status 1; Ctrl-C in status 130.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import textwrap
import typing
from collections.abc import Sequence

from absl import flags

from ehap_tf import __version__
from ehap_tf.native_output import NativeErrorOutput
from ehap_tf.pipeline.command.config import PipelineConfig, with_preset
from ehap_tf.pipeline.command.named_paths import require_named_paths
from ehap_tf.pipeline.command.named_recipes import with_recipe
from ehap_tf.startup import prepare_environment

USAGE = """\
usage: python -m ehap_tf.main [--flag=value ...] [--recipe=NAME | --flagfile=PATH]

Trains (or takes) a CNN, ranks its filters, prunes it, fine-tunes it, trains it quantization-aware
and exports a full-integer TFLite file whose accuracy it measures. The same command again resumes.
A recipe is a set of flags, like --recipe=quickstart; single flags win over it. --version.

"""

EXAMPLES = """\
examples:
  python -m ehap_tf.main --recipe=quickstart
  python -m ehap_tf.main --model=net.keras --dataset=folder:images --preset=best
  python -m ehap_tf.main --model=resnet32 --dataset=cifar10 --preset=best --target_macs=0.3

"""

EVERYDAY_FLAGS = {
    "the network and its images": ("model", "dataset", "data_dir", "baseline"),
    "what is removed": ("preset", "prune_ratio", "target_params", "target_macs"),
    "training": ("train_epochs", "finetune_epochs", "qat_epochs", "batch_size"),
    "the run": ("output_dir", "stages", "resume"),
}
"""The flags of `--help` by group; `--helpfull` has all."""


def define_flags() -> flags.FlagValues:
    """One absl flag for each field of `PipelineConfig`, in a flag set of its own.

    Not the global flag set: libraries that we import define flags there too.
    """
    values = flags.FlagValues()
    types = typing.get_type_hints(PipelineConfig)
    for field in dataclasses.fields(PipelineConfig):
        text, default = field.metadata["help"], field.default
        kinds = set(typing.get_args(types[field.name])) or {types[field.name]}
        if isinstance(default, tuple):
            flags.DEFINE_list(field.name, list(default), text, flag_values=values)
        elif bool in kinds:
            flags.DEFINE_bool(field.name, default, text, flag_values=values)
        else:
            parser: flags.ArgumentParser[typing.Any] = flags.ArgumentParser()
            if int in kinds:
                parser = flags.IntegerParser()
            elif float in kinds:
                parser = flags.FloatParser()
            if default is None:
                parser = _OrNone(parser)
            flags.DEFINE(parser, field.name, default, text, flag_values=values)
    return values


class _OrNone(flags.ArgumentParser):
    """Also takes `none`, which is how a command line takes back what its --flagfile gives."""

    def __init__(self, parser: flags.ArgumentParser[typing.Any]) -> None:
        super().__init__()
        self._parser = parser

    def parse(self, argument: typing.Any) -> typing.Any:
        return None if argument == "none" else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


def parse_config(argv: Sequence[str]) -> PipelineConfig:
    """The settings that a command line means.

    Raises:
        ValueError: an unknown flag, a value of the wrong kind or outside its range, or an argument
            that is no flag.
    """
    values = define_flags()
    arguments = with_recipe(argv[1:])
    try:
        rest = values([*argv[:1], *arguments])
    except (flags.Error, OSError) as error:
        raise ValueError(str(error).replace("\n", " ")) from error
    if len(rest) > 1:
        raise ValueError(f"every argument is a flag, --name=value. Received: {' '.join(rest[1:])}")
    names = [field.name for field in _fields()]
    given = [name for name in names if values[name].present]
    settings = with_preset({name: values[name].value for name in names}, given)
    for name in ("stages", "remove_blocks"):
        settings[name] = tuple(part.strip() for part in settings[name])
    for name in ("model", "baseline", "data_dir", "output_dir"):
        if settings[name]:
            settings[name] = os.path.expanduser(settings[name])
    kind, colon, path = settings["dataset"].partition(":")
    settings["dataset"] = f"{kind}{colon}{os.path.expanduser(path)}"
    return PipelineConfig(**settings)


def everyday_help() -> str:
    """The flags that most runs need, in groups, with examples."""
    groups = [f"{title}:\n{_describe(names)}" for title, names in EVERYDAY_FLAGS.items()]
    return USAGE + EXAMPLES + "\n".join(groups) + "\n--helpfull describes all flags.\n"


def help_text() -> str:
    """Every flag with its unit, choices and default."""
    return f"{USAGE}flags:\n{_describe([field.name for field in _fields()])}"


def _describe(names: Sequence[str]) -> str:
    fields = {field.name: field for field in _fields()}
    blocks = []
    for field in (fields[name] for name in names):
        notes = []
        if field.metadata["unit"]:
            notes.append(f"unit: {field.metadata['unit']}")
        if field.metadata["choices"]:
            notes.append(f"one of: {', '.join(field.metadata['choices'])}")
        default = field.default
        if isinstance(default, tuple):
            is_all = default and default == field.metadata["choices"]
            default = "all" if is_all else ",".join(default) or None
        notes.append(f"default: {'none' if default is None else str(default)}")
        text = f"{field.metadata['help']} ({'; '.join(notes)})"
        blocks.append(
            f"  --{field.name}\n"
            + textwrap.fill(text, 92, initial_indent="      ", subsequent_indent="      ")
        )
    return "\n".join(blocks) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    prepare_environment()
    argv = list(sys.argv if argv is None else argv)
    if "--helpfull" in argv[1:]:
        sys.stdout.write(help_text())
        return 0
    if any(argument in ("-h", "-help", "--help") for argument in argv[1:]):
        sys.stdout.write(everyday_help())
        return 0
    if "--version" in argv[1:]:
        print(f"ehap_tf {__version__}")
        return 0
    try:
        config = parse_config(argv)
        require_named_paths(config)
    except (ValueError, FileNotFoundError) as error:
        return _fail(str(error))
    try:
        _run(config, shlex.join(["python", "-m", "ehap_tf.main", *argv[1:]]))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}")
    except (ValueError, TypeError, FloatingPointError) as error:
        return _fail(str(error) or type(error).__name__)
    except Exception as error:
        # Not one of ours: out of memory, or a fault. The log of the run has the traceback.
        return _fail(f"{type(error).__name__}: {error} ({config.run_path}/logs/run.log has more)")
    return 0


def _run(config: PipelineConfig, command: str) -> None:
    output = NativeErrorOutput()
    with output.captured():
        # Here, not above: this import takes seconds, and a mistyped flag needs none of it.
        from ehap_tf.pipeline.command import runner

        runner.run(config, command=command, native_output=output)


def _fields() -> tuple[dataclasses.Field[typing.Any], ...]:
    return dataclasses.fields(PipelineConfig)


def _fail(reason: str) -> int:
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
