"""Localize: a trained run, a raw video and sentences in, a start and an end for every sentence out.

The video's features are remembered (feature_cache.py): a second question about it is answered without decoding it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.text.vocabulary import PAD_TOKEN, UNK, UNK_TOKEN, UnseenWords, Vocabulary, tokenise
from excl.datasets.video.backends import missing_reason
from excl.models.i3d.device_checks import check_precision
from excl.models.i3d.extractor import choose_device
from excl.models.i3d.runner import keep_freed_memory
from excl.models.i3d.weights import Weights, imported_names, imported_path, load_weights, read_weights
from excl.models.lazy_module import LazyModule
from excl.pipeline import train
from excl.pipeline.artifacts.atomic_files import sha256_file, write_json
from excl.pipeline.artifacts.file_cache import checksums
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.run_once import run_once
from excl.pipeline.config import STRICT, PositiveInt, SaidInText, WithoutPrefix, dump
from excl.pipeline.execution.sharded_stage import MAX_THREADS
from excl.pipeline.execution.source_files import file_facts, file_stat, require_unchanged
from excl.pipeline.execution.video_reading import VideoReading, num_cores
from excl.pipeline.extract import CODE_VERSIONS
from excl.pipeline.queries.word_vectors import find_file, identify, vectors_for
from excl.pipeline.store import feature_cache
from excl.pipeline.store.feature_recipe import IMPORTED, OWN_FILE, FeatureRecipe, compute_features
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import Query
from excl.pipeline.training.examples import Example
from excl.pipeline.training.trained_run import TrainedRun, load_run, predict

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "localize", 4
Watch = Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
ROWS_AT_ONCE = 16_384  # of all queries asked at once: a film's rows are copied for each


@dataclass(frozen=True, config=STRICT)
class AskConfig:
    """Find what sentences describe in a raw video, with a trained run."""

    run: Path
    """The run that `excl train` wrote. It knows how its features were made; the video's are made the same way."""
    video: Path
    """The video file."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """A sentence; give it several times for several."""
    top: PositiveInt = 1
    """Number of moments to answer with, the best first, no two with an IoU above 0.5. There may be fewer."""
    json: bool = False
    """Print the answers as JSON."""
    unseen_words: SaidInText[UnseenWords | None] = None
    """Treatment of words that the training split did not have: vector, their own word vectors, or unk, one unknown word.
    Default: as the run was trained."""
    glove: SaidInText[str | None] = None
    """The word vectors of the run, for words that it was not trained with: a file, or 6B or 840B. Default: the file that
    `excl tokenise` read, if it is still on this machine; without it such words are unknown."""
    out: Path | None = None
    """A folder for the answers as JSON; answers that are there already are not computed again."""
    weights: str | None = None
    """I3D's weights, if the run's features were made with a weight file of your own."""
    device: str = "auto"
    """Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    reading: WithoutPrefix[VideoReading] = field(default_factory=VideoReading)
    """The settings for reading the video."""

    def __post_init__(self) -> None:
        if not self.query or not all(query.strip() for query in self.query):
            raise ValueError("query: at least one sentence is needed, and none may be empty")
        choose_device(self.device)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A moment of the video: seconds on the player's clock, and the model's probability of just this span of rows.

    Regression answers with times between rows; its probability is that of the span nearest to them. Rank 1 is the best.
    """

    query: str
    start_s: float
    end_s: float
    score: float
    rank: int = 1
    unseen_words: list[str] = field(default_factory=list)
    """The words of the query that the training split did not have."""
    unknown_words: list[str] = field(default_factory=list)
    """Those of them that have no vector in the answer: they all count as one and the same unknown word."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers, those to one query together and the best first, and the form in which to show them."""

    answers: list[Answer]
    as_json: bool = False


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question in memory: the run, the video's rows, an example for each query, and the moments [N, top, 3]."""

    trained: TrainedRun
    video: VideoFeatures
    examples: Sequence[Example]
    moments: np.ndarray

    @property
    def answers(self) -> list[Answer]:
        """The answers, without the moments that are not there (NaN)."""
        return [
            Answer(
                example.query.query,
                float(span[0]),
                float(span[1]),
                float(span[2]),
                rank,
                *foreign_words(self.trained, example.query),
            )
            for example, moments in zip(self.examples, self.moments, strict=True)
            for rank, span in enumerate(moments, start=1)
            if not np.isnan(span).any()
        ]


