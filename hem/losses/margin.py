"""Margin losses as functions: HEM, HEM+ and multi-margin, computed by a fused kernel where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hem.losses import kernels
from hem.losses.reduction import Reduction, in_scope, reduce
from hem.losses.samples import (
    Counts,
    Samples,
    check_arguments,
    check_counts,
    check_samples,
    check_shapes,
    class_dim,
    readable,
    result_dtype,
)


def auto_margin(class_counts: Counts | None, m: float = 2000.0) -> float:
    """Return HEM's one margin from the size of the training set, μ = √(m / Σ_i s_i).

    The margins per class of HEM+ have this value if all classes have the same number of samples.

    Args:
        class_counts: Training samples per class s_i > 0, ``(C)``.
        m: The number of samples at which the margin is 1.

    Returns:
        The margin, in units of the logits.

    Raises:
        ValueError: Without counts, or with an empty class.

    Example:
        >>> auto_margin([5000] * 10)
        0.2
    """
    return math.sqrt(m / float(check_counts(class_counts).sum()))


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
    """High error margin loss (HEM): the mean of the errors at or above their mean.

    With logits z, target y and margin μ, for each sample:

        e_j = max(0, z_j - z_y + μ) for j ≠ y,  e_y = 0
        thr = (1/C) Σ_j e_j                     over all C classes, the target's 0 included
        K   = {j : e_j ≥ thr, e_j > 0}
        l   = (1/|K|) Σ_{j ∈ K} e_j             0 when K is empty

    and over the batch Σ w_y l / Σ w_y [l > 0], the mean over the samples that still carry error. The gradient
    of l is 1/|K| at each class in K and -1 at the target, whatever the size of the errors and of C.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        margin: μ ≥ 0 in units of the logits; ``"auto"``: √(2000 / N) for N training samples.
        class_counts: Training samples per class, ``(C)``, for ``"auto"`` alone: any other margin leaves them unread.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Spratling and Schütt, "HEM: a margin-based loss for visual categorisation tasks", arXiv 2501.12191,
        Eq. 1.

    Example:
        Errors (0, 0.5, 1.5, 0) with mean 0.5: classes 1 and 2 are kept.

        >>> hem_loss(torch.tensor([[2.0, 2.0, 3.0, 0.0]]), torch.tensor([0]), margin=0.5)
        tensor(1.)
    """
    mu = auto_margin(class_counts) if margin == "auto" else margin
    check_arguments(reduction, margin=mu)
    return _margin_loss(input, target, weight, ignore_index, reduction, mu)


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

    :func:`hem_loss` with a margin per class, for n classes of s_i training samples:

        μ_i = √(m / (n s_i)),   e_j = max(0, z_j - z_y + μ_y).

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        class_counts: Training samples per class s_i > 0, ``(C)``.
        m: The number of samples at which a balanced set has margin 1.
        competitor: Use μ_j, the margin of the class compared with, instead of μ_y.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Spratling and Schütt, arXiv 2501.12191. The margin is the target's, as in the authors' code.

    Example:
        Margins 0.5 and 2: the same gap satisfies class 0 and violates class 1.

        >>> logits, target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> hem_plus_loss(logits, target, reduction="none", class_counts=[4000, 250])
        tensor([0., 1.])
    """
    check_arguments(reduction, m=m, competitor=competitor)
    check_shapes(input, target, weight)
    num_classes = input.shape[class_dim(input)]
    dtype = torch.promote_types(input.dtype, torch.float32)
    s = check_counts(class_counts, num_classes).to(input.device, dtype)
    mu = (m / (num_classes * s)).sqrt()
    return _margin_loss(input, target, weight, ignore_index, reduction, mu, competitor=competitor)


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
    """Multi-class margin loss, the mean of all errors: l = w_y (1/C) Σ_{j ≠ y} max(0, z_j - z_y + margin)^p.

    This is :func:`torch.nn.functional.multi_margin_loss`, extended to more axes, ignored samples and class
    probabilities. As there, the mean divides by the number of labelled samples, not by their weights.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the labelled samples) or ``"sum"``.
        margin: In units of the logits, ≥ 0.
        p: Exponent, 1 or 2.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Crammer and Singer, JMLR 2001, averaged as torch does it (theirs takes the largest error).

    Example:
        >>> multi_margin_loss(torch.tensor([[2.0, 2.0, 3.0, 0.0]]), torch.tensor([0]))
        tensor(0.7500)
    """
    check_arguments(reduction, margin=margin, p=p)
    return _margin_loss(input, target, weight, ignore_index, reduction, margin, high=False, p=p)


