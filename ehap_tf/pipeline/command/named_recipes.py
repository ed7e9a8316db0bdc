"""The recipes by name: `--recipe=quickstart` from any folder."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from ehap_tf.pipeline.command.config_checks import nearest_hint

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]


def recipe_files() -> dict[str, pathlib.Path]:
    """The flag files by name: those in the installed package, else those of the source folder."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "flags"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.cfg"))}
    return {}


def with_recipe(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--recipe=NAME` as the `--flagfile` that it means.

    It comes first, so that every other flag wins over it.

    Args:
        arguments: without the name of the program.

    Raises:
        ValueError: an unknown name, no name, or two.
    """
    names, rest = [], []
    given = iter(arguments)
    for argument in given:
        flag, equals, name = argument.partition("=")
        if flag not in ("--recipe", "-recipe"):
            rest.append(argument)
            continue
        names.append(name if equals else next(given, ""))
    if not names:
        return rest
    if len(names) > 1:
        raise ValueError(f"--recipe is given twice: {', '.join(names)}")
    known = recipe_files()
    if names[0] not in known:
        raise ValueError(
            f"recipe must be one of {', '.join(known)}. Received: {names[0] or 'no name'}"
            + nearest_hint(names[0], known)
        )
    return [f"--flagfile={known[names[0]]}", *rest]
