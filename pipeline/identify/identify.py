"""Identify the recipe of features that somebody published: by row counts and durations, and with the videos and weights.

It reads features, durations, videos; it leaves nothing but the report. `row_fit.py` explains counts, `likeness.py` makes
rows by candidate recipes and compares them with the published ones; `docs/howto/identify.md` is for users.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.annotations.durations import read_durations, read_rates
from excl.datasets.parsing import printable
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.models.i3d.extractor import MAX_SIZE
from excl.models.i3d.presets import PRESETS
from excl.models.i3d.weights import check_spec, load_weights
from excl.models.progress.bars import tracked
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.comparison.array_sources import ArraySource, majority, open_source
from excl.pipeline.comparison.id_matching import pair, strip_suffix
from excl.pipeline.comparison.table import ANSWERS
from excl.pipeline.config import STRICT, PositiveInt, WithoutPrefix
from excl.pipeline.execution.video_reading import VideoReading, decoders_stopped
from excl.pipeline.identify.likeness import RGB, Making, RowMaker, Search, Trial, search
from excl.pipeline.identify.row_fit import Candidate, Counted, RowFit, fit_rows, frames_at
from excl.pipeline.identify.traits import Traits, num_real_rows, traits_of

STREAM = 1024  # values of a row of I3D's RGB stream
FEW_VIDEOS = 8  # that are read from end to end for their duration, in place of believing their headers
SAMPLE = 16  # videos whose values are looked at


@dataclass(frozen=True, config=STRICT)
class IdentifyConfig:
    """Say by which recipe features were made: rate, window, hop, picture, colours; as far as rows and videos show it."""

    features: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FEATURES")]
    """Features: a store of excl, a folder of .npy, .npz or .pt files, or an HDF5, .npz or .pt file with an array a video."""
    durations: tuple[Path, ...] = ()
    """Durations in seconds by video: annotation files that have them (ActivityNet Captions, TACoS, Moment-DETR), JSON, or a
    table such as Charades_v1_train.csv."""
    videos: Path | None = None
    """A folder of the videos, or some of them: for their durations and, with --weights, to make rows and compare them."""
    weights: str | None = None
    """Weights of I3D, as for `excl extract`, to make rows with; needs --videos."""
    suffix: str = ""
    """Take only the arrays whose name ends with this, such as _rgb or .avi, and remove it from the ids."""
    crop: Annotated[int, Field(ge=32, le=MAX_SIZE)] = 224
    """Pixels of the square that the network saw: 224 in all published features that are known."""
    candidates: PositiveInt = 10
    """The number of recipes to begin the search with, the most probable by row counts, and half as many with other
    windows."""
    show: PositiveInt = 6
    """The number of recipes to list."""
    json: str = ""
    """Write the result as JSON to this file; - for standard output in place of the report."""
    device: str = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    reading: WithoutPrefix[VideoReading] = field(default_factory=VideoReading)
    """The settings for reading the videos."""

    def __post_init__(self) -> None:
        if not self.durations and self.videos is None:
            raise ValueError("give --durations or --videos: row counts say nothing without the seconds of their videos")
        if self.weights is not None:
            if self.videos is None:
                raise ValueError("weights: no videos to make rows from; give --videos, too")
            check_spec(self.weights)


@dataclasses.dataclass(frozen=True)
class Identification:
    """The whole result; `search` is None without videos and weights. `failed` has a sentence for what could not be read."""

    kind: str
    traits: Traits
    videos: Counted
    fit: RowFit
    search: Search | None
    failed: tuple[str, ...]


def run(config: IdentifyConfig) -> Identification:
    """Fit the row counts; with weights, search among the recipes that fit. ValueError if no video has a duration."""
    if config.json not in ("", "-") and not Path(config.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"{config.json}: there is no folder to write this file in")
    source = open_source(config.features)
    names = strip_suffix(source, config.suffix, place=str(config.features))
    paths = find_videos(config.videos) if config.videos is not None else {}
    durations = read_durations(config.durations)
    failed: list[str] = []
    with decoders_stopped():
        arrays, counts, zero_tails = _read(source, names, failed)
        traits = traits_of(arrays, zero_tails)
        video_names = _matched(counts, paths, config.videos)
        if durations:
            seconds = _durations_of_files(config, counts, durations)
        else:
            seconds = _durations_of_videos(config, {name: paths[video] for name, video in video_names.items()}, failed)
        videos = _counted(counts, seconds)
        fit = fit_rows(videos)
        search = None
        if config.weights is not None:
            sample = dict(sorted(video_names.items(), key=lambda item: counts[item[0]])[:FEW_VIDEOS])
            published = {name: source[names[name]] for name in sample}
            search = _search(config, published, {name: paths[video] for name, video in sample.items()}, fit, traits)
    identification = Identification(source.kind, traits, videos, fit, search, tuple(failed))
    if config.json not in ("", "-"):
        write_text(Path(config.json), to_json(config, identification) + "\n")
    return identification


def num_failed(identification: Identification) -> int:
    """The number of arrays and videos that could not be read."""
    return len(identification.failed)


def _read(
    source: ArraySource, names: Mapping[str, str], failed: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, int], list[bool]]:
    """Return some arrays, all row counts without rows of zeros at the end, and which videos have such."""
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, int]] = {}
    zero_tails = []
    step = max(1, len(names) // SAMPLE)
    for number, (video_id, name) in enumerate(tracked(names.items(), "identify", total=len(names), unit="video")):
        try:
            rows = source[name]
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        if number % step == 0 or not arrays:
            arrays[video_id] = rows
        shapes[video_id] = (num_real_rows(rows), rows.shape[1])
        zero_tails.append(shapes[video_id][0] < len(rows))
    width = majority(width for _, width in shapes.values())
    for video_id in [video_id for video_id, (_, other) in shapes.items() if other != width]:
        failed.append(f"{source.path}: {video_id!r}: rows of {shapes.pop(video_id)[1]} values, most have {width}")
        arrays.pop(video_id, None)
    if not arrays:
        raise ValueError(f"{source.path}: no array could be read; {failed[0] if failed else 'there is none'}")
    return arrays, {video_id: rows for video_id, (rows, _) in shapes.items()}, zero_tails


def _matched(counts: Mapping[str, int], paths: Mapping[str, Path], folder: Path | None) -> dict[str, str]:
    """Return the videos' ids by those of the features; ValueError if there are videos and none is in the features."""
    if folder is None:
        return {}
    try:
        return dict(pair(counts, paths).pairs.values())
    except ValueError as error:
        raise ValueError(f"the features (A) and {folder} (B): {error}") from error


