import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ehap_tf.report import LayerReport, ReportContent, device_rows, render_page, summary_rows

FIGURES = {
    "model": "resnet8",
    "dataset": "digits",
    "criterion": "obd",
    "params_before": 1000,
    "params_after": 250,
    "macs_before": 2e6,
    "macs_after": 5e5,
    "baseline_accuracy": 0.98,
    "pruned_accuracy": 0.5,
    "finetuned_accuracy": 0.97,
    "qat_accuracy": 0.969,
    "tflite_accuracy": 0.968,
    "tflite_bytes": 2048,
    "tflite_float_ops": 0,
    "tflite_latency_ms": 0.125,
    "baseline_latency_ms": 0.5,
    "stage_seconds": {"train": 12.3, "rank": 4.5},
}


QUANTIZATION = {
    "examples": 128,
    "qat_agreement": 0.992,
    "float_agreement": 0.945,
    "largest_difference": 2.0,
    "layers": [
        {"name": "image", "weights_db": None, "output_db": 46.5, "low": -2.4, "high": 2.7,
         "worst_channels": [[1, 45.0]]},
        {"name": "conv<1>", "weights_db": 41.25, "output_db": None, "low": None, "high": None,
         "worst_channels": [], "worst_filters": [[2, 8.1], [0, 40.3]]},
        {"name": "relu", "weights_db": None, "output_db": 31.5, "low": 0.0, "high": 14.5,
         "worst_channels": [[11, 29.4], [6, 33.0]]},
    ],
}  # fmt: skip


def content(**changes):
    random = np.random.default_rng(0)
    scores = random.exponential(size=8)
    layers = [
        LayerReport("conv<1>", scores, 0.1 * scores, tuple(range(5)), (6,)),
        LayerReport("dense", np.zeros(3), None, (0, 1, 2)),
    ]
    fields = {
        "title": "resnet8 on digits <x>",
        "figures": FIGURES,
        "layers": layers,
        "threshold": 0.3,
        "histories": {
            "train": [
                {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "validation_accuracy": 0.4},
                {"epoch": 2, "loss": 0.5, "accuracy": 0.8, "validation_accuracy": 0.7},
            ]
        },
        "operators": {"CONV_2D": 9, "ADD": 3},
        "file_bytes": {"model_int8.tflite": 2048},
        "command": "python -m ehap_tf.main --model=resnet8",
        "settings": {"seed": 0, "stages": ["train", "rank"], "tolerance": None},
        "environment": {"tensorflow": "2.21.0"},
        "details": {"slim_latency_ms": 0.375, "quantization": QUANTIZATION},
    }
    return ReportContent(**{**fields, **changes})


VOID = {"meta", "br", "img", "link", "hr", "input"}


