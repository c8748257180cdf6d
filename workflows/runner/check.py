"""A check of a recipe before any work is done: is everything in place, does it fit together, how much space will it take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.annotations.cleaning import list_moments
from excl.datasets.text.glove import load_vectors
from excl.datasets.text.vocabulary import Vocabulary
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.probe import Probe
from excl.models.i3d.weight_catalogue import PUBLISHED
from excl.models.i3d.weights import describe_wrong, imported_names
from excl.pipeline import extract, pack, tokenise
from excl.pipeline.config import STRICT, SaidInText, existing_file
from excl.pipeline.execution.video_reading import probe_all
from excl.pipeline.queries import tokenise_report as annotation_report
from excl.pipeline.queries.preparation import QueryPreparation
from excl.pipeline.queries.published_glove import PUBLISHED as PUBLISHED_GLOVE
from excl.pipeline.queries.word_vectors import local_file
from excl.workflows.runner.estimates import VideoLengths, feature_size
from excl.workflows.runner.output_folders import free_bytes
from excl.workflows.runner.recipe import load_recipe, parse

NAMES_SHOWN = 5
DURATION_TOLERANCE_S = 1.0


@dataclass(frozen=True, config=STRICT)
class CheckConfig:
    """Check a recipe before any work is done: videos, annotations, weights, word vectors, and how much it will be."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A recipe file (TOML), or the name of one that comes with excl."""
    root: SaidInText[Path | None] = None
    """The folder from which the recipe's paths count. Default: the recipe file's own folder."""
    variant: str | None = None
    """A variant of the recipe."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Settings in place of those of the recipe, such as extract.stride=4; may be given several times."""


@dataclasses.dataclass
class CheckReport:
    """The findings of a check as lines for people, and the number of problems."""

    lines: list[str] = dataclasses.field(default_factory=list)
    problems: int = 0
    downloads: list[str] = dataclasses.field(default_factory=list)
    """Names of the published files that are still to be downloaded."""

    def good(self, line: str) -> None:
        """Add a line about something that is as it should be."""
        self.lines.append(f"ok       {line}")

    def note(self, line: str) -> None:
        """Add a line about something to know, which stops nothing."""
        self.lines.append(f"note     {line}")

    def download(self, name: str, command: str) -> None:
        """Add a line about a published file that is not here."""
        self.downloads.append(name)
        self.note(f"{name}: not here yet; `excl run` downloads it before all else (or `{command}` now)")

    def bad(self, line: str) -> None:
        """Add a line about a problem."""
        self.problems += 1
        self.lines.append(f"PROBLEM  {line}")


def run(config: CheckConfig) -> CheckReport:
    """Check everything, and write nothing."""
    recipe = load_recipe(config.recipe, config.root, variant=config.variant, settings=config.set)
    findings = CheckReport()
    with recipe.inside() as root:
        configs, problems = parse(recipe.name, recipe.tables)
        for problem in "\n".join(problems).splitlines():
            findings.bad(problem)
        if not problems:
            findings.good(f"{recipe.name}: {', '.join(configs)}")
        probes = _videos(configs, findings)
        if "extract" in configs:
            _weights(configs["extract"].weights_spec, findings)
        if "tokenise" in configs:
            outs = [c.out for c in configs.values() if c.out is not None and c is not configs["tokenise"]]
            inputs = configs["tokenise"].inputs()
            future = [path for path in inputs if not path.exists() and any(path.is_relative_to(out) for out in outs)]
            if future:
                findings.note(f"{', '.join(map(str, future))}: made by the recipe; run it and check again")
            else:
                _queries(configs, probes, findings)
        if probes and "extract" in configs:
            _size(configs["extract"], probes, findings, root=root)
    return findings


