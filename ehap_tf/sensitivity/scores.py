"""What ranking returns: one score per filter, how sure it is, and how it was made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ehap_tf.files import arrays_from, arrays_to_bytes, reading, write_bytes

FORMAT = "ehap_tf.scores"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How scores were made.

    Attributes:
        criterion: the name of what is scored.
        estimator: of the curvature; None where the criterion has none.
        precision: "fp32", "fp16", "bf16" ("auto" resolved).
        probes: random vectors used; 0 where nothing is sampled.
        seed: of the random vectors.
        seconds: of wall-clock time.
        peak_bytes: peak memory of the process (on a GPU: of the device) while ranking.
        examples: in the Hessian batch; 0 where no data is looked at.
        quantity: what was estimated, e.g. "Hessian trace" or "Gauss-Newton trace".
        notes: what a reader should know: why, what was skipped, what was repeated.
        residual: "tied" where the scores of filters that a sum lines up add up to the effect of
            removing them at once; such scores plan tied pruning only.
        without_blocks: residual blocks that were removed before the network was ranked.
    """

    criterion: str
    estimator: str | None = None
    precision: str = "fp32"
    probes: int = 0
    seed: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    examples: int = 0
    quantity: str = ""
    notes: tuple[str, ...] = ()
    residual: str = "union"
    without_blocks: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """What reports say of a ranking, by their keys."""
        return {
            "criterion": self.criterion,
            "estimator": self.estimator,
            "precision": self.precision,
            "probes": self.probes,
            "rank_seconds": self.seconds,
            "rank_peak_bytes": self.peak_bytes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """The inverse of `dataclasses.asdict`, for values that went through JSON."""
        lists = {name: tuple(values.get(name, ())) for name in ("notes", "without_blocks")}
        return cls(**{**values, **lists})


class FilterScores(Mapping[str, np.ndarray]):
    """Scores of all prunable layers: layer name -> float vector, one number per filter.

    Higher is worth more. Layers stand in model order; a layer of a nested model is
    `"outer/inner"`.

    Attributes:
        trace: layer name -> per-filter curvature trace; empty for criteria without one.
        standard_error: layer name -> standard error of the score; empty for criteria that are
            not sampled, and for "taylor_so", "taylor_so_weight", "obd_joint",
            "obd_joint_centered" and "obs_joint", whose scores are not linear in what is sampled.
        trace_standard_error: layer name -> standard error of the trace; empty where the trace is
            not sampled.
        signed: layer name -> the signed form of the score, where the criterion has one: the
            predicted or measured change of the loss when the filter is removed.
        provenance: how the scores were made; its fields are attributes of the scores as well.
    """

    def __init__(
        self,
        scores: Mapping[str, np.ndarray],
        provenance: Provenance,
        *,
        trace: Mapping[str, np.ndarray] | None = None,
        standard_error: Mapping[str, np.ndarray] | None = None,
        trace_standard_error: Mapping[str, np.ndarray] | None = None,
        signed: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._scores = _frozen(scores)
        self.provenance = provenance
        self.trace = _frozen(trace or {})
        self.standard_error = _frozen(standard_error or {})
        self.trace_standard_error = _frozen(trace_standard_error or {})
        self.signed = _frozen(signed or {})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._scores:
            raise KeyError(f"no scores for layer {name!r}; there are {list(self._scores)}")
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __repr__(self) -> str:
        filters = sum(len(v) for v in self.values())
        return f"FilterScores({self.criterion}, {len(self)} layers, {filters} filters)"

    @property
    def criterion(self) -> str:
        """The name of what is scored."""
        return self.provenance.criterion

    @property
    def estimator(self) -> str | None:
        """Of the curvature; None where the criterion has none."""
        return self.provenance.estimator

    @property
    def precision(self) -> str:
        """The precision that the network ran in."""
        return self.provenance.precision

    @property
    def probes(self) -> int:
        """Random vectors used."""
        return self.provenance.probes

    @property
    def seed(self) -> int:
        """Of the random vectors."""
        return self.provenance.seed

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        return self.provenance.seconds

    @property
    def peak_bytes(self) -> int:
        """Peak memory while ranking."""
        return self.provenance.peak_bytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one `.npz` with a JSON header, atomically and without pickle.

        Raises:
            OSError: the file cannot be written.
        """
        header = {
            "format": FORMAT,
            "version": VERSION,
            "layers": list(self),
            "provenance": dataclasses.asdict(self.provenance),
        }
        arrays: dict[str, Any] = {}
        for number, name in enumerate(self):
            for kind, group in self._groups().items():
                if name in group:
                    # Layer names may hold "/" and anything else: arrays go by number.
                    arrays[f"{kind}_{number}"] = group[name]
        write_bytes(path, arrays_to_bytes(header, arrays, compressed=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FilterScores:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            CorruptFileError: the file is damaged or no scores file; names the file.
        """
        with reading(path, "a scores file"):
            header, arrays = arrays_from(path)
            if header["format"] != FORMAT or header["version"] != VERSION:
                raise ValueError(f"format {header['format']!r} version {header['version']!r}")
            names = list(header["layers"])
            groups: dict[str, dict[str, np.ndarray]] = {}
            for key, values in arrays.items():
                kind, number = key.rsplit("_", 1)
                groups.setdefault(kind, {})[names[int(number)]] = values
            return cls(
                {name: groups["score"][name] for name in names},
                Provenance.from_dict(header["provenance"]),
                trace=groups.get("trace"),
                standard_error=groups.get("standard_error"),
                trace_standard_error=groups.get("trace_standard_error"),
                signed=groups.get("signed"),
            )

    def _groups(self) -> dict[str, Mapping[str, np.ndarray]]:
        return {
            "score": self._scores,
            "trace": self.trace,
            "standard_error": self.standard_error,
            "trace_standard_error": self.trace_standard_error,
            "signed": self.signed,
        }


def _frozen(values: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    copies = {}
    for name, value in values.items():
        copy = np.array(value)
        copy.setflags(write=False)
        copies[name] = copy
    return MappingProxyType(copies)