class Balance(HTMLParser):
    """Raises when a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_well_formed(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_page_has_every_section_and_the_figures():
    page = render_page([content()])
    check_well_formed(page)
    sections = re.findall(r'<section class="(\w+)"', page)
    assert sections == [
        "summary", "latency", "layers", "sensitivity", "curves", "quantization", "operators",
        "time", "provenance",
    ]  # fmt: skip
    for text in ("96.80 %", "25.0 %", "0.125 ms", "CONV_2D", "5 of 8 + 1 as 1x1", "2.21.0"):
        assert text in page
    assert "python -m ehap_tf.main --model=resnet8" in page


def test_files_on_this_device():
    run = content()
    page = render_page([run])
    bars = re.findall(r'title="([\d.]+ ms)"><span class="kept" style="width:([\d.]+)%', page)
    assert bars == [("0.500 ms", "100.00"), ("0.375 ms", "75.00"), ("0.125 ms", "25.00")]
    assert [row.cells() for row in device_rows(run)] == [
        ("whole, float32", "98.00 %", "-", "-", "0.500 ms", "2.00 M"),
        ("pruned, float32", "97.00 %", "-", "-", "0.375 ms", "0.50 M"),
        ("pruned, INT8", "96.80 %", "2,048", "-", "0.125 ms", "0.50 M"),
    ]
    assert "INT8 is slower" not in page and "Ethos" not in page
    bare = content(figures={"baseline_accuracy": 0.9}, details={})
    assert 'class="latency"' not in render_page([bare])


def test_what_the_device_says():
    details = {"slim_latency_ms": 0.1, "baseline_int8_latency_ms": 0.2}
    micro = {"micro_examples": 200, "micro_equal": 0.985, "micro_arena_bytes": 68768}
    ethos = {
        "ethos_u": "ethos-u55-128", "ethos_u_cycles": 705842, "ethos_u_ms": 1.41,
        "ethos_u_sram_bytes": 50656, "ethos_u_cpu_operators": 0,
    }  # fmt: skip
    run = content(
        figures={**FIGURES, **micro, **ethos},
        details=details,
        environment={"processor": "a Cortex-M55"},
    )
    page = render_page([run])
    for text in (
        "one thread of a Cortex-M55", "INT8 is slower than float32 here", "98.5 % of 200 outputs",
        "takes 68,768 bytes", "705,842 cycles, 1.41 ms, 50,656 bytes", "whole, INT8",
    ):  # fmt: skip
        assert text in page


def test_integers_of_16_bits_are_told_apart_and_why_they_are_slow():
    run = content(
        settings={"activation_bits": 16},
        details={"baseline_latency_ms": 0.5, "baseline_int8_latency_ms": 9.0},
    )
    names = [row.name for row in device_rows(run)]
    assert names[-1] == "pruned, INT8, 16-bit activations" and names[0] == "whole, float32"
    page = render_page([run])
    assert "activations of 16 bits are slower than float32" in page
    assert "INT8 is slower" not in page


def test_quantization_error_by_layer():
    page = render_page([content()])
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>\s*<td>(.*?)</td>", page)
    assert ("conv&lt;1&gt;", "41.2", "-") in rows and ("relu", "-", "31.5") in rows
    assert "99.2 %" in page and "94.5 %" in page and "11 (29), 6 (33)" in page
    assert "<td></td><td>2 (8), 0 (40)</td></tr>" in page
    assert 'class="quantization"' not in render_page([content(details={})])
    assert "test images it says" not in page
    agreement = {"tflite_agreement": 0.99854, "tflite_agreement_examples": 2048}
    details = {"quantization": QUANTIZATION, **agreement}
    page = render_page([content(details=details)])
    assert "first 2,048 test images it says the same class as the QAT model for 99.85 %" in page


def test_seeds_are_shown():
    page = render_page([content(figures={**FIGURES, "seed": 17, "probes": 300})])
    assert "<dd>17</dd>" in page and "<dd>300</dd>" in page


def test_page_loads_nothing():
    page = render_page([content()])
    assert "<script" not in page and "<link" not in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith("#") for address in addresses)
    assert "@import" not in page and "url(http" not in page


def test_names_are_escaped():
    page = render_page([content()])
    assert "<x>" not in page and "&lt;x&gt;" in page


def test_plots_take_the_colour_of_the_page():
    page = render_page([content()])
    assert "currentColor" in page and "#010203" not in page
    assert "prefers-color-scheme: dark" in page


def test_page_of_a_run_that_only_trained():
    page = render_page(
        [
            content(
                figures={"baseline_accuracy": 0.9},
                layers=(),
                histories={},
                operators={},
                details={},
            )
        ]
    )
    check_well_formed(page)
    assert "90.00 %" in page
    assert re.findall(r'<section class="(\w+)"', page) == ["summary", "provenance"]


def test_comparison_lists_every_run_and_its_change():
    other = {**FIGURES, "tflite_accuracy": 0.9, "macs_after": 1e5}
    page = render_page([content(), content(title="second", figures=other)])
    check_well_formed(page)
    assert '<section class="comparison"' in page
    assert "-1.20" in page and "-8.00" in page


def test_scores_of_any_sign_can_be_drawn():
    for scores in (np.array([-1.0, 0.0, 2.0]), -np.ones(4), np.zeros(2), np.array([1e-30, 1e30])):
        assert "<svg" in render_page([content(layers=[LayerReport("layer", scores)])])


def test_rows_follow_the_stages_and_skip_what_was_not_measured():
    figures = {name: FIGURES[name] for name in ("baseline_accuracy", "qat_accuracy")}
    rows = summary_rows(content(figures=figures))
    assert [row.name for row in rows] == ["baseline", "QAT"]
    assert rows[0].cells()[2:] == ("-", "-", "-", "-")
    assert rows[0].cells()[1] == "98.00 %"


def test_a_row_for_what_recalibration_started_from():
    rows = summary_rows(content(figures=FIGURES | {"accuracy_before_recalibration": 0.4}))
    assert [row.name for row in rows[:3]] == ["baseline", "pruned, not yet recalibrated", "pruned"]
    assert rows[1].cells()[1:] == ("40.00 %", "250", "0.50 M", "-", "-")
    assert [row for row in rows if row is not rows[1]] == summary_rows(content())


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="at least one run"):
        render_page([])
