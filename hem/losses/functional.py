"""The losses as pure functions: the mathematics of this package.

Every function is a drop-in for :func:`torch.nn.functional.cross_entropy`:

    loss(input, target, weight=None, ignore_index=-100, reduction="mean", *, own arguments)

* ``input``: logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``, any floating dtype. Half precisions are
  computed in float32. The result has the dtype that ``F.cross_entropy`` gives: the input's, but float32 for
  half precisions under autocast.
* ``target``: class indices y, the input's shape without C; or class probabilities q, the input's shape. For
  probabilities the loss is the expected cost Σ_c q_c w_c cost_c over the classes with q_c ≠ 0, so that
  one-hot probabilities give what indices give. A row of zeros counts as ignored. Smoothed labels are such
  probabilities; the modules make them of ``label_smoothing``.
* ``weight``: w, ``(C)``, a factor per class.
* ``ignore_index``: samples with this index give 0 with a gradient of exactly 0, whatever their logits hold.
* ``reduction``: ``"none"``, ``"sum"``, or ``"mean"``: Σ loss / Σ mass, where a sample's mass is w_y (Σ_c q_c
  w_c) unless the function says otherwise. With no mass at all the mean is 0.

Returned is a scalar, or for ``"none"`` a tensor of the input's shape without C. ``ValueError`` is raised for
shapes, labels and arguments that do not fit, ``TypeError`` for dtypes. Labels out of range raise on a CPU; on an
accelerator, which is not waited for, they assert or make the loss NaN; under ``torch.compile``,
``torch.export`` and ``torch.func`` values cannot be looked at. A NaN among the logits of a labelled sample makes
its loss NaN.
"""
# ruff: noqa: D417 -- the arguments that all losses share are described once, above

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hem.losses import kernels
from hem.losses.arguments import (
    Counts,
    Samples,
    check_arguments,
    check_counts,
    check_samples,
    check_shapes,
    class_dim,
)
from hem.losses.reduction import Reduction, all_sum, in_scope, reduce


def _reduce(loss: Tensor, mass: Tensor, reduction: Reduction, input: Tensor) -> Tensor:
    """The losses of the samples as the caller wants them."""
    return reduce(loss, mass, reduction).to(_result_dtype(input))


def _result_dtype(input: Tensor) -> torch.dtype:
    """The dtype that ``F.cross_entropy`` gives for this input."""
    half = input.dtype.itemsize < 4 and not input.is_meta  # of which autocast knows nothing
    return torch.float32 if half and torch.is_autocast_enabled(input.device.type) else input.dtype


# Margin losses


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
    """HEM and HEM+ (``high``) or multi-margin (not ``high``): by a kernel if one fits, or by the formula."""
    fits = input.dim() > 1 and not competitor and p == 1
    fused = fits and kernels.backend(input, margin, weight, target.detach()) != "plain"
    kernel = partial(kernels.margin_loss, margin=margin, high=high)
    if fused and target.shape != input.shape:
        check_shapes(input, target, weight)  # the kernel itself looks at the labels
        if reduction == "none" or not in_scope():
            return kernel(input, target.long(), weight, ignore_index, reduction=reduction)[0].to(_result_dtype(input))
        loss, mass = kernel(input, target.long(), weight, ignore_index, reduction="sum")
        return _reduce(loss, mass, reduction, input)
    fused = fused and not kernels.compiling()

    def cost(labelled: Samples) -> Tensor:
        if fused:
            return kernel(labelled.logits, labelled.target, None, labelled.ignore_index, reduction="none")[0]
        return _margin_errors(labelled, margin, competitor=competitor, high=high, p=p)

    samples = check_samples(input, target, weight, ignore_index)
    if fits and kernels.backend(samples.logits, margin, weight, samples.target) == "c":
        loss = kernels.expected_margin_loss(samples.logits, samples.shares(), margin=margin, high=high)
    else:
        breadth = samples.breadth()
        # how many passes, one for each class, cost as much as one sort
        passes = 50 if fused and input.numel() > 10_000 else 4
        if p == 1 and breadth > passes:
            loss = _expected_margin_errors(samples, margin, competitor=competitor, high=high)
        else:
            loss = samples.expectation(cost, breadth)
    mass = samples.mass() * (loss != 0) if high else samples.labelled().to(loss.dtype)
    return _reduce(loss, mass, reduction, input)


