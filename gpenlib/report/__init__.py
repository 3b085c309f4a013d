"""One page about a run for those who decide: HTML in one file, with its figures inside."""

from gpenlib.report.page import write_report

__all__ = ["write_report"]
