from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf

from ehap_tf.models import policy_of, precision, resolve_precision


def test_named_precisions_stay_and_have_policies():
    names = ("fp32", "fp16", "bf16")
    assert [resolve_precision(name) for name in names] == list(names)
    assert [policy_of(name) for name in names] == ["float32", "mixed_float16", "mixed_bfloat16"]


def test_an_unknown_precision_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"fp32, fp16, bf16, auto\. Received: 'int8'"):
        resolve_precision("int8")


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("GenuineIntel", "fpu avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "fpu avx512_bf16", False),
        ("AuthenticAMD", "fpu avx512_bf16", True),
        ("AuthenticAMD", "fpu avx512f avx512_vnni", False),
        ("AuthenticAMD", "xamx_bf16x", False),
    ],
)
def test_the_flags_of_the_cpu(tmp_path: pathlib.Path, vendor: str, flags: str, expected: bool):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    assert precision.cpu_gains_from_bfloat16(str(cpuinfo)) is expected


def test_a_system_without_cpuinfo(tmp_path: pathlib.Path):
    assert precision.cpu_gains_from_bfloat16(str(tmp_path / "absent")) is False


@pytest.mark.parametrize(
    ("capability", "bfloat16", "expected"),
    [
        (None, True, "bf16"),
        (None, False, "fp32"),
        ((7, 0), False, "fp16"),
        ((8, 9), True, "fp16"),
        ((6, 1), True, "fp32"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, capability, bfloat16: bool, expected: str):
    gpus = [] if capability is None else ["gpu"]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(precision, "cpu_gains_from_bfloat16", lambda: bfloat16)
    assert resolve_precision("auto") == expected
