"""What Arm's compiler makes of a TFLite file for an Ethos-U, and what it estimates."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from ehap_tf.quantization import inspect_tflite

ACCELERATORS = tuple(f"ethos-u{kind}" for kind in ("55-32", "55-64", "55-128", "55-256", "65-256"))
"""By the compiler's names, of which there are more; the last number is of products in a cycle."""

_UNSUPPORTED = r"\(supported operators\) operator: (\w+)"
_OTHER_MEMORIES = ("dram", "on_chip_flash", "off_chip_flash")


@dataclasses.dataclass(frozen=True)
class EthosEstimate:
    """What the compiler says of a file that it has compiled. It runs nothing: it estimates.

    Attributes:
        accelerator: that it was compiled for.
        system: the clock and memories that the compiler assumes, by its own name.
        cpu_operators: operators that the accelerator cannot run, and the processor would.
        npu_operators: operators of the accelerator.
        on_cpu: kinds of the former.
        cycles: of one inference.
        milliseconds: the same at the system's clock.
        sram_bytes: of the fast memory, for the tensors.
        other_bytes: of flash and DRAM, for the compressed weights and the commands.
    """

    accelerator: str
    system: str
    cpu_operators: int
    npu_operators: int
    on_cpu: tuple[str, ...]
    cycles: int
    milliseconds: float
    sram_bytes: int
    other_bytes: int


def compile_for_ethos_u(
    path: str | os.PathLike[str],
    accelerator: str = "ethos-u55-128",
    *,
    output: str | os.PathLike[str] | None = None,
) -> EthosEstimate:
    """Compiles a full-integer TFLite file with Vela, for its own estimate of time and memory.

    Needs the extra `[micro]`: `pip install 'ehap_tf[micro]'`. The system is Vela's default for the
    accelerator.

    Args:
        path: of the file.
        accelerator: as Vela calls it: "ethos-u55-128" has 128 multiplications in a cycle.
        output: where the compiled file goes; None keeps none.

    Raises:
        ImportError: the extra is not installed.
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is no TFLite file.
        ValueError: Vela refuses the file or the accelerator; with what it said.

    Example:
        >>> ehap.compile_for_ethos_u("model_int8.tflite").milliseconds
    """
    require_vela()
    inspect_tflite(path)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [os.fspath(path), "--accelerator-config", accelerator, "--output-dir", folder]
        done = subprocess.run(
            [sys.executable, "-m", "ethosu.vela", *arguments], capture_output=True, text=True
        )
        summaries = list(pathlib.Path(folder).glob("*_summary_*.csv"))
        if done.returncode or not summaries:
            raise ValueError(
                f"Vela cannot compile {os.fspath(path)!r} for {accelerator!r}: "
                f"{_reason(done.stdout, done.stderr) or f'it ends with code {done.returncode}'}"
            )
        with summaries[0].open(newline="") as file:
            (row,) = csv.DictReader(file)
        if output is not None:
            (compiled,) = pathlib.Path(folder).glob("*_vela.tflite")
            pathlib.Path(output).write_bytes(compiled.read_bytes())
    return EthosEstimate(
        accelerator=accelerator,
        system=row["system_config"],
        cpu_operators=_count("CPU", done.stdout),
        npu_operators=_count("NPU", done.stdout),
        on_cpu=tuple(dict.fromkeys(re.findall(_UNSUPPORTED, done.stdout))),
        cycles=round(float(row["cycles_total"])),
        milliseconds=1e3 * float(row["inference_time"]),
        sram_bytes=round(1024 * float(row["sram_memory_used"])),
        other_bytes=round(
            1024 * sum(float(row[f"{name}_memory_used"]) for name in _OTHER_MEMORIES)
        ),
    )


def require_vela() -> None:
    """Checks that the compiler is there.

    Raises:
        ImportError: it is not; with the command that installs it.
    """
    if importlib.util.find_spec("ethosu") is None:
        raise ImportError("Arm's compiler Vela is not installed: pip install 'ehap_tf[micro]'")


def _reason(*outputs: str) -> str:
    """The last line that is no warning."""
    lines = [line for output in outputs for line in output.strip().splitlines()]
    return next((line for line in reversed(lines) if line and "Warning" not in line), "")


def _count(side: str, output: str) -> int:
    found = re.search(rf"{side} operators = (\d+)", output)
    return int(found.group(1)) if found else 0
