"""Base class of attacks, and the state in which a network is attacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hem.attacks.ball import Norm
from hem.modes import evaluating

Model = Callable[[Tensor], Tensor]  # images (N, C, H, W) to logits (N, K)


class Budget(NamedTuple):
    """Defaults that an evaluation gives to attacks which leave them open."""

    steps: int = 40
    restarts: int = 1
    seed: int = 0  #: of attacks that draw for all images at once
    batch_size: int = 250  #: images at once, of attacks that cut batches themselves


class Attack(ABC):
    """Base class of attacks: a subclass implements :meth:`__call__` and overrides other members where needed.

    Example:
        >>> class Darker(Attack):
        ...     def __call__(self, net, input, target, eps, norm, keys):
        ...         return (input - eps).clamp_min(0)
        >>> str(Darker())
        'darker'
    """

    name: str | None = None  #: what its metrics are called; None: its class, in small letters
    min_classes = 2  #: how many classes it needs
    gradients = True  #: whether it sees the network's gradients
    at_once = False  #: whether it takes all images at once; being slow, it gets few, at some of the radii

    def __str__(self) -> str:
        return self.name or type(self).__name__.lower()

    @abstractmethod
    def __call__(self, net: Model, input: Tensor, target: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
        """Return an image within eps of each image: a misclassified one where it is found.

        Args:
            net: Images (N, C, H, W) in [0, 1] to logits (N, K).
            input: Clean images, shape (N, C, H, W), in [0, 1].
            target: Class indices, shape (N,).
            eps: Radius, in pixel units of [0, 1].
            norm: ``"linf"`` or ``"l2"``.
            keys: A number of each image, from which its random numbers are drawn, int64 (N,).
        """

    def bound(self, loss: nn.Module, budget: Budget) -> Attack:
        """Return the attack bound to the training loss, and to the budget where it has none of its own.

        Raises:
            ImportError: If a library that it needs is not installed.
        """
        return self


@contextmanager
def attacking(model: Model, freeze: bool = False) -> Iterator[None]:
    """Set a network to evaluation mode with gradients enabled, and restore its state afterwards.

    Evaluation mode, so that no BatchNorm statistic moves and dropout is off; gradients on, also inside
    Lightning's inference mode.

    Args:
        model: The network; a plain function is left alone.
        freeze: Whether its parameters require no gradients meanwhile: for attacks that call ``backward()``.
    """
    state = evaluating(model, freeze) if isinstance(model, nn.Module) else nullcontext()
    try:
        with state, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        # autocast keeps the weights that it has cast; those cast without gradients must not serve the training step
        torch.clear_autocast_cache()