def _durations_of_files(
    config: IdentifyConfig, counts: Mapping[str, int], durations: Mapping[str, float]
) -> dict[str, tuple[float, float, int]]:
    """Return seconds, rate (NaN) and number of frames (-1) of the videos that are in the files."""
    rates = read_rates(config.durations)
    try:
        pairs = pair(counts, durations).pairs.values()
    except ValueError as error:
        raise ValueError(f"{config.features} (A) and {', '.join(map(str, config.durations))} (B): {error}") from error
    return {a: (durations[b], *rates.get(b, (np.nan, -1))) for a, b in pairs}


def _durations_of_videos(
    config: IdentifyConfig, paths: Mapping[str, Path], failed: list[str]
) -> dict[str, tuple[float, float, int]]:
    """Return seconds, rate and number of frames of the videos, of a few as they are decoded, of many by their headers."""
    seconds = {}
    for name, path in tracked(paths.items(), "durations", total=len(paths), unit="video"):
        try:
            probe = config.reading.probe(path)
            duration_s, frames = probe.duration_s, probe.frames
            if len(paths) <= FEW_VIDEOS:
                video = config.reading.open(path, fps=1.0, geometry=Geometry(32, 32))
                for _ in video:
                    pass
                duration_s, frames = video.facts.duration_s, video.facts.frames_expected
        except VideoError as error:
            failed.append(str(error))
            continue
        if duration_s:
            seconds[name] = (duration_s, probe.rate or np.nan, frames or -1)
    return seconds


def _counted(counts: Mapping[str, int], seconds: Mapping[str, tuple[float, float, int]]) -> Counted:
    ids = tuple(name for name in counts if name in seconds)
    duration_s, fps, frames = (np.array([seconds[name][i] for name in ids], float) for i in range(3))
    return Counted(ids, np.array([counts[name] for name in ids], np.int64), duration_s, fps, frames.astype(np.int64))


