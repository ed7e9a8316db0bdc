import io
import re

import pytest
import rich.console
import rich.table

from ehap_tf.pipeline.command import console as console_module
from ehap_tf.pipeline.command.console import RunConsole


def make(verbosity=1, terminal=False):
    text = io.StringIO()
    shown = rich.console.Console(file=text, force_terminal=terminal, width=120)
    return RunConsole(verbosity, shown), text


def test_lines_carry_a_time_where_there_is_no_terminal():
    console, text = make()
    console.say("hello [world]")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d hello \[world\]\n", text.getvalue())


def test_verbosity_zero_shows_only_tables_and_warnings_but_logs_all(tmp_path):
    console, text = make(verbosity=0)
    with console.logging_to(tmp_path / "logs" / "run.log"):
        console.say("quiet")
        console.say("important", level=0)
        table = rich.table.Table("column")
        table.add_row("cell")
        console.table(table)
    assert "quiet" not in text.getvalue()
    assert "important" in text.getvalue() and "cell" in text.getvalue()
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "quiet" in log and "cell" in log


def test_progress_lines_are_spaced_and_the_last_one_always_comes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console, text = make()
    with console.progress("train", "steps") as progress:
        for done in range(101):
            now[0] = done * 0.5
            progress(done, 100, {"loss": 0.25})
    lines = text.getvalue().splitlines()
    assert len(lines) == 5
    assert "train: 20/100 steps, ETA 0:00:40, loss 0.25" in lines[0]
    assert lines[-1].endswith("train: 100/100 steps, loss 0.25")


def test_the_eta_counts_only_what_this_process_did(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console, text = make()
    with console.progress("train", "steps") as progress:
        progress(900, 1000, {})
        now[0] = 20.0
        progress(950, 1000, {})
    assert "950/1000 steps, ETA 0:00:20" in text.getvalue()


def test_a_terminal_gets_a_bar_and_the_log_lines(tmp_path):
    console, text = make(terminal=True)
    with (
        console.logging_to(tmp_path / "run.log"),
        console.progress("rank", "probes") as progress,
    ):
        progress(4, 4, {"error": 0.1})
    assert "rank" in text.getvalue()
    assert "rank: 4/4 probes, error 0.1" in (tmp_path / "run.log").read_text()


def test_the_log_keeps_the_traceback(tmp_path):
    console, text = make()
    with pytest.raises(ZeroDivisionError), console.logging_to(tmp_path / "run.log"):
        1 / 0  # noqa: B018
    assert "Traceback" in (tmp_path / "run.log").read_text()
    assert text.getvalue() == ""
