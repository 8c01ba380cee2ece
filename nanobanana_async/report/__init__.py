"""Write a gallery and run report: one HTML file that needs no network, beside its images. Needs jinja2."""

from nanobanana_async.report.page import MAX_CARDS, write_report
from nanobanana_async.report.phrases import Advice
from nanobanana_async.report.recorder import Recorder
from nanobanana_async.report.row import STATUSES, ReportRow, Status
from nanobanana_async.report.summary import Credits
from nanobanana_async.report.thumbnails import THUMBNAILS, find_thumbnail, is_in_store, make_thumbnail

__all__ = [
    "MAX_CARDS",
    "STATUSES",
    "THUMBNAILS",
    "Advice",
    "Credits",
    "Recorder",
    "ReportRow",
    "Status",
    "find_thumbnail",
    "is_in_store",
    "make_thumbnail",
    "write_report",
]