def _margin_errors(
    samples: Samples, margin: float | Tensor, *, competitor: bool = False, high: bool = True, p: int = 1
) -> Tensor:
    """Unweighted loss of each labelled sample for HEM and HEM+ (``high``) or multi-margin (not ``high``).

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
        # a mean is at most the largest; a sum near the dtype's end overflows, and would leave out all of them
        threshold = torch.minimum(fixed.sum(dim, keepdim=True) / samples.num_classes, fixed.amax(dim, keepdim=True))
        error = torch.where(error < threshold, 0.0, error)  # written so that a NaN is kept
        loss = error.sum(dim) / (error != 0).sum(dim).clamp(min=1)
    else:
        loss = error.pow(p).sum(dim) / samples.num_classes
    return torch.where(samples.labelled(), loss, 0.0)


def _expected_margin_errors(
    samples: Samples, margin: float | Tensor, *, competitor: bool = False, high: bool = True
) -> Tensor:
    """Σ_c q_c w_c l_c for each sample, of probabilities for many classes: all l_c by one sort of the logits.

    With u_j = z_j and a_c = z_c - μ_c (``competitor``: u_j = z_j + μ_j and a_c = z_c) the errors of target c are
    e_j = u_j - a_c. In ascending order those above a bound stand from some place k on, and are summed by

        Σ_{i ≥ k} (u_(i) - a_c) = T_k - (C - k) a_c,   T_k = Σ_{i ≥ k} u_(i),

    less the target's own, u_c - a_c = μ_c, which is no error. Arguments as in :func:`_margin_errors`.
    """
    num_classes, dim = samples.num_classes, samples.class_dim
    z, share = (x.movedim(dim, -1).contiguous() for x in (samples.masked_logits(), samples.shares()))
    largest = z.detach().amax(-1, keepdim=True)
    z = z - torch.where(largest.isfinite(), largest, 0.0)  # what all have in common would swallow the digits of sums
    mu = margin.to(z) if isinstance(margin, Tensor) else margin
    u, a = (z + mu, z) if competitor else (z, z - mu)
    order = u.sort(dim=-1).values
    tail = F.pad(order.masked_fill(order == -math.inf, 0.0).flip(-1).cumsum(-1).flip(-1), (0, 1))

    def others(k: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Number and sum of the u_j from place k on, without the target's own, which stands there or not."""
        return num_classes - k - own.to(k.dtype), tail.gather(-1, k) - torch.where(own, u, 0.0)

    fixed, places = a.detach(), order.detach()
    k, own = torch.searchsorted(places, fixed, right=True), u > fixed
    count, total = others(k, own)
    loss = torch.where(count > 0, (total - count * a) / num_classes, 0.0)
    if high:
        threshold = torch.minimum(loss.detach(), places[..., -1:] - fixed)
        # beyond the dtype's range all errors count, as they do where each is compared
        bound = torch.where(threshold < math.inf, fixed + threshold, fixed)
        count, total = others(torch.maximum(k, torch.searchsorted(places, bound)), own & (u >= bound))
        loss = torch.where(count > 0, total / count.clamp(min=1) - a, 0.0)
    loss = torch.where(order[..., -1:].isnan(), math.nan, loss)
    return torch.where(share != 0, share * loss, 0.0).sum(-1)


