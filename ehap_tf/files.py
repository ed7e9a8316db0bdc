"""Files that are either whole or absent: atomic writes, and damaged files set aside.

Arrays lie in `.npz` files without pickle, with all else in a JSON header among them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class CorruptFileError(ValueError):
    """A file of ours cannot be read back; its message names the file."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` that replaces it when the block succeeds.

    The temporary file has the same suffix (Keras chooses its format by suffix). It is flushed to
    the disk before the rename, so that a crash leaves either the old file or the new one; when the
    block raises, it is removed and `path` stays as it was.

    Raises:
        OSError: the folder cannot be written, `path` is a folder, or the disk is full.
    """
    path = pathlib.Path(path)
    temporary = _empty_file_beside(path)
    try:
        try:
            yield temporary
        except OSError as error:
            if error.filename not in (None, str(temporary)):
                raise
            # A full disk is reported without a name, or with the temporary one.
            reason = error.strerror or str(error)
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
        # mkstemp makes a file that only its owner may read; a result is for colleagues too.
        os.chmod(temporary, 0o666 & ~_umask())
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def json_fields(text: str, tag: str, what: str) -> dict[str, Any]:
    """The fields of a JSON text that says under "format" what it is.

    Args:
        text: to be read.
        tag: of its format.
        what: it should be, for the message.

    Raises:
        ValueError: it is not JSON, or of another format.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a {what}: {error}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != tag:
        raise ValueError(f"not a {what}: the text has no format {tag!r}")
    return fields


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raises now what writing `path` would raise after an hour of work; makes its folder.

    Raises:
        OSError: the folder cannot be written, or `path` is a folder; names the path.
    """
    try:
        _empty_file_beside(pathlib.Path(path)).unlink()
    except OSError as error:
        reason = f"path cannot be written, give another ({error.strerror or error})"
        raise OSError(error.errno or errno.EIO, reason, os.fspath(path)) from None


def _empty_file_beside(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}-", suffix=f".partial{path.suffix}"
    )
    os.close(descriptor)
    return pathlib.Path(name)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def arrays_to_bytes(
    header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], compressed: bool = False
) -> bytes:
    """The content of a `.npz` file of arrays and a header of JSON values."""
    whole = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **whole)  # type: ignore[arg-type]
    return buffer.getvalue()


def arrays_from(source: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a path or stream; anything is raised where it is damaged."""
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("header").tobytes()), arrays


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str, advice: str = "") -> Iterator[None]:
    """What goes wrong inside the block, whatever it is, means that the file is damaged.

    Args:
        path: of the file.
        kind: what it should be: "a scores file".
        advice: what to do, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: it is damaged, or something else; names the file.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # zip, zlib, struct, syntax and runtime errors
        raise CorruptFileError(
            f"{os.fspath(path)} is damaged or truncated, or not {kind}: {error}{advice}"
        ) from error


def set_aside(path: str | os.PathLike[str]) -> pathlib.Path:
    """Renames a damaged file to `NAME.corrupt` (`NAME.corrupt2`, ...) and returns the new path."""
    path = pathlib.Path(path)
    target = path.with_name(path.name + ".corrupt")
    number = 2
    while target.exists():
        target = path.with_name(f"{path.name}.corrupt{number}")
        number += 1
    path.rename(target)
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
