"""Checks of the arguments, logits and targets of losses, and their conversion to the dtypes of the computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

from hem.losses.reduction import Reduction, reduce

Counts = Sequence[int] | Tensor

_NUMBER = (int, float, Real)  # numpy's as well; the first two take no time
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
_REDUCTIONS = get_args(Reduction)


def check_arguments(reduction: str = "mean", **arguments: float) -> None:
    """Check that the reduction exists and that every other argument of a loss is in its range.

    Raises:
        ValueError: For a value out of its range.
        TypeError: For a value of the wrong type.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"Expected reduction to be one of {', '.join(_REDUCTIONS)}, got {reduction!r}.")
    for name, value in arguments.items():
        kinds, allowed, words = _ARGUMENTS[name]
        if not isinstance(value, kinds):
            raise TypeError(f"Expected {name} to be {words}, got {value!r}.")
        if not allowed(value):
            raise ValueError(f"Expected {name} to be {words}, got {value!r}.")


def as_tensor(values: Sequence[float] | Tensor, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``torch.as_tensor(values)``, on the CPU if the default device is ``meta``, which would lose the values.

    Raises:
        TypeError: They are no numbers; the sentence names them ``name``.
    """
    if isinstance(values, Tensor):
        return values.to(dtype or values.dtype)
    meta = not torch.compiler.is_compiling() and torch.get_default_device().type == "meta"
    try:
        return torch.as_tensor(values, dtype=dtype, device="cpu" if meta else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"Expected {name} as a list or tensor of one number per class, got {values!r:.80}: give the numbers in the "
            "order of the classes."
        ) from error


def check_counts(class_counts: Counts | None, num_classes: int | None = None) -> Tensor:
    """Return the training samples per class as a tensor ``(C)``.

    Raises:
        ValueError: Unless there is a positive number for each class.
    """
    if class_counts is None:
        raise ValueError(
            "Expected class_counts, the number of training samples of each class, got None: "
            "give them, such as data_module.class_counts."
        )
    counts = as_tensor(class_counts, "class_counts")
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(
            f"Expected class_counts with one number per class, got shape {tuple(counts.shape)}: give a list of them."
        )
    if num_classes is not None and len(counts) != num_classes:
        raise ValueError(
            f"Expected class_counts of {num_classes} classes, one for each logit of input, got {len(counts)}."
        )
    if readable(counts) and not bool((counts > 0).all()):
        empty = (~(counts > 0)).nonzero().flatten().tolist()
        raise ValueError(
            f"Expected positive class_counts, got none for the classes {empty}: leave them out, or count them as 1."
        )
    return counts


def traced() -> bool:
    """Return whether torch is compiling, exporting, tracing or transforming the present computation."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def has_values(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be read: not under tracing or transforms, nor on the meta device."""
    return not (
        traced()
        or any(mode.is_infra_mode() for mode in dispatch_modes())  # tracers, but not those that only count operations
        or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__  # such as fake tensors
        or tensor.is_meta
    )


def readable(values: Tensor) -> bool:
    """Return whether the values of a tensor can be read without synchronisation."""
    return values.device.type == "cpu" and has_values(values)


def class_dim(input: Tensor) -> int:
    """Return the axis of the classes: 0 for a single sample, else 1."""
    return min(input.dim() - 1, 1)


def result_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype that ``F.cross_entropy`` gives for this input."""
    half = input.dtype.itemsize < 4 and not input.is_meta  # autocast does not know meta
    return torch.float32 if half and torch.is_autocast_enabled(input.device.type) else input.dtype


@dataclass(frozen=True)
class Samples:
    """Logits, targets and class weights of a batch, checked and converted to the dtypes of the computation.

    Attributes:
        logits: z, ``(C)`` or ``(N, C, ...)``, float32 or float64.
        target: Labels, int64 and without C, or probabilities in the logits' shape and dtype.
        weight: w, ``(C)``, in the logits' dtype.
        ignore_index: The label of ignored samples; a row of zero probabilities is ignored as well.
        dtype: Dtype of the loss.
    """

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    ignore_index: int = -100
    dtype: torch.dtype | None = None

    @property
    def class_dim(self) -> int:
        """The axis of the classes."""
        return class_dim(self.logits)

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return self.logits.shape[self.class_dim]

    @property
    def soft(self) -> bool:
        """Whether the targets are probabilities."""
        return self.target.is_floating_point()

    def per_class(self, values: Tensor) -> Tensor:
        """Return values ``(C)`` in a shape that broadcasts along the logits' classes, in their dtype and device."""
        return values.to(self.logits).view(-1, *(1,) * (self.logits.dim() - 1 - self.class_dim))

    def of_label(self, values: Tensor, labels: Tensor) -> Tensor:
        """Return ``values[labels]`` for values ``(C)``, by an operation that all of torch's transforms support."""
        spread = self.per_class(values).expand_as(self.logits)
        return spread.gather(self.class_dim, labels.unsqueeze(self.class_dim)).squeeze(self.class_dim)

    def labelled(self) -> Tensor:
        """Return a mask of the samples that are not ignored, in the target's shape without C."""
        # the sum of probabilities takes one pass, a comparison of each would take two
        return self.target.sum(self.class_dim) != 0 if self.soft else self.target != self.ignore_index

    def labels(self) -> Tensor:
        """Return the labels, 0 for ignored samples, so that they can be used as indices."""
        return torch.where(self.labelled(), self.target, 0)

    def masked_logits(self) -> Tensor:
        """Return the logits, 0 for ignored samples: masked before any arithmetic, since 0 · NaN is NaN."""
        return torch.where(self.labelled().unsqueeze(self.class_dim), self.logits, 0.0)

    def mass(self) -> Tensor:
        """Return the weight of each sample: w_y for labels, Σ_c q_c w_c for probabilities, 0 for ignored samples."""
        if self.soft:
            return self.shares().sum(self.class_dim)
        if self.weight is None:
            return self.labelled().to(self.logits.dtype)
        return torch.where(self.labelled(), self.of_label(self.weight, self.labels()), 0.0)

    def shares(self) -> Tensor:
        """Return q_c w_c in the logits' shape, where q is one-hot for labels."""
        if self.soft:
            return self.target if self.weight is None else self.target * self.per_class(self.weight)
        y, mass = (x.unsqueeze(self.class_dim) for x in (self.labels(), self.mass()))
        return torch.zeros_like(self.logits).scatter(self.class_dim, y, mass)

    def smoothed(self, label_smoothing: float) -> Tensor:
        """Return the targets as probabilities with label smoothing, 0 for ignored samples."""
        probabilities = torch.lerp(
            replace(self, weight=None).shares(), torch.full_like(self.logits, 1 / self.num_classes), label_smoothing
        )
        return torch.where(self.labelled().unsqueeze(self.class_dim), probabilities, 0.0)

    def reduce(self, loss: Tensor, reduction: Reduction, mass: Tensor | None = None) -> Tensor:
        """Reduce the losses of the samples; ``mass`` None: :meth:`mass`."""
        if mass is None:
            mass = self.mass() if reduction == "mean" else loss  # the others ignore it
        return reduce(loss, mass, reduction).to(self.dtype)


def check_tensors(input: object, target: object) -> None:
    """Check that logits and targets are tensors.

    Raises:
        TypeError: One is an output of several parts, an array, a list or None.
    """
    for name, value, what in (("input", input, "logits"), ("target", target, "labels")):
        if isinstance(value, Tensor):
            continue
        if hasattr(value, "logits"):
            mend = f"use {name}.logits"
        elif isinstance(value, Mapping) or (
            isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value)
        ):
            mend = f"take the {what} out of it; the losses of several outputs are added up"
        elif value is None:
            mend = f"give the {what}"
        else:
            mend = f"use torch.as_tensor({name})"
        raise TypeError(f"Expected {name} as a tensor, got {type(value).__name__}: {mend}.")