def _margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    margin: float | Tensor,
    *,
    competitor: bool = False,
    high: bool = True,
    p: int = 1,
) -> Tensor:
    """Compute HEM and HEM+ (``high``) or multi-margin (not ``high``), by a kernel if possible, else in plain torch."""
    kernel = None
    if input.dim() > 1 and not competitor and p == 1 and kernels.backend(input, target, margin, weight) != "plain":
        kernel = partial(kernels.margin_loss, margin=margin, high=high)
        if target.shape != input.shape:
            check_shapes(input, target, weight)  # the kernel checks the labels itself
            scoped = reduction != "none" and in_scope()
            loss, mass = kernel(input, target.long(), weight, ignore_index, reduction="sum" if scoped else reduction)
            return (reduce(loss, mass, reduction) if scoped else loss).to(result_dtype(input))
    samples = check_samples(input, target, weight, ignore_index)
    z, q = samples.logits, samples.target
    if not samples.soft:
        loss = _margin_errors(samples, margin, competitor=competitor, high=high, p=p)
        loss = loss if weight is None else samples.mass() * loss
    elif kernel and not q.requires_grad and kernels.backend(z, q, margin, weight) == "c":
        loss = kernels.expected_margin_loss(z, samples.shares(), margin=margin, high=high)
    else:
        if kernels.compiling():
            kernel = None
        breadth = _breadth(samples)
        # as many passes, one for each class, take the time of one sort
        if p == 1 and breadth > (50 if kernel and input.numel() > 10_000 else 4):
            loss = _expected_margin_errors(samples, margin, competitor=competitor, high=high)
        else:

            def errors(s: Samples) -> Tensor:
                if kernel:
                    return kernel(s.logits, s.target, reduction="none")[0]
                return _margin_errors(s, margin, competitor=competitor, high=high, p=p)

            loss = _expectation(samples, errors, breadth)
    mass = samples.mass() * (loss != 0) if high else samples.labelled().to(loss.dtype)
    return samples.reduce(loss, reduction, mass)


def _margin_errors(
    samples: Samples, margin: float | Tensor, *, competitor: bool = False, high: bool = True, p: int = 1
) -> Tensor:
    """Return the unweighted loss of each labelled sample for HEM and HEM+ (``high``) or multi-margin (not ``high``).

    Args:
        samples: Logits and labels; ignored samples get 0.
        margin: One for all classes, or one per class, ``(C)``.
        competitor: With a margin per class: take that of the class compared with, not the target's.
        high: Mean of the errors at or above the mean error; otherwise Σ_j e_j^p / C.
        p: The exponent of multi-margin.
    """
    dim, y, z = samples.class_dim, samples.labels(), samples.masked_logits()
    if isinstance(margin, Tensor):
        margin = samples.per_class(margin) if competitor else samples.of_label(margin, y).unsqueeze(dim)
    y = y.unsqueeze(dim)
    error = (z - z.gather(dim, y) + margin).relu().scatter(dim, y, 0.0)
    if high:
        fixed = error.detach()
        # a mean is at most the largest; a sum that overflows would leave out all errors
        threshold = torch.minimum(fixed.sum(dim, keepdim=True) / samples.num_classes, fixed.amax(dim, keepdim=True))
        error = torch.where(error < threshold, 0.0, error)  # not `errors >= bound`, which is False for a NaN
        loss = error.sum(dim) / (error != 0).sum(dim).clamp(min=1)
    else:
        loss = error.pow(p).sum(dim) / samples.num_classes
    return torch.where(samples.labelled(), loss, 0.0)


