"""Stage `report`: report.json and report.html."""

from __future__ import annotations

from ehap_tf import files
from ehap_tf.pipeline.command.job import Figures, Job, Stage
from ehap_tf.pipeline.command.report_content import run_content
from ehap_tf.report import render_page


def run(job: Job, fingerprint: str) -> Figures:
    """Writes `report.json` and `report.html` about the stages that hold for these settings."""
    del fingerprint
    content = run_content(job.run, job.current)
    job.run.write_json(job.run.report, content.figures)
    files.write_text(job.run.report_page, render_page([content]))
    return {}


STAGE = Stage(
    name="report",
    settings=lambda config: {},
    inputs=lambda run: (),
    outputs=lambda run: (run.report, run.report_page),
    run=run,
    always=True,
)