def auto_margin(class_counts: Counts | None, m: float = 2000.0) -> float:
    """HEM's one margin from the size of the training set, μ = √(m / Σ_i s_i).

    It is what the margins per class of HEM+ become when all classes are equally large.

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
        target: Class indices, the input's shape without C, or class probabilities, the input's shape.
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        margin: μ ≥ 0 in units of the logits; ``"auto"``: √(2000 / N) for N training samples.
        class_counts: Training samples per class, ``(C)``, for ``"auto"`` only.

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
        class_counts: Training samples per class s_i > 0, ``(C)``.
        m: The number of samples at which a balanced set has margin 1.
        competitor: Use μ_j, the margin of the class compared with, instead of μ_y.

    Source:
        Spratling and Schütt, arXiv 2501.12191. That the margin is the target's is what the authors' code
        suggests.

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
        margin: In units of the logits, ≥ 0.
        p: Exponent, 1 or 2.

    Source:
        Crammer and Singer, JMLR 2001, averaged as torch does it (theirs takes the largest error).

    Example:
        >>> multi_margin_loss(torch.tensor([[2.0, 2.0, 3.0, 0.0]]), torch.tensor([0]))
        tensor(0.7500)
    """
    check_arguments(reduction, margin=margin, p=p)
    return _margin_loss(input, target, weight, ignore_index, reduction, margin, high=False, p=p)


# Cross-entropy and its relatives


