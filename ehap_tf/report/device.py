"""The files of a run on a device: what each costs there, and what it is worth."""

from __future__ import annotations

import dataclasses

import rich.table

from ehap_tf.report.content import ReportContent
from ehap_tf.report.tables import cell, terminal_table


@dataclasses.dataclass(frozen=True)
class DeviceRow:
    """One TFLite file. A value is None where it was not measured.

    Attributes:
        name: the network, and its numbers.
        accuracy: on the whole test set, 0 to 1.
        bytes: of the file.
        arena_bytes: of working memory, as TensorFlow Lite Micro plans it.
        latency_ms: of one image on one thread of this machine, in milliseconds.
        macs: multiply-accumulates of one image.
    """

    name: str
    accuracy: float | None
    bytes: int | None
    arena_bytes: int | None
    latency_ms: float | None
    macs: int | None

    def cells(self) -> tuple[str, ...]:
        """The row as text; a dash where nothing was measured."""
        return (
            self.name,
            cell(self.accuracy, "accuracy"),
            cell(self.bytes, "count"),
            cell(self.arena_bytes, "count"),
            cell(self.latency_ms, "latency"),
            cell(self.macs, "macs"),
        )


HEADINGS = ("file", "test accuracy", "bytes", "arena bytes", "latency", "MACs")

_FILES = (
    ("whole", "float32", "baseline_accuracy", "baseline", "before"),
    ("whole", "INT8", "baseline_int8_accuracy", "baseline_int8", "before"),
    ("pruned", "float32", "finetuned_accuracy", "slim", "after"),
    ("pruned", "INT8", "tflite_accuracy", "", "after"),
)

_WHY_SLOWER = (
    "INT8 is slower than float32 here: at these widths the time goes into starting operators and "
    "into rounding their outputs, not into products. It gains where layers are wider, where the "
    "processor multiplies 8-bit integers in one instruction (VNNI, SDOT), and in bytes everywhere."
)
_WHY_16_BITS_ARE_SLOWER = (
    "Integers with activations of 16 bits are slower than float32 here: XNNPACK has kernels for 8 "
    "bits and for floats, and TFLite's own for 16 bits are plain loops. They are for processors "
    "without floats, and for accuracy."
)


def device_rows(content: ReportContent) -> list[DeviceRow]:
    """One row for each file whose latency was measured; empty before the export."""
    figures = {**content.details, **content.figures}
    integers = "INT8" if _activation_bits(content) == 8 else "INT8, 16-bit activations"
    rows = []
    for network, numbers, accuracy, file, side in _FILES:
        start = f"{file}_" if file else ""
        latency = figures.get(f"{start}latency_ms" if file else "tflite_latency_ms")
        if latency is not None:
            rows.append(
                DeviceRow(
                    f"{network}, {integers if numbers == 'INT8' else numbers}",
                    figures.get(accuracy),
                    figures.get(f"{start}tflite_bytes"),
                    figures.get(f"{start}tflite_arena_bytes"),
                    latency,
                    figures.get(f"macs_{side}"),
                )
            )
    return rows


def _activation_bits(content: ReportContent) -> int:
    return int(content.settings.get("activation_bits", 8))


def device_notes(content: ReportContent) -> list[str]:
    """Sentences below the table."""
    figures = {**content.details, **content.figures}
    notes = [f"Latency: one image, one thread of {content.environment.get('processor', 'this')}."]
    for name, other in (("slim", "tflite"), ("baseline", "baseline_int8")):
        float_ms, integer_ms = (figures.get(f"{one}_latency_ms") for one in (name, other))
        if float_ms is not None and integer_ms is not None and integer_ms > float_ms:
            notes.append(_WHY_SLOWER if _activation_bits(content) == 8 else _WHY_16_BITS_ARE_SLOWER)
            break
    if "preprocessing" in figures:
        notes.append(f"What the files take of a pixel of 0 to 255: {figures['preprocessing']}.")
    if "micro_examples" in figures:
        notes.append(
            f"In TensorFlow Lite Micro {100 * figures['micro_equal']:.1f} % of "
            f"{figures['micro_examples']} outputs are LiteRT's reference kernels' bit for bit; "
            f"the arena takes {figures['micro_arena_bytes']:,} bytes."
        )
    if "ethos_u" in figures:
        notes.append(
            f"{figures['ethos_u']}, as its compiler estimates: {figures['ethos_u_cycles']:,} "
            f"cycles, {figures['ethos_u_ms']:.2f} ms, {figures['ethos_u_sram_bytes']:,} bytes of "
            f"SRAM, {figures['ethos_u_cpu_operators']} operators left to the processor."
        )
    return notes


def device_table(content: ReportContent) -> rich.table.Table | None:
    """The files as a table for the terminal; None before the export."""
    rows = device_rows(content)
    if not rows:
        return None
    cells = [row.cells() for row in rows]
    return terminal_table("On this device", HEADINGS, cells, "\n".join(device_notes(content)))
