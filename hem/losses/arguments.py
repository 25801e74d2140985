"""What the losses are given: checks that answer with a sentence, and the dtypes of the computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from hem.losses.reduction import Reduction

Counts = Sequence[int] | Tensor

_NUMBER = (int, float)
_ARGUMENTS: dict[str, tuple[tuple[type, ...], Callable[[float], bool], str]] = {
    "margin": (_NUMBER, lambda v: 0 <= v < math.inf, "a number >= 0"),
    "m": (_NUMBER, lambda v: 0 < v < math.inf, "a number > 0"),
    "competitor": ((bool,), lambda v: True, "True or False"),
    "p": ((int,), lambda v: v in (1, 2), "1 or 2"),
    "tau": (_NUMBER, lambda v: 0 < v < math.inf, "a number > 0"),
    "beta": (_NUMBER, lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "gamma": (_NUMBER, lambda v: 0 <= v < math.inf, "a number >= 0"),
    "max_m": (_NUMBER, lambda v: 0 <= v < math.inf, "a number >= 0"),
    "s": (_NUMBER, lambda v: 0 < v < math.inf, "a number > 0"),
    "label_smoothing": (_NUMBER, lambda v: 0 <= v <= 1, "a number in [0, 1]"),
}


def check_arguments(reduction: str = "mean", **arguments: float) -> None:
    """Raise a sentence unless the reduction exists and every own argument of a loss lies in its range."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}.")
    for name, value in arguments.items():
        kinds, allowed, words = _ARGUMENTS[name]
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {words}; got {value!r}.")
        if not allowed(value):
            raise ValueError(f"{name} must be {words}; got {value!r}.")


