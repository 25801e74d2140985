"""Reduction of the losses of samples to a mean or sum, exact over several devices and micro-batches.

The mean of a loss is a ratio, Σ loss / Σ mass, whose denominator depends on the data: how many samples still
carry error (HEM), how many pixels are labelled, what the labels weigh. A mean of means over devices or
micro-batches is therefore not the mean over the whole batch. All losses of this package are reduced here, and two
scopes make their means exact:

* :func:`global_mean`: sums are over all processes, and the gradient that DDP averages is that of one process with
  the whole batch;
* :func:`accumulate`: the micro-batches of one optimiser step share one denominator.

Outside the scopes there is no communication and no state.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]

_group: dist.ProcessGroup | None = None  # process group, inside `global_mean`
_accumulation: Accumulation | None = None  # current optimiser step, inside `accumulate`


class Accumulation:
    """Denominators of the micro-batches of one optimiser step.

    Inside ``with accumulate(self)`` a loss keeps its value, but its gradient is that of numerator /
    reference, with one reference for all micro-batches (the first denominator). Once the gradients are
    summed,

        Σ_i ∇numerator_i / Σ_i denominator_i  =  factor · Σ_i ∇(numerator_i / reference),
        factor = reference / Σ_i denominator_i.

    There must be one mean per micro-batch (a second one is refused: two means have no common denominator), and if the
    loss itself is under activation checkpointing, the backward pass must be inside the ``with`` too. Losses that are no
    ratio of sums over samples (Dice, ``reduction="sum"``) cannot be accumulated exactly: they get the mean of the
    micro-batches' gradients.

    Example:
        >>> import torch
        >>> from hem.losses import HEMLoss
        >>> loss, step = HEMLoss(), Accumulation()
        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]], requires_grad=True)
        >>> target = torch.tensor([0, 0, 1])
        >>> for part in (slice(0, 2), slice(2, 3)):
        ...     with accumulate(step):
        ...         loss(logits[part], target[part]).backward()
        >>> logits.grad * step.factor()
        tensor([[ 0.0000,  0.0000],
                [-0.5000,  0.5000],
                [ 0.5000, -0.5000]])
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the denominators; call it after every optimiser step."""
        self.micro_batches = 0
        self.means = 0  # of the micro-batch
        self.reference: Tensor | None = None
        self.denominator: Tensor | None = None

    def share(self, denominator: Tensor) -> Tensor:
        """Add the denominator of a micro-batch, and return the reference to divide by instead.

        Raises:
            ValueError: If the micro-batch has one already.
        """
        if self.reference is None or self.denominator is None:
            self.reference = torch.where(denominator != 0, denominator, 1)
            self.denominator = torch.zeros_like(denominator)
        # activation checkpointing evaluates a loss again in the backward pass: the same micro-batch
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self.denominator = self.denominator + denominator
            self.means += 1
            if self.means > 1:
                raise ValueError(
                    "Expected one mean in each micro-batch, for those of several losses have no common denominator, "
                    "got a second one: take one loss (or one beside Dice), or set accumulate_grad_batches to 1."
                )
        return self.reference

    def factor(self, divided_by: float = 1.0) -> Tensor | float:
        """Return the factor for the summed gradients, to be applied once, before clipping and the optimiser step.

        Args:
            divided_by: Number by which each micro-batch's loss was divided already; Lightning divides by
                ``accumulate_grad_batches``.

        Returns:
            The factor: a tensor on the loss's device (no synchronisation), or a float for losses that are no ratio.
        """
        if self.reference is None or self.denominator is None:
            return divided_by / max(self.micro_batches, 1)
        return divided_by * self.reference / torch.where(self.denominator != 0, self.denominator, self.reference)


@contextmanager
def accumulate(step: Accumulation) -> Iterator[Accumulation]:
    """Evaluate the losses inside as one micro-batch of ``step``, see :class:`Accumulation`."""
    global _accumulation
    outer, _accumulation = _accumulation, step
    step.micro_batches, step.means = step.micro_batches + 1, 0
    try:
        yield step
    finally:
        _accumulation = outer


@contextmanager
def global_mean(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Evaluate the losses inside over the batch of all processes.

    Every process must evaluate the same losses in the same order, and gradients must be averaged over processes, as DDP
    does. Without :mod:`torch.distributed`, or with one process, nothing changes.

    Args:
        group: The processes that share the batch; None: all of them.

    Example:
        >>> import torch
        >>> from hem.losses import HEMLoss
        >>> with global_mean():
        ...     HEMLoss()(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
        tensor(1.5000)
    """
    global _group
    outer = _group
    if dist.is_available() and dist.is_initialized():
        group = group or dist.group.WORLD
        _group = group if dist.get_world_size(group) > 1 else None
    try:
        yield
    finally:
        _group = outer


def in_scope() -> bool:
    """Return whether :func:`global_mean` or :func:`accumulate` is active."""
    return _group is not None or _accumulation is not None


def all_sum(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over the processes of :func:`global_mean`; outside of it, ``x``.

    DDP averages the gradients of K processes, so the gradient of a sum X = Σ_k x_k must reach each x_k K-fold:

        all_sum(x) = X + K (x - x),  the bracket 0 in value and 1 in gradient.

    Args:
        x: Sums over this process's samples, any shape.

    Returns:
        The sums over all samples, same shape.
    """
    if _group is None:
        return x
    total = x.detach().clone()
    dist.all_reduce(total, group=_group)
    return total + dist.get_world_size(_group) * (x - x.detach())


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, both summed over the processes of :func:`global_mean`.

    It is exactly 0 with zero gradient if the denominator is 0; a NaN stays a NaN. The denominator is a constant to
    autograd.

    Args:
        numerator: Sum of losses, a scalar.
        denominator: Sum of their masses, a scalar of the same dtype.

    Returns:
        A scalar.

    Example:
        >>> ratio(torch.tensor(3.0), torch.tensor(2.0)), ratio(torch.tensor(0.0), torch.tensor(0.0))
        (tensor(1.5000), tensor(0.))
    """
    denominator = denominator.detach()
    if _group is not None:
        numerator, denominator = all_sum(torch.stack((numerator, denominator))).unbind()
        denominator = denominator.detach()
    filled = denominator != 0
    mean = numerator / torch.where(filled, denominator, torch.inf)
    if _accumulation is None:
        return mean
    numerator = numerator * filled
    return mean.detach() + (numerator - numerator.detach()) / _accumulation.share(denominator)


def reduce(loss: Tensor, mass: Tensor, reduction: Reduction) -> Tensor:
    """Reduce the losses of samples by a mean or sum.

    Args:
        loss: Loss of each sample, class weights included.
        mass: Contribution of each sample to the denominator of the mean, same shape.
        reduction: ``"none"``: ``loss``; ``"sum"``: Σ loss; ``"mean"``: Σ loss / Σ mass.

    Returns:
        ``loss`` or a scalar.

    Example:
        >>> reduce(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 1.0]), "mean")
        tensor(2.)
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return all_sum(loss.sum())
    return ratio(loss.sum(), mass.sum())


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        warnings.warn("hem.losses.reduction.evaluate is now hem.losses.evaluate.", DeprecationWarning, stacklevel=2)
        return importlib.import_module("hem.losses").evaluate
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
