"""Residual networks for small images: ResNet and ResNeXt."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hem.networks.base import Network, linear_head

Norm = Literal["batch", "group"]
Block = Callable[[int, int, int], nn.Module]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return a normalisation layer of feature maps, ``"batch"`` or ``"group"``.

    There are 32 groups (Wu & He 2018, "Group normalization"), or fewer, so that a group has at least 4 channels.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels)
    raise ValueError(f"Expected norm to be 'batch' or 'group', got {norm!r}.")


def residual_body(
    stem: nn.Module,
    block: Block,
    channels: int,
    widths: Sequence[int],
    depth: Sequence[int],
    *last: nn.Module,
) -> nn.Sequential:
    """Return a body, (N, C, H, W) to (N, widths[-1]): stem, stages of residual blocks, ``last``, average pooling.

    The first stage keeps the size of the image, each further one halves it. Convolutions are initialised as in He et
    al. 2015 ("Delving deep into rectifiers"), with the fan-out.

    Args:
        stem: From images to ``channels`` feature maps.
        block: Builds a residual block from (in_channels, out_channels, stride).
        channels: Feature maps of the stem.
        widths: Feature maps of each stage.
        depth: Blocks of each stage.
        last: Modules after the last stage (in pre-activation networks normalisation and ReLU).
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    for number, (width, blocks) in enumerate(zip(widths, depth, strict=True), start=1):
        stage = nn.Sequential()
        for index in range(blocks):
            stage.append(block(channels, width, 2 if index == 0 and number > 1 else 1))
            channels = width
        parts[f"stage{number}"] = stage
    parts.update(last=nn.Sequential(*last), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    body = nn.Sequential(parts)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def conv(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a padded convolution without bias, which a normalisation follows."""
    return nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class PadShortcut(nn.Module):
    """Shortcut without parameters, option A of He et al.: every second pixel, new channels are zero."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, width - channels

    def forward(self, input: Tensor) -> Tensor:
        """Return feature maps (N, width, H / stride, W / stride) of maps (N, channels, H, W)."""
        return F.pad(input[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class ResidualBlock(nn.Module):
    """Residual block, relu(residual(x) + shortcut(x)); the shortcut is the identity unless the shape changes."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual, self.shortcut = residual, shortcut

    def forward(self, input: Tensor) -> Tensor:
        """Return feature maps (N, width, H / stride, W / stride) of maps (N, channels, H, W)."""
        return F.relu(self.residual(input) + self.shortcut(input))


def basic_block(norm: Norm, pad: bool = False) -> Block:
    """Return a constructor of blocks of two 3x3 convolutions, with a 1x1 convolution (B) or padding (A) as shortcut."""

    def make(channels: int, width: int, stride: int) -> nn.Module:
        residual = nn.Sequential(
            conv(channels, width, 3, stride),
            make_norm(norm, width),
            nn.ReLU(),
            conv(width, width, 3),
            make_norm(norm, width),
        )
        if pad and (channels, stride) != (width, 1):
            return ResidualBlock(residual, PadShortcut(channels, width, stride))
        return ResidualBlock(residual, projection(norm, channels, width, stride))

    return make


def resnext_block(norm: Norm, cardinality: int, base_width: int) -> Block:
    """Return a constructor of ResNeXt's blocks, 1x1, grouped 3x3, 1x1.

    Args:
        norm: ``"batch"`` or ``"group"``.
        cardinality: Number of groups.
        base_width: Maps of each group in a block with 256 outputs; it grows with the outputs.
    """

    def make(channels: int, width: int, stride: int) -> nn.Module:
        inner = cardinality * base_width * width // 256
        residual = nn.Sequential(
            conv(channels, inner, 1),
            make_norm(norm, inner),
            nn.ReLU(),
            conv(inner, inner, 3, stride, groups=cardinality),
            make_norm(norm, inner),
            nn.ReLU(),
            conv(inner, width, 1),
            make_norm(norm, width),
        )
        return ResidualBlock(residual, projection(norm, channels, width, stride))

    return make


def projection(norm: Norm, channels: int, width: int, stride: int) -> nn.Module:
    """Return a shortcut: the identity, or a 1x1 convolution if the shape changes (option B of He et al.)."""
    if (channels, stride) == (width, 1):
        return nn.Identity()
    return nn.Sequential(conv(channels, width, 1, stride), make_norm(norm, width))


def stem(norm: Norm, in_channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return a stem, a 3x3 convolution; stride 1 keeps the size of small images."""
    return nn.Sequential(conv(in_channels, width, 3, stride), make_norm(norm, width), nn.ReLU())


class ResNet(Network):
    """Base class of residual networks of basic blocks, which differ in their stages.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        norm: ``"batch"`` or ``"group"``; group normalisation uses no statistics of the batch.
        cosine_head: Whether the last layer is :class:`CosineLinear`, for LDAM.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.
    """

    widths: ClassVar[tuple[int, ...]]  #: feature maps of each stage
    depths: ClassVar[tuple[int, ...]]  #: blocks of each stage
    pad: ClassVar[bool] = False  #: whether shortcuts change shape by padding, option A

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        cosine_head: bool = False,
        weights: str | None = None,
    ) -> None:
        first, *_, last = self.widths
        begin, block = stem(norm, in_channels, first), basic_block(norm, self.pad)
        body = residual_body(begin, block, first, self.widths, self.depths)
        super().__init__(body, linear_head(last, num_classes, cosine_head), in_channels, weights=weights)


class ResNet18(ResNet):
    """ResNet-18 with a 3x3 stem for images of 28 to 64 pixels; 11.17 million parameters at 10 classes.

    Arguments are those of :class:`ResNet`.

    Source: He et al. 2016, "Deep residual learning for image recognition".

    Example:
        >>> import torch
        >>> net = ResNet18(num_classes=100)
        >>> net(torch.rand(2, 3, 32, 32)).shape, net.forward_features(torch.rand(2, 3, 32, 32)).shape
        (torch.Size([2, 100]), torch.Size([2, 512]))
    """

    widths = (64, 128, 256, 512)
    depths = (2, 2, 2, 2)


class ResNet34(ResNet):
    """ResNet-34 with a 3x3 stem; 21.28 million parameters at 10 classes. Arguments are those of :class:`ResNet`."""

    widths = (64, 128, 256, 512)
    depths = (3, 4, 6, 3)


class ResNet8(Network):
    """The smallest thin ResNet, for a CPU; 0.08 million parameters.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        norm: ``"batch"`` or ``"group"``.
        cosine_head: Whether the last layer is :class:`CosineLinear`.
        stem_stride: Stride of the first convolution; 2 halves the image, which takes a quarter of the time.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        cosine_head: bool = False,
        stem_stride: int = 1,
        weights: str | None = None,
    ) -> None:
        begin, block = stem(norm, in_channels, 16, stem_stride), basic_block(norm, pad=True)
        body = residual_body(begin, block, 16, (16, 32, 64), (1, 1, 1))
        super().__init__(body, linear_head(64, num_classes, cosine_head), in_channels, weights=weights)


class ResNet20(ResNet):
    """The thin ResNet-20 of CIFAR; 0.27 million parameters. Arguments are those of :class:`ResNet`.

    Source: He et al. 2016, section 4.2: depth 6 n + 2, stages of n blocks, option A.
    """

    widths = (16, 32, 64)
    depths = (3, 3, 3)
    pad = True


class ResNet32(ResNet):
    """The thin ResNet-32 of the long-tail literature; 0.46 million parameters. Arguments are those of :class:`ResNet`.

    Source: He et al. 2016, section 4.2; with ``cosine_head`` the network of Cao et al. 2019 (LDAM).
    """

    widths = (16, 32, 64)
    depths = (5, 5, 5)
    pad = True


class ResNeXt29(Network):
    """ResNeXt-29 for CIFAR, 8x64d; 34.43 million parameters at 10 classes.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        norm: ``"batch"`` or ``"group"``.
        cardinality: Groups of the grouped convolutions; 16 gives the paper's 68.1 million parameters.
        base_width: Maps of each group in the first stage.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.

    Source: Xie et al. 2017, "Aggregated residual transformations for deep neural networks", section 5.3.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: Norm = "batch",
        cardinality: int = 8,
        base_width: int = 64,
        weights: str | None = None,
    ) -> None:
        body = residual_body(
            stem(norm, in_channels, 64),
            resnext_block(norm, cardinality, base_width),
            64,
            (256, 512, 1024),
            (3, 3, 3),
        )
        super().__init__(body, linear_head(1024, num_classes), in_channels, weights=weights)
