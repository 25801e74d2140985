"""The losses as pure functions: the mathematics of this package.

Every function is a drop-in for :func:`torch.nn.functional.cross_entropy`:

    loss(input, target, weight=None, ignore_index=-100, reduction="mean", *, own arguments)

* ``input``: logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``, any floating dtype. Half precisions are computed
  in float32. The result has the dtype that ``F.cross_entropy`` gives: the input's, and float32 for half precisions
  under autocast.
* ``target``: class indices y, the input's shape without C; or class probabilities q, the input's shape. For
  probabilities the loss is the expected cost Σ_c q_c w_c cost_c over the classes with q_c ≠ 0, so that one-hot
  probabilities give what indices give. A row of zeros counts as ignored.
* ``weight``: w, ``(C)``, one factor per class.
* ``ignore_index``: samples with this index give 0 with a gradient of exactly 0, whatever their logits hold.
* ``reduction``: ``"none"``, ``"sum"``, or ``"mean"``: Σ loss / Σ mass, where a sample's mass is w_y (Σ_c q_c w_c)
  unless the function says otherwise. With no mass at all the mean is 0.

A NaN among the logits of a labelled sample makes its loss NaN. Labels out of range raise on the CPU and assert on an
accelerator, as in torch; under ``torch.compile``, ``torch.export`` and ``torch.func`` values cannot be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hem.losses.reduction import Reduction, all_sum, reduce

Counts = Sequence[int] | Tensor

# ---------------------------------------------------------------------------------------------------------------------
# Shared pieces
# ---------------------------------------------------------------------------------------------------------------------

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


def check_counts(class_counts: Counts | None, num_classes: int | None = None) -> Tensor:
    """Samples per class as a tensor ``(C)``, or a sentence unless they are positive and as many as the classes."""
    if class_counts is None:
        raise ValueError(
            "class_counts is missing: give the number of training samples of each class, "
            "such as data_module.class_counts."
        )
    counts = torch.as_tensor(class_counts)
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts must hold one number per class; got shape {tuple(counts.shape)}.")
    if num_classes is not None and len(counts) != num_classes:
        raise ValueError(f"class_counts holds {len(counts)} classes but the input has {num_classes} logits.")
    if _readable(counts) and not bool((counts > 0).all()):
        empty = (~(counts > 0)).nonzero().flatten().tolist()
        raise ValueError(
            f"class_counts must be positive; classes {empty} have none. Leave them out of the task, or count them as 1."
        )
    return counts


def _transformed() -> bool:
    """Whether a transformation of torch is at work, so that values of tensors cannot be looked at."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _readable(values: Tensor) -> bool:
    """Whether looking at values is possible and needs no synchronisation."""
    return values.device.type == "cpu" and not _transformed()


def _class_dim(input: Tensor) -> int:
    return min(input.dim() - 1, 1)


def _per_class(values: Tensor, input: Tensor) -> Tensor:
    """Values ``(C)`` in a shape that broadcasts along the class axis of the input, in its dtype and device."""
    return values.to(input).view(-1, *(1,) * (input.dim() - 1 - _class_dim(input)))