def _softmax_loss(samples: Samples, logits: Tensor, reduction: Reduction, input: Tensor) -> Tensor:
    """Cross-entropy of the samples with other logits."""
    loss = F.cross_entropy(logits, samples.target, samples.weight, ignore_index=samples.index, reduction="none")
    return _reduce(loss, samples.mass(), reduction, input)


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

    It is :func:`torch.nn.functional.cross_entropy` but for its edges: no labelled sample gives 0, not NaN,
    and the NaN of an ignored sample stays out of the gradient. As there, the mean over samples with class
    probabilities divides by their number and not by their weights.

    Args:
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> ce_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """
    check_arguments(reduction, label_smoothing=label_smoothing)
    samples = check_samples(input, target, weight, ignore_index)
    loss = F.cross_entropy(
        samples.masked_logits(),
        samples.target,
        samples.weight,
        ignore_index=samples.index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return _reduce(loss, torch.ones_like(loss) if samples.soft else samples.mass(), reduction, input)


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
        tau: Temperature τ > 0: the scaled logits have length 1/τ.

    Source:
        Wei et al., "Mitigating neural network overconfidence with logit normalization", ICML 2022. τ = 0.04
        is OpenOOD's; the authors' code has 0.01 for CIFAR-10.

    Example:
        >>> logit_norm_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), tau=0.1)
        tensor(2.1269)
    """
    check_arguments(reduction, tau=tau)
    samples = check_samples(input, target, weight, ignore_index)
    z = samples.masked_logits()
    length = torch.linalg.vector_norm(z, dim=samples.class_dim, keepdim=True)
    return _softmax_loss(samples, z / ((length + 1e-7) * tau), reduction, input)


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
        class_counts: Training samples per class s_j > 0, ``(C)``.
        tau: Strength τ > 0 of the adjustment.

    Source:
        Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.

    Example:
        >>> loss = logit_adjusted_loss(torch.zeros(1, 2), torch.tensor([1]), class_counts=[3, 1])
        >>> loss, loss.exp()
        (tensor(1.3863), tensor(4.))
    """
    check_arguments(reduction, tau=tau)
    samples = check_samples(input, target, weight, ignore_index)
    s = check_counts(class_counts, samples.num_classes).to(samples.logits)
    log_prior = samples.per_class((s / s.sum()).log())
    return _softmax_loss(samples, samples.masked_logits() + tau * log_prior, reduction, input)


def balanced_softmax_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    class_counts: Counts,
) -> Tensor:
    """Cross-entropy under the balanced softmax, l = -w_y log (s_y e^{z_y} / Σ_j s_j e^{z_j}).

    The logit-adjusted loss with τ = 1: that the counts are not divided by their sum cancels in the softmax.

    Args:
        class_counts: Training samples per class s_j > 0, ``(C)``.

    Source:
        Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020.

    Example:
        >>> balanced_softmax_loss(torch.zeros(1, 2), torch.tensor([1]), class_counts=[3, 1])
        tensor(1.3863)
    """
    return logit_adjusted_loss(input, target, weight, ignore_index, reduction, class_counts=class_counts)


def effective_number_weights(class_counts: Counts, beta: float = 0.9999, dtype: torch.dtype = torch.float32) -> Tensor:
    """Class weights by the effective number of samples, w_j ∝ (1 - β) / (1 - β^{s_j}), with Σ_j w_j = C.

    Args:
        class_counts: Training samples per class s_j > 0, ``(C)``.
        beta: β in [0, 1): 0 gives equal weights; towards 1 they become proportional to 1 / s_j.
        dtype: Of the weights.

    Returns:
        Weights, ``(C)``.

    Raises:
        ValueError: For counts or a β that do not fit.

    Source:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019. Cao et al. 2019
        switch it on late in training (deferred re-weighting).

    Example:
        >>> effective_number_weights([1, 2], beta=0.5)
        tensor([1.2000, 0.8000])
    """
    check_arguments(beta=beta)
    s = check_counts(class_counts).to(dtype)
    weight = -1 / torch.expm1(s * (math.log(beta) if beta else -math.inf))  # 1 / (1 - β^s)
    return weight * (len(weight) / weight.sum())


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
        class_counts: Training samples per class s_j > 0, ``(C)``.
        beta: β in [0, 1).

    Source:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.

    Example:
        >>> logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> class_balanced_loss(logits, target, reduction="none", class_counts=[1, 2], beta=0.5)
        tensor([0.8318, 0.5545])
    """
    check_arguments(reduction, beta=beta)
    samples = check_samples(input, target, weight, ignore_index)
    counts = check_counts(class_counts, samples.num_classes).to(input.device)
    balance = effective_number_weights(counts, beta, samples.logits.dtype)
    samples = replace(samples, weight=balance if samples.weight is None else samples.weight * balance)
    return _softmax_loss(samples, samples.masked_logits(), reduction, input)


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
        gamma: γ ≥ 0; 0 is cross-entropy.

    Source:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, with a softmax; their α is ``weight``.

    Example:
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.1733)
    """
    check_arguments(reduction, gamma=gamma)
    samples = check_samples(input, target, weight, ignore_index)
    z, dim = samples.masked_logits(), samples.class_dim
    if samples.soft:  # -log p of all classes that are asked for
        surprise, share = torch.where(samples.target != 0, -z.log_softmax(dim), 0.0), samples.shares()
    else:  # -log p of the labels
        surprise = F.cross_entropy(z, samples.target, ignore_index=ignore_index, reduction="none")
        share = samples.mass()
    # 1 - p = 1 - exp(log p), kept off 0, where the power has no finite gradient for γ < 1
    doubt = (-torch.expm1(-surprise)).clamp(min=torch.finfo(z.dtype).tiny)
    loss = share * doubt**gamma * surprise
    return _reduce(loss.sum(dim) if samples.soft else loss, samples.mass(), reduction, input)


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

        l = CE(s (z - m_y 1_y), y),   m_j = max_m n_j^{-1/4} / max_k n_k^{-1/4}

    for classes of n_j training samples. The logits are meant to be cosines in [-1, 1]: the network's last
    layer normalises features and class vectors.

    Args:
        class_counts: Training samples per class n_j > 0, ``(C)``.
        max_m: The margin of the rarest class, ≥ 0.
        s: Scale > 0 of the logits.

    Source:
        Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019.
        With :func:`effective_number_weights` as ``weight`` late in training it is their LDAM-DRW.

    Example:
        >>> ldam_loss(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), class_counts=[1, 16])
        tensor(0.6931)
    """
    check_arguments(reduction, max_m=max_m, s=s)
    samples = check_samples(input, target, weight, ignore_index)
    n = check_counts(class_counts, samples.num_classes).to(samples.logits)
    margin = max_m * (n.min() / n) ** 0.25
    if not samples.soft:
        lowered = samples.masked_logits() - replace(samples, weight=margin).shares()
        return _softmax_loss(samples, s * lowered, reduction, input)
    # Of all labels at once: l_c = log(1 + e^{r_c - (v_c - s m_c)}) with v = s z and r_c = log Σ_{j ≠ c} e^{v_j}, which
    # is the sum of all less a share, but for the largest logit, whose rest would be lost in rounding.
    v, dim = s * samples.masked_logits(), samples.class_dim
    largest = torch.zeros_like(v, dtype=torch.bool).scatter(dim, v.argmax(dim, keepdim=True), True)
    total = v.logsumexp(dim, keepdim=True)
    part = torch.where(largest, 0.0, (v - total).exp())
    rest_of_largest = v.masked_fill(largest, torch.finfo(v.dtype).min).logsumexp(dim, keepdim=True)
    rest = torch.where(largest, rest_of_largest, total + torch.log1p(-part))
    cost = F.softplus(rest - v + s * samples.per_class(margin), threshold=40.0)
    share = samples.shares()
    loss = torch.where(share != 0, share * cost, 0.0).sum(dim)
    return _reduce(loss, samples.mass(), reduction, input)