def run(config: AskConfig, asked: Asked | None = None) -> Answers:
    """Answer every query, in order. Raises ValueError (VideoError) for a video that cannot be read.

    `asked` is what `ask` returned, if the caller needed it for more than the answers.
    """
    if config.out is None:
        return Answers((asked or ask(config)).answers, config.json)
    run_once(
        config.out,
        stage=STAGE,
        identity=made_by(config),
        code_version=CODE_VERSION,
        build=lambda manifest: _write((asked or ask(config)).answers, manifest),
    )
    rows = json.loads((config.out / "answers.json").read_text(encoding="utf-8"))
    return Answers([Answer(**row) for row in rows], config.json)


def made_by(config: AskConfig) -> dict[str, Any]:
    """Return what determines the answers."""
    return {
        "run": Manifest.read(config.run, stage=train.STAGE).fingerprint(),
        "video": file_facts(config.video),
        "query": list(config.query),
        "top": config.top,
        "unseen_words": config.unseen_words,
        "glove": config.glove,
        "reading": dump(config.reading),
    }


def _write(answers: Sequence[Answer], manifest: Manifest) -> dict[str, Any]:
    write_json(manifest.folder / "answers.json", [dataclasses.asdict(answer) for answer in answers])
    return {"sha256": {"answers.json": sha256_file(manifest.folder / "answers.json")}}