def _check(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> None:
    """Raise a sentence unless input, target and weight fit each other."""
    if not input.is_floating_point():
        raise TypeError(f"input must hold floating point logits; got {input.dtype}: use input.float().")
    if input.dim() == 0 or input.shape[_class_dim(input)] == 0:
        raise ValueError(
            f"input must have shape (C), (N, C) or (N, C, d1, ...) with C >= 1; got {tuple(input.shape)}."
        )
    dim = _class_dim(input)
    num_classes = input.shape[dim]
    index_shape = input.shape[:dim] + input.shape[dim + 1 :]
    if target.shape not in (input.shape, index_shape):
        raise ValueError(
            f"target must hold class indices of shape {tuple(index_shape)} or class probabilities of shape "
            f"{tuple(input.shape)} for input of shape {tuple(input.shape)}; got shape {tuple(target.shape)}."
        )
    if target.shape == input.shape and not target.is_floating_point():
        raise TypeError(
            f"target has the shape of class probabilities, {tuple(target.shape)}, and must be floating point; "
            f"got {target.dtype}: use target.to(input.dtype), or class indices of shape {tuple(index_shape)}."
        )
    if target.shape == index_shape and (target.dtype == torch.bool or target.dtype.is_floating_point):
        raise TypeError(
            f"target has the shape of class indices, {tuple(target.shape)}, and must be integer; "
            f"got {target.dtype}: use target.long(), or class probabilities of shape {tuple(input.shape)}."
        )
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(
            f"weight must hold one factor per class, shape ({num_classes},) for input of shape "
            f"{tuple(input.shape)}; got shape {tuple(weight.shape)}."
        )
    if not _readable(target) or target.numel() == 0:
        return
    low, high = target.aminmax()
    if target.is_floating_point():
        if low < 0:
            raise ValueError(f"target holds a negative class probability, {low.item():g}; they must be >= 0.")
    elif low < 0 or high >= num_classes:
        wrong = target[(target != ignore_index) & ((target < 0) | (target >= num_classes))]
        if wrong.numel():
            raise ValueError(
                f"target holds label {wrong[0].item()}, but the input of shape {tuple(input.shape)} has classes 0 to "
                f"{num_classes - 1}; set ignore_index={wrong[0].item()} if it marks samples without a label."
            )


def _prepare(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check the arguments that all losses share; logits, target and weight in the dtypes of the computation."""
    check_arguments(reduction)
    _check(input, target, weight, ignore_index)
    logits = input.float() if input.dtype.itemsize < 4 else input
    target = target.to(logits.dtype) if target.is_floating_point() else target.long()
    return logits, target, None if weight is None else weight.to(logits)


def _blank(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The logits with those of ignored samples set to 0, before any arithmetic: 0 · NaN would be NaN."""
    dim = _class_dim(logits)
    if target.is_floating_point():
        labelled = (target != 0).any(dim, keepdim=True)
    else:
        labelled = (target != ignore_index).unsqueeze(dim)
    return torch.where(labelled, logits, 0.0)


def _mass(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What each sample weighs: w_y for indices, Σ_c q_c w_c for probabilities, 0 for ignored samples."""
    if target.is_floating_point():
        shares = target if weight is None else target * _per_class(weight, logits)
        return shares.sum(_class_dim(logits))
    labelled = target != ignore_index
    if weight is None:
        return labelled.to(logits.dtype)
    return torch.where(labelled, weight[torch.where(labelled, target, 0)], 0.0)


def _shares(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What each class of each sample weighs, in the logits' shape: q_c w_c, for indices one-hot; sums to the mass."""
    if target.is_floating_point():
        return target if weight is None else target * _per_class(weight, logits)
    mass = _mass(logits, target, weight, ignore_index)
    label, dim = torch.where(target != ignore_index, target, 0), _class_dim(logits)
    return torch.zeros_like(logits).scatter(dim, label.unsqueeze(dim), mass.unsqueeze(dim))


def _expected(
    cost: Callable[[Tensor, Tensor, int], Tensor],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """Weighted loss per sample of a cost that is only known for one class at a time.

    ``cost(logits, labels, ignore_index)`` gives the unweighted loss per sample, 0 for ignored labels. For indices this
    is one call; for probabilities one call for each of the k largest, k the greatest number of non-zeros in a row (C
    where it cannot be read).
    """
    if not target.is_floating_point():
        loss = cost(logits, target, ignore_index)
        return loss if weight is None else loss * _mass(logits, target, weight, ignore_index)
    dim = _class_dim(logits)
    k = logits.shape[dim]
    if not _transformed() and target.numel():
        k = max(int((target != 0).sum(dim).max()), 1)
    probabilities, labels = target.topk(k, dim)
    loss = torch.zeros_like(probabilities.select(dim, 0))
    for q, c in zip(probabilities.unbind(dim), labels.unbind(dim), strict=True):
        share = q if weight is None else q * weight[c]
        loss = loss + share * cost(logits, torch.where(q != 0, c, -100), -100)
    return loss


def _result_dtype(input: Tensor) -> torch.dtype:
    """The dtype that ``F.cross_entropy`` would give."""
    half = input.dtype.itemsize < 4
    return torch.float32 if half and torch.is_autocast_enabled(input.device.type) else input.dtype


def _finish(loss: Tensor, mass: Tensor, reduction: Reduction, input: Tensor) -> Tensor:
    """The loss as the caller wants it."""
    return reduce(loss, mass, reduction).to(_result_dtype(input))


def _softmax_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: Reduction, input: Tensor
) -> Tensor:
    """Cross-entropy of logits that are already scaled or shifted."""
    loss = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="none")
    return _finish(loss, _mass(logits, target, weight, ignore_index), reduction, input)


# ---------------------------------------------------------------------------------------------------------------------
# Margin losses
# ---------------------------------------------------------------------------------------------------------------------


def _margin_errors(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    *,
    margin: float | Tensor,
    competitor: bool = False,
    high: bool = True,
    p: int = 1,
) -> Tensor:
    """Loss per sample of HEM, HEM+ (``high``) and multi-margin (not ``high``), unweighted.

    Args:
        logits: float32 or float64, ``(C)`` or ``(N, C, ...)``.
        target: int64 labels, the logits' shape without C.
        ignore_index: Label of the samples whose loss is 0.
        margin: One for all classes, a number or a tensor without axes; or one per class, ``(C)``.
        competitor: With a margin per class: take that of the class j that is compared, not the target's.
        high: Mean over the errors at or above their mean; otherwise Σ_j e_j^p / C.
        p: The exponent of multi-margin.
    """
    dim = _class_dim(logits)
    num_classes = logits.shape[dim]
    labelled = target != ignore_index
    y = torch.where(labelled, target, 0).unsqueeze(dim)
    z = _blank(logits, target, ignore_index)
    if isinstance(margin, Tensor) and margin.dim() == 1:
        margin = _per_class(margin, logits) if competitor else margin[y]
    error = (z - z.gather(dim, y) + margin).relu().scatter(dim, y, 0.0)
    if high:
        threshold = error.detach().sum(dim, keepdim=True) / num_classes
        error = torch.where(error < threshold, 0.0, error)  # so written, a NaN is kept
        loss = error.sum(dim) / (error != 0).sum(dim).clamp(min=1)
    else:
        loss = error.pow(p).sum(dim) / num_classes
    return torch.where(labelled, loss, 0.0)


def auto_margin(class_counts: Counts | None, m: float = 2000.0) -> float:
    """HEM's one margin from the size of the training set, μ = √(m / Σ_i s_i).

    It is what the margins per class of HEM+ become when all classes are equally large.

    Args:
        class_counts: Training samples per class s_i, ``(C)``.
        m: The number of samples at which the margin is 1.

    Returns:
        The margin, in units of the logits.

    Raises:
        ValueError: Without counts, or with an empty class.

    Example:
        >>> auto_margin([5000] * 10)
        0.2
    """
    return math.sqrt(m / float(check_counts(class_counts).double().sum()))


def hem_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    margin: float | Literal["auto"] = 0.5,
    class_counts: Counts | None = None,
) -> Tensor:
    """High error margin loss.

    With logits z, target y and margin μ, for each sample:

        e_j = max(0, z_j - z_y + μ) for j ≠ y,  e_y = 0
        thr = (1/C) Σ_j e_j                     over all C classes, the target's 0 included
        K   = {j : e_j ≥ thr, e_j > 0}
        l   = (1/|K|) Σ_{j ∈ K} e_j             0 when K is empty

    and over the batch Σ w_y l / Σ w_y [l > 0]: the mean over the samples that still carry error. The gradient of an
    active sample is 1/|K| at each kept class and -1 at the target, whatever the size of the errors and of C.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        margin: μ ≥ 0 in units of the logits; ``"auto"``: √(2000 / N) for N training samples.
        class_counts: Training samples per class, for ``"auto"`` only.

    Returns:
        A scalar, or the target's shape for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Spratling and Schütt, "HEM: a margin-based loss for visual categorisation tasks", arXiv 2501.12191, Eq. 1.

    Example:
        Errors (0, 0.5, 1.5, 0) with mean 0.5: classes 1 and 2 are kept.

        >>> hem_loss(torch.tensor([[2.0, 2.0, 3.0, 0.0]]), torch.tensor([0]), margin=0.5)
        tensor(1.)
    """
    margin = auto_margin(class_counts) if margin == "auto" else margin
    check_arguments(margin=margin)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    loss = _expected(partial(_margin_errors, margin=margin), logits, target, weight, ignore_index)
    mass = _mass(logits, target, weight, ignore_index) * (loss != 0)
    return _finish(loss, mass, reduction, input)


def hem_plus_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    class_counts: Counts,
    m: float = 2000.0,
    competitor: bool = False,
) -> Tensor:
    """High error margin loss with wider margins for rarer classes (HEM+).

    :func:`hem_loss` with a margin per class, for n classes with s_i training samples each,

        μ_i = √(m / (n s_i)),   e_j = max(0, z_j - z_y + μ_y).

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        class_counts: Training samples per class s_i > 0, ``(C)``.
        m: The number of samples at which a balanced set has margin 1.
        competitor: Use μ_j, the margin of the class compared with, instead of μ_y.

    Returns:
        A scalar, or the target's shape for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Spratling and Schütt, arXiv 2501.12191. The target's margin is what the authors' code suggests.

    Example:
        Margins 0.5 and 2: the same logits satisfy class 0 and violate class 1.

        >>> logits, target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> hem_plus_loss(logits, target, reduction="none", class_counts=[4000, 250])
        tensor([0., 1.])
    """
    check_arguments(m=m, competitor=competitor)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    counts = check_counts(class_counts, logits.shape[_class_dim(logits)]).to(logits)
    margin = (m / (len(counts) * counts)).sqrt()
    cost = partial(_margin_errors, margin=margin, competitor=competitor)
    loss = _expected(cost, logits, target, weight, ignore_index)
    mass = _mass(logits, target, weight, ignore_index) * (loss != 0)
    return _finish(loss, mass, reduction, input)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    margin: float = 1.0,
    p: int = 1,
) -> Tensor:
    """Multi-class margin loss, the mean of all errors.

        l = w_y (1/C) Σ_{j ≠ y} max(0, z_j - z_y + margin)^p

    As in :func:`torch.nn.functional.multi_margin_loss`, which it extends to more axes, ignored samples and class
    probabilities, the mean divides by the number of labelled samples, not by their weights.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the labelled samples) or ``"sum"``.
        margin: In units of the logits, ≥ 0.
        p: Exponent, 1 or 2.

    Returns:
        A scalar, or the target's shape for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Crammer and Singer, JMLR 2001, as averaged by torch (theirs takes the largest error).

    Example:
        >>> multi_margin_loss(torch.tensor([[2.0, 2.0, 3.0, 0.0]]), torch.tensor([0]))
        tensor(0.7500)
    """
    check_arguments(margin=margin, p=p)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    cost = partial(_margin_errors, margin=margin, high=False, p=p)
    loss = _expected(cost, logits, target, weight, ignore_index)
    return _finish(loss, _mass(logits, target, None, ignore_index), reduction, input)


