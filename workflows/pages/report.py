"""Make a page about a run, a store or a sweep: one HTML file that opens from disk, without a network.

Reads a run with its evaluation (which is made if there is none yet) and its store, or a store alone, or the folder that
`excl reproduce` wrote. Leaves the page. Videos are not in it but for those that are asked for: it names their files relative
to itself.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.models.i3d.extractor import choose_device
from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import STRICT, NonNegativeInt, SaidInText
from excl.pipeline.execution.video_reading import decoders_stopped
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.trained_run import store_of
from excl.workflows.pages import report_run
from excl.workflows.pages.page import Page, Section, folder_title, render
from excl.workflows.pages.report_store import StoreContent, data_section, feature_section, folder_beside, store_sections
from excl.workflows.pages.report_sweep import is_sweep, sweep_sections

STORES = ("extract", "import", "pack")
SPLITS: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")  # to report on, the first that there is


@dataclass(frozen=True, config=STRICT)
class ReportConfig:
    """Make a page about a trained run, a store or a sweep: figures, curves, examples, and the data behind them."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run that `excl train` wrote; or a store that extract, import or pack wrote; or the folder of `excl reproduce`."""
    out: SaidInText[Path | None] = None
    """The page to write. Default: FOLDER-report.html, next to the folder."""
    store: SaidInText[Path | None] = None
    """The training store of a run. Default: the one that the run was trained on, if it is still where it was."""
    evaluation: SaidInText[Path | None] = None
    """The folder in which `excl evaluate` left the figures of a run. Default: one next to the run, or a new one."""
    videos: Path | None = None
    """The folder of the video files; without it examples are shown as timelines alone."""
    embed_videos: NonNegativeInt = 0
    """Number of videos to copy into the page, of those in the examples; the page plays the others from where they are."""
    device: str = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        choose_device(self.device)
        if self.videos is not None and not self.videos.is_dir():
            raise ValueError(f"videos: {self.videos} is not a folder; give the one that has the video files")
        if self.embed_videos and self.videos is None:
            raise ValueError("embed_videos: needs --videos, the folder of the video files")

    @property
    def page(self) -> Path:
        """The file to write."""
        return self.out or self.folder.with_name(f"{self.folder.absolute().name}-report.html")


def run(config: ReportConfig) -> Path:
    """Make the page; ValueError for a folder that no report can be about."""
    path = config.page
    with decoders_stopped():
        make(config).save(path)
    return path


def make(config: ReportConfig) -> Page:
    """Return the page."""
    title = f"excl: {folder_title(config.folder)}"
    made = f"Made on {time.strftime('%Y-%m-%d %H:%M:%S')}."
    if not (config.folder / HEADER).is_file() and is_sweep(config.folder):
        return render(title, sweep_sections(config.folder), lines=[made])
    stage = Manifest.read(config.folder).header["stage"]
    if stage == train.STAGE:
        lines, sections = _run_report(config)
        return render(title, sections, lines=[*lines, made])
    if stage in STORES:
        sections = store_sections(config.folder, videos=config.videos, page=config.page, embedded=config.embed_videos)
        return render(title, sections, lines=[made])
    raise ValueError(
        f"{config.folder}: a folder of the stage {stage!r}; a report is about a run that `excl train` wrote, a store that "
        "extract, import or pack wrote, or the folder of `excl reproduce`"
    )


def _run_report(config: ReportConfig) -> tuple[list[str], list[Section]]:
    store, missing = _store(config)
    evaluation, unevaluated = _evaluation(config, store)
    metrics = None if evaluation is None else evaluation.metrics
    sections = [report_run.recipe_section(config.folder, metrics)]
    if metrics is not None:
        sections.insert(0, report_run.results_section(metrics))
    sections.append(report_run.training_section(config.folder))
    if missing or unevaluated:
        sections.append(Section("What is missing here", warnings=[text for text in (missing, unevaluated) if text]))
    if store is None:
        return report_run.run_lines(metrics), sections
    content = StoreContent.read(store.path)
    moments = [] if metrics is None else content.queries.get(metrics["split"], [])
    if evaluation is not None and moments:
        answered = report_run.Answered.of(moments, evaluation.windows)
        sections += [report_run.strengths_section(answered), report_run.bias_section(answered)]
        sections.append(
            report_run.example_section(
                config.folder,
                store,
                answered,
                videos=config.videos,
                page=config.page,
                embedded=config.embed_videos,
                device=config.device,
            )
        )
    return report_run.run_lines(metrics), [*sections, data_section(content), feature_section(store)]


def _store(config: ReportConfig) -> tuple[TrainingStore | None, str]:
    """Return the run's training store, or why there is none."""
    if config.store is not None:
        return TrainingStore(config.store), ""
    try:
        return TrainingStore(store_of(config.folder)), ""
    except ValueError as error:
        return None, f"{error} Without it there are no examples, and nothing is said of the data."


def _evaluation(config: ReportConfig, store: TrainingStore | None) -> tuple[report_run.Evaluation | None, str]:
    """Return the run's evaluation: that of the setting, one next to the run, or a new one; or why there is none."""
    wanted = {"run": Manifest.read(config.folder).fingerprint()}
    if store is not None:
        wanted["store"] = store.manifest.fingerprint()

    def is_wanted(manifest: Manifest, **more: str) -> bool:
        return manifest.is_complete and {**wanted, **more}.items() <= manifest.header["identity"].items()

    if config.evaluation is not None:
        if not is_wanted(Manifest.read(config.evaluation, stage=evaluate.STAGE)):
            raise ValueError(
                f"{config.evaluation}: an evaluation that has not finished, or of another run or store than these"
            )
        return report_run.Evaluation.read(config.evaluation), ""
    for split in SPLITS:
        folder = folder_beside(config.folder, evaluate.STAGE, functools.partial(is_wanted, split=split))
        if folder is not None:
            return report_run.Evaluation.read(folder), ""
    if store is None:
        return None, "The run has not been evaluated; `excl evaluate` does it."
    splits = {query.split for query in store.all_queries()}
    split = next(split for split in SPLITS if split in splits)
    try:
        settings = evaluate.EvaluateConfig(run=config.folder, store=store.path, split=split, device=config.device)
        return report_run.Evaluation.read(evaluate.run(settings)), ""
    except ValueError as error:
        return None, f"The run has not been evaluated, and could not be now: {error}"


def show(path: Path) -> str:
    """Return where the page is."""
    return f"page: {path.absolute()}"
