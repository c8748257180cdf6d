"""ExCL (Ghosh et al., NAACL 2019): from features and a query to a start and an end."""

from excl.models.excl.baselines import TimePrior, best_fixed_span
from excl.models.excl.config import VARIANTS, ExCLConfig, variant_config, variant_label, variant_name
from excl.models.excl.losses import span_cross_entropy
from excl.models.excl.metrics import RECALL_AT, THRESHOLDS, confidence_intervals, query_ious, summary, temporal_iou
from excl.models.excl.model import ExCL
from excl.models.excl.span import best_span, moment_to_rows, rows_to_moment

__all__ = [
    "RECALL_AT",
    "THRESHOLDS",
    "VARIANTS",
    "ExCL",
    "ExCLConfig",
    "TimePrior",
    "best_fixed_span",
    "best_span",
    "confidence_intervals",
    "moment_to_rows",
    "query_ious",
    "rows_to_moment",
    "span_cross_entropy",
    "summary",
    "temporal_iou",
    "variant_config",
    "variant_label",
    "variant_name",
]
