"""Small networks for small images, trained in seconds to minutes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from hem.networks.base import Network, linear_head


class LeNet(Network):
    """A LeNet: two 5x5 convolutions with pooling, then one hidden layer.

    With 16 and 32 feature maps and 128 hidden units an epoch of MNIST takes about 15 s on two CPU cores. The
    convolutions are padded, so images may be as small as 4x4 pixels. Batch normalisation is the default because HEM
    needs it: its mean is over the samples with non-zero loss, and late in training a single one of them determines the
    step.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        image_size: (height, width) of the images in pixels, each at least 4.
        batch_norm: Normalise after each layer but the last.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", with ReLU and
    max-pooling in place of the sigmoid and the trained averages.

    Example:
        >>> import torch
        >>> LeNet(image_size=(8, 8))(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        batch_norm: bool = True,
        weights: str | None = None,
    ) -> None:
        height, width = image_size
        if min(height, width) < 4:
            raise ValueError(f"Expected images of at least 4x4 pixels for LeNet, got {height}x{width}.")
        bias = not batch_norm
        layers: list[nn.Module] = []
        for channels, out_channels in ((in_channels, 16), (16, 32)):
            layers.append(nn.Conv2d(channels, out_channels, 5, padding=2, bias=bias))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers += [nn.MaxPool2d(2), nn.ReLU()]  # in this order a quarter of the work, bitwise the same result
        layers += [nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 128, bias=bias)]
        if batch_norm:
            layers.append(nn.BatchNorm1d(128))
        layers.append(nn.ReLU())
        super().__init__(
            nn.Sequential(*layers), linear_head(128, num_classes), in_channels, image_size, weights=weights
        )


class MLP(Network):
    """A multi-layer perceptron on the flattened image.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        image_size: (height, width) of the images in pixels.
        widths: Units of each hidden layer.
        batch_norm: Normalise each hidden layer before its ReLU.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.

    Example:
        >>> import torch
        >>> MLP(image_size=(8, 8), widths=[32])(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        widths: Sequence[int] = (256, 256),
        batch_norm: bool = True,
        weights: str | None = None,
    ) -> None:
        sizes = [in_channels * math.prod(image_size), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        for features, out_features in pairwise(sizes):
            layers.append(nn.Linear(features, out_features, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(out_features))
            layers.append(nn.ReLU())
        super().__init__(
            nn.Sequential(*layers), linear_head(sizes[-1], num_classes), in_channels, image_size, weights=weights
        )
