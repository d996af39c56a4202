"""A static HTML page about an evaluation: ``tools/test.py --report``."""

from .evaluation import CocoReportMetric, MultiLabelReportMetric, report_metric
from .page import write_report

__all__ = ['CocoReportMetric', 'MultiLabelReportMetric', 'report_metric', 'write_report']