def _breadth(samples: Samples) -> int:
    """Return the most non-zero target probabilities of any sample; C if they cannot be read without synchronisation."""
    if not readable(samples.target) or not samples.target.numel():
        return samples.num_classes
    return max(int((samples.target != 0).sum(samples.class_dim).max()), 1)


def _expectation(samples: Samples, cost: Callable[[Samples], Tensor], breadth: int) -> Tensor:
    """Return Σ_c q_c w_c cost_c for each sample, with one call of ``cost`` per class.

    Args:
        samples: Logits and probabilities.
        cost: From samples with labels and without class weights to their losses, 0 for ignored ones.
        breadth: Number of calls, for the largest probabilities of each sample, see :func:`_breadth`.
    """
    dim, q = samples.class_dim, samples.target
    if breadth == samples.num_classes:
        each = torch.arange(breadth, device=q.device)
        probabilities, labels = q, each.view(-1, *(1,) * (q.dim() - dim - 1)).expand_as(q)
    else:
        probabilities, labels = q.topk(breadth, dim)
    loss = torch.zeros_like(samples.logits.select(dim, 0))
    for share, c in zip(probabilities.unbind(dim), labels.unbind(dim), strict=True):
        weight = 1.0 if samples.weight is None else samples.of_label(samples.weight, c)
        loss = loss + share * weight * cost(Samples(samples.logits, torch.where(share != 0, c, -100)))
    return loss


def _expected_margin_errors(
    samples: Samples, margin: float | Tensor, *, competitor: bool = False, high: bool = True
) -> Tensor:
    """Return Σ_c q_c w_c l_c for each sample, of probabilities for many classes: all l_c by one sort of the logits.

    With u_j = z_j and a_c = z_c - μ_c (``competitor``: u_j = z_j + μ_j and a_c = z_c) the errors of target c are
    e_j = u_j - a_c. In ascending order those above a bound begin at some position k, and their sum is

        Σ_{i ≥ k} (u_(i) - a_c) = T_k - (C - k) a_c,   T_k = Σ_{i ≥ k} u_(i),

    minus the target's own term, u_c - a_c = μ_c, which is no error. Arguments as in :func:`_margin_errors`.
    """
    num_classes, dim = samples.num_classes, samples.class_dim
    z, share = (x.movedim(dim, -1).contiguous() for x in (samples.masked_logits(), samples.shares()))
    largest = z.detach().amax(-1, keepdim=True)
    z = z - torch.where(largest.isfinite(), largest, 0.0)  # a common offset would cost digits of the sums
    mu = margin.to(z) if isinstance(margin, Tensor) else margin
    u, a = (z + mu, z) if competitor else (z, z - mu)
    order = u.sort(dim=-1).values
    tail = F.pad(order.masked_fill(order == -math.inf, 0.0).flip(-1).cumsum(-1).flip(-1), (0, 1))

    def others(k: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return number and sum of the u_j from position k on, except the target's own."""
        return num_classes - k - own.to(k.dtype), tail.gather(-1, k) - torch.where(own, u, 0.0)

    fixed, places = a.detach(), order.detach()
    k, own = torch.searchsorted(places, fixed, right=True), u > fixed
    count, total = others(k, own)
    loss = torch.where(count > 0, (total - count * a) / num_classes, 0.0)
    if high:
        threshold = torch.minimum(loss.detach(), places[..., -1:] - fixed)
        # beyond the dtype's range all errors count, as where each is compared
        bound = torch.where(threshold < math.inf, fixed + threshold, fixed)
        count, total = others(torch.maximum(k, torch.searchsorted(places, bound)), own & (u >= bound))
        loss = torch.where(count > 0, total / count.clamp(min=1) - a, 0.0)
    loss = torch.where(order[..., -1:].isnan(), math.nan, loss)
    return torch.where(share != 0, share * loss, 0.0).sum(-1)