# ---------------------------------------------------------------------------------------------------------------------
# Cross-entropy and its relatives
# ---------------------------------------------------------------------------------------------------------------------


def ce_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy, l = -w_y log softmax(z)_y: torch's, reduced as all losses here are.

    It is :func:`torch.nn.functional.cross_entropy` but for its edges: no labelled sample gives 0, not NaN, and an
    ignored sample's NaN stays out of the gradient. As there, the mean over class probabilities divides by the number
    of samples and not by their weights.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Example:
        >>> ce_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """
    check_arguments(label_smoothing=label_smoothing)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    logits = _blank(logits, target, ignore_index)
    loss = F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    mass = torch.ones_like(loss) if target.is_floating_point() else _mass(logits, target, weight, ignore_index)
    return _finish(loss, mass, reduction, input)


def logit_norm_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    tau: float = 0.04,
) -> Tensor:
    """Cross-entropy of logits of constant length (LogitNorm), CE(z / ((‖z‖₂ + 1e-7) τ), y).

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        tau: Temperature τ > 0: the scaled logits have length 1/τ.

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Wei et al., "Mitigating neural network overconfidence with logit normalization", ICML 2022, Eq. 5; τ = 0.04 is
        OpenOOD's, the authors' code for CIFAR-10 has 0.01.

    Example:
        >>> logit_norm_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), tau=0.1)
        tensor(2.1269)
    """
    check_arguments(tau=tau)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    logits = _blank(logits, target, ignore_index)
    length = torch.linalg.vector_norm(logits, dim=_class_dim(logits), keepdim=True)
    return _softmax_loss(logits / ((length + 1e-7) * tau), target, weight, ignore_index, reduction, input)


def logit_adjusted_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    class_counts: Counts,
    tau: float = 1.0,
) -> Tensor:
    """Cross-entropy of logits raised by the classes' log priors, CE(z + τ log π, y) with π_j = s_j / Σ_i s_i.

    For training only: decisions are made on the logits z as they are.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.
        tau: Strength τ > 0 of the adjustment.

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, Eq. 10.

    Example:
        >>> logit_adjusted_loss(torch.zeros(2, 2), torch.tensor([0, 1]), reduction="none", class_counts=[3, 1])
        tensor([0.2877, 1.3863])
    """
    check_arguments(tau=tau)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    logits = _blank(logits, target, ignore_index)
    counts = check_counts(class_counts, logits.shape[_class_dim(logits)]).to(logits)
    log_prior = _per_class((counts / counts.sum()).log(), logits)
    return _softmax_loss(logits + tau * log_prior, target, weight, ignore_index, reduction, input)


def balanced_softmax_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    class_counts: Counts,
) -> Tensor:
    """Cross-entropy under the balanced softmax, l = -log (s_y e^{z_y} / Σ_j s_j e^{z_j}).

    The logit-adjusted loss with τ = 1: softmax does not see that the counts are not divided by their sum.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020, Eq. 4.

    Example:
        >>> balanced_softmax_loss(torch.zeros(2, 2), torch.tensor([0, 1]), reduction="none", class_counts=[3, 1])
        tensor([0.2877, 1.3863])
    """
    return logit_adjusted_loss(input, target, weight, ignore_index, reduction, class_counts=class_counts, tau=1.0)


def effective_number_weights(class_counts: Counts, beta: float = 0.9999) -> Tensor:
    """Class weights by the effective number of samples, w_j ∝ (1 - β) / (1 - β^{s_j}), with Σ_j w_j = C.

    Args:
        class_counts: Training samples per class s_j > 0, ``(C)``.
        beta: β in [0, 1): 0 gives equal weights; towards 1 they become 1 / s_j.

    Returns:
        float32 weights, ``(C)``.

    Raises:
        ValueError: For counts or β that do not fit.

    Source:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, Eq. 4; Cao et al. 2019 use
        it from late in training on (deferred re-weighting).

    Example:
        >>> effective_number_weights([1, 2], beta=0.5)
        tensor([1.2000, 0.8000])
    """
    check_arguments(beta=beta)
    weight = (1 - beta) / (1 - beta ** check_counts(class_counts).double())
    return (weight * (len(weight) / weight.sum())).float()


def class_balanced_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    class_counts: Counts,
    beta: float = 0.9999,
) -> Tensor:
    """Cross-entropy weighted by :func:`effective_number_weights`, times ``weight`` if there is one.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class beside the balancing one, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.
        beta: β in [0, 1).

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, Eq. 8.

    Example:
        >>> class_balanced_loss(
        ...     torch.zeros(2, 2), torch.tensor([0, 1]), reduction="none", class_counts=[1, 2], beta=0.5
        ... )
        tensor([0.8318, 0.5545])
    """
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    logits = _blank(logits, target, ignore_index)
    check_counts(class_counts, logits.shape[_class_dim(logits)])
    balance = effective_number_weights(class_counts, beta).to(logits)
    weight = balance if weight is None else weight * balance
    return _softmax_loss(logits, target, weight, ignore_index, reduction, input)


def focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss, l = -w_y (1 - p_y)^γ log p_y with p = softmax(z).

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)`` (Lin et al. call it α).
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        gamma: γ ≥ 0; 0 is cross-entropy.

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, Eq. 4, with a softmax.

    Example:
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.1733)
    """
    check_arguments(gamma=gamma)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    logits = _blank(logits, target, ignore_index)
    mass = _mass(logits, target, weight, ignore_index)
    if target.is_floating_point():
        share = _shares(logits, target, weight, ignore_index)
        surprise = torch.where(target != 0, -logits.log_softmax(_class_dim(logits)), 0.0)
    else:
        share = mass
        surprise = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    # 1 - p = 1 - exp(log p); kept off 0, where the power has no gradient for γ < 1
    doubt = (-torch.expm1(-surprise)).clamp(min=torch.finfo(logits.dtype).tiny)
    loss = share * doubt**gamma * surprise
    loss = loss.sum(_class_dim(logits)) if target.is_floating_point() else loss
    return _finish(loss, mass, reduction, input)


