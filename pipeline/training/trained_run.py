"""A trained run as its users need it: its best epoch's model with its vocabulary and recipe, and its predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from excl.datasets.text.vocabulary import UnseenWords, Vocabulary
from excl.models.excl import ExCLConfig, RowTimes, decode, row_probabilities
from excl.models.i3d.extractor import choose_device
from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.atomic_files import write_json
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.training.checkpoint_format import read_checkpoint
from excl.pipeline.training.checkpointer import BEST
from excl.pipeline.training.examples import Example, pad_features, pad_tokens
from excl.pipeline.training.multi_store import open_token_ids, remap_token_ids

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from excl.models.excl import ExCL
    from excl.models.excl import model as excl_model
else:
    torch = LazyModule("torch")
    excl_model = LazyModule("excl.models.excl.model")

STAGE = "train"
STORES = "stores.json"


@dataclass(frozen=True)
class TrainedRun:
    """A trained model with all it needs: its vocabulary, and the recipe of the features it was trained on."""

    path: Path
    model: ExCL
    words: list[str]
    recipe: dict[str, Any]
    about_queries: dict[str, Any]
    best: dict[str, Any]
    stores: dict[str, str]
    """The fingerprints of the training stores, by name."""
    selected_on: str
    """The split on which the epoch was chosen: "val", or "test" for a run whose figures compare only with those of such
    runs."""

    unseen_words: UnseenWords = "unk"
    """The treatment of words outside the vocabulary when the epoch was chosen, and by default in answers."""
    unseen: tuple[str, ...] = ()
    """Words outside the vocabulary for which the model has vectors now."""

    @property
    def stamp(self) -> str:
        """Return the warning to show with every figure of this run; empty if the validation split chose the epoch."""
        if self.selected_on == "val":
            return ""
        return (
            f"The epoch was chosen on the {self.selected_on.upper()} split (--select-on-test): figures on it are too good."
        )

    def accepts(self, store: TrainingStore) -> bool:
        """Return whether a store's words are the run's, or it is one of several stores that the run was trained on."""
        same = self.words == list(store.vocabulary.words)
        return same or store.manifest.fingerprint() in self.stores.values()

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that the model was trained with."""
        return Vocabulary(tuple(self.words))

    def with_unseen_vectors(self, vectors: Mapping[str, np.ndarray]) -> TrainedRun:
        """Return the run with the vectors [D] of words outside its vocabulary, which `with_open_ids` then knows."""
        words = sorted(vectors.keys() - set(self.words))
        if words:
            self.model.set_unseen_vectors(torch.from_numpy(np.stack([vectors[word] for word in words])))
        return replace(self, unseen=tuple(words))

    def with_run_vocabulary(self, store: TrainingStore, queries: Sequence[Query]) -> list[Query]:
        """Return queries of such a store with the run's token ids; what their store does not know is unknown."""
        return remap_token_ids(queries, store.vocabulary, self.vocabulary)

    def with_token_ids(
        self, store: TrainingStore, queries: Sequence[Query], *, unseen_words: UnseenWords | None = None
    ) -> list[Query]:
        """Return queries of such a store with the token ids by which the run answers; as it was trained, or as is said.

        With "vector", the model gets the store's vectors of the words that the run was not trained with.
        """
        if (unseen_words or self.unseen_words) == "vector":
            return self.with_unseen_vectors(store.unseen_vectors).with_open_ids(queries)
        return self.with_run_vocabulary(store, queries)

    def with_open_ids(self, queries: Sequence[Query]) -> list[Query]:
        """Return queries with the ids of all words that have a vector, those of `unseen` among them."""
        return open_token_ids(queries, self.vocabulary, self.unseen)


def write_stores(run: Path, paths: Mapping[str, Path]) -> None:
    """Record next to a run where its training stores are, by name. The places are no part of the run's identity."""
    write_json(run / STORES, {name: str(path.resolve()) for name, path in paths.items()})