def _videos(configs: Mapping[str, Any], findings: CheckReport) -> dict[str, tuple[Path, Probe]] | None:
    """Return path and probe of every video that can be read; None if the videos are still to be made."""
    reader = next((configs[step] for step in ("decode", "extract") if getattr(configs.get(step), "videos", None)), None)
    if reader is None or not reader.videos.exists():
        if reader is not None and "demo" in configs:
            findings.note(
                f"{reader.videos}: the videos are made by the recipe; run it and check again to see what they take"
            )
        return None
    try:
        paths = find_videos(reader.videos, warn=True)
    except (ValueError, OSError) as error:
        findings.bad(str(error))
        return None
    probes: dict[str, tuple[Path, Probe]] = {}
    failures: list[str] = []
    for (video_id, path), (_, probe) in zip(paths.items(), probe_all(reader.reading, paths.values()), strict=True):
        if isinstance(probe, Probe):
            probes[video_id] = (path, probe)
        else:
            failures.append(str(probe))
    for failure in sorted(failures)[:NAMES_SHOWN]:
        findings.bad(failure)
    if len(failures) > NAMES_SHOWN:
        findings.bad(f"{len(failures) - NAMES_SHOWN} more videos cannot be read; `excl probe` names all")
    hours = sum(probe.duration_s or 0.0 for _, probe in probes.values()) / 3600
    odd = sum(bool(probe.notes) for _, probe in probes.values())
    notes = f"; {odd:,} with something odd, which `excl probe` tells" if odd else ""
    findings.good(f"{reader.videos}: {len(probes):,} of {len(paths):,} videos can be read, {hours:.2f} hours{notes}")
    return {video_id: probes[video_id] for video_id in sorted(probes)}


def _weights(spec: str, findings: CheckReport) -> None:
    """Report whether I3D's weights are available."""
    if spec.startswith("random:"):
        findings.note(f"weights {spec}: RANDOM, for trying things out; features mean nothing")
    elif spec in PUBLISHED:
        path = PUBLISHED[spec].cached_path
        if path.is_file():
            findings.good(f"weights {spec}: {path}")
        else:
            findings.download(f"weights {spec}", f"excl weights fetch {spec}")
    elif spec in imported_names():
        findings.good(f"weights {spec}: imported")
    elif wrong := describe_wrong(Path(spec)) if Path(spec).is_file() else "there is no such file":
        findings.bad(f"weights {spec}: {wrong}")
    else:
        findings.good(f"weights {spec}")


def _queries(configs: Mapping[str, Any], probes: Mapping[str, tuple[Path, Probe]] | None, findings: CheckReport) -> None:
    """Report what the annotations hold, whether their videos exist and are as long, and whether there are word vectors."""
    config: tokenise.TokeniseConfig = configs["tokenise"]
    queries = QueryPreparation(dataclasses.replace(config, glove=None, report=True))
    try:
        report = queries.report
    except (ValueError, OSError) as error:
        findings.bad(str(error))
    else:
        for line in annotation_report.lines(report):
            findings.note(line)
        _splits(configs, {moment.split for moment in queries.moments}, findings)
        if probes is not None:
            _match(queries, probes, configs.get("pack"), findings)
    if config.glove is not None:
        _word_vectors(config, queries, findings)


def _word_vectors(config: tokenise.TokeniseConfig, queries: QueryPreparation, findings: CheckReport) -> None:
    """Report whether the word vectors are available, and how many words of the training split have one."""
    assert config.glove is not None
    try:
        path, member = local_file(config.glove), config.glove_member
        if path is None:
            path, member = PUBLISHED_GLOVE[config.glove].cached_path, PUBLISHED_GLOVE[config.glove].text
        if not path.exists() and config.glove in PUBLISHED_GLOVE:
            findings.download(f"word vectors {config.glove}", f"excl glove fetch {config.glove}")
            return
        try:
            vocabulary = queries.vocabulary
        except (ValueError, OSError):  # it was reported with the annotations
            vocabulary = Vocabulary.build([])
        vectors = load_vectors(existing_file(path, what="word vectors"), vocabulary, member=member)
    except (ValueError, OSError) as error:
        findings.bad(str(error))
        return
    line, words = f"word vectors {path}: {vectors.dim} numbers a word", len(vocabulary) - 2
    missing = words - int(vectors.found[2:].sum())
    if words:
        line += f", for {words - missing:,} of {words:,} words of the training split"
    if missing > tokenise.MAX_SHARE_WITHOUT_VECTOR * words:
        findings.note(f"{line}; is it the right file for this language?")
    else:
        findings.good(line)


