"""The span predictor of ExCL: from h^V_t and h^T to a start score and an end score for every feature row.

Letters in shapes: B items of a batch, T feature rows (padded), V and S sizes of h^V_t and of h^T, P of h^P_t.
"""

import torch
from torch import Tensor, nn

from excl.models.excl.encoders import bilstm, run_packed


def _score_mlp(input_dim: int, hidden: int) -> nn.Sequential:
    """Return the MLP of equations 12 and 13: one hidden layer of tanh units, one score."""
    return nn.Sequential(nn.Linear(input_dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))


class TiedPredictor(nn.Module):
    """The tied-LSTM predictor, "b" in a variant's name (equations 11-13 of Ghosh et al., 2019).

    h^P_t = BiLSTM([h^V_t ; h^T])                      (11)
    S_start(t) = MLP_start([h^P_t ; h^V_t ; h^T])      (12)
    S_end(t) = MLP_end([h^P_t ; h^V_t ; h^T])          (13)

    The LSTM is one for both scores (that is what is tied), the MLPs are two. h^V and h^T arrive with their encoders'
    output dropout applied, so the LSTM's input gets none here: no tensor is dropped twice.
    """

    def __init__(self, video_dim: int, text_dim: int, *, hidden: int, mlp_hidden: int, dropout: float) -> None:
        super().__init__()
        self.lstm = bilstm(video_dim + text_dim, hidden)
        self.output_dropout = nn.Dropout(dropout)
        joint_dim = 2 * hidden + video_dim + text_dim
        self.start_mlp = _score_mlp(joint_dim, mlp_hidden)
        self.end_mlp = _score_mlp(joint_dim, mlp_hidden)

    def forward(self, video: Tensor, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end scores, both [B, T] and meaningless in the padding.

        `video` is h^V [B, T, V], `text` is h^T [B, S], `lengths` is int64 [B] on the CPU.
        """
        inputs = torch.cat([video, text[:, None].expand(-1, video.shape[1], -1)], dim=2)  # [B, T, V + S]
        outputs, _ = run_packed(self.lstm, inputs, lengths)  # [B, T, P]
        joint = torch.cat([self.output_dropout(outputs), inputs], dim=2)  # [B, T, P + V + S]
        return self.start_mlp(joint).squeeze(2), self.end_mlp(joint).squeeze(2)  # [B, T, 1] -> [B, T]
