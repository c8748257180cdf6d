"""From which second to which: a trained run, a raw video and sentences in, a start and an end for every sentence out."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import field
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass

from excl.datasets.backends import why_not
from excl.datasets.text import UNK, Vocabulary, tokenise
from excl.models.i3d.extractor import choose_device
from excl.models.i3d.runner import check_precision, keep_freed_memory
from excl.models.i3d.weights import Weights, imported_names, imported_path, load_weights, read_weights
from excl.pipeline import items, train
from excl.pipeline.config import STRICT, WithoutPrefix
from excl.pipeline.examples import Example
from excl.pipeline.extract import CODE_VERSIONS
from excl.pipeline.features import IMPORTED, OWN_FILE, Making, video_features
from excl.pipeline.manifest import Manifest, sha256_file, single, write_json
from excl.pipeline.reading import Reading, num_cores
from excl.pipeline.shards import MAX_THREADS
from excl.pipeline.store import Query, VideoFeatures
from excl.pipeline.trained import TrainedRun, load_run, predict

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "localize", 1


@dataclass(frozen=True, config=STRICT)
class Config:
    """Find what sentences describe in a raw video, with a trained run."""

    run: Path
    """The run that `excl train` wrote. It knows how its features were made; the video's are made the same way."""
    video: Path
    """The video file."""
    query: tuple[str, ...]
    """One or more sentences."""
    out: Path | None = None
    """A folder for the answers as JSON; what stands there already is not computed again."""
    weights: str | None = None
    """Where I3D's weights are, if the run's features were made with a weight file of one's own."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    reading: WithoutPrefix[Reading] = field(default_factory=Reading)
    """How the video is read."""

    def __post_init__(self) -> None:
        if not self.query or not all(query.strip() for query in self.query):
            raise ValueError("query: at least one sentence is needed, and none may be empty")
        choose_device(self.device)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A moment of the video: seconds on the player's clock, and the model's probability of just this span of rows.

    Regression answers with times between rows; its probability is that of the span nearest to them.
    """

    query: str
    start_s: float
    end_s: float
    score: float


def run(config: Config) -> list[Answer]:
    """An answer for every query, in order. Raises ValueError (VideoError) for a video that cannot be read."""
    if config.out is None:
        return answer(config)
    made_by = {
        "run": Manifest.read(config.run, stage=train.STAGE).fingerprint(),
        "video": items.file_facts(config.video),
        "query": list(config.query),
    }
    single(config.out, stage=STAGE, identity=made_by, code_version=CODE_VERSION, work=lambda m: _write(config, m))
    rows = json.loads((config.out / "answers.json").read_text(encoding="utf-8"))
    return [Answer(**row) for row in rows]


def _write(config: Config, manifest: Manifest) -> dict[str, Any]:
    write_json(manifest.folder / "answers.json", [dataclasses.asdict(one) for one in answer(config)])
    return {"sha256": {"answers.json": sha256_file(manifest.folder / "answers.json")}}


def answer(config: Config) -> list[Answer]:
    """The answers, computed."""
    trained = load_run(config.run, device=config.device)
    video = _features(config, trained)
    vocabulary = Vocabulary(tuple(trained.words))
    tokeniser = trained.about_queries["tokeniser"]
    examples = [_example(query, tokenise(query, tokeniser), video, vocabulary) for query in config.query]
    predicted = predict(trained.model, examples, batch_size=len(examples))
    return [Answer(query, *map(float, span)) for query, span in zip(config.query, predicted, strict=True)]


def _features(config: Config, trained: TrainedRun) -> VideoFeatures:
    """The video's features by the run's recipe; ValueError if the weights are not those of the run."""
    recipe = trained.recipe
    if recipe["weights"]["source"] == IMPORTED:
        raise ValueError(
            f"{config.run}: it was trained on imported features, and nobody here knows how those were made, so none can be "
            f"made of {config.video.name}. Extract features with excl and train on them; `excl evaluate` works with this run"
        )
    if recipe["code_versions"] != CODE_VERSIONS:
        raise ValueError(
            f"{config.run}: its features were made by other versions of the code ({recipe['code_versions']}) than "
            f"there are now ({CODE_VERSIONS}); extract, pack and train again"
        )
    weights = _weights(config, recipe)
    made = Making.from_recipe(recipe)
    device = choose_device(config.device)
    try:
        check_precision(made.precision, device)
    except ValueError as error:
        raise ValueError(
            f"{config.run}: its features are in {made.precision}, and so must the video's be: {error}"
        ) from error
    if device.type == "cpu":
        keep_freed_memory()
    return video_features(
        config.reading.open(
            config.video,
            fps=made.fps,
            geometry=made.geometry,
            backends=_backends_of(made),
            threads=min(MAX_THREADS, num_cores()),
        ),
        made.extractor(weights, device),
        video_id=config.video.stem,
        dtype=made.dtype,
        source={"file": config.video.name},
    )


def _backends_of(made: Making) -> tuple[str, ...]:
    """The decoders by which the features were made, if this machine has them, and otherwise the reference."""
    missing = [backend for backend in made.backends if why_not(backend)]
    if missing:
        log.warning(
            "the run's features were made with the decoder %s; this machine has it not, so pyav is taken", missing[0]
        )
        return ("pyav",)
    return made.backends


def _weights(config: Config, recipe: dict[str, Any]) -> Weights:
    """The weights that the run's features were made with: those of the setting, published ones, or imported ones."""
    wanted = recipe["weights"]
    if config.weights or wanted["source"] != OWN_FILE:
        weights = load_weights(config.weights or wanted["source"])
        if weights.sha256 != wanted["sha256"]:
            raise ValueError(
                f"{config.run}: its features were made with the weights {wanted}, not with {weights.source} (sha256 of its "
                f"tensors {weights.sha256})"
            )
        return weights
    for name in imported_names():
        try:
            weights = read_weights(imported_path(name), source=name)
        except ValueError as error:
            log.warning("%s", error)
            continue
        if weights.sha256 == wanted["sha256"]:
            return weights
    raise ValueError(
        f"{config.run}: its features were made with weights from {wanted['source']} (sha256 of the tensors "
        f"{wanted['sha256'][:12]}…) that are not in the cache; say where they are with --weights"
    )


def _example(query: str, tokens: list[str], video: VideoFeatures, vocabulary: Vocabulary) -> Example:
    unknown = [token for token, index in zip(tokens, vocabulary.ids(tokens), strict=True) if index == UNK]
    if unknown:
        log.warning("%r: words that the training split did not have: %s", query, ", ".join(unknown))
    asked = Query(
        "", video.video_id, query, 0.0, 0.0, video.duration_s, "", "", tuple(tokens), tuple(vocabulary.ids(tokens))
    )
    return Example(asked, torch.from_numpy(video.features), video.start_s, video.end_s, 0, 0)


def lines(answers: list[Answer]) -> str:
    """The answers for people: start and end in seconds, the probability, the sentence."""
    return "\n".join(f"{a.start_s:.2f} s to {a.end_s:.2f} s   (p = {a.score:.2f})   {a.query}" for a in answers)
