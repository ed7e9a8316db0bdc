"""The surgeries of `zoo` as a Markdown table: one line a family."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ehap_tf.benchmark.measuring.output import markdown
from ehap_tf.benchmark.measuring.records import Row
from ehap_tf.channels import RESIDUAL_MODES


def table(rows: Sequence[Row]) -> str:
    """Sizes before and after, shares that can go, seconds, and what stays for which reason.

    Where a cell holds several numbers they are those of the ratios, in their order; errors and
    seconds are the largest of a family's, seconds of the processor.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    ratios = sorted({row["prune_ratio"] for row in rows})
    removed = ", ".join(f"{ratio:.0%}" for ratio in ratios)
    columns = {"family": "family", "filters": "filters", "prunable": "can go, %"}
    for key, heading in (("params", "parameters, M"), ("macs", "MACs, M")):
        columns[f"{key}_before"] = heading
        for residual in RESIDUAL_MODES:
            columns[f"{key}_{residual}"] = f"{residual}, {removed}"
    columns |= {
        "error": "largest error, float32 (float64)",
        "target_seconds": "to a target, CPU s",
        "surgery_seconds": "surgery, CPU s",
        "frozen": "filters that stay, and why",
    }
    lines = [_line([row for row in rows if row["family"] == family], ratios) for family in families]
    return markdown(lines, columns)


def _line(rows: Sequence[Row], ratios: Sequence[float]) -> dict[str, str]:
    first = rows[0]
    by_mode = {
        residual: {row["prune_ratio"]: row for row in rows if row["residual"] == residual}
        for residual in RESIDUAL_MODES
    }
    line = {
        "family": f"{first['family']} ({first['model']})",
        "filters": f"{first['filters']:,}",
        "prunable": _either([f"{100 * row['prunable']:.1f}" for row in rows]),
        "error": _errors(rows),
        "frozen": _either([_reasons(row["frozen"]) for row in rows]),
    }
    for key in ("target_seconds", "surgery_seconds"):
        line[key] = f"{max(row[key] for row in rows):.1f}"
    for key in ("params", "macs"):
        line[f"{key}_before"] = _millions(first[f"{key}_before"])
        for residual, found in by_mode.items():
            line[f"{key}_{residual}"] = ", ".join(
                _millions(found[ratio][f"{key}_after"]) if ratio in found else "missing"
                for ratio in ratios
            )
    return line


def _errors(rows: Sequence[Row]) -> str:
    exact = [row["error_in_float64"] for row in rows if row.get("error_in_float64") is not None]
    return f"{max(row['error'] for row in rows):.0e}" + (f" ({max(exact):.0e})" if exact else "")


def _either(texts: Sequence[str]) -> str:
    """One text where all rows agree; else the different ones (of the residual modes)."""
    return " or ".join(dict.fromkeys(texts))


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f}"


def _reasons(frozen: Mapping[str, Sequence[object]]) -> str:
    """Reasons that differ by the layer they name only are one: the first is given, and a count.

    Args:
        frozen: layer -> its number of filters that stay, and why.
    """
    counts: dict[str, int] = {}
    shown: dict[str, set[str]] = {}
    for number, reason in frozen.values():
        kind = re.sub(r"'[^']*'", "''", str(reason))
        counts[kind] = counts.get(kind, 0) + int(str(number))
        shown.setdefault(kind, set()).add(str(reason))
    texts = []
    for kind, number in counts.items():
        alike = f" (and {len(shown[kind]) - 1} like it)" if len(shown[kind]) > 1 else ""
        texts.append(f"{number:,}: {min(shown[kind])}{alike}".replace("'", "`"))
    return "; ".join(texts)