def _search(
    config: IdentifyConfig, published: Mapping[str, np.ndarray], paths: Mapping[str, Path], fit: RowFit, traits: Traits
) -> Search:
    """Search with the rows' RGB part: all of 1024 values, or that half of 2048 which comes nearer."""
    assert config.weights is not None
    if traits.width not in (STREAM, 2 * STREAM):
        raise ValueError(
            f"{config.features}: rows of {traits.width} values, and I3D's RGB stream makes {STREAM}; leave out --weights "
            "for what the row counts show"
        )
    if not fit.candidates:
        raise ValueError(
            f"{config.features}: all videos have {fit.limit} rows, so they were resampled to that length, which is not "
            "searched for; leave out --weights for what the row counts show"
        )
    most = max(candidate.exact for candidate in fit.candidates)
    least = min(most - 1, 0.9 * most)
    maker = RowMaker(paths, load_weights(config.weights), config.reading, config.device)
    results: list[Search] = []
    for begin in range(0, traits.width, STREAM):
        result = search(
            maker,
            {name: rows[:, begin : begin + STREAM] for name, rows in published.items()},
            [candidate for candidate in fit.candidates if candidate.exact >= least],
            crop=config.crop,
            first_tried=config.candidates,
            normalised=traits.unit_norm or traits.halves_of_unit_norm,
        )
        results.append(result)
        if result.is_equal:
            break
    return min(results, key=lambda result: result.best.distance)


def extract_flags(making: Making, weights: str) -> list[str] | None:
    """Return the flags of `excl extract` for a recipe; None if it has none that make these rows."""
    options, geometry = making.candidate.rule.options, making.geometry
    if options is None or making.values != RGB or making.first_frame:
        return None
    fps = making.candidate.fps
    flags = ["--weights", weights, "--fps", "native" if fps is None else f"{fps:g}", "--short-side", str(geometry)]
    flags += ["--crop", str(geometry.crop)] if geometry.crop != 224 else []
    flags += ["--nearest"] if making.nearest and fps is not None else []
    flags += [] if geometry.antialias else ["--no-antialias"]
    if options.bug_compatible:
        return ["--preset", options.preset, "--bug-compatible", *flags]
    if options.stride is not None:
        return [*flags, "--stride", str(options.stride), "--pool", str(options.pool)]
    flags += ["--window", str(options.window), "--hop", str(options.hop), "--last-window", str(options.last_window)]
    flags += ["--window-mean", "True"] if options.window_mean else []
    return flags if options.pool == "2x7x7" else [*flags, "--pool", str(options.pool)]


def preset_of(candidate: Candidate, geometry: Geometry | None = None) -> str:
    """Return the names of the presets with this rate, these rows and, if it is given, this picture; empty if none has."""
    layout = candidate.rule.layout()
    names = [
        name
        for name, preset in PRESETS.items()
        if preset.fps == candidate.fps
        and layout in (preset.layout, preset.bugs)
        and (geometry is None or str(preset.short_side) == str(geometry))
    ]
    return ", ".join(names)