def as_tensor(values: Sequence[float] | Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.as_tensor``, with values also where ``torch.device("meta")`` would make a tensor without."""
    if isinstance(values, Tensor):
        return values.to(dtype or values.dtype)
    meta = not torch.compiler.is_compiling() and torch.get_default_device().type == "meta"
    return torch.as_tensor(values, dtype=dtype, device="cpu" if meta else None)


def check_counts(class_counts: Counts | None, num_classes: int | None = None) -> Tensor:
    """Samples per class as a tensor ``(C)``; a sentence unless they are positive, and one for each class."""
    if class_counts is None:
        raise ValueError(
            "class_counts is missing: give the number of training samples of each class, "
            "such as data_module.class_counts."
        )
    counts = as_tensor(class_counts)
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts must hold one number per class; got shape {tuple(counts.shape)}.")
    if num_classes is not None and len(counts) != num_classes:
        raise ValueError(f"class_counts holds {len(counts)} classes but the input has {num_classes} logits.")
    if readable(counts) and not bool((counts > 0).all()):
        empty = (~(counts > 0)).nonzero().flatten().tolist()
        raise ValueError(
            f"class_counts must be positive; classes {empty} have none: leave them out, or count them as 1."
        )
    return counts


def traced() -> bool:
    """Whether torch compiles, exports, traces or transforms what is computed here."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def has_values(tensor: Tensor) -> bool:
    """Whether values can be looked at: not while torch traces or transforms, nor where there is no memory."""
    return not (
        traced()
        or any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
        or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__  # such as fake and distributed tensors
        or tensor.is_meta
    )


_TRACERS = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


def readable(values: Tensor) -> bool:
    """Whether looking at values is possible and needs no synchronisation."""
    return values.device.type == "cpu" and has_values(values)


def class_dim(input: Tensor) -> int:
    """The axis of the classes: 0 for a single sample, else 1."""
    return min(input.dim() - 1, 1)


@dataclass(frozen=True)
class Samples:
    """What every loss is given, checked and in the dtypes of the computation.

    Attributes:
        logits: z, ``(C)`` or ``(N, C, ...)``, float32 or float64.
        target: Labels, int64 and without C, or probabilities in the logits' shape and dtype.
        weight: w, ``(C)``, in the logits' dtype.
        ignore_index: The label of ignored samples; a row of zero probabilities is one too.
    """

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    ignore_index: int = -100

    @property
    def class_dim(self) -> int:
        """The axis of the classes."""
        return class_dim(self.logits)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[self.class_dim]

    @property
    def soft(self) -> bool:
        """Whether the targets are probabilities."""
        return self.target.is_floating_point()

    @property
    def index(self) -> int:
        """``ignore_index`` as torch's cross-entropy wants it: with probabilities, none that could be a class."""
        return -100 if self.soft else self.ignore_index

    def per_class(self, values: Tensor) -> Tensor:
        """Values ``(C)`` in a shape that broadcasts along the logits' classes, in their dtype and device."""
        return values.to(self.logits).view(-1, *(1,) * (self.logits.dim() - 1 - self.class_dim))

    def of_label(self, values: Tensor, labels: Tensor) -> Tensor:
        """``values[labels]`` for values ``(C)``, in a form that all of torch's transformations know."""
        spread = self.per_class(values).expand_as(self.logits)
        return spread.gather(self.class_dim, labels.unsqueeze(self.class_dim)).squeeze(self.class_dim)

    def labelled(self) -> Tensor:
        """Which samples are not ignored."""
        return (self.target != 0).any(self.class_dim) if self.soft else self.target != self.ignore_index

    def labels(self) -> Tensor:
        """The labels, with 0 for ignored samples, which makes them fit to index with."""
        return torch.where(self.labelled(), self.target, 0)

    def masked_logits(self) -> Tensor:
        """The logits, with 0 for ignored samples: masked before any arithmetic, for 0 · NaN is NaN."""
        return torch.where(self.labelled().unsqueeze(self.class_dim), self.logits, 0.0)

    def mass(self) -> Tensor:
        """What each sample weighs: w_y for labels, Σ_c q_c w_c for probabilities, 0 for ignored samples."""
        if self.soft:
            return self.shares().sum(self.class_dim)
        if self.weight is None:
            return self.labelled().to(self.logits.dtype)
        return torch.where(self.labelled(), self.of_label(self.weight, self.labels()), 0.0)

    def shares(self) -> Tensor:
        """The mass by class, in the logits' shape: q_c w_c, where a label is a probability of 1."""
        if self.soft:
            return self.target if self.weight is None else self.target * self.per_class(self.weight)
        y, mass = (x.unsqueeze(self.class_dim) for x in (self.labels(), self.mass()))
        return torch.zeros_like(self.logits).scatter(self.class_dim, y, mass)

    def smoothed(self, label_smoothing: float) -> Tensor:
        """The targets as probabilities, of which a share is spread over all classes; zeros for ignored samples."""
        probabilities = torch.lerp(
            replace(self, weight=None).shares(), torch.full_like(self.logits, 1 / self.num_classes), label_smoothing
        )
        return torch.where(self.labelled().unsqueeze(self.class_dim), probabilities, 0.0)

    def breadth(self) -> int:
        """Among how many classes a sample's probabilities are spread at most; C where looking would wait."""
        if not self.soft:
            return 1
        if not readable(self.target) or not self.target.numel():
            return self.num_classes
        return max(int((self.target != 0).sum(self.class_dim).max()), 1)

    def expectation(self, cost: Callable[[Samples], Tensor], breadth: int) -> Tensor:
        """Σ_c q_c w_c cost_c for each sample, of a cost that is only known for one label at a time.

        Labels need one call; probabilities need one for each of the ``breadth`` largest.

        Args:
            cost: Takes samples with labels and without class weights to their losses, 0 for ignored ones.
            breadth: The samples' :meth:`breadth`.
        """
        if not self.soft:
            loss = cost(Samples(self.logits, self.target, ignore_index=self.ignore_index))
            return loss if self.weight is None else self.mass() * loss
        if breadth == self.num_classes:
            each = torch.arange(breadth, device=self.target.device)
            shape = (-1, *(1,) * (self.target.dim() - self.class_dim - 1))
            probabilities, labels = self.target, each.view(shape).expand_as(self.target)
        else:
            probabilities, labels = self.target.topk(breadth, self.class_dim)
        loss = torch.zeros_like(self.logits.select(self.class_dim, 0))
        for q, c in zip(probabilities.unbind(self.class_dim), labels.unbind(self.class_dim), strict=True):
            share = q if self.weight is None else q * self.of_label(self.weight, c)
            loss = loss + share * cost(Samples(self.logits, torch.where(q != 0, c, -100)))
        return loss


def check_shapes(input: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Raise a sentence unless shapes and dtypes of input, target and weight fit each other."""
    if not input.is_floating_point():
        raise TypeError(f"input must hold floating point logits; got {input.dtype}: use input.float().")
    dim, shape = class_dim(input), tuple(input.shape)
    if input.dim() == 0 or shape[dim] == 0:
        raise ValueError(f"input must have shape (C), (N, C) or (N, C, d1, ...) with C >= 1; got {shape}.")
    index_shape = shape[:dim] + shape[dim + 1 :]
    if tuple(target.shape) not in (shape, index_shape):
        raise ValueError(
            f"target must hold class indices of shape {index_shape} or class probabilities of shape {shape} "
            f"for input of shape {shape}; got shape {tuple(target.shape)}."
        )
    if target.device != input.device:
        raise ValueError(
            f"target must be on the device of input, {input.device}, but it is on {target.device}: "
            "use target.to(input.device)."
        )
    if target.shape == input.shape and not target.is_floating_point():
        raise TypeError(
            f"target has the shape of class probabilities, {shape}, and must be floating point; got "
            f"{target.dtype}: use target.to(input.dtype), or class indices of shape {index_shape}."
        )
    if target.shape != input.shape and (target.dtype == torch.bool or target.is_floating_point()):
        raise TypeError(
            f"target has the shape of class indices, {index_shape}, and must be integer; got {target.dtype}: "
            f"use target.long(), or class probabilities of shape {shape}."
        )
    if weight is not None and weight.shape != (shape[dim],):
        raise ValueError(
            f"weight must hold one factor per class, shape ({shape[dim]},) for input of shape {shape}; got "
            f"shape {tuple(weight.shape)}."
        )


def check_samples(input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100) -> Samples:
    """The samples, or a sentence unless input, target and weight fit each other."""
    check_shapes(input, target, weight)
    logits = input.float() if input.dtype.itemsize < 4 else input
    target = target.to(logits.dtype if target.is_floating_point() else torch.int64)
    samples = Samples(logits, target, None if weight is None else weight.to(logits), ignore_index)
    if readable(target) and target.numel():
        _check_values(samples)
    return samples


def _check_values(samples: Samples) -> None:
    """Raise a sentence unless labels are in range and probabilities are not negative."""
    target, num_classes = samples.target, samples.num_classes
    low, high = target.aminmax()
    if samples.soft:
        if low < 0:
            raise ValueError(f"target holds a negative class probability, {low.item():g}; they must be >= 0.")
    elif low < 0 or high >= num_classes:
        wrong = target[samples.labelled() & ((target < 0) | (target >= num_classes))].flatten()
        if wrong.numel():
            raise label_error(int(wrong[0]), samples.logits)


def label_error(label: int, input: Tensor) -> ValueError:
    """The sentence for a label that is none of the input's classes."""
    shape = tuple(input.shape)
    if shape[class_dim(input)] == 1:
        return ValueError(
            f"target holds label {label}, but input of shape {shape} has one logit for each sample, the only class 0: "
            "give the network an output for each class, two for a binary problem, or take nn.BCEWithLogitsLoss."
        )
    return ValueError(
        f"target holds label {label}, but input of shape {shape} has classes 0 to "
        f"{shape[class_dim(input)] - 1}; set ignore_index={label} if it marks samples without a label."
    )
