"""Evaluation mode of a network for a while, after which every module is back in its former mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(net: nn.Module, freeze: bool = False) -> Iterator[None]:
    """Set a network to evaluation mode; restore each module's mode and each ``requires_grad`` afterwards.

    ``net.train()`` would not do: parts of a network may have been in evaluation mode before, as a frozen encoder is.

    Args:
        net: The network.
        freeze: Whether no parameter requires gradients meanwhile.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4).eval())
        >>> with evaluating(net):
        ...     print(net[0].training)
        False
        >>> net[0].training, net[1].training
        (True, False)
    """
    modes = [(module, module.training) for module in net.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in learning if freeze else ():
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, learns in learning:
            parameter.requires_grad_(learns)
