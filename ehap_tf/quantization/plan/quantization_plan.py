"""How each operator of the file is quantized: decided first, as data that people edit."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ehap_tf.files import json_fields

WEIGHT_BITS = (4, 8)
ACTIVATION_BITS = (8, 16)

_FORMAT = "ehap_tf.QuantizationPlan/1"


@dataclasses.dataclass(frozen=True)
class LayerQuantization:
    """What becomes of one layer of the file's graph.

    Attributes:
        name: of the layer; most have that of the layer of the float model that they come from.
        kind: its class, or its operator.
        output: where its output is quantized. "own": with a range that is observed on it; "behind":
            by the layer behind, which does nothing else; "fixed": with a range that the runtime
            prescribes; "input": it stays on the grid of what the layer reads; "shared": it is
            written on the grid of another layer's result; "inside": not at all, it is an
            intermediate result of an operator; "exact": not at all, it is integers or truth values;
            "float": the layer computes in float32.
        other: the layer that quantizes it, of whose operator it is part, or whose grid it has; ""
            where there is none.
        weight_bits: of the kernel; None where the file holds no weights as integers.
        scales: "channel" (one for each output channel) or "tensor"; "" without a kernel.
        reason: why it stays in float; "" where it does not.
    """

    name: str
    kind: str
    output: str
    other: str = ""
    weight_bits: int | None = None
    scales: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class QuantizationPlan:
    """How `quantize` makes a model integer, without the numbers that calibration finds.

    Plans are made by `plan_quantization`. What may differ from the plan that it makes of a model is
    the `weight_bits` of a kernel, see `with_bits`; which layers stay in float is an argument of it,
    since other layers come between then.

    Attributes:
        layers: of the file's graph, in the order of computing.
        weight_bits: of the kernels that nothing else is said of.
        activation_bits: of the outputs: 8, or 16, symmetric, with kernels of 8 bits.
        act_percentile: share in percent of an output's values that its range holds.
        keep_float: patterns of the names of layers that stay in float though they need not.
        allow_float: whether layers without an integer kernel may stay in float.
    """

    layers: tuple[LayerQuantization, ...]
    weight_bits: int = 8
    activation_bits: int = 8
    act_percentile: float = 100.0
    keep_float: Sequence[str] = ()
    allow_float: bool = False

    def __post_init__(self) -> None:
        require_bits("weight_bits", self.weight_bits, WEIGHT_BITS)
        require_bits("activation_bits", self.activation_bits, ACTIVATION_BITS)
        if self.activation_bits == 16 and 4 in (self.weight_bits, *self.bits.values()):
            raise ValueError(
                "kernels must have 8 bits with activation_bits=16: TFLite computes something else "
                "with 4 bits beside activations of 16. Received: 4 bits for "
                f"{', '.join(n for n, bits in self.bits.items() if bits == 4) or 'all kernels'}"
            )
        if not 50.0 < self.act_percentile <= 100.0:
            raise ValueError(
                f"act_percentile must be in (50, 100]. Received: {self.act_percentile!r}"
            )
        if isinstance(self.keep_float, str):
            raise TypeError(
                "keep_float must be a list or tuple of names or patterns. "
                f"Received: the text {self.keep_float!r}"
            )

    @property
    def bits(self) -> dict[str, int]:
        """Layer -> bits of its kernel, for all that have one."""
        return {
            layer.name: layer.weight_bits for layer in self.layers if layer.weight_bits is not None
        }

    def with_bits(self, bits: Mapping[str, int]) -> QuantizationPlan:
        """The plan with other bits for some kernels.

        Args:
            bits: name of a layer, or a pattern as of files ("stage2_*"), -> 8, or 4 for all but
                transposed convolutions; of several that fit, the last counts.

        Raises:
            ValueError: no kernel has such a name, or other bits.

        Example:
            >>> plan = ehap.plan_quantization(model, weight_bits=4)
            >>> plan = plan.with_bits({"stem": 8, "head*": 8})
            >>> qat = ehap.quantize(model, "ptq", representative_data=images, plan=plan)
        """
        found = self.bits
        for pattern, number in bits.items():
            require_bits(f"bits of {pattern!r}", number, WEIGHT_BITS)
            names = fnmatch.filter(found, pattern)
            if not names:
                raise ValueError(
                    f"bits must name layers with a kernel: {', '.join(found)}. "
                    f"Received: {pattern!r}"
                )
            found |= dict.fromkeys(names, number)
        layers = (
            dataclasses.replace(layer, weight_bits=found.get(layer.name)) for layer in self.layers
        )
        return dataclasses.replace(self, layers=tuple(layers))

    def require_fits(self, decided: QuantizationPlan) -> None:
        """Checks that this plan is of the model that `decided` is of, other bits aside.

        Raises:
            ValueError: it is not; with the first layer that differs.
        """
        ours, theirs = (
            [dataclasses.replace(layer, weight_bits=None) for layer in plan.layers]
            for plan in (self, decided)
        )
        for mine, its in zip(ours, theirs, strict=False):
            if mine != its:
                raise ValueError(
                    "plan must be one that plan_quantization made of this model, with other bits "
                    f"at most: the model has {_said(its)}. Received: {_said(mine)}"
                )
        if len(ours) != len(theirs):
            raise ValueError(
                f"plan must be one of this model, which becomes {len(theirs)} layers. Received: "
                f"{len(ours)} layers"
            )
        for layer, its in zip(self.layers, decided.layers, strict=True):
            if (layer.weight_bits is None) != (its.weight_bits is None):
                raise ValueError(
                    f"plan must have bits for the layers with a kernel, and for them alone. "
                    f"Received: {layer.weight_bits} for {layer.name!r}"
                )

    def summary(self) -> str:
        """A table for people: one line for each layer of the file's graph."""
        rows = [("layer", "kind", "weights", "output")]
        for layer in self.layers:
            weights = f"{layer.weight_bits} bits per {layer.scales}" if layer.weight_bits else ""
            rows.append((layer.name, layer.kind, weights, _output(layer)))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
            ).rstrip()
            for row in rows
        )

    def __repr__(self) -> str:
        kernels = self.bits.values()
        kept = sum(layer.output == "float" for layer in self.layers)
        counts = ", ".join(
            f"{list(kernels).count(number)} kernels of {number} bits"
            for number in sorted(set(kernels))
        )
        return f"QuantizationPlan({len(self.layers)} layers, {counts}, {kept} in float)"

    def to_json(self) -> str:
        """The plan as text that `from_json` reads back."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> QuantizationPlan:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the text is not a plan, or holds bits that there are not.
        """
        fields = json_fields(text, _FORMAT, "quantization plan")
        try:
            layers = tuple(LayerQuantization(**layer) for layer in fields.pop("layers"))
            plan = cls(layers, keep_float=tuple(fields.pop("keep_float")), **fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a quantization plan: {error}") from None
        for name, number in plan.bits.items():
            require_bits(f"bits of {name!r}", number, WEIGHT_BITS)
        return plan


def require_bits(what: str, bits: Any, choices: Sequence[int]) -> None:
    """Checks a number of bits.

    Raises:
        ValueError: it is none of `choices`.
    """
    if bits not in choices:
        raise ValueError(f"{what} must be one of {tuple(choices)}. Received: {bits!r}")


def _output(layer: LayerQuantization) -> str:
    return {
        "own": "own range",
        "fixed": "prescribed range",
        "behind": f"quantized by {layer.other}",
        "input": f"grid of {layer.other}",
        "shared": f"grid of {layer.other}",
        "inside": f"inside {layer.other}",
        "exact": "exact",
        "float": f"float: {layer.reason}",
    }.get(layer.output, layer.output)


def _said(layer: LayerQuantization) -> str:
    return f"layer {layer.name!r} ({layer.kind}), output {_output(layer)!r}"