def ask(config: AskConfig) -> Asked:
    """Make or find the video's features, and compute the answers."""
    trained = load_run(config.run, device=config.device)
    video = features(config, trained)
    examples = make_examples(trained, video, config.query, unseen_words=config.unseen_words, glove=config.glove)
    moments = predict(trained.model, examples, batch_size=max(1, ROWS_AT_ONCE // len(video.features)), k=config.top)
    return Asked(trained, video, examples, moments)


def features(config: AskConfig, trained: TrainedRun, *, watch: Watch | None = None) -> VideoFeatures:
    """Return the video's features by the run's recipe, remembered or made; ValueError if the weights are not the run's.

    `watch` gets the frames on their way to the network, if they are made, and returns them.
    """
    _require_known_making(config, trained.recipe)
    weights = _weights(config, trained.recipe) if config.weights else None  # wrong ones are refused in any case
    made = FeatureRecipe.from_recipe(trained.recipe)
    made = dataclasses.replace(made, backends=_backends_of(made))
    state = file_stat(config.video)
    made_from = {
        "video": checksums(config.video).sha256,
        "recipe": {**trained.recipe, "backend": list(made.backends)},
        "reading": dump(config.reading),
    }
    video = feature_cache.load(made_from)
    if video is None:
        _require_precision(config, made)
        weights = weights or _weights(config, trained.recipe)
        video = compute_video(config.video, made, weights, reading=config.reading, device=config.device, watch=watch)
        require_unchanged(config.video, state)
        feature_cache.save(made_from, video)
    return dataclasses.replace(video, video_id=config.video.stem)


def _require_known_making(config: AskConfig, recipe: dict[str, Any]) -> None:
    """Raise ValueError if features cannot be made here as this recipe has them."""
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


def _require_precision(config: AskConfig, recipe: FeatureRecipe) -> None:
    """Raise ValueError if the device cannot compute in the precision of the run's features."""
    try:
        check_precision(recipe.precision, choose_device(config.device))
    except ValueError as error:
        raise ValueError(
            f"{config.run}: its features are in {recipe.precision}, and so must the video's be: {error}"
        ) from error


def compute_video(
    path: Path,
    recipe: FeatureRecipe,
    weights: Weights,
    *,
    reading: VideoReading,
    device: str,
    chunk_frames: int = 512,
    watch: Watch | None = None,
) -> VideoFeatures:
    """The features of one video; VideoError if it cannot be read, ValueError for a precision that the device lacks."""
    torch_device = choose_device(device)
    if torch_device.type == "cpu":
        keep_freed_memory()
    video = reading.open(
        path,
        fps=recipe.fps,
        geometry=recipe.geometry,
        backends=recipe.backends,
        nearest=recipe.nearest,
        threads=min(MAX_THREADS, num_cores()),
    )
    extractor = recipe.extractor(weights, torch_device, chunk_frames=chunk_frames)
    frames = None if watch is None else watch(video)
    source = {"file": path.name}
    return compute_features(video, extractor, video_id=path.stem, dtype=recipe.dtype, source=source, frames=frames)


def _backends_of(made: FeatureRecipe) -> tuple[str, ...]:
    """The decoders by which the features were made, if this machine has them, and otherwise the reference."""
    missing = [backend for backend in made.backends if missing_reason(backend)]
    if missing:
        log.warning(
            "the run's features were made with the decoder %s; this machine has it not, so pyav is taken", missing[0]
        )
        return ("pyav",)
    return made.backends


def _weights(config: AskConfig, recipe: dict[str, Any]) -> Weights:
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


def make_examples(
    trained: TrainedRun,
    video: VideoFeatures,
    queries: Sequence[str],
    *,
    unseen_words: UnseenWords | None = None,
    glove: str | None = None,
    unseen_vectors: Mapping[str, np.ndarray] | None = None,
) -> list[Example]:
    """Return an example for each sentence about a video, and give the run's model the vectors of words it did not train on.

    Warnings name such words. `unseen_vectors` are what `look_up` returned, if the caller did that before.
    """
    if unseen_vectors is None:
        unseen_vectors = look_up(trained, queries, unseen_words=unseen_words, glove=glove)
    if unseen_vectors:
        trained = trained.with_unseen_vectors(unseen_vectors)
    tokens = [tokenise(query, trained.about_queries["tokeniser"]) for query in queries]
    features = video.features if video.features.flags.writeable else video.features.copy()  # as PyTorch wants them
    rows = torch.from_numpy(features)  # one tensor for all, so that they are encoded once
    asked = [
        Query("", video.video_id, query, 0.0, 0.0, video.duration_s, "", "", tuple(row), ())
        for query, row in zip(queries, tokens, strict=True)
    ]
    examples = [Example(q, rows, video.start_s, video.end_s, 0, 0) for q in trained.with_open_ids(asked)]
    for query in [example.query for example in examples]:
        unseen, unknown = foreign_words(trained, query)
        if unseen:
            log.warning("%r: words that the training split did not have: %s", query.query, ", ".join(unseen))
        if unknown:
            log.warning("%r: words that the model treats as one unknown word: %s", query.query, ", ".join(unknown))
    return examples


def foreign_words(trained: TrainedRun, query: Query) -> tuple[list[str], list[str]]:
    """Return the words of a query that the run was not trained with, and those among them that have no vector."""
    words, ids = set(trained.words[2:]), dict(zip(query.tokens, query.token_ids, strict=True))
    unseen = [word for word in ids if word not in words]
    return unseen, [word for word in unseen if ids[word] == UNK]


def look_up(
    trained: TrainedRun,
    queries: Sequence[str],
    *,
    unseen_words: UnseenWords | None = None,
    glove: str | None = None,
    remembered: dict[str, np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """Return the vectors of the words in sentences that a run was not trained with, if it is to answer by them.

    Reads the file of the word vectors; `remembered` keeps them (None: there is none) for a program that asks often.
    ValueError for word vectors that are not the run's.
    """
    if (unseen_words or trained.unseen_words) != "vector":
        return {}
    remembered = {} if remembered is None else remembered
    tokens = {word for query in queries for word in tokenise(query, trained.about_queries["tokeniser"])}
    words = sorted(tokens - set(trained.words[2:]))
    remembered |= _read_vectors(trained, [word for word in words if word not in remembered], glove)
    return {word: vector for word in words if (vector := remembered[word]) is not None}


def _read_vectors(trained: TrainedRun, words: Sequence[str], glove: str | None) -> dict[str, np.ndarray | None]:
    """Return the vectors of words, None where there is none or the run's word vectors are not on this machine."""
    if not words:
        return {}
    about = trained.about_queries.get("glove")
    if about is None:
        raise ValueError(f"unseen_words: {trained.path} does not say which word vectors it was trained with; choose unk")
    if glove is not None and (given := identify(glove)).sha256 != about["sha256"]:
        raise ValueError(
            f"glove: {given.file} is not the file that {trained.path} was trained with; expected {about['file']}"
        )
    path = glove or find_file(about["sha256"])
    if path is None:
        log.warning(
            "%s, with the word vectors of the run, is not on this machine; say with --glove where it is", about["file"]
        )
        return dict.fromkeys(words)
    vocabulary = Vocabulary((PAD_TOKEN, UNK_TOKEN, *words))
    vectors, _ = vectors_for(path, vocabulary, member=about["member"], cased_fallback=about["cased_fallback"])
    rows = zip(vocabulary.words[2:], vectors.matrix[2:], vectors.found[2:], strict=True)
    return {word: vector if has_vector else None for word, vector, has_vector in rows}


def lines(answers: Answers) -> str:
    """The answers as JSON, or for people: start and end in seconds, the probability, the sentence."""
    if answers.as_json:
        return json.dumps([dataclasses.asdict(one) for one in answers.answers], indent=2)
    return "\n".join(f"{a.start_s:.2f} s to {a.end_s:.2f} s   (p = {a.score:.2f})   {a.query}" for a in answers.answers)
