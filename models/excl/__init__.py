"""ExCL (Ghosh et al., NAACL 2019): from features and a query to a start and an end."""

from excl.models.excl.losses import span_cross_entropy
from excl.models.excl.metrics import THRESHOLDS, best_fixed_span, summary, temporal_iou
from excl.models.excl.model import ExCL, ExCLConfig
from excl.models.excl.span import best_span, moment_to_rows, rows_to_moment

__all__ = [
    "THRESHOLDS",
    "ExCL",
    "ExCLConfig",
    "best_fixed_span",
    "best_span",
    "moment_to_rows",
    "rows_to_moment",
    "span_cross_entropy",
    "summary",
    "temporal_iou",
]
