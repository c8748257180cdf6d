"""The architecture of I3D read out loud, a second time: what the network's tests and published features are made with."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F


def literal_features(state, x, *, pairs=True):
    """The architecture read out loud: explicit zero padding everywhere, nothing shared with the network's code."""

    def pad(x, kernel, stride):
        for axis in range(3):
            size = x.shape[2 + axis]
            outputs = ceil(size / stride[axis])
            total = max((outputs - 1) * stride[axis] + kernel[axis] - size, 0)
            widths = [0] * 6
            widths[2 * (2 - axis)], widths[2 * (2 - axis) + 1] = total // 2, total - total // 2
            x = F.pad(x, widths)
        return x

    def unit(name, x, kernel=1, stride=1):
        x = F.conv3d(pad(x, (kernel,) * 3, (stride,) * 3), state[f"{name}.conv3d.weight"], stride=stride)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        scale = state[f"{name}.bn.weight"] / (var + 1e-3).sqrt()
        shape = (1, -1, 1, 1, 1)
        return ((x - mean.reshape(shape)) * scale.reshape(shape) + state[f"{name}.bn.bias"].reshape(shape)).clamp(min=0)

    def pool(x, kernel, stride):
        return F.max_pool3d(pad(x, kernel, stride), kernel, stride)

    def mixed(name, x):
        return torch.cat(
            [
                unit(f"{name}.b0", x),
                unit(f"{name}.b1b", unit(f"{name}.b1a", x), 3),
                unit(f"{name}.b2b", unit(f"{name}.b2a", x), 3),
                unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
            ],
            dim=1,
        )

    x = pool(unit("Conv3d_1a_7x7", x, 7, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x), 3), (1, 3, 3), (1, 2, 2))
    x = pool(mixed("Mixed_3c", mixed("Mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(f"Mixed_4{letter}", x)
    x = mixed("Mixed_5c", mixed("Mixed_5b", pool(x, (2, 2, 2), (2, 2, 2))))
    return F.avg_pool3d(x, (2 if pairs else 1, *x.shape[3:]), stride=1)[..., 0, 0].transpose(1, 2)
