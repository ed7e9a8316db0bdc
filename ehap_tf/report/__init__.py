"""What a run achieved, for people: tables, plots, and one self-contained HTML page."""

from ehap_tf.report.content import LayerReport, ReportContent
from ehap_tf.report.device import device_rows, device_table
from ehap_tf.report.page import render_page
from ehap_tf.report.summary import summary_rows, summary_table

__all__ = [
    "LayerReport",
    "ReportContent",
    "device_rows",
    "device_table",
    "render_page",
    "summary_rows",
    "summary_table",
]
