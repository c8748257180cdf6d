"""Everything about a recipe that can be known before any work is done: is it all there, does it fit, what will it cost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.annotations.cleaning import names
from excl.datasets.text.glove import load_vectors
from excl.datasets.text.tokens import Vocabulary
from excl.datasets.video.discovery import find_videos, log_left_out
from excl.datasets.video.probe import Probe
from excl.models.i3d.published import PUBLISHED
from excl.models.i3d.weights import describe_wrong, imported_names
from excl.pipeline import extract, pack, tokenise
from excl.pipeline.config import STRICT, existing_file
from excl.pipeline.execution.video_reading import probe_all
from excl.pipeline.queries import report as annotation_report
from excl.pipeline.queries.preparation import QueryPreparation
from excl.pipeline.queries.published_glove import PUBLISHED as PUBLISHED_GLOVE
from excl.pipeline.queries.word_vectors import local_file
from excl.workflows.runner.estimates import Lengths, cost_of, hours
from excl.workflows.runner.output_folders import free_bytes
from excl.workflows.runner.recipe import load_recipe, parse

NAMES_SHOWN = 5
DURATION_TOLERANCE_S = 1.0


@dataclass(frozen=True, config=STRICT)
class CheckConfig:
    """Check a recipe before any work is done: videos, annotations, weights, word vectors, and what it will take."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A recipe file (TOML), or the name of one that comes with excl."""
    root: Path | None = None
    """The folder from which the recipe's paths count. Default: the recipe file's own folder."""
    variant: str | None = None
    """A variant of the recipe."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Settings in place of those of the recipe, such as extract.stride=4; may be given several times."""
    measure: bool = True
    """Decode a little and run I3D on one clip (where it will run on the CPU), to say how long all of it will take."""


@dataclasses.dataclass
class CheckReport:
    """What was found, as lines for people, and how much of it is wrong."""

    lines: list[str] = dataclasses.field(default_factory=list)
    problems: int = 0

    def good(self, line: str) -> None:
        """Something that is as it should be."""
        self.lines.append(f"ok       {line}")

    def told(self, line: str) -> None:
        """Something to know, which stops nothing."""
        self.lines.append(f"note     {line}")

    def bad(self, line: str) -> None:
        """Something that has to be mended."""
        self.problems += 1
        self.lines.append(f"PROBLEM  {line}")


def run(config: CheckConfig) -> CheckReport:
    """Everything that is found; nothing is written."""
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
            made = [p for p in configs["tokenise"].inputs() if not p.exists() and any(p.is_relative_to(out) for out in outs)]
            if made:
                findings.told(f"{', '.join(map(str, made))}: made by the recipe; run it and check again")
            else:
                _queries(configs, probes, findings)
        if probes and "extract" in configs:
            _cost(configs["extract"], probes, findings, root=root, measure=config.measure)
    return findings


def _videos(configs: Mapping[str, Any], findings: CheckReport) -> dict[str, tuple[Path, Probe]] | None:
    """Path and probe of every video that can be read; None where the videos are still to be made."""
    reader = next((configs[step] for step in ("decode", "extract") if getattr(configs.get(step), "videos", None)), None)
    if reader is None or not reader.videos.exists():
        if reader is not None and "demo" in configs:
            findings.told(
                f"{reader.videos}: the videos are made by the recipe; run it and check again to see what they take"
            )
        return None
    try:
        left_out: Counter[str] = Counter()
        paths = find_videos(reader.videos, left_out=left_out)
        log_left_out(reader.videos, left_out)
    except (ValueError, OSError) as error:
        findings.bad(str(error))
        return None
    probes: dict[str, tuple[Path, Probe]] = {}
    failures: list[str] = []
    for (video_id, path), (_, found) in zip(paths.items(), probe_all(reader.reading, paths.values()), strict=True):
        if isinstance(found, Probe):
            probes[video_id] = (path, found)
        else:
            failures.append(str(found))
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
    """Whether I3D's weights are at hand."""
    if spec.startswith("random:"):
        findings.told(f"weights {spec}: RANDOM, for trying things out; features mean nothing")
    elif spec in PUBLISHED:
        path = PUBLISHED[spec].cached_path
        if path.is_file():
            findings.good(f"weights {spec}: {path}")
        else:
            findings.told(f"weights {spec}: not here yet; they are downloaded on first use (`excl weights fetch {spec}`)")
    elif spec in imported_names():
        findings.good(f"weights {spec}: imported")
    elif wrong := describe_wrong(Path(spec)) if Path(spec).is_file() else "there is no such file":
        findings.bad(f"weights {spec}: {wrong}")
    else:
        findings.good(f"weights {spec}")


def _queries(configs: Mapping[str, Any], probes: Mapping[str, tuple[Path, Probe]] | None, findings: CheckReport) -> None:
    """What the annotations hold, whether their videos are there and as long, and whether there are word vectors."""
    config: tokenise.TokeniseConfig = configs["tokenise"]
    queries = QueryPreparation(dataclasses.replace(config, glove=None, report=True))
    try:
        report = queries.report
    except (ValueError, OSError) as error:
        findings.bad(str(error))
    else:
        for line in annotation_report.lines(report):
            findings.told(line)
        _splits(configs, {moment.split for moment in queries.moments}, findings)
        if probes is not None:
            _match(queries, probes, configs.get("pack"), findings)
    if config.glove is not None:
        _word_vectors(config.glove, config.glove_member, findings)


