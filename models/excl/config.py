"""The parts of an ExCL model: the paper's twelve variants by name, and every part and size as a setting."""

import dataclasses
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

Loss = Literal["clf", "reg"]
VideoEncoderName = Literal["identity", "lstm", "conv", "attention"]
PredictorName = Literal["mlp", "tied-lstm", "conditioned-lstm", "attention"]
TextEncoderName = Literal["lstm", "bag", "attention"]
Distance = Literal["l1", "mse"]
Variant = Literal[
    "clf-1-a", "clf-1-b", "clf-1-c", "clf-2-a", "clf-2-b", "clf-2-c",
    "reg-1-a", "reg-1-b", "reg-1-c", "reg-2-a", "reg-2-b", "reg-2-c",
]  # fmt: skip


class Parts(NamedTuple):
    """The parts that tell one variant from another."""

    loss: Loss
    video_encoder: VideoEncoderName
    predictor: PredictorName


_LOSSES: dict[str, Loss] = {"clf": "clf", "reg": "reg"}
_VIDEO_ENCODERS: dict[str, VideoEncoderName] = {"1": "identity", "2": "lstm"}
_PREDICTORS: dict[str, PredictorName] = {"a": "mlp", "b": "tied-lstm", "c": "conditioned-lstm"}


def _parse_variant(variant: str) -> Parts:
    loss, number, letter = variant.split("-")
    return Parts(_LOSSES[loss], _VIDEO_ENCODERS[number], _PREDICTORS[letter])


VARIANTS: dict[Variant, Parts] = {name: _parse_variant(name) for name in get_args(Variant)}
"""The rows of the paper's Table 1, in its order."""


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class ExCLConfig:
    """The parts and sizes of an ExCL model. The defaults are the paper's; that they count one direction is our reading."""

    variant: Variant = "clf-2-b"
    """A row of the paper's Table 1: span classification (clf) or regression (reg); no video encoder (1) or an LSTM (2); MLP
    (a), tied-LSTM (b) or conditioned-LSTM (c) predictor. The next three settings replace single parts of it."""
    loss: Loss | None = None
    """Cross entropy of the start and the end row (clf) or the distance of expected times (reg). None: as in the variant."""
    video_encoder: VideoEncoderName | None = None
    """Encoder of the feature rows: nothing at all, a BiLSTM, convolutions or self-attention. None: as in the variant."""
    predictor: PredictorName | None = None
    """Predictor that scores the rows: MLP, tied or conditioned LSTMs, or attention over time. None: as in the variant."""
    text_encoder: TextEncoderName = "lstm"
    """Encoder that makes a query one vector: a BiLSTM as in the paper, the mean of its words, or self-attention."""
    text_hidden: Annotated[int, Field(gt=0)] = 256
    """Half the size of the query's vector: hidden units in each direction of its LSTM. The paper has 256."""
    video_hidden: Annotated[int, Field(gt=0)] = 256
    """Half the size of an encoded feature row: hidden units in each direction of the video's LSTM. The paper has 256."""
    predictor_hidden: Annotated[int, Field(gt=0)] = 128
    """Hidden units in each direction of the predictor's LSTMs, or half the size of its attention. The paper has 128."""
    mlp_hidden: Annotated[int, Field(gt=0)] = 256
    """Hidden tanh units of the start MLP and of the end MLP (equations 9, 10, 12, 13). The paper has 256."""
    heads: Annotated[int, Field(gt=0)] = 4
    """Heads of every self-attention."""
    conv_rows: Annotated[int, Field(gt=0)] = 5
    """Feature rows that each of the two layers of the convolutional video encoder sees at once."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the LSTMs' inputs and outputs that is dropped in training. The paper has 0.5, for all LSTMs."""
    reg_distance: Distance = "l1"
    """Distance of expected from annotated times in regression. The paper preferred L1 to the mean squared error."""
    train_vectors: bool = False
    """Train the word vectors too. By default they stay what they are in GloVe."""

    def __post_init__(self) -> None:
        parts = self.parts
        kinds = {
            "text_hidden": self.text_encoder,
            "video_hidden": parts.video_encoder,
            "predictor_hidden": parts.predictor,
        }
        for name, kind in kinds.items():
            if kind == "attention" and 2 * getattr(self, name) % self.heads:
                raise ValueError(
                    f"{name}: twice {getattr(self, name)} cannot be divided among {self.heads} heads of attention"
                )

    @property
    def parts(self) -> Parts:
        """The parts that the model has: the variant's, but for those that are set."""
        defaults = VARIANTS[self.variant]
        return Parts(
            self.loss or defaults.loss, self.video_encoder or defaults.video_encoder, self.predictor or defaults.predictor
        )


def variant_config(name: Variant, sizes: ExCLConfig | None = None) -> ExCLConfig:
    """Return the configuration of one of the twelve variants, with the sizes of `like` (by default the paper's).

    Raises ValueError for another name.
    """
    return dataclasses.replace(
        sizes or ExCLConfig(), variant=name, loss=None, video_encoder=None, predictor=None, text_encoder="lstm"
    )


def variant_name(config: ExCLConfig) -> str:
    """Return the name of a configuration: "clf-2-b" for a variant of the paper's, however it was spelled.

    Others are named by their parts, text + video + predictor: "clf bag+conv+mlp".
    """
    if config.text_encoder == "lstm":
        for name, parts in VARIANTS.items():
            if parts == config.parts:
                return name
    loss, video_encoder, predictor = config.parts
    return f"{loss} {config.text_encoder}+{video_encoder}+{predictor}"


def variant_label(config: ExCLConfig) -> str:
    """Return the name as the paper's Table 1 prints it: "ExCL-clf 2-b"."""
    name = variant_name(config)
    return "ExCL-" + (name.replace("-", " ", 1) if name in VARIANTS else name)
