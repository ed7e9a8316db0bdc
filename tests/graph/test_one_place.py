"""A layer kind is written in one place: no other room lists Keras' layer classes."""

import ast
import fnmatch
import inspect
import pathlib

import tf_keras

PACKAGE = pathlib.Path(__file__).parents[2] / "ehap_tf"
ROOMS = ("graph/*", "channels/*rules.py", "quantization/integer_rules/*", "models/*")
"""What a layer is, does to channels, and becomes in integers; networks, and Keras' twins."""

CLASSES = {
    name
    for name, value in vars(tf_keras.layers).items()
    if inspect.isclass(value) and issubclass(value, tf_keras.layers.Layer)
} - {"Layer"}

CONTAINERS = (ast.Tuple, ast.List, ast.Set, ast.Dict)


def named(node: ast.AST) -> str | None:
    """The layer class that a name, an attribute or a string stands for."""
    if isinstance(node, ast.Attribute):
        return node.attr if node.attr in CLASSES else None
    if isinstance(node, ast.Name):
        return node.id if node.id in CLASSES else None
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text and node.value in CLASSES else None


def entries(node: ast.AST) -> list[ast.AST]:
    """What a container holds, or a text of several words that is split."""
    if isinstance(node, ast.Dict):
        return [*node.keys, *node.values]
    if isinstance(node, CONTAINERS):
        return list(node.elts)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        words = node.value.split()
        return [ast.Constant(word) for word in words] if set(words) <= CLASSES else []
    return []


def asked_for(function: ast.AST) -> set[str]:
    """The classes that the conditions of a function compare with."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "isinstance", "issubclass", "computes_like",
        ):  # fmt: skip
            parts = [leaf for arg in node.args[1:] for leaf in ast.walk(arg)]
        else:
            continue
        found |= {name for part in parts if (name := named(part))}
    return found


def lists(source: str) -> list[str]:
    """The places of a module that name several layer classes as alternatives."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = {name for entry in entries(node) if entry and (name := named(entry))}
        if isinstance(node, ast.FunctionDef):
            names = asked_for(node)
        if len(names) > 1:
            found.append(f"line {node.lineno}: {', '.join(sorted(names))}")
    return found


def test_lists_of_layer_classes_are_found():
    assert lists("KINDS = (layers.Conv2D, tf_keras.layers.Dense)")
    assert lists("KINDS = {'Conv2D': 1, 'Dense': 2}")
    assert lists("KINDS = frozenset('Conv2D Dense'.split())")
    assert lists("def f(x):\n  if kind(x) == 'Conv2D': return 1\n  return isinstance(x, L.Dense)")
    assert not lists("def f(x):\n  return L.Dense(4)(L.Conv2D(3, 3)(x)) if kind(x) == 'Add' else x")


def test_no_other_room_lists_layer_classes():
    modules = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {
        name: places
        for name, path in modules.items()
        if not any(fnmatch.fnmatch(name, room) for room in ROOMS)
        and (places := lists(path.read_text(encoding="utf-8")))
    }
    assert len(modules) > 200
    assert not found
