"""Scores computed from the images and the network, such as ODIN."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from hem.rejection.library import library


class InputScore(ABC):
    """Base class of scores computed from images and the network: a subclass implements :meth:`__call__`."""

    name: str | None = None  #: what its metrics are called; None: its class, in small letters

    def __str__(self) -> str:
        return self.name or type(self).__name__.lower()

    @abstractmethod
    def __call__(self, net: nn.Module, input: Tensor) -> Tensor:
        """Return the unknownness (N,) of images.

        Args:
            net: Images to logits (N, C).
            input: Shape (N, C, H, W), in [0, 1].
        """


class ODIN(InputScore):
    """-max_j softmax(f(x') / T)_j, where x' = x + eps sign(grad log p).

    Args:
        temperature: T.
        eps: The step, in pixel units of [0, 1].

    Source: Liang et al., "Enhancing the reliability of out-of-distribution image detection in neural networks", ICLR
    2018, equations 1 and 2.
    """

    def __init__(self, temperature: float = 1000.0, eps: float = 0.0014) -> None:
        self.temperature, self.eps = temperature, eps

    def __call__(self, net: nn.Module, input: Tensor) -> Tensor:
        """Return the unknownness of images, in float64: at T = 1000 probabilities differ in their last digits alone."""
        with torch.inference_mode(False):
            odin = library(str(self)).ODIN(_Float64(net), eps=self.eps, temperature=self.temperature)
            scores: Tensor = odin.predict(input.clone())
        return scores


class _Float64(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.net(input)
        return logits.double()
