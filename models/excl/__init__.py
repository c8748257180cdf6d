"""ExCL (Ghosh et al., NAACL 2019): from features and a query to a start and an end.

The class of the model needs PyTorch as soon as it is defined, so the model is imported only when somebody asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from excl.models.excl.answers import MAX_IOU, RowTimes, decode, row_probabilities, top_spans
from excl.models.excl.config import VARIANTS, ExCLConfig, variant_config, variant_label, variant_name
from excl.models.excl.expected_times import expected_times
from excl.models.excl.losses import Targets, span_cross_entropy, span_distance, span_loss
from excl.models.excl.metrics import (
    RECALL_AT,
    THRESHOLDS,
    confidence_intervals,
    query_figures,
    query_ious,
    summary,
    temporal_iou,
)
from excl.models.excl.paper import PAPER_BASELINES, paper_r1
from excl.models.excl.span import best_span, moment_to_rows, rows_to_moment
from excl.models.excl.time_priors import NeighbourPrior, TimePrior, best_fixed_span

if TYPE_CHECKING:
    from excl.models.excl.model import ExCL

__all__ = [
    "MAX_IOU",
    "PAPER_BASELINES",
    "RECALL_AT",
    "THRESHOLDS",
    "VARIANTS",
    "ExCL",
    "ExCLConfig",
    "NeighbourPrior",
    "RowTimes",
    "Targets",
    "TimePrior",
    "best_fixed_span",
    "best_span",
    "confidence_intervals",
    "decode",
    "expected_times",
    "moment_to_rows",
    "paper_r1",
    "query_figures",
    "query_ious",
    "row_probabilities",
    "rows_to_moment",
    "span_cross_entropy",
    "span_distance",
    "span_loss",
    "summary",
    "temporal_iou",
    "top_spans",
    "variant_config",
    "variant_label",
    "variant_name",
]


def __getattr__(name: str) -> Any:
    if name == "ExCL":
        return import_module("excl.models.excl.model").ExCL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
