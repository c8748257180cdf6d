"""ExCL (Ghosh et al., NAACL 2019), the classification variant 2-b: features and a query in, start and end logits out.

Letters in shapes: B queries of a batch (each with its own video), T feature rows (padded), F size of a feature row,
L tokens (padded), V words of the vocabulary, D size of a word vector.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excl.models.excl.encoders import TextEncoder, VideoEncoder
from excl.models.excl.predictors import TiedPredictor

_SMALLEST_STD = 1e-6
"""A feature column that varies less than this over the training rows is taken as constant."""


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class ExCLConfig:
    """The sizes of an ExCL model. The defaults are the paper's; that they count one direction is our reading of it."""

    variant: Literal["clf-2-b"] = "clf-2-b"
    """The row of the paper's Table 1: span classification (clf), a video LSTM (2), the tied-LSTM predictor (b)."""
    text_hidden: Annotated[int, Field(gt=0)] = 256
    """Hidden units in each direction of the query's LSTM. The paper (implementation details) has 256."""
    video_hidden: Annotated[int, Field(gt=0)] = 256
    """Hidden units in each direction of the video's LSTM. The paper (implementation details) has 256."""
    predictor_hidden: Annotated[int, Field(gt=0)] = 128
    """Hidden units in each direction of the predictor's LSTM (equation 11). The paper has 128."""
    mlp_hidden: Annotated[int, Field(gt=0)] = 256
    """Hidden tanh units of the start MLP and of the end MLP (equations 12 and 13). The paper has 256."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the LSTMs' inputs and outputs that is dropped in training. The paper has 0.5, for all LSTMs."""
    train_vectors: bool = False
    """Train the word vectors too. By default they stay what they are in GloVe."""


class ExCL(nn.Module):
    """Start and end logits over the feature rows of a video, given a query (variant 2-b, equations 11-13).

    Text BiLSTM -> h^T, video BiLSTM -> h^V_t, tied predictor -> S_start(t), S_end(t). Dropout acts on the inputs and
    the outputs of all three LSTMs, once on each tensor: what the predictor reads are the encoders' dropped outputs.
    The feature normalisation and the word vectors are part of the state dict, so a checkpoint is complete.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ExCLConfig, *, vectors: Tensor, feature_dim: int) -> None:
        """Take word vectors, float32 [V, D], row 0 for padding, and the size F of a feature row."""
        super().__init__()
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f"word vectors have shape {list(vectors.shape)}; wanted [words, size], neither of them 0")
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        self.text_encoder = TextEncoder(
            vectors, hidden=config.text_hidden, dropout=config.dropout, train_vectors=config.train_vectors
        )
        self.video_encoder = VideoEncoder(feature_dim, hidden=config.video_hidden, dropout=config.dropout)
        self.predictor = TiedPredictor(
            self.video_encoder.output_dim,
            self.text_encoder.output_dim,
            hidden=config.predictor_hidden,
            mlp_hidden=config.mlp_hidden,
            dropout=config.dropout,
        )

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Subtract `mean` from features and divide by `std`, both [F], from now on; a constant column is not divided.

        Raises ValueError where a value is not finite, a std is negative, or the shapes are not [F].
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.feature_mean.shape:
                wanted = list(self.feature_mean.shape)
                raise ValueError(f"the features' {name} has shape {list(values.shape)}; wanted {wanted}")
            if not torch.isfinite(values).all():
                raise ValueError(f"the features' {name} has values that are not finite; look for broken feature rows")
        if (std < 0).any():
            raise ValueError("the features' std has negative values; wanted standard deviations")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > _SMALLEST_STD, std, torch.ones_like(std)))

    def forward(self, features: Tensor, num_rows: Tensor, token_ids: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end logits, both float32 [B, T], -inf in the padding.

        `features` is [B, T, F], of which the first `num_rows` (int64 [B]) rows count; `token_ids` is int64 [B, L], of
        which the first `num_tokens` (int64 [B]) count. What stands in the padding has no influence. Lengths that are
        on the CPU already spare a GPU the wait for their copy.

        Raises ValueError for a query without tokens, a video without rows, or features of another size.
        """
        if features.shape[2] != len(self.feature_mean):
            raise ValueError(f"feature rows have {features.shape[2]} values; this model takes {len(self.feature_mean)}")
        row_lengths = _checked_lengths(num_rows, features.shape[1], what="video", of="feature rows")
        token_lengths = _checked_lengths(num_tokens, token_ids.shape[1], what="query", of="tokens")
        features = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std
        text = self.text_encoder(token_ids, token_lengths)  # [B, 2 * text_hidden]
        video = self.video_encoder(features, row_lengths)  # [B, T, 2 * video_hidden]
        start_logits, end_logits = self.predictor(video, text, row_lengths)
        rows = torch.arange(features.shape[1], device=features.device)
        padding = rows >= num_rows.to(features.device)[:, None]  # [B, T]
        return (
            start_logits.float().masked_fill(padding, float("-inf")),
            end_logits.float().masked_fill(padding, float("-inf")),
        )


def _checked_lengths(lengths: Tensor, longest: int, *, what: str, of: str) -> Tensor:
    """Return lengths on the CPU, where packing wants them. Raises ValueError for one outside 1..longest."""
    lengths = lengths.cpu()
    broken = (lengths < 1) | (lengths > longest)
    if broken.any():
        item = int(broken.nonzero()[0])
        found = int(lengths[item])
        wanted = "ExCL needs at least one, so leave it out" if found < 1 else f"the batch holds {longest} for each"
        raise ValueError(f"{what} {item} of the batch has {found} {of}; {wanted}")
    return lengths