# Losses of other forms


def one_vs_rest_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """One-versus-rest loss, l = w_y (log(1 + e^{-z_y}) + Σ_{k ≠ y} log(1 + e^{z_k})).

    Source:
        Kanai et al., "One-vs-the-rest loss to focus on important samples in adversarial training", ICML 2023.

    Example:
        >>> one_vs_rest_loss(torch.zeros(1, 3), torch.tensor([0]))
        tensor(2.0794)
    """
    check_arguments(reduction)
    samples = check_samples(input, target, weight, ignore_index)
    z, share = samples.masked_logits(), samples.shares()
    mass = share.sum(samples.class_dim, keepdim=True)
    rest = mass - share
    right = torch.where(share != 0, share * F.softplus(-z), 0.0)  # a class masked by -inf costs nothing
    wrong = torch.where(rest != 0, rest * F.softplus(z), 0.0)
    loss = (right + wrong).sum(samples.class_dim)
    return _reduce(loss, mass.squeeze(samples.class_dim), reduction, input)


def dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Dice loss of the regions that the classes cover in the whole batch.

    With p = softmax(z), q the one-hot (or probable) labels, and sums over all labelled samples of the batch,

        l_c = w_c (1 - 2 Σ p_c q_c / (Σ p_c + Σ q_c)),   0 for a class without a labelled sample.

    The losses belong to classes, not to samples: ``"none"`` gives ``(C)``, and the mean is Σ l_c / Σ w_c over
    all classes, absent ones included, as in segmentation-models-pytorch's multi-class ``DiceLoss``.

    Source:
        Milletari et al., "V-Net", 3DV 2016, without the squares in the denominator.

    Example:
        >>> dice_loss(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), reduction="none")
        tensor([0.4000, 0.6667])
    """
    check_arguments(reduction)
    samples = check_samples(input, target, weight, ignore_index)
    dim = samples.class_dim
    q = replace(samples, weight=None).shares()
    p = torch.where(samples.labelled().unsqueeze(dim), samples.masked_logits().softmax(dim), 0.0)
    axes = [axis for axis in range(q.dim()) if axis != dim]
    sums = torch.stack([x.sum(axes) if axes else x for x in (p * q, p, q)])
    # summed over all processes, too: from here on each of them holds the loss of the whole batch
    both, guessed, present = all_sum(sums).unbind()
    score = both / (0.5 * (guessed + present)).clamp(min=1e-7)
    w = torch.ones_like(score) if samples.weight is None else samples.weight
    loss = w * torch.where(present > 0, 1 - score, 0.0)
    if reduction != "none":
        loss = loss.sum() / (w.sum() if reduction == "mean" else 1)
    return loss.to(_result_dtype(input))
