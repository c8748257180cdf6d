"""ExCL (Ghosh et al., NAACL 2019): features and a query in, start and end logits out.

Letters in shapes: B queries of a batch (each with its own video), T feature rows (padded), F size of a feature row,
L tokens (padded), W words of the vocabulary, D size of a word vector, V and S sizes of h^V_t and of h^T.
"""

import torch
from torch import Tensor, nn

from excl.models.excl.config import ExCLConfig
from excl.models.excl.encoders import TEXT_ENCODERS, VIDEO_ENCODERS
from excl.models.excl.layers import valid_steps
from excl.models.excl.predictors import PREDICTORS

_SMALLEST_STD = 1e-6
"""A feature column that varies less than this over the training rows is taken as constant."""


class ExCL(nn.Module):
    """Start and end logits over the feature rows of a video, given a query.

    Text encoder -> h^T, video encoder -> h^V_t, predictor -> S_start(t), S_end(t) (equations 9 to 17). Dropout acts on the
    inputs and the outputs of all LSTMs, once on each tensor: what the predictor reads are the encoders' dropped outputs.
    The feature normalisation and the word vectors are part of the state dict, so a checkpoint is complete.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ExCLConfig, *, vectors: Tensor, feature_dim: int) -> None:
        """Take word vectors, float32 [W, D], row 0 for padding, and the size F of a feature row."""
        super().__init__()
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f"word vectors have shape {list(vectors.shape)}; expected [words, size], neither of them 0")
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        parts = config.parts
        self.text_encoder = TEXT_ENCODERS[config.text_encoder](vectors, config)
        self.video_encoder = VIDEO_ENCODERS[parts.video_encoder](feature_dim, config)
        self.predictor = PREDICTORS[parts.predictor](self.video_encoder.output_dim, self.text_encoder.output_dim, config)

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Subtract `mean` from features and divide by `std`, both [F], from now on; a constant column is not divided.

        Raises ValueError where a value is not finite, a std is negative, or the shapes are not [F].
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.feature_mean.shape:
                shapes = f"{list(values.shape)}; expected {list(self.feature_mean.shape)}"
                raise ValueError(f"the features' {name} has shape {shapes}")
            if not torch.isfinite(values).all():
                raise ValueError(f"the features' {name} has values that are not finite; look for broken feature rows")
        if (std < 0).any():
            raise ValueError("the features' std has negative values; expected standard deviations")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > _SMALLEST_STD, std, torch.ones_like(std)))

    def set_unseen_vectors(self, vectors: Tensor) -> None:
        """Take vectors [U, D] of words outside the vocabulary, whose ids are W to W + U - 1 from now on.

        They serve answers alone: in training mode such an id is an error, and the state dict does not have them.
        """
        self.text_encoder.unseen_vectors = vectors.to(self.text_encoder.unseen_vectors)

    def forward(self, features: Tensor, num_rows: Tensor, token_ids: Tensor, num_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end logits, both float32 [B, T], -inf in the padding.

        `features` is [B, T, F], of which the first `num_rows` (int64 [B]) rows count; `token_ids` is int64 [B, L], of
        which the first `num_tokens` (int64 [B]) count. What stands in the padding has no influence. Lengths that are
        on the CPU already spare a GPU the wait for their copy.

        Raises ValueError for a query without tokens, a video without rows, or features of another size.
        """
        text = self.encode_text(token_ids, num_tokens)  # before the video: in this order their dropout is drawn
        return self.predict(self.encode_video(features, num_rows), num_rows, text)

    def encode_text(self, token_ids: Tensor, num_tokens: Tensor) -> Tensor:
        """Return h^T, [B, S], of queries as in `forward`."""
        lengths = _checked_lengths(num_tokens, token_ids.shape[1], item="query", unit="tokens")
        text: Tensor = self.text_encoder(token_ids, lengths)
        return text

    def encode_video(self, features: Tensor, num_rows: Tensor) -> Tensor:
        """Return h^V, [B, T, V], of videos as in `forward`. It does not depend on what is asked about them."""
        if features.shape[2] != len(self.feature_mean):
            raise ValueError(f"feature rows have {features.shape[2]} values; this model takes {len(self.feature_mean)}")
        lengths = _checked_lengths(num_rows, features.shape[1], item="video", unit="feature rows")
        features = (features.to(self.feature_mean.dtype) - self.feature_mean).div_(self.feature_std)
        padding = ~valid_steps(num_rows, features)  # [B, T]
        features = features.masked_fill_(padding[..., None], 0.0)  # 0 times NaN would be NaN in the weights' gradients
        video: Tensor = self.video_encoder(features, lengths)
        return video

    def predict(self, video: Tensor, num_rows: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end logits as `forward` does, of h^V [B, T, V] and h^T [B, S]."""
        lengths = _checked_lengths(num_rows, video.shape[1], item="video", unit="feature rows")
        start_logits, end_logits = self.predictor(video, text, lengths)
        padding = ~valid_steps(num_rows, video)  # [B, T]
        return (
            start_logits.float().masked_fill(padding, float("-inf")),
            end_logits.float().masked_fill(padding, float("-inf")),
        )


def _checked_lengths(lengths: Tensor, longest: int, *, item: str, unit: str) -> Tensor:
    """Return lengths on the CPU, where packing wants them. Raises ValueError for one outside 1..longest."""
    lengths = lengths.cpu()
    broken = (lengths < 1) | (lengths > longest)
    if broken.any():
        index = int(broken.nonzero()[0])
        length = int(lengths[index])
        rule = "ExCL needs at least one, so leave it out" if length < 1 else f"the batch holds {longest} for each"
        raise ValueError(f"{item} {index} of the batch has {length} {unit}; {rule}")
    return lengths