def ldam_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    class_counts: Counts,
    max_m: float = 0.5,
    s: float = 30.0,
) -> Tensor:
    """Label-distribution-aware margin loss: cross-entropy with the target's logit lowered by a margin.

        l = CE(s (z - m_y e_y), y),   m_j = max_m · s_j^{-1/4} / max_k s_k^{-1/4}

    The logits are meant to be cosines in [-1, 1]: the network's head normalises features and class vectors.

    Args:
        input: Cosine logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``; :func:`effective_number_weights` late in training is LDAM-DRW.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.
        max_m: The margin of the rarest class, ≥ 0.
        s: Scale > 0 of the logits.

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019, Eq. 13.

    Example:
        >>> ldam_loss(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), class_counts=[1, 16])
        tensor(0.6931)
    """
    check_arguments(max_m=max_m, s=s)
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    counts = check_counts(class_counts, logits.shape[_class_dim(logits)]).to(logits)
    margin = max_m * (counts.min() / counts) ** 0.25

    def cost(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        lowered = _blank(logits, target, ignore_index) - _shares(logits, target, margin, ignore_index)
        return F.cross_entropy(s * lowered, target, ignore_index=ignore_index, reduction="none")

    loss = _expected(cost, logits, target, weight, ignore_index)
    return _finish(loss, _mass(logits, target, weight, ignore_index), reduction, input)


# ---------------------------------------------------------------------------------------------------------------------
# Losses of other forms
# ---------------------------------------------------------------------------------------------------------------------


def one_vs_rest_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """One-versus-rest loss, l = w_y (log(1 + e^{-z_y}) + Σ_{k ≠ y} log(1 + e^{z_k})).

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        A scalar, or the target's shape (without C) for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Kanai et al., "One-vs-the-rest loss to focus on important samples in adversarial training", ICML 2023.

    Example:
        >>> one_vs_rest_loss(torch.zeros(1, 3), torch.tensor([0]))
        tensor(2.0794)
    """
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    logits, dim = _blank(logits, target, ignore_index), _class_dim(logits)
    share = _shares(logits, target, weight, ignore_index)
    mass = share.sum(dim, keepdim=True)
    loss = (share * F.softplus(-logits) + (mass - share) * F.softplus(logits)).sum(dim)
    return _finish(loss, mass.squeeze(dim), reduction, input)


def dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Dice loss of the classes' regions in the whole batch.

    With p = softmax(z), q the one-hot (or probable) labels, and sums over all labelled samples of the batch,

        l_c = w_c (1 - 2 Σ p_c q_c / (Σ p_c + Σ q_c)),   0 for a class without a labelled sample.

    The loss belongs to classes, not to samples: ``"none"`` gives ``(C)``, the mean is Σ l_c / Σ w_c over all C classes,
    absent ones included. It agrees with ``segmentation_models_pytorch.losses.DiceLoss("multiclass")``.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices or class probabilities.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"`` (per class), ``"mean"`` or ``"sum"``.

    Returns:
        A scalar, or shape ``(C)`` for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Milletari et al., "V-Net", 3DV 2016, without squares in the denominator.

    Example:
        >>> dice_loss(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), reduction="none")
        tensor([0.4000, 0.6667])
    """
    logits, target, weight = _prepare(input, target, weight, ignore_index, reduction)
    dim = _class_dim(logits)
    samples = [axis for axis in range(logits.dim()) if axis != dim]
    q = _shares(logits, target, None, ignore_index)
    p = _blank(logits, target, ignore_index).softmax(dim) * (q != 0).any(dim, keepdim=True)
    sums = torch.stack((p * q, p, q))
    # sums over the samples of all processes: from here on every process holds the loss of the whole batch
    hit, guessed, present = all_sum(sums.sum([axis + 1 for axis in samples]) if samples else sums).unbind()
    score = hit / (0.5 * (guessed + present)).clamp(min=1e-7)
    loss = torch.where(present > 0, 1 - score, 0.0)
    weight = torch.ones_like(loss) if weight is None else weight
    loss = weight * loss
    if reduction != "none":
        loss = loss.sum() / (weight.sum() if reduction == "mean" else 1)
    return loss.to(_result_dtype(input))
