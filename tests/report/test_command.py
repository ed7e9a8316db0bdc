import json

import pytest

from ehap_tf.report.__main__ import main

FIGURES = {
    "model": "resnet8",
    "dataset": "digits",
    "baseline_accuracy": 0.9,
    "tflite_accuracy": 0.88,
    "macs_before": 10,
    "macs_after": 5,
}


@pytest.fixture
def runs(tmp_path):
    """Two run directories of which only report.json is left, as one ships them."""
    folders = []
    for number in range(2):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(FIGURES | {"seed": number}))
        folders.append(folder)
    return folders


def test_one_run_gets_its_page_in_its_directory(runs, capsys):
    assert main([str(runs[0])]) == 0
    assert capsys.readouterr().out.strip() == str(runs[0] / "report.html")
    assert "88.00 %" in (runs[0] / "report.html").read_text()


def test_several_runs_are_compared(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(run) for run in runs]) == 0
    page = (tmp_path / "comparison.html").read_text()
    assert "run0" in page and "run1" in page and 'class="comparison"' in page
    assert main([*(str(run) for run in runs), "--output", "other/page.html"]) == 0
    assert (tmp_path / "other" / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("missing", None, "no such folder"),
        ("empty", {}, "holds no report.json and no finished stage"),
        ("begun", {"config.json": '{"settings": {"model": "resnet8"}}'}, "no finished stage"),
        ("broken", {"report.json": "{"}, "report.json cannot be read"),
        ("list", {"report.json": "[]"}, "report.json cannot be read"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, capsys, name, content, text):
    if content is not None:
        (tmp_path / name).mkdir()
        for file, written in content.items():
            (tmp_path / name / file).write_text(written)
    assert main([str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert text in error and name in error