def _word_vectors(glove: str, member: str | None, findings: CheckReport) -> None:
    """Whether the word vectors are at hand, and what they are."""
    try:
        path = local_file(glove)
        if path is None:
            path, member = PUBLISHED_GLOVE[glove].cached_path, PUBLISHED_GLOVE[glove].text
        if not path.exists() and glove in PUBLISHED_GLOVE:
            findings.told(f"word vectors {glove}: not here yet; downloaded on first use (`excl glove fetch {glove}`)")
        else:
            findings.good(
                f"word vectors {path}: {dimension(existing_file(path, what='word vectors'), member)} numbers a word"
            )
    except (ValueError, OSError) as error:
        findings.bad(str(error))


def _splits(configs: Mapping[str, Any], there: set[str], findings: CheckReport) -> None:
    """Whether the splits that later steps ask for have any moments."""
    wanted = {"train": {"train", "val"}, "evaluate": {configs["evaluate"].split} if "evaluate" in configs else set()}
    for step, splits in wanted.items():
        for split in sorted(splits - there) if step in configs else ():
            findings.bad(
                f"[{step}] needs moments of the split {split}, and there are none; there are {', '.join(sorted(there))}"
            )


def _match(
    queries: QueryPreparation,
    probes: Mapping[str, tuple[Path, Probe]],
    packing: pack.PackConfig | None,
    findings: CheckReport,
) -> None:
    """Whether annotations and videos are of the same videos."""
    asked = {moment.video_id for moment in queries.moments}
    missing, unused = asked - probes.keys(), probes.keys() - asked
    covered = sum(moment.video_id in probes for moment in queries.moments)
    line = f"{covered:,} of {len(queries.moments):,} queries have their video"
    hint = pack.match_hint(asked, set(probes))
    if missing:
        few = ", ".join(repr(name) for name in sorted(missing)[:NAMES_SHOWN])
        line += f"; {len(missing):,} videos are not there: {few}{', …' if len(missing) > NAMES_SHOWN else ''}"
    if not covered or hint or (missing and packing is not None and packing.missing_video == "fail"):
        findings.bad(line + hint)
    else:
        (findings.told if missing else findings.good)(line)
    _durations(queries, probes, packing, findings)
    if unused:
        findings.told(f"{len(unused):,} videos have no queries; their features are made all the same")


def _durations(
    queries: QueryPreparation,
    probes: Mapping[str, tuple[Path, Probe]],
    packing: pack.PackConfig | None,
    findings: CheckReport,
) -> None:
    """Whether videos are as long as annotated, and moments within them, as far as headers tell."""
    found_s = {video_id: probe.duration_s for video_id, (_, probe) in probes.items() if probe.duration_s is not None}
    beyond = [
        moment
        for moment in queries.moments
        if moment.duration_s is None
        and moment.video_id in found_s
        and moment.end_s > found_s[moment.video_id] + DURATION_TOLERANCE_S
    ]
    if beyond:
        policy = queries.config.hygiene.beyond_video
        tell = findings.bad if policy == "fail" else findings.told
        tell(f"{len(beyond):,} moments reach beyond the end of their video's file ({policy}): {names(beyond)}")
    other = [
        moment
        for moment in {moment.video_id: moment for moment in queries.moments}.values()
        if moment.duration_s is not None
        and moment.video_id in found_s
        and abs(moment.duration_s - found_s[moment.video_id]) > DURATION_TOLERANCE_S
    ]
    if other:
        tell = findings.bad if packing is not None and packing.other_duration == "fail" else findings.told
        more = f"more than {DURATION_TOLERANCE_S:g} s"
        tell(f"{len(other):,} videos are not as long as annotated ({more}): {names(other)}")


def dimension(path: Path, member: str | None) -> int:
    """How many numbers a word has in a file of word vectors; ValueError if it is none."""
    return load_vectors(path, Vocabulary.build([]), member=member).dim


def _cost(
    config: extract.ExtractConfig,
    probes: Mapping[str, tuple[Path, Probe]],
    findings: CheckReport,
    *,
    root: Path,
    measure: bool,
) -> None:
    """Frames, rows, shards, bytes and rough hours."""
    lengths = [(probe.duration_s or 0.0, probe.rate or 0.0) for _, probe in probes.values()]
    cost, free = cost_of(config, Lengths(lengths, len(lengths))), free_bytes(root)
    if cost.too_short:
        findings.told(f"{cost.too_short:,} videos are too short for one row, by their headers")
    tell = findings.good if cost.num_bytes <= free else findings.bad
    tell(f"features: {cost} ({free / 1e9:,.1f} GB free)")
    if measure and cost.frames:
        findings.told(f"extract {hours(config, [path for path, _ in probes.values()], cost.frames)}")


def show(findings: CheckReport) -> str:
    """The findings as lines, the last of which counts the problems."""
    end = f"{findings.problems:,} problems to mend" if findings.problems else "nothing stands in the way"
    return "\n".join([*findings.lines, end])


def num_problems(findings: CheckReport) -> int:
    """How much has to be mended."""
    return findings.problems
