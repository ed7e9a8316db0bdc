"""`python -m ehap_tf.report RUN_DIR [RUN_DIR...]`: makes the page again, or compares runs.

A command, so it stands on the top floor and may know run directories; the rest of this package
does not.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from ehap_tf.native_output import NativeErrorOutput


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ehap_tf.report", description=__doc__)
    parser.add_argument("run_dir", nargs="+", help="run directory; of several, a comparison")
    parser.add_argument(
        "--output",
        help="the page to write; default: report.html in the run directory, comparison.html here "
        "for several",
    )
    arguments = parser.parse_args(argv)
    try:
        with NativeErrorOutput().captured():
            paths = [pathlib.Path(path) for path in arguments.run_dir]
            written = write_report(paths, arguments.output)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(written)
    return 0


def write_report(run_paths: Sequence[pathlib.Path], output: str | None = None) -> pathlib.Path:
    """Writes the page of one run or the comparison of several, and returns its path.

    Raises:
        ValueError: a directory is no run directory, or a file in it is damaged.
    """
    from ehap_tf import files
    from ehap_tf.pipeline.command.report_content import run_content
    from ehap_tf.pipeline.command.run_directory import RunDirectory
    from ehap_tf.report import render_page

    for path in run_paths:
        if not path.is_dir():
            why = "it is a file" if path.exists() else "there is no such folder"
            raise ValueError(f"{path} is not a run directory: {why}")
    runs = [RunDirectory(path) for path in run_paths]
    page = render_page([run_content(run) for run in runs])
    target = pathlib.Path(output or "comparison.html")
    if not output and len(runs) == 1:
        target = runs[0].report_page
    files.write_text(target, page)
    return target


if __name__ == "__main__":
    sys.exit(main())
