"""The span predictors of ExCL: from h^V_t and h^T to a start score and an end score for every feature row.

Letters in shapes: B items of a batch, T feature rows (padded), V and S sizes of h^V_t and of h^T, P of h^P_t.

All take (video, text, lengths): h^V [B, T, V], h^T [B, S] and int64 [B] on the CPU; all return start and end scores, both
[B, T] and meaningless in the padding. h^V and h^T arrive with their encoders' dropout applied, so the inputs of the LSTMs
get none here: no tensor is dropped twice. Equations are those of Ghosh et al., 2019.
"""

import torch
from torch import Tensor, nn

from excl.models.excl.config import ExCLConfig, PredictorName
from excl.models.excl.layers import Dropout, SelfAttention, linear_of_joint
from excl.models.excl.recurrence import bilstm, run_bilstm


class _ScoreMLP(nn.Sequential):
    """The MLP of equations 9, 10, 12 and 13: one hidden layer of tanh units, one score."""

    def __init__(self, input_dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(input_dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, *parts: Tensor) -> Tensor:
        """Return scores [B, T] of [part ; part ; ...]; parts are [B, T, size], or [B, 1, size] if the same for all rows."""
        hidden, tanh, output = self
        assert isinstance(hidden, nn.Linear)
        scores: Tensor = output(tanh(linear_of_joint(hidden, *parts)))  # [B, T, 1]
        return scores.squeeze(2)


class MLPPredictor(nn.Module):
    """The MLP predictor, "a" in a variant's name: every row for itself.

    S_start(t) = MLP_start([h^V_t ; h^T])      (9)
    S_end(t) = MLP_end([h^V_t ; h^T])          (10)
    """

    def __init__(self, video_dim: int, text_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.start_mlp = _ScoreMLP(video_dim + text_dim, config.mlp_hidden)
        self.end_mlp = _ScoreMLP(video_dim + text_dim, config.mlp_hidden)

    def forward(self, video: Tensor, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002  (no neighbours)
        text = text[:, None]  # [B, 1, S]
        return self.start_mlp(video, text), self.end_mlp(video, text)


class TiedPredictor(nn.Module):
    """The tied-LSTM predictor, "b" in a variant's name.

    h^P_t = BiLSTM([h^V_t ; h^T])                      (11)
    S_start(t) = MLP_start([h^P_t ; h^V_t ; h^T])      (12)
    S_end(t) = MLP_end([h^P_t ; h^V_t ; h^T])          (13)

    The LSTM is one for both scores (that is what is tied), the MLPs are two.
    """

    def __init__(self, video_dim: int, text_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.lstm = bilstm(video_dim + text_dim, config.predictor_hidden)
        self.output_dropout = Dropout(config.dropout)
        joint_dim = 2 * config.predictor_hidden + video_dim + text_dim
        self.start_mlp = _ScoreMLP(joint_dim, config.mlp_hidden)
        self.end_mlp = _ScoreMLP(joint_dim, config.mlp_hidden)

    def forward(self, video: Tensor, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        outputs, _ = run_bilstm(self.lstm, video, lengths, text)  # [B, T, P]
        joint = self.output_dropout(outputs), video, text[:, None]
        return self.start_mlp(*joint), self.end_mlp(*joint)


class ConditionedPredictor(nn.Module):
    """The conditioned-LSTM predictor, "c" in a variant's name.

    h^P0_t = BiLSTM_start([h^V_t ; h^T])                     (14)
    h^P1_t = BiLSTM_end(h^P0_t)                              (15)
    S_start(t) = W_start [h^P0_t ; h^V_t ; h^T] + b_start    (16)
    S_end(t) = W_end [h^P1_t ; h^V_t ; h^T] + b_end          (17)

    The end's LSTM reads what the start's says and nothing else; the scores are linear.
    """

    def __init__(self, video_dim: int, text_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        self.start_lstm = bilstm(video_dim + text_dim, config.predictor_hidden)
        self.end_lstm = bilstm(2 * config.predictor_hidden, config.predictor_hidden)
        self.start_dropout = Dropout(config.dropout)
        self.end_dropout = Dropout(config.dropout)
        joint_dim = 2 * config.predictor_hidden + video_dim + text_dim
        self.start_linear = nn.Linear(joint_dim, 1)
        self.end_linear = nn.Linear(joint_dim, 1)

    def forward(self, video: Tensor, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        start = self.start_dropout(run_bilstm(self.start_lstm, video, lengths, text)[0])  # [B, T, P]
        end = self.end_dropout(run_bilstm(self.end_lstm, start, lengths)[0])  # [B, T, P]
        text = text[:, None]  # [B, 1, S]
        start_scores = linear_of_joint(self.start_linear, start, video, text)  # [B, T, 1]
        end_scores = linear_of_joint(self.end_linear, end, video, text)
        return start_scores.squeeze(2), end_scores.squeeze(2)


class AttentionPredictor(nn.Module):
    """Attention over time where the tied predictor has its LSTM; not in the paper, whose parts are meant to be exchanged."""

    def __init__(self, video_dim: int, text_dim: int, config: ExCLConfig) -> None:
        super().__init__()
        size = 2 * config.predictor_hidden
        self.attention = SelfAttention(video_dim + text_dim, size, heads=config.heads, dropout=config.dropout)
        self.output_dropout = Dropout(config.dropout)
        self.start_mlp = _ScoreMLP(size + video_dim + text_dim, config.mlp_hidden)
        self.end_mlp = _ScoreMLP(size + video_dim + text_dim, config.mlp_hidden)

    def forward(self, video: Tensor, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        text = text[:, None]  # [B, 1, S]
        rows = torch.cat([video, text.expand(-1, video.shape[1], -1)], dim=2)  # [B, T, V + S]
        joint = self.output_dropout(self.attention(rows, lengths)), video, text  # the first is [B, T, P]
        return self.start_mlp(*joint), self.end_mlp(*joint)


# A new predictor is a class above, an entry here, and a name in `PredictorName` of config.py.
PREDICTORS: dict[PredictorName, type[MLPPredictor | TiedPredictor | ConditionedPredictor | AttentionPredictor]] = {
    "mlp": MLPPredictor,
    "tied-lstm": TiedPredictor,
    "conditioned-lstm": ConditionedPredictor,
    "attention": AttentionPredictor,
}
