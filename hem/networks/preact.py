"""Residual networks with normalisation and activation before each convolution: PreActResNet and WideResNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hem.networks.base import Network, linear_head
from hem.networks.resnet import Block, Norm, conv, make_norm, residual_body


class PreActBlock(nn.Module):
    """Pre-activation block: with a = relu(norm(x)), residual(a) + x, or residual(a) + W a if the shape changes."""

    def __init__(self, norm: Norm, channels: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)
        self.residual = nn.Sequential(
            conv(channels, width, 3, stride),
            make_norm(norm, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            conv(width, width, 3),
        )
        self.shortcut = None if (channels, stride) == (width, 1) else conv(channels, width, 1, stride)

    def forward(self, input: Tensor) -> Tensor:
        """Return feature maps (N, width, H / stride, W / stride) of maps (N, channels, H, W)."""
        active = F.relu(self.norm(input))
        shortcut = input if self.shortcut is None else self.shortcut(active)
        output: Tensor = self.residual(active) + shortcut
        return output


def preact_block(norm: Norm, dropout: float = 0.0) -> Block:
    """Return a constructor of :class:`PreActBlock` with dropout between the two convolutions, as in Wide ResNets."""
    return lambda channels, width, stride: PreActBlock(norm, channels, width, stride, dropout)


class PreActResNet18(Network):
    """Pre-activation ResNet-18 with a 3x3 stem; 11.17 million parameters at 10 classes.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        norm: ``"batch"`` or ``"group"``; group normalisation uses no statistics of the batch.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.

    Source: He et al. 2016, "Identity mappings in deep residual networks"; the network of Rice et al. 2020
    ("Overfitting in adversarially robust deep learning").

    Example:
        >>> import torch
        >>> PreActResNet18(num_classes=100)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        weights: str | None = None,
    ) -> None:
        body = residual_body(
            conv(in_channels, 64, 3),
            preact_block(norm),
            64,
            (64, 128, 256, 512),
            (2, 2, 2, 2),
            make_norm(norm, 512),
            nn.ReLU(),
        )
        super().__init__(body, linear_head(512, num_classes), in_channels, weights=weights)


def _wide_body(depth: int, widen: int, in_channels: int, norm: Norm, dropout: float) -> nn.Sequential:
    """Return the body of a Wide ResNet of depth 6 n + 4: stages of n blocks with 16, 32 and 64 times ``widen`` maps."""
    widths, blocks = (16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6
    return residual_body(
        conv(in_channels, 16, 3),
        preact_block(norm, dropout),
        16,
        widths,
        (blocks,) * 3,
        make_norm(norm, widths[-1]),
        nn.ReLU(),
    )


class WideResNet28_10(Network):
    """Wide ResNet-28-10; 36.48 million parameters at 10 classes.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        norm: ``"batch"`` or ``"group"``; group normalisation uses no statistics of the batch.
        dropout: Dropout rate between the two convolutions of a block (the paper: 0 or 0.3).
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.

    Source: Zagoruyko & Komodakis 2016, "Wide residual networks".
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        body = _wide_body(28, 10, in_channels, norm, dropout)
        super().__init__(body, linear_head(640, num_classes), in_channels, weights=weights)


class WideResNet40_2(Network):
    """Wide ResNet-40-2, LogitNorm's network; 2.24 million parameters. Arguments are those of :class:`WideResNet28_10`.

    Source: Zagoruyko & Komodakis 2016; Wei et al. 2022, "Mitigating neural network overconfidence with logit
    normalization", trained with a dropout of 0.3.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        dropout: float = 0.3,
        weights: str | None = None,
    ) -> None:
        body = _wide_body(40, 2, in_channels, norm, dropout)
        super().__init__(body, linear_head(128, num_classes), in_channels, weights=weights)
