"""What the settings of a run must be, each for itself and together."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ehap_tf.criteria import check_tolerance

if TYPE_CHECKING:
    from ehap_tf.pipeline.command.config import PipelineConfig

STAGE_NAMES = ("train", "rank", "prune", "finetune", "quantize", "export", "report")
AMOUNTS = ("prune_ratio", "target_params", "target_macs", "target_latency_ms")


def check_together(config: PipelineConfig) -> None:
    """Raises ValueError when settings exclude each other."""
    _check_integers(config)
    _check_amount(config)
    _check_network(config)
    _check_blocks_and_stages(config)


def _check_integers(config: PipelineConfig) -> None:
    """Bits, rounding, and what runs the file."""
    if config.weight_bits not in (4, 8):
        raise ValueError(f"weight_bits must be 4 or 8. Received: {config.weight_bits}")
    if config.activation_bits not in (8, 16):
        raise ValueError(f"activation_bits must be 8 or 16. Received: {config.activation_bits}")
    others = ("target_bytes", "target_latency_ms")
    given = [name for name in others if getattr(config, name) is not None]
    given += ["weight_bits=4"] if config.weight_bits == 4 else []
    if config.activation_bits != 8 and given:
        raise ValueError(
            "activation_bits=16 goes with kernels of 8 bits, and without a target of time, "
            f"which is predicted for 8. Received: {', '.join(given)}"
        )
    if config.target_bytes is not None and config.weight_bits != 8:
        raise ValueError(
            "target_bytes chooses the bits of the kernels: leave weight_bits at 8. "
            f"Received: target_bytes={config.target_bytes}, weight_bits={config.weight_bits}"
        )
    if config.target.startswith("ethos-u") and (config.target_bytes or config.weight_bits != 8):
        raise ValueError(
            "target of an Ethos-U takes kernels of 8 bits alone, which its compiler packs by "
            f"itself: leave weight_bits and target_bytes out. Received: target={config.target}"
        )
    if config.rounding != "nearest" and config.qat_epochs:
        raise ValueError(
            "rounding other than nearest goes with qat_epochs=0. "
            f"Received: rounding={config.rounding}, qat_epochs={config.qat_epochs}"
        )


def _check_amount(config: PipelineConfig) -> None:
    """How much goes, and how."""
    for name in ("tolerance", "target_params", "target_macs", "target_latency_ms"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0. Received: {value}")
    check_tolerance(config.criterion, config.tolerance)
    amounts = [name for name in AMOUNTS if getattr(config, name) is not None]
    if len(amounts) > 1:
        raise ValueError(
            f"{' and '.join(amounts)} exclude each other: give one of them, and =none for "
            "one that a --flagfile gives. Received: "
            + ", ".join(f"{name}={getattr(config, name)}" for name in amounts)
        )
    if config.target_latency_ms is None and config.latency_table is not None:
        raise ValueError(
            "latency_table goes with target_latency_ms. "
            f"Received: latency_table={config.latency_table}"
        )
    if config.latency_table is not None and not pathlib.Path(config.latency_table).is_file():
        raise ValueError(f"latency_table must be a file. Received: {config.latency_table}")
    if config.target_latency_ms is not None and config.prune_steps > 1:
        raise ValueError(
            f"target_latency_ms goes with prune_steps=1. Received: prune_steps={config.prune_steps}"
        )
    if config.prune_steps > 1 and config.implant_ratio:
        raise ValueError(
            "prune_steps above 1 goes without 1x1 implants, which cannot be ranked again. "
            f"Received: prune_steps={config.prune_steps}, implant_ratio={config.implant_ratio}"
        )


def _check_network(config: PipelineConfig) -> None:
    """What goes with a saved model, and what with one by its name."""
    if config.baseline == "train" and config.names_saved_model:
        raise ValueError(
            "baseline=train goes with a built-in model; a saved one is taken as it is. "
            f"Received: model={config.model}"
        )
    if config.network_settings and config.names_saved_model:
        raise ValueError(
            "width and weights go with a network by its name. "
            f"Received: model={config.model}, width={config.width}, weights={config.weights}"
        )
    if config.image_size is not None and config.names_saved_model:
        raise ValueError(
            "image_size goes with a built-in model; a saved one takes images of its own size. "
            f"Received: image_size={config.image_size}, model={config.model}"
        )


def _check_blocks_and_stages(config: PipelineConfig) -> None:
    """Names and counts in lists."""
    if any(re.fullmatch(r"-\d+", value) for value in config.remove_blocks):
        raise ValueError(
            f"remove_blocks must be at least 0. Received: {','.join(config.remove_blocks)}"
        )
    if len(config.remove_blocks) > 1 and any(map(str.isdecimal, config.remove_blocks)):
        raise ValueError(
            "remove_blocks must be one number or names of blocks. "
            f"Received: {','.join(config.remove_blocks)}"
        )
    if not config.stages:
        raise ValueError(f"stages is empty. Give some of: {', '.join(STAGE_NAMES)}")
    if len(set(config.stages)) != len(config.stages):
        raise ValueError(f"stages repeats a stage. Received: {','.join(config.stages)}")


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one that is nearest, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f". Did you mean {near[0]}?" if near else ""


def check_setting(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError when a setting is not one of its choices or outside its range."""
    if value is None:
        return
    limits = field.metadata
    if limits["choices"]:
        for one in value if isinstance(value, tuple) else (value,):
            if one not in limits["choices"]:
                raise ValueError(
                    f"{field.name} must be one of {', '.join(limits['choices'])}. "
                    f"Received: {one}{nearest_hint(str(one), limits['choices'])}"
                )
    if isinstance(value, str) and not value:
        raise ValueError(f"{field.name} is empty. {field.metadata['help']}")
    if isinstance(value, (bool, str, tuple)):
        return
    low, high, below = limits["low"], limits["high"], limits["below"]
    wrong = value != value or abs(value) == float("inf")
    wrong = wrong or (low is not None and value < low)
    wrong = wrong or (high is not None and value > high)
    wrong = wrong or (below is not None and value >= below)
    if wrong:
        parts = []
        if low is not None:
            parts.append(f"at least {low}")
        if high is not None:
            parts.append(f"at most {high}")
        if below is not None:
            parts.append(f"below {below}")
        raise ValueError(
            f"{field.name} must be {' and '.join(parts) or 'a finite number'}. Received: {value}"
        )