def check_shapes(input: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
    """Check that shapes, dtypes and devices of input, target and weight fit each other.

    Raises:
        ValueError: For shapes and devices.
        TypeError: For dtypes.
    """
    if not input.is_floating_point():
        raise TypeError(f"Expected floating-point logits as input, got {input.dtype}: use input.float().")
    dim, shape = class_dim(input), tuple(input.shape)
    if not shape or not shape[dim]:
        raise ValueError(f"Expected input of shape (C), (N, C) or (N, C, d1, ...) with C >= 1, got {shape}.")
    soft = target.shape == input.shape
    index_shape = shape[:dim] + shape[dim + 1 :]
    if not soft and target.shape != index_shape:
        mend = ""
        if target.shape == (*shape[:dim], 1, *shape[dim + 1 :]):
            mend = f": use target.squeeze({dim})"
        elif target.shape == shape[:-1]:
            mend = ": if its classes are last, use input.movedim(-1, 1)"
        raise ValueError(
            f"Expected target with class indices of shape {index_shape} or class probabilities of shape {shape} "
            f"for input of shape {shape}, got shape {tuple(target.shape)}{mend}."
        )
    if target.device != input.device:
        check_tensors(input, target)  # arrays have shapes and devices as well
        raise ValueError(
            f"Expected target on the device of input, {input.device}, got it on {target.device}: "
            "use target.to(input.device)."
        )
    if soft and not target.is_floating_point():
        raise TypeError(
            f"Expected floating-point target, which has the shape of class probabilities, {shape}, got "
            f"{target.dtype}: use target.to(input.dtype), or class indices of shape {index_shape}."
        )
    if not soft and (target.dtype == torch.bool or target.is_floating_point()):
        raise TypeError(
            f"Expected integer target, which has the shape of class indices, {index_shape}, got {target.dtype}: "
            f"use target.long(), or class probabilities of shape {shape}."
        )
    if weight is not None and weight.shape != (shape[dim],):
        raise ValueError(
            f"Expected weight with one factor per class, shape ({shape[dim]},) for input of shape {shape}, got "
            f"shape {tuple(weight.shape)}."
        )


def check_samples(input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100) -> Samples:
    """Check the arguments of a loss and return them as :class:`Samples`.

    Raises:
        ValueError: For shapes, devices, labels and probabilities that do not fit.
        TypeError: For dtypes.
    """
    check_shapes(input, target, weight)
    logits = input.float() if input.dtype.itemsize < 4 else input
    target = target.to(logits.dtype if target.is_floating_point() else torch.int64)
    weight = None if weight is None else weight.to(logits)
    samples = Samples(logits, target, weight, ignore_index, result_dtype(input))
    if readable(target) and target.numel():
        _check_values(samples)
    return samples


def _check_values(samples: Samples) -> None:
    target, num_classes = samples.target, samples.num_classes
    low, high = target.aminmax()
    if samples.soft:
        if low < 0:
            raise ValueError(f"Expected class probabilities >= 0 as target, got {low.item():g}.")
    elif low < 0 or high >= num_classes:
        wrong = target[samples.labelled() & ((target < 0) | (target >= num_classes))].flatten()
        if wrong.numel():
            raise label_error(int(wrong[0]), samples.logits)


def label_error(label: int, input: Tensor) -> ValueError:
    """Return the error for a label that is no class of the input."""
    shape = tuple(input.shape)
    classes = shape[class_dim(input)]
    if classes == 1:
        return ValueError(
            f"Expected label 0, the only class of input of shape {shape}, got label {label}: give the network an "
            "output for each class, two for a binary problem, or take nn.BCEWithLogitsLoss."
        )
    return ValueError(
        f"Expected labels from 0 to {classes - 1} for input of shape {shape}, got label {label}: "
        f"set ignore_index={label} if it marks samples without a label."
    )