def store_of(run: Path) -> Path:
    """Return the store that a run was trained on, if it is in place and unchanged; ValueError if not, or for several."""
    wanted = Manifest.read(run, stage=STAGE).header["identity"]["stores"]
    try:
        noted = json.loads((run / STORES).read_text(encoding="utf-8"))
        stores = {name: TrainingStore(Path(noted[name])) for name in wanted}
        moved = [name for name, store in stores.items() if store.manifest.fingerprint() != wanted[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run}: its training store was not found ({error}); say where it is with --store") from error
    if moved:
        raise ValueError(f"{stores[moved[0]].path}: not any more what {run} was trained on; give a store with --store")
    if len(stores) > 1:
        names = ", ".join(str(store.path) for store in stores.values())
        raise ValueError(f"{run} was trained on several stores, {names}; say with --store which to evaluate on")
    return next(iter(stores.values())).path


def load_run(path: Path | str, *, device: str = "auto") -> TrainedRun:
    """Return the best epoch of a finished run, in evaluation mode; ValueError if there is none."""
    path = Path(path)
    if not Manifest.read(path, stage=STAGE).is_complete:
        raise ValueError(f"{path}: its training has not finished; run `excl train` again, which resumes it")
    weights, about = read_checkpoint(path, BEST)
    vectors = weights["text_encoder.embedding.weight"]
    model = excl_model.ExCL(
        ExCLConfig(**about["config"]["model"]), vectors=vectors, feature_dim=len(weights["feature_mean"])
    )
    model.load_state_dict(weights)
    model.to(choose_device(device)).eval()
    recorded = {name: about[name] for name in ("words", "recipe", "about_queries", "best", "stores", "selected_on")}
    return TrainedRun(path, model, **recorded, unseen_words=about.get("unseen_words", "unk"))


def predict(model: ExCL, examples: Sequence[Example], *, batch_size: int, k: int | None = None) -> np.ndarray:
    """Return the best moment of every example, float64 [N, 3]: start and end in seconds, and its probability.

    With `k`, return the k best, [N, k, 3], NaN where there are fewer. A video is encoded once for all questions about it:
    examples that share the tensor of their rows, as those of `load_examples` do, are of one video.
    """
    moments = np.full((len(examples), k or 1, 3), np.nan)
    with torch.inference_mode():
        for which, starts, ends in _batches(model, examples, batch_size=batch_size):
            moments[which] = _moments(model, [examples[index] for index in which], starts, ends, k=k or 1)
    return moments[:, 0] if k is None else moments


def predict_with_rows(
    model: ExCL, examples: Sequence[Example], *, batch_size: int, k: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the k best moments [N, k, 3] as `predict` does, and what they come from.

    That is, for every example, the probabilities of a start and of an end in each row of its video, float64 [n] each.
    """
    moments = np.full((len(examples), k, 3), np.nan)
    probabilities: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with torch.inference_mode():
        for which, starts, ends in _batches(model, examples, batch_size=batch_size):
            moments[which] = _moments(model, [examples[index] for index in which], starts, ends, k=k)
            for index, start, end in zip(which, *row_probabilities(starts, ends, loss=model.config.parts.loss), strict=True):
                num_rows = len(examples[index].features)
                probabilities[index] = start[:num_rows], end[:num_rows]
    return moments, [probabilities[index] for index in range(len(examples))]


def _moments(model: ExCL, examples: Sequence[Example], starts: Tensor, ends: Tensor, *, k: int) -> np.ndarray:
    """Return the k best moments [B, k, 3] of the examples of a batch by their logits."""
    row_times = [RowTimes(example.row_start_s, example.row_end_s) for example in examples]
    return decode(starts, ends, row_times, loss=model.config.parts.loss, k=k)


def _batches(model: ExCL, examples: Sequence[Example], *, batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield the numbers of the examples of a batch and their start and end logits [B, T]."""
    model.eval()
    order = _by_video(examples)
    encoded: dict[int, Tensor] = {}  # h^V [n, V] of the videos of the last batch: the next may need one of them again
    for first in range(0, len(examples), batch_size):
        which = order[first : first + batch_size]
        chosen = [examples[index] for index in which]
        encoded = _encoded(model, chosen, encoded)
        yield which, *_logits(model, chosen, encoded)


def _by_video(examples: Sequence[Example]) -> list[int]:
    """Return the numbers of the examples, sorted by length and then by video, so that little is padded."""
    first: dict[int, int] = {}
    for index, example in enumerate(examples):
        first.setdefault(id(example.features), index)
    return sorted(range(len(examples)), key=lambda i: (len(examples[i].features), first[id(examples[i].features)], i))


def _encoded(model: ExCL, examples: Sequence[Example], encoded_before: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return h^V [n, V] of the examples' videos, by the identity of their rows; compute what `encoded_before` lacks."""
    videos = {id(example.features): example.features for example in examples}
    new = [rows for key, rows in videos.items() if key not in encoded_before]
    by_key = {key: encoded_before[key] for key in videos if key in encoded_before}
    if new:
        features, num_rows = pad_features(new)
        encoded = model.encode_video(features.to(model.feature_mean.device), num_rows)  # [B, T, V]
        by_key |= {id(rows): encoded[index, : len(rows)] for index, rows in enumerate(new)}
    return by_key


def _logits(model: ExCL, examples: Sequence[Example], encoded: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Return start and end logits [B, T] of the examples, computed on the model's device."""
    videos = [encoded[id(example.features)] for example in examples]
    video = torch.nn.utils.rnn.pad_sequence(videos, batch_first=True)  # [B, T, V]
    num_rows = torch.tensor([len(example.features) for example in examples])
    token_ids, num_tokens = pad_tokens([example.query.token_ids for example in examples])
    text = model.encode_text(token_ids.to(video.device), num_tokens)
    return model.predict(video, num_rows, text)
