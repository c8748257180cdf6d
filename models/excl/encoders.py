"""The encoders of ExCL: the words of a query become one vector h^T, the feature rows of a video one vector h^V_t each.

Letters in shapes: B items of a batch, L tokens (padded), T feature rows (padded), D size of a word vector, F size of a
feature row, H hidden size of an LSTM in one direction.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def bilstm(input_dim: int, hidden: int) -> nn.LSTM:
    """Return a bidirectional LSTM of one layer. Its owner adds dropout: nn.LSTM's own acts between layers only."""
    return nn.LSTM(input_dim, hidden, batch_first=True, bidirectional=True)


def run_packed(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of a BiLSTM at every step [B, T, 2H], zero in the padding, and its final states [B, 2H].

    Neither direction ever sees padding, because the sequences are packed. The final states are those of the forward
    direction after the last valid step and of the backward direction after the first step. `inputs` is [B, T, D];
    `lengths` is int64 [B] on the CPU, each in 1..T.
    """
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    packed_outputs, (final, _) = lstm(packed)
    outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=inputs.shape[1])
    return outputs, torch.cat([final[0], final[1]], dim=1)  # [2, B, H] -> [B, 2H]


class TextEncoder(nn.Module):
    """A query's vector h^T: the final states of both directions of a BiLSTM over its word vectors."""

    def __init__(self, vectors: Tensor, *, hidden: int, dropout: float, train_vectors: bool) -> None:
        """Take word vectors [V, D]; they are copied, and row 0 is the padding token's, held at zero."""
        super().__init__()
        weights = vectors.detach().to(torch.float32, copy=True)
        weights[0] = 0.0
        self.embedding = nn.Embedding.from_pretrained(weights, freeze=not train_vectors, padding_idx=0)
        self.input_dropout = nn.Dropout(dropout)
        self.lstm = bilstm(weights.shape[1], hidden)
        self.output_dropout = nn.Dropout(dropout)
        self.output_dim = 2 * hidden

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return h^T [B, 2H] for int64 token_ids [B, L] whose first `lengths` (CPU, int64 [B]) tokens count."""
        words = self.input_dropout(self.embedding(token_ids))  # [B, L, D]
        _, query = run_packed(self.lstm, words, lengths)
        return self.output_dropout(query)


class VideoEncoder(nn.Module):
    """A vector h^V_t for every feature row: the outputs of a BiLSTM over the rows (the "2" in the variant's name)."""

    def __init__(self, feature_dim: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(dropout)
        self.lstm = bilstm(feature_dim, hidden)
        self.output_dropout = nn.Dropout(dropout)
        self.output_dim = 2 * hidden

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return h^V [B, T, 2H] for features [B, T, F] whose first `lengths` (CPU, int64 [B]) rows count."""
        outputs, _ = run_packed(self.lstm, self.input_dropout(features), lengths)
        return self.output_dropout(outputs)
