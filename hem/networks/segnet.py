"""SegNet, an encoder-decoder whose unpooling uses the positions of the pooling's maxima."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hem.networks.weights import Start, load_weights


class SegNet(nn.Module):
    """SegNet with VGG-16's thirteen convolutions, each with batch normalisation.

    Every stage of the encoder ends in max-pooling, and the mirrored stage of the decoder puts values at the positions
    of those maxima. Sides that are no multiple of 32 are rounded down by the pooling, as in the paper (360 x 480), and
    restored by the unpooling.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        widths: Channels of each stage of the encoder.
        depths: Convolutions of each stage.
        weights: A state dict or the folder of a run to start from, see :func:`load_weights`.

    Raises:
        ValueError: If `widths` and `depths` differ in length, or the weights are another network's.
        FileNotFoundError: If the weights are not there.

    Source: Badrinarayanan et al., "SegNet: a deep convolutional encoder-decoder architecture for image
    segmentation", TPAMI 2017, section 3.

    Example:
        >>> import torch
        >>> net = SegNet(5, widths=(4, 8), depths=(1, 2))
        >>> net(torch.rand(2, 3, 45, 60)).shape
        torch.Size([2, 5, 45, 60])
    """

    last_layers = ("classifier.",)

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(
                f"Expected one number per stage in widths and in depths, got {len(widths)} and {len(depths)}."
            )
        inputs = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage([below] + [width] * depth) for below, width, depth in zip(inputs, widths, depths, strict=True)
        )
        outputs = [widths[0], *widths[:-1]]  # the first stage keeps its width for the classifier
        self.decoder = nn.ModuleList(
            _stage([width] * depth + [below]) for below, width, depth in zip(outputs, widths, depths, strict=True)
        )
        self.classifier = nn.Conv2d(widths[0], num_classes, 3, padding=1)
        self.start: Start | None = None if weights is None else load_weights(self, weights)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (N, num_classes, H, W) of images (N, in_channels, H, W)."""
        features, places = input, []
        for stage in self.encoder:
            features = stage(features)
            size = features.shape
            features, indices = F.max_pool2d(features, 2, return_indices=True)
            places.append((indices, size))
        for stage, (indices, size) in zip(reversed(self.decoder), reversed(places), strict=True):
            features = stage(F.max_unpool2d(features, indices, [2, 2], output_size=list(size)))
        logits: Tensor = self.classifier(features)
        return logits


def _stage(channels: Sequence[int]) -> nn.Sequential:
    """Return convolutions of 3 x 3 with batch normalisation and ReLU, initialised by He's method as in the paper."""
    layers: list[nn.Module] = []
    for below, above in pairwise(channels):
        convolution = nn.Conv2d(below, above, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(above), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
