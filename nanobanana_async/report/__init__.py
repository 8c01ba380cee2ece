"""Write a gallery and run report: one HTML file that needs no network, beside its images. Needs jinja2."""

from nanobanana_async.report.page import write_report
from nanobanana_async.report.recorder import Recorder
from nanobanana_async.report.row import STATUSES, ReportRow, Status

__all__ = ["STATUSES", "Recorder", "ReportRow", "Status", "write_report"]
