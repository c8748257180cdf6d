"""The cells of the paper's Table 1 (Ghosh et al., NAACL 2019), R@1 in percent."""

import csv
from functools import cache
from importlib import resources

PAPER_BASELINES = ("Ge et al. 2019", "Xu et al. 2019", "Zhang et al. 2018")
"""The methods that the paper compares ExCL with, as paper_table1.csv calls them."""
_OTHER_NAMES = {"tacos-tall": "tacos"}


def paper_r1(method: str, dataset: str) -> dict[float, float]:
    """Return R@1 by IoU threshold of a method ("ExCL-clf 2-b", one of PAPER_BASELINES) on a data set; empty if not there."""
    return _cells().get((method, _OTHER_NAMES.get(dataset, dataset)), {})


@cache
def _cells() -> dict[tuple[str, str], dict[float, float]]:
    cells: dict[tuple[str, str], dict[float, float]] = {}
    text = (resources.files("excl.models.excl") / "paper_table1.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        cells.setdefault((row["method"], row["dataset"]), {})[float(row["iou"])] = float(row["r1"])
    return cells
