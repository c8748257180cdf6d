"""The encoders of ExCL: the words of a query become one vector h^T, the feature rows of a video one vector h^V_t each.

The paper's are BiLSTMs; the others stand in their place by configuration. Letters in shapes: B items of a batch, L tokens
(padded), T feature rows (padded), D size of a word vector, F size of a feature row, H the configured hidden size, that of
an LSTM in one direction: whatever the encoder, its vectors have 2H values.
"""

import torch
from torch import Tensor, nn

from excl.models.excl.config import ExCLConfig, TextEncoderName, VideoEncoderName
from excl.models.excl.layers import Dropout, SelfAttention, valid_steps
from excl.models.excl.recurrence import bilstm, run_bilstm


class TextEncoder(nn.Module):
    """A query's vector h^T from its word vectors: dropout on both, and between them what a subclass does."""

    def __init__(self, vectors: Tensor, config: ExCLConfig) -> None:
        """Take word vectors [V, D]; they are copied, and row 0 is the padding token's, held at zero."""
        super().__init__()
        weights = vectors.detach().to(torch.float32, copy=True)
        weights[0] = 0.0
        self.embedding = nn.Embedding.from_pretrained(weights, freeze=not config.train_vectors, padding_idx=0)
        self.unseen_vectors: Tensor
        self.register_buffer("unseen_vectors", weights.new_empty(0, weights.shape[1]), persistent=False)
        self.input_dropout = Dropout(config.dropout)
        self.output_dropout = Dropout(config.dropout)
        self.output_dim = 2 * config.text_hidden

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return h^T [B, 2H] for int64 token_ids [B, L] whose first `lengths` (CPU, int64 [B]) tokens count."""
        words = self.input_dropout(self._vectors(token_ids))  # [B, L, D]
        return self.output_dropout(self.encode(words, lengths))

    def _vectors(self, token_ids: Tensor) -> Tensor:
        """Return the vectors [B, L, D] of words. In training mode no word has a vector but those of the vocabulary."""
        if self.training or len(self.unseen_vectors) == 0:
            return self.embedding(token_ids)
        unseen_ids = token_ids - self.embedding.num_embeddings
        is_unseen = unseen_ids >= 0
        vectors = self.embedding(token_ids.masked_fill(is_unseen, 0))
        unseen = nn.functional.embedding(unseen_ids.clamp(min=0), self.unseen_vectors)
        return torch.where(is_unseen[..., None], unseen, vectors)

    def encode(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Return [B, 2H] for words [B, L, D]; each kind of text encoder has its own."""
        raise NotImplementedError


class LSTMText(TextEncoder):
    """The paper's text encoder: the final states of both directions of a BiLSTM over the words."""

    def __init__(self, vectors: Tensor, config: ExCLConfig) -> None:
        super().__init__(vectors, config)
        self.lstm = bilstm(vectors.shape[1], config.text_hidden)

    def encode(self, words: Tensor, lengths: Tensor) -> Tensor:
        return run_bilstm(self.lstm, words, lengths)[1]


class BagOfWords(TextEncoder):
    """The mean of the words, whatever their order, through one tanh layer."""

    def __init__(self, vectors: Tensor, config: ExCLConfig) -> None:
        super().__init__(vectors, config)
        self.layer = nn.Linear(vectors.shape[1], self.output_dim)

    def encode(self, words: Tensor, lengths: Tensor) -> Tensor:
        counts = valid_steps(lengths, words)[..., None]  # [B, L, 1]
        mean = (words * counts).sum(1) / counts.sum(1)  # [B, L, D] -> [B, D]
        return torch.tanh(self.layer(mean))


class AttentionText(TextEncoder):
    """Self-attention over the words, and their mean by learned weights."""

    def __init__(self, vectors: Tensor, config: ExCLConfig) -> None:
        super().__init__(vectors, config)
        self.attention = SelfAttention(vectors.shape[1], self.output_dim, heads=config.heads, dropout=config.dropout)
        self.weigh = nn.Linear(self.output_dim, 1)

    def encode(self, words: Tensor, lengths: Tensor) -> Tensor:
        encoded = self.attention(words, lengths)  # [B, L, 2H]
        padding = ~valid_steps(lengths, words)[..., None]  # [B, L, 1]
        weights = self.weigh(encoded).masked_fill(padding, float("-inf")).softmax(1)
        return (weights * encoded).sum(1)  # [B, L, 2H] -> [B, 2H]


class VideoEncoder(nn.Module):
    """A vector h^V_t for every feature row."""

    output_dim: int

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return h^V [B, T, output_dim] for features [B, T, F] whose first `lengths` (CPU, int64 [B]) rows count.

        What stands in the padding of either is finite and has no influence on the rest.
        """
        raise NotImplementedError


class IdentityVideo(VideoEncoder):
    """The feature rows themselves (the "1" in a variant's name).

    Dropout acts where the predictor takes them as an encoder's output; the MLP predictor, without an LSTM, gets them whole.
    """

    def __init__(self, feature_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.dropout = Dropout(0.0 if config.parts.predictor == "mlp" else config.dropout)
        self.output_dim = feature_dim

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002  (rows stay where they are)
        return self.dropout(features)


class LSTMVideo(VideoEncoder):
    """The outputs of a BiLSTM over the rows (the "2" in a variant's name)."""

    def __init__(self, feature_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.input_dropout = Dropout(config.dropout)
        self.lstm = bilstm(feature_dim, config.video_hidden)
        self.output_dropout = Dropout(config.dropout)
        self.output_dim = 2 * config.video_hidden

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        outputs, _ = run_bilstm(self.lstm, self.input_dropout(features), lengths)
        return self.output_dropout(outputs)


class ConvVideo(VideoEncoder):
    """Two convolutions over time, each of `conv_rows` rows; beyond the first and the last row there are zeros."""

    def __init__(self, feature_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.output_dim = 2 * config.video_hidden
        self.input_dropout = Dropout(config.dropout)
        self.first = nn.Conv1d(feature_dim, self.output_dim, config.conv_rows, padding="same")
        self.second = nn.Conv1d(self.output_dim, self.output_dim, config.conv_rows, padding="same")
        self.output_dropout = Dropout(config.dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        valid = valid_steps(lengths, features)[:, None]  # [B, 1, T]
        rows = self.input_dropout(features).transpose(1, 2)  # [B, F, T], as convolutions take it
        rows = torch.relu(self.first(rows * valid))  # [B, 2H, T]
        rows = torch.relu(self.second(rows * valid))
        return self.output_dropout(rows.transpose(1, 2))  # [B, T, 2H]


class AttentionVideo(VideoEncoder):
    """Self-attention over the rows."""

    def __init__(self, feature_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.output_dim = 2 * config.video_hidden
        self.input_dropout = Dropout(config.dropout)
        self.attention = SelfAttention(feature_dim, self.output_dim, heads=config.heads, dropout=config.dropout)
        self.output_dropout = Dropout(config.dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.output_dropout(self.attention(self.input_dropout(features), lengths))


TEXT_ENCODERS: dict[TextEncoderName, type[LSTMText | BagOfWords | AttentionText]] = {
    "lstm": LSTMText,
    "bag": BagOfWords,
    "attention": AttentionText,
}
VIDEO_ENCODERS: dict[VideoEncoderName, type[IdentityVideo | LSTMVideo | ConvVideo | AttentionVideo]] = {
    "identity": IdentityVideo,
    "lstm": LSTMVideo,
    "conv": ConvVideo,
    "attention": AttentionVideo,
}
