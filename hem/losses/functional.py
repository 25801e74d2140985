"""Losses as functions: the smooth ones, and by import the margin losses of :mod:`hem.losses.margin`.

Every function is a drop-in for :func:`torch.nn.functional.cross_entropy`:

    loss(input, target, weight=None, ignore_index=-100, reduction="mean", *, own arguments)

* ``input``: logits of any floating dtype. Half precisions are computed in float32. The result has the dtype that
  ``F.cross_entropy`` gives: the input's, but float32 for half precisions under autocast.
* ``target``: class indices, or class probabilities q. For these the loss is the expected cost Σ_c q_c w_c cost_c over
  the classes with q_c ≠ 0, so that one-hot probabilities give what indices give. A row of zeros counts as ignored.
  Smoothed labels are such probabilities; the modules make them of ``label_smoothing``.
* ``ignore_index``: samples with this index give 0 with a gradient of exactly 0, whatever their logits hold.
* ``reduction``: ``"mean"`` is Σ loss / Σ mass, where a sample's mass is w_y (Σ_c q_c w_c) unless the function says
  otherwise. With no mass at all the mean is 0.

Labels out of range raise an error on a CPU; on an accelerator, to avoid a synchronisation, they trigger a device-side
assertion or make the loss NaN; under ``torch.compile``, ``torch.export`` and ``torch.func`` values are not checked. A
NaN among the logits of a labelled sample makes its loss NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hem.losses.margin import auto_margin as auto_margin
from hem.losses.margin import hem_loss as hem_loss
from hem.losses.margin import hem_plus_loss as hem_plus_loss
from hem.losses.margin import multi_margin_loss as multi_margin_loss
from hem.losses.reduction import Reduction, all_sum
from hem.losses.samples import Counts, Samples, as_tensor, check_arguments, check_counts, check_samples


def _softmax_loss(
    samples: Samples, logits: Tensor, reduction: Reduction, label_smoothing: float = 0.0, mass: Tensor | None = None
) -> Tensor:
    """Return the reduced cross-entropy of ``logits`` for the targets and weights of ``samples``.

    Labels are smoothed as torch does it; ``mass`` None: that of the samples.
    """
    if samples.soft:  # torch's own is NaN beside a class with logit -inf, also where its probability is 0
        if label_smoothing:
            samples = replace(samples, target=samples.smoothed(label_smoothing))
        share, dim = samples.shares(), samples.class_dim
        product = share * logits.log_softmax(dim)
        with torch.no_grad():  # 0 · ∞, whose derivative is 0 already
            product.masked_fill_(share == 0, 0.0)
        loss = -product.sum(dim)
    else:
        loss = F.cross_entropy(
            logits,
            samples.target,
            samples.weight,
            ignore_index=samples.ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    return samples.reduce(loss, reduction, mass)


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

    It differs from :func:`torch.nn.functional.cross_entropy` in edge cases: without labelled samples it is 0, not NaN;
    a NaN of an ignored sample does not reach the gradient; a row of zero probabilities is ignored, where torch counts
    it in the mean and smooths it; and a class with logit -inf and probability 0 costs nothing, where torch's loss is
    NaN. As there, the mean over samples with class probabilities divides by their number and not by their weights.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Example:
        >>> ce_loss(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """
    check_arguments(reduction, label_smoothing=label_smoothing)
    samples = check_samples(input, target, weight, ignore_index)
    mass = samples.labelled().to(samples.logits.dtype) if samples.soft else None
    return _softmax_loss(samples, samples.masked_logits(), reduction, label_smoothing, mass)


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

    An infinite logit has no such length: the loss is NaN.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        tau: Temperature τ > 0: the scaled logits have length 1/τ.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Wei et al., "Mitigating neural network overconfidence with logit normalization", ICML 2022. τ = 0.04
        is OpenOOD's; the authors' code has 0.01 for CIFAR-10.

    Example:
        >>> logit_norm_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), tau=0.1)
        tensor(2.1269)
    """
    check_arguments(reduction, tau=tau)
    samples = check_samples(input, target, weight, ignore_index)
    z, dim = samples.masked_logits(), samples.class_dim
    largest = z.detach().abs().amax(dim, keepdim=True).clamp(min=1e-7)
    u = z / largest  # the squares of huge logits would overflow
    length = u.square().sum(dim, keepdim=True).clamp(min=1e-30).sqrt()  # 0 would have no derivative
    return _softmax_loss(samples, u * (1 / ((length + 1e-7 / largest) * tau)), reduction)


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
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.
        tau: Strength τ > 0 of the adjustment.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

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
    return _softmax_loss(samples, samples.masked_logits() + tau * log_prior, reduction)


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
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

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
        dtype: Dtype of the weights.

    Returns:
        Weights, ``(C)``.

    Raises:
        ValueError: For counts or a β that do not fit.

    Source:
        Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019. Cao et al. 2019 use these
            weights only late in training (deferred re-weighting).

    Example:
        >>> effective_number_weights([1, 2], beta=0.5)
        tensor([1.2000, 0.8000])
    """
    check_arguments(beta=beta)
    s = check_counts(class_counts).to(dtype)
    weight = -1 / torch.expm1(s * (math.log(beta) if beta else -math.inf))  # 1 / (1 - β^s)
    return weight * (len(weight) / weight.sum())


