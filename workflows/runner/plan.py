"""What a run of a recipe will do, before it does anything: of every step what is there, what is left, what it takes.

Nothing is written. Headers of some videos are read, and where much is left the speed is measured for a few seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from excl.datasets.video.probe import Probe
from excl.pipeline import decode, extract, train
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import planned_ids, video_files, video_key
from excl.pipeline.execution import work_items
from excl.pipeline.execution.video_reading import probe_all
from excl.pipeline.sweep import reproduce
from excl.workflows import demo
from excl.workflows.runner.estimates import FEW_FRAMES, Lengths, cost_of, hours
from excl.workflows.runner.output_folders import (
    READ_VIDEOS,
    FolderState,
    changed_video,
    free_bytes,
    has_header,
    inspect_folder,
    is_new,
    made_by_recipe,
    matching_old_folder,
    reads_files,
    videos_of,
    wanted_header,
    with_moved_inputs,
)
from excl.workflows.runner.recipe import inputs, within
from excl.workflows.runner.summary import StepSnapshot, summary

HEADERS_READ = 200  # of more videos so many are looked at, evenly spread

Kind = Literal["done", "goes on", "again", "back", "new", "always", "refused"]
WORDS: Mapping[Kind, str] = {
    "done": "done already, nothing to do",
    "goes on": "goes on",
    "again": "made again",
    "back": "taken back",
    "new": "new",
    "always": "to do",
    "refused": "will be refused",
}


@dataclass(frozen=True)
class StepPlan:
    """What will become of one step."""

    step: str
    kind: Kind
    why: str = ""
    """For what is made again or goes on."""
    holds: str = ""
    """What is there, or will be, in counts."""
    takes: str = ""
    """How long, and how much of the disk."""
    before: StepSnapshot | None = None
    """What there is before the step is run; None for one that leaves no folder."""

    @property
    def to_do(self) -> bool:
        """Whether anything is."""
        return self.kind != "done"

    def lines(self) -> list[str]:
        """For people."""
        head = WORDS[self.kind] + (f"{', ' if self.kind == 'again' else ': '}{self.why}" if self.why else "")
        line = f"  {self.step:10}{head}{': ' if self.holds else ''}{self.holds}"
        return [line, f"  {'':10}{self.takes}"] if self.takes else [line]


@dataclass
class Planner:
    """Goes through the steps of a recipe in order, and knows what will have become of those before."""

    configs: Mapping[str, Any]
    """Of all steps of the recipe, whether they are to be run or not."""
    root: Path
    changed: dict[Path, str] = field(default_factory=dict)
    """Folders that will not hold what they do now, with their steps."""
    moved: dict[Path, Path] = field(default_factory=dict)
    """Folders that will be taken back, with where they are now."""
    again: set[str] = field(default_factory=set)
    """The steps that make something else than there is."""
    perhaps: set[str] = field(default_factory=set)
    """The steps that may well leave what there is: it depends on what becomes of those before."""

    def plan(self, step: str) -> StepPlan:
        """What will become of the next step."""
        config = self.configs[step]
        planned = StepPlan(step, "always") if config.out is None else self._judge(step, config)
        if planned.kind not in ("done", "back", "refused") and config.out is not None:
            self.changed[config.out] = step
        if planned.kind == "again":
            self.again.add(step)
        return planned if config.out is None else dataclasses.replace(planned, before=StepSnapshot.of(config.out))

    def _judge(self, step: str, config: Any) -> StepPlan:
        causes = self._causes(config)
        reading = with_moved_inputs(config, self.moved)  # what will be taken back lies elsewhere now
        if not has_header(step):
            trainings = 0 if causes else _trained_already(reading)
            if trainings:
                return StepPlan(step, "done", holds=f"{trainings} trainings with their evaluations")
            return StepPlan(step, "always", "whatever is not done yet")
        if is_new(config.out):
            return self._to_make(step, "new", "", reading, self._everything(reading))
        if causes and step not in READ_VIDEOS:
            return self._of_another_input(step, causes)
        try:
            wanted = wanted_header(step, reading, self.configs)
        except (ValueError, OSError) as error:
            return StepPlan(step, "always", str(error))
        return self._compare(step, reading, wanted, taken_back=not causes)

    def _of_another_input(self, step: str, causes: list[str]) -> StepPlan:
        """A step that reads what steps before it will make, as far as these make something else."""
        certain = [cause for cause in causes if cause not in self.perhaps]
        if certain:
            return StepPlan(step, "again", f"because it follows from {' and '.join(certain)}")
        self.perhaps.add(step)
        return StepPlan(step, "again", f"if {' or '.join(causes)} gives something else")

    def _compare(self, step: str, reading: Any, wanted: Mapping[str, Any], *, taken_back: bool) -> StepPlan:
        """A step of which it is known what its folder is to be made from; reads from where its inputs lie now."""
        config = self.configs[step]
        found = inspect_folder(config.out, wanted)
        if found is not None and not found.differences and not self._has_other_videos(step, reading, found):
            if (video_id := changed_video(step, reading, found.manifest)) and not made_by_recipe(config, self.configs):
                return StepPlan(step, "refused", f"{video_id} has changed since {config.out} was made from it")
            return self._of_same(step, config, reading, found)
        if taken_back and (kept := matching_old_folder(step, reading, wanted)):
            self.moved[config.out] = kept
            rest = self._of_same(step, config, reading, FolderState(Manifest.read(kept), {}))
            if rest.to_do:
                return dataclasses.replace(rest, why=f"{kept} is taken back, {rest.why}")
            return StepPlan(step, "back", f"{kept} was made from just this", rest.holds)
        why = "" if found is None else f"because {found.reasons(step) or 'its videos have changed'}"
        return self._to_make(step, "again" if why else "new", why, reading, self._everything(reading))

    def _causes(self, config: Any) -> list[str]:
        """The steps before this one that change what it reads."""
        reads = [path for _, path in inputs(config)]
        return [step for out, step in self.changed.items() if any(within(path, out) for path in reads)]

    def _has_other_videos(self, step: str, config: Any, found: FolderState) -> bool:
        """Whether the videos that were read are, or will be, others: of those that the recipe itself makes."""
        if step not in READ_VIDEOS or not made_by_recipe(self.configs[step], self.configs):
            return False
        if demo.STAGE in self.again:
            return True
        return not self._causes(config) and bool(changed_video(step, config, found.manifest))

    def _of_same(self, step: str, config: Any, reading: Any, found: FolderState) -> StepPlan:
        """A step whose folder was made from what is asked for: it is done, or goes on."""
        if step in READ_VIDEOS:
            todo = self._left(reading, found.manifest)
            if todo is None:
                self.perhaps.add(step)
                return StepPlan(step, "goes on", "with what the step before adds", summary(step, found.manifest))
            if not todo:
                return StepPlan(step, "done", holds=f"{summary(step, found.manifest)}{_of_failed(found.manifest)}")
            total = len(set(planned_ids(found.manifest)) | set(videos_of(reading)))
            return self._to_make(step, "goes on", f"{len(todo):,} of {total:,} videos left", reading, todo)
        if found.manifest.is_complete:
            return StepPlan(step, "done", holds=summary(step, found.manifest))
        return StepPlan(step, "goes on", _begun(step, config, found.manifest.folder))

    def _left(self, config: Any, manifest: Manifest) -> Mapping[str, Path] | None:
        """The videos that are still to be done; None where those that there will be are not known yet."""
        if self._causes(config):
            return None
        there = video_files(manifest)
        left = {}
        for video_id, path in videos_of(config).items():
            record = manifest.records.get(video_key(video_id))
            failed = record is not None and "error" in record
            lost = not failed and not (manifest.folder / there.get(video_id, "?")).is_file()
            if (
                record is None
                or lost
                or (failed and (config.retry_failed or work_items.has_returned(manifest, video_id, path)))
            ):
                left[video_id] = path
        return left

    def _everything(self, config: Any) -> Mapping[str, Path] | None:
        """All videos of a step that reads some; None where they are not there yet, or it reads none."""
        if not hasattr(config, "reading") or not hasattr(config, "videos") or self._causes(config):
            return None
        return videos_of(config)

    def _to_make(self, step: str, kind: Kind, why: str, config: Any, videos: Mapping[str, Path] | None) -> StepPlan:
        """What there is to make, in counts, and what it takes."""
        if step == demo.STAGE:
            lengths = _of_demo(config)
            return StepPlan(step, kind, why, f"{lengths.count:,} videos, {lengths.hours:,.2f} hours of video")
        if step not in READ_VIDEOS:
            return StepPlan(step, kind, why)
        lengths, paths = self._lengths(config, videos)
        if not lengths.seen:
            return StepPlan(step, kind, why, f"{lengths.count:,} videos" if lengths.count else "")
        by = "" if len(lengths.seen) == lengths.count else f" by the headers of {len(lengths.seen)} of them"
        holds = f"{lengths.count:,} videos, {lengths.hours:,.2f} hours of video{by}"
        if isinstance(config, extract.ExtractConfig):
            cost = cost_of(config, lengths)
            frames, holds = cost.frames, f"{holds}, {cost} ({free_bytes(self.root) / 1e9:,.1f} GB free)"
        else:
            counts = lengths.frames(None if config.fps == "native" else config.fps)
            frames = round(sum(counts) * lengths.share)
            holds = f"{holds}, about {frames:,} frames ({free_bytes(self.root) / 1e9:,.1f} GB free)"
        if frames < FEW_FRAMES:
            return StepPlan(step, kind, why, holds, "will take about a minute, or less")
        return StepPlan(step, kind, why, holds, hours(config, paths, frames))

    def _lengths(self, config: Any, videos: Mapping[str, Path] | None) -> tuple[Lengths, list[Path]]:
        """How long the videos are, by headers, records or plans, and which of them may be decoded to measure the speed."""
        made = self.configs.get("demo")
        if videos is None:
            return (Lengths((), 0) if made is None else _of_demo(made)), []
        if reads_files(config):
            return _of_files(config, videos)
        records = Manifest.read(config.frames).records
        seen = [(records[video_key(video_id)]["duration_s"], 25.0) for video_id in videos]
        return Lengths(seen, len(seen)), []


def _trained_already(config: reproduce.ReproduceConfig) -> int:
    """How many trainings a sweep has, if it is finished with just these settings; 0 if not, or where that cannot be said."""
    try:
        return reproduce.num_finished(config)
    except (ValueError, OSError):
        return 0


def _of_failed(manifest: Manifest) -> str:
    """How many videos of a step that is done failed; nothing if none did."""
    failed = len(manifest.failed)
    return f"; {failed:,} failed, which retry_failed = true tries again" if failed else ""


def _of_demo(config: demo.DemoConfig) -> Lengths:
    """How long the demo's videos are, or will be."""
    videos = [demo.plan_video(index, config) for index in range(len(config.splits))]
    return Lengths([(video.duration_s, float(video.fps)) for video in videos], len(videos))


def _of_files(config: extract.ExtractConfig | decode.DecodeConfig, videos: Mapping[str, Path]) -> tuple[Lengths, list[Path]]:
    """How long videos are, by the headers of all, or of some evenly spread ones, and the paths of those."""
    every = max(1, -(-len(videos) // HEADERS_READ))
    chosen = list(videos.values())[::every]

    seen = [(path, probe) for path, probe in probe_all(config.reading, chosen) if isinstance(probe, Probe)]
    count = round(len(videos) * len(seen) / len(chosen)) if chosen else 0
    lengths = [(probe.duration_s or 0.0, probe.rate or 25.0) for _, probe in seen]
    return Lengths(lengths, count), [path for path, _ in seen]


def _begun(step: str, config: Any, folder: Path) -> str:
    """How far a step is that was interrupted."""
    stands = folder / "last.json"
    if step == train.STAGE and stands.is_file():
        return f"{json.loads(stands.read_text(encoding='utf-8'))['epoch']} of at most {config.epochs} epochs done"
    return "it was interrupted"