def _splits(configs: Mapping[str, Any], annotated: set[str], findings: CheckReport) -> None:
    """Report whether the splits that later steps use have any moments."""
    required = {"train": {"train", "val"}, "evaluate": {configs["evaluate"].split} if "evaluate" in configs else set()}
    for step, splits in required.items():
        for split in sorted(splits - annotated) if step in configs else ():
            findings.bad(
                f"[{step}] needs moments of the split {split}, and there are none; there are {', '.join(sorted(annotated))}"
            )


def _match(
    queries: QueryPreparation,
    probes: Mapping[str, tuple[Path, Probe]],
    packing: pack.PackConfig | None,
    findings: CheckReport,
) -> None:
    """Report whether annotations and videos are of the same videos."""
    queried = {moment.video_id for moment in queries.moments}
    missing, unused = queried - probes.keys(), probes.keys() - queried
    covered = sum(moment.video_id in probes for moment in queries.moments)
    line = f"{covered:,} of {len(queries.moments):,} queries have their video"
    hint = pack.match_hint(queried, set(probes))
    if missing:
        shown = ", ".join(repr(name) for name in sorted(missing)[:NAMES_SHOWN])
        line += f"; {len(missing):,} videos are not there: {shown}{', …' if len(missing) > NAMES_SHOWN else ''}"
    if not covered or hint or (missing and packing is not None and packing.missing_video == "fail"):
        findings.bad(line + hint)
    else:
        (findings.note if missing else findings.good)(line)
    _durations(queries, probes, packing, findings)
    if unused:
        findings.note(f"{len(unused):,} videos have no queries; their features are made all the same")


def _durations(
    queries: QueryPreparation,
    probes: Mapping[str, tuple[Path, Probe]],
    packing: pack.PackConfig | None,
    findings: CheckReport,
) -> None:
    """Report whether videos are as long as annotated, and moments lie within them, as far as headers tell."""
    files_s = {video_id: probe.duration_s for video_id, (_, probe) in probes.items() if probe.duration_s is not None}
    moments = [moment for moment in queries.moments if moment.video_id in files_s]
    beyond = [
        moment
        for moment in moments
        if moment.duration_s is None and moment.end_s > files_s[moment.video_id] + DURATION_TOLERANCE_S
    ]
    if beyond:
        policy = queries.config.hygiene.beyond_video
        add = findings.bad if policy == "fail" else findings.note
        add(f"{len(beyond):,} moments reach beyond the end of their video's file ({policy}): {list_moments(beyond)}")
    differing = [
        moment
        for moment in {moment.video_id: moment for moment in moments}.values()
        if moment.duration_s is not None and abs(moment.duration_s - files_s[moment.video_id]) > DURATION_TOLERANCE_S
    ]
    if differing:
        add = findings.bad if packing is not None and packing.other_duration == "fail" else findings.note
        tolerance = f"more than {DURATION_TOLERANCE_S:g} s"
        add(f"{len(differing):,} videos are not as long as annotated ({tolerance}): {list_moments(differing)}")


def _size(
    config: extract.ExtractConfig, probes: Mapping[str, tuple[Path, Probe]], findings: CheckReport, *, root: Path
) -> None:
    """Report frames, rows, shards and bytes of the features, and whether there is space for them."""
    lengths = [(probe.duration_s or 0.0, probe.rate or 0.0) for _, probe in probes.values()]
    size, free = feature_size(config, VideoLengths(lengths, len(lengths))), free_bytes(root)
    if size.too_short:
        findings.note(f"{size.too_short:,} videos are too short for one row, by their headers")
    add = findings.good if size.num_bytes <= free else findings.bad
    add(f"features: {size} ({free / 1e9:,.1f} GB free)")


def show(findings: CheckReport) -> str:
    """Return the findings as lines, the last of which counts the problems."""
    end = f"{findings.problems:,} problems to mend" if findings.problems else "nothing stands in the way"
    if findings.downloads:
        end += f"; still to be downloaded: {', '.join(findings.downloads)}"
    return "\n".join([*findings.lines, end])


def num_problems(findings: CheckReport) -> int:
    """Return the number of problems."""
    return findings.problems