def median_frequency_weights(class_frequencies: Sequence[float]) -> Tensor:
    """Class weights w_c = median(f) / f_c.

    f_c is the number of pixels of class c divided by the number of pixels of all images that have the class.

    Args:
        class_frequencies: f, ``(C)``, each in (0, 1].

    Returns:
        Weights, ``(C)``, float32.

    Raises:
        ValueError: Without frequencies, or with one that is not positive.

    Source:
        Eigen and Fergus, "Predicting depth, surface normals and semantic labels", ICCV 2015, section 4.3.2;
        Badrinarayanan et al., "SegNet", TPAMI 2017, section 3.

    Example:
        >>> median_frequency_weights([0.5, 0.1, 0.2])
        tensor([0.4000, 2.0000, 1.0000])
    """
    frequencies = as_tensor(class_frequencies, "class_frequencies", torch.float64)
    if frequencies.ndim != 1 or not bool((frequencies > 0).all()):
        raise ValueError(
            "Expected class_frequencies, the share of each class in the images that have it, all above 0, got "
            f"{frequencies.tolist()}: give such as data_module.class_frequencies."
        )
    return (frequencies.quantile(0.5) / frequencies).float()


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
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``.
        beta: β in [0, 1).

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

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
    return _softmax_loss(samples, samples.masked_logits(), reduction)


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
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        gamma: γ ≥ 0; 0 is cross-entropy.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

    Source:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, with a softmax; their α is ``weight``.

    Example:
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.1733)
    """
    check_arguments(reduction, gamma=gamma)
    samples = check_samples(input, target, weight, ignore_index)
    z, dim = samples.masked_logits(), samples.class_dim
    if samples.soft:  # -log p of all classes
        surprise, share = torch.where(samples.target != 0, -z.log_softmax(dim), 0.0), samples.shares()
    else:  # -log p of the labels
        surprise = F.cross_entropy(z, samples.target, ignore_index=ignore_index, reduction="none")
        share = samples.mass()
    # 1 - p = 1 - exp(log p), kept above 0, where the power has no finite gradient for γ < 1
    doubt = (-torch.expm1(-surprise)).clamp(min=torch.finfo(z.dtype).tiny)
    loss = share * doubt**gamma * surprise
    return samples.reduce(loss.sum(dim) if samples.soft else loss, reduction)


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
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.
        class_counts: Training samples per class n_j > 0, ``(C)``.
        max_m: The margin of the rarest class, ≥ 0.
        s: Scale > 0 of the logits.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

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
    z, dim = samples.masked_logits(), samples.class_dim
    top, place = z.detach().max(dim, keepdim=True)
    v = s * (z - top)  # what all logits have in common would swallow the margin
    if not samples.soft:
        y = samples.labels()
        lowered = v.scatter_add(dim, y.unsqueeze(dim), -s * samples.of_label(margin, y).unsqueeze(dim))
        return _softmax_loss(samples, lowered, reduction)
    # For all labels at once: l_c = log(1 + e^{r_c - (v_c - s m_c)}) with r_c = log Σ_{j ≠ c} e^{v_j}. It is the log-sum
    # over all classes minus the share of c, except for the largest logit, where this would cancel.
    largest = torch.zeros_like(v, dtype=torch.bool).scatter(dim, place, True)
    total = v.logsumexp(dim, keepdim=True)
    part = torch.where(largest, 0.0, (v - total).exp())
    rest_of_largest = v.masked_fill(largest, torch.finfo(v.dtype).min).logsumexp(dim, keepdim=True)
    rest = torch.where(largest, rest_of_largest, total + torch.log1p(-part))
    cost = F.softplus(rest - v + s * samples.per_class(margin), threshold=40.0)
    share = samples.shares()
    loss = torch.where(share != 0, share * cost, 0.0).sum(dim)
    return samples.reduce(loss, reduction)


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
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (by the samples' weights) or ``"sum"``.

    Returns:
        A scalar, or the input's shape without C for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

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
    right = torch.where(share != 0, share * F.softplus(-z, threshold=40.0), 0.0)  # a class with logit -inf has no cost
    wrong = torch.where(rest != 0, rest * F.softplus(z, threshold=40.0), 0.0)
    loss = (right + wrong).sum(samples.class_dim)
    return samples.reduce(loss, reduction, mass.squeeze(samples.class_dim))


def dice_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Dice loss between predicted and true regions of each class, over the whole batch.

    With p = softmax(z), q the one-hot labels (or class probabilities), and sums over all labelled samples of the batch,

        l_c = w_c (1 - 2 Σ p_c q_c / (Σ p_c + Σ q_c)),   0 for a class without a labelled sample.

    The losses belong to classes, not to samples. The mean is Σ l_c / Σ w_c over all classes, absent ones included, as
    in segmentation-models-pytorch's multi-class ``DiceLoss``.

    Args:
        input: Logits z, ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)``.
        target: Class indices y, the input's shape without C, or class probabilities q, the input's shape.
        weight: Factor per class w, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"`` (a loss for each class), ``"mean"`` (by the classes' weights) or ``"sum"``.

    Returns:
        A scalar, or ``(C)`` for ``"none"``.

    Raises:
        ValueError: For shapes, labels or arguments that do not fit.
        TypeError: For dtypes that do not fit.

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
    # summed over processes too: from here on each of them has the loss of the whole batch
    both, guessed, present = all_sum(sums).unbind()
    score = both / (0.5 * (guessed + present)).clamp(min=1e-7)
    w = torch.ones_like(score) if samples.weight is None else samples.weight
    loss = w * torch.where(present > 0, 1 - score, 0.0)
    if reduction != "none":
        total = w.sum()
        loss = loss.sum() / torch.where(total != 0, total, 1.0) if reduction == "mean" else loss.sum()
    return loss.to(samples.dtype)