def row_seconds(candidate: Candidate, videos: Counted, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of the rows of a video under a candidate, in seconds; as many as the features have, at most."""
    video = videos.subset(np.array([number]))
    fps = float(video.fps[0]) if candidate.fps is None else candidate.fps
    fps = fps if fps > 0 else 30.0
    frames = int(
        frames_at(candidate.fps if candidate.fps is not None or video.fps[0] > 0 else fps, candidate.counting, video)[0]
    )
    duration_s = max(float(video.duration_s[0]), (frames - 0.5) / fps)
    start_s, end_s = candidate.rule.layout().row_times(frames, fps=fps, duration_s=duration_s)
    return start_s[: video.rows[0]], end_s[: video.rows[0]]


def show(config: IdentifyConfig, identification: Identification) -> str:
    """The report: what the values show, what explains the row counts, what the videos show, and what would decide more."""
    if config.json == "-":
        return to_json(config, identification)
    fit, videos = identification.fit, identification.videos
    lines = [f"{config.features} ({identification.kind}): {len(videos.ids):,} videos with a duration", ""]
    lines += [f"values: {sentence}" for sentence in identification.traits.sentences()]
    lines += [f"cannot be read: {message}" for message in identification.failed[: config.show]]
    lines += ["", *_of_counts(config, fit, videos)]
    if identification.search is not None:
        lines += ["", *_of_videos(config, identification.search)]
    return "\n".join([*lines, "", *conclusion(config, identification)])


def _of_counts(config: IdentifyConfig, fit: RowFit, videos: Counted) -> list[str]:
    lines = []
    if fit.kind == "fixed":
        return [
            f"rows: every video has {fit.limit} rows whatever its duration, so rows were resampled (or padded) to that; "
            "row k of a video of d seconds is from k/n to (k+1)/n of d, if they were resampled over all of it"
        ]
    if fit.kind == "capped":
        at_limit = int((videos.rows == fit.limit).sum())
        lines.append(
            f"rows: none has more than {fit.limit}, and {at_limit:,} of {len(videos.rows):,} videos have just that: cut "
            "there, or pooled to that number (counts do not tell which)"
        )
    lines.append(
        f"rows: one about every {fit.seconds_a_row:.4g} s; {fit.tried:,} combinations of rate, rows and rounding tried"
    )
    lines.append("probability  exact  recipe, the most probable for each rate, window and hop")
    for candidate in fit.candidates[: config.show]:
        names = f" (preset {preset_of(candidate)})" if preset_of(candidate) else ""
        lines.append(f"{candidate.share:11.1%}  {candidate.exact}/{candidate.videos}  {candidate}{names}")
    return lines


def _of_videos(config: IdentifyConfig, search: Search) -> list[str]:
    lines = [f"videos: {search.num_tried} recipes tried with the weights {search.weights}, on {printable(search.video_id)}"]
    lines.append("distance  rows  recipe (relative L2 over so many rows)")
    lines += [f"{trial.distance:8.4f}  {trial.rows:4}  {trial.making}" for trial in distinct(search)[: config.show]]
    return lines


def distinct(search: Search) -> list[Trial]:
    """Return the trials, the nearest first, one for each rate, window, hop, picture and sampling."""
    seen: dict[tuple[object, ...], Trial] = {}
    for trial in search.trials:
        seen.setdefault(trial.making.key, trial)
    return list(seen.values())


def ends_that_fit(making: Making, fit: RowFit) -> list[Candidate]:
    """Return the candidates of the same rate, window and hop that explain as many counts as the best of them."""
    variants = fit.variants.get(making.candidate.key, (making.candidate,))
    most = max(candidate.exact for candidate in variants)
    ends: dict[str, Candidate] = {}
    for candidate in variants:
        if candidate.exact == most:
            ends.setdefault(candidate.rule.end, candidate)
    return list(ends.values())


def conclusion(config: IdentifyConfig, identification: Identification) -> list[str]:
    """Return the answer in sentences: the recipe, how sure it is, the command that makes the same, what would decide."""
    fit, search = identification.fit, identification.search
    if not fit.candidates:
        return [f"Resampled to {fit.limit} rows a video. What would decide more: the features before they were resampled."]
    best = fit.candidates[0]
    start_s, end_s = row_seconds(best if search is None else search.best.making.candidate, identification.videos, 0)
    times = ", ".join(f"{start:.2f} to {end:.2f} s" for start, end in list(zip(start_s, end_s, strict=True))[:3])
    of_rows = f"Rows of {printable(identification.videos.ids[0])} are from {times}, …"
    if search is None:
        sure = "fairly sure" if best.share > 0.9 else "probable" if best.share > 0.5 else "a guess among several"
        flags = f"--fps {best.fps:g} --stride {best.rule.hop}" if best.rule.rows == 1 and best.fps else None
        return [
            f"By the row counts: {best} ({sure}: {best.share:.0%}; {best.exact} of {best.videos} counts exact).",
            of_rows,
            *(
                [f"Import with these times: excl import {shlex.quote(str(config.features))} {flags} --out STORE"]
                if flags
                else []
            ),
            "What would decide: --videos with some of the videos and --weights, to make rows by these recipes and compare.",
        ]
    lines = _conclusion_of_search(config, search, fit, of_rows)
    if identification.traits.width == 2 * STREAM:
        lines.append(
            "This is about the half of each row that is nearest to I3D's RGB stream; the other half was not examined."
        )
    return lines


def _conclusion_of_search(config: IdentifyConfig, search: Search, fit: RowFit, of_rows: str) -> list[str]:
    making = search.best.making
    preset = preset_of(making.candidate, making.geometry)
    name = f" (preset {preset})" if preset else ""
    verdict = search.verdict
    rel = verdict.likeness.rel if verdict.likeness is not None else np.nan
    cosine = verdict.likeness.cos_mean if verdict.likeness is not None else np.nan
    within = 1.25 * search.best.distance + 1e-4
    alternatives = [t for t in distinct(search)[1:] if t.distance < within and t.rows > search.best.rows / 2]
    head = "These are" if search.is_equal else "No recipe fits; the nearest is"
    lines = [
        f"{head}: {making}{name}, weights {search.weights}.",
        f"{ANSWERS[verdict.verdict]}: relative L2 {rel:.2g}, mean cosine {cosine:.6f}, over {verdict.a.rows} rows.",
    ]
    ends = ends_that_fit(making, fit)
    if len(ends) > 1:
        rules = "; ".join(str(candidate.rule) for candidate in ends)
        lines.append(f"The counts do not tell the end of the videos: {rules}.")
    if alternatives:
        lines.append(f"Not told apart: {'; '.join(str(trial.making) for trial in alternatives[:3])}.")
    flags_of = extract_flags(making, search.weights)
    if flags_of is not None:
        videos = shlex.quote(str(config.videos))
        lines.append(f"Make them: excl extract --videos {videos} --out STORE {' '.join(flags_of)}")
    else:
        lines.append(f"`excl extract` cannot make all of it: {', '.join(_not_extracted(making))}.")
    lines.append(of_rows)
    if not search.is_equal:
        lines.append(
            "What would decide: other weights, a rate or window that is not among those tried, frames that were coded anew; "
            "more videos with rows that differ; --candidates for more recipes."
        )
    return lines


def _not_extracted(making: Making) -> list[str]:
    """Return what of a recipe `excl extract` does not do."""
    reasons = [f"values are {making.values}"] if making.values != RGB else []
    reasons += [f"it begins with frame {making.first_frame}"] if making.first_frame else []
    reasons += (
        [f"the rows are of {making.candidate.rule}; all but the last are those of `--last-window pad`"]
        if making.candidate.rule.options is None
        else []
    )
    return reasons


def to_json(config: IdentifyConfig, identification: Identification) -> str:
    """Return all of it as JSON for programs; figures that are not defined are null."""
    videos, fit, search = identification.videos, identification.fit, identification.search
    best = search.best.making.candidate if search is not None else fit.candidates[0] if fit.candidates else None
    value = {
        "features": str(config.features),
        "kind": identification.kind,
        "traits": dataclasses.asdict(identification.traits),
        "videos": len(videos.ids),
        "rows": {
            "kind": fit.kind,
            "limit": fit.limit,
            "seconds_a_row": fit.seconds_a_row,
            "tried": fit.tried,
            "candidates": [_candidate_json(candidate) for candidate in fit.candidates],
        },
        "search": None
        if search is None
        else {
            "video": search.video_id,
            "weights": search.weights,
            "tried": search.num_tried,
            "verdict": search.verdict.verdict.name.lower(),
            "likeness": search.verdict.likeness and dataclasses.asdict(search.verdict.likeness),
            "trials": [_trial_json(trial) for trial in distinct(search)],
            "ends": [candidate.rule.end for candidate in ends_that_fit(search.best.making, fit)],
            "extract": extract_flags(search.best.making, search.weights),
        },
        "row_seconds": {}
        if best is None
        else {video_id: np.stack(row_seconds(best, videos, i), 1).tolist() for i, video_id in enumerate(videos.ids)},
        "failed": list(identification.failed),
        "conclusion": conclusion(config, identification),
    }
    defined = json.loads(json.dumps(value, default=float), parse_constant=lambda _: None)
    return json.dumps(defined, indent=1, allow_nan=False)


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    rule = dataclasses.asdict(candidate.rule)
    figures = {"exact": candidate.exact, "videos": candidate.videos, "share": candidate.share}
    return {"fps": candidate.fps, **rule, "frames": candidate.counting, **figures, "text": str(candidate)}


def _trial_json(trial: Trial) -> dict[str, Any]:
    making = trial.making
    picture = {"picture": str(making.geometry), "crop": making.geometry.crop, "antialias": making.geometry.antialias}
    sampling = {"nearest": making.nearest, "values": making.values, "first_frame": making.first_frame}
    return {
        **_candidate_json(making.candidate),
        **picture,
        **sampling,
        "distance": trial.distance,
        "rows": trial.rows,
        "text": str(making),
    }
