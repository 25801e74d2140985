"""Losses as modules, each with the arguments of one function of :mod:`~hem.losses.functional`.

All are drop-ins for :class:`torch.nn.CrossEntropyLoss`: ``weight``, ``ignore_index`` and ``reduction`` come
first, then the loss's own arguments and ``label_smoothing``. Formulas, shapes and dtypes are documented with the
functions.

``label_smoothing`` ε replaces the target by class probabilities, (1 - ε) [c = y] + ε / C, so that the loss is the
expected cost under them. Margin losses are then non-zero for every sample.

Class weights and counts are non-persistent buffers: they follow ``.to()``, and a checkpoint holds the network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from hem.losses import functional
from hem.losses.functional import ce_loss, median_frequency_weights
from hem.losses.reduction import Reduction
from hem.losses.samples import Counts, as_tensor, check_arguments, check_counts, check_samples, check_tensors, readable

Weight = Tensor | list[float] | None


class Criterion(nn.Module):
    """Base class of the losses: a function and its arguments, which are checked on construction.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].
        **own: The function's own arguments, by name.

    Raises:
        ValueError: For an argument out of its range.
        TypeError: For an argument of the wrong type.
    """

    function: ClassVar[Callable[..., Tensor]]
    of_samples: ClassVar[bool] = True  #: whether it is a mean over samples, with a loss for each
    weight: Tensor | None

    def __init__(
        self, weight: Weight, ignore_index: int, reduction: Reduction, label_smoothing: float = 0.0, **own: Any
    ) -> None:
        super().__init__()
        self.ignore_index = _label(ignore_index)
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", _class_weight(weight, "margin" in own), persistent=False)
        self.own = tuple(own)
        if "class_counts" in own:
            counts = check_counts(own.pop("class_counts"))
            if readable(counts) and torch.equal(counts, counts.round()):
                counts = counts.long()  # integers are left alone by `module.half()`: 100,000 exceeds float16
            self.register_buffer("class_counts", counts, persistent=False)
        check_arguments(reduction, label_smoothing=label_smoothing, **own)
        for name, value in own.items():
            setattr(self, name, value if isinstance(value, int) else float(value))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move weights and counts with the module, keeping their values also in ``to_empty`` from the meta device."""
        constants = dict(self.named_buffers(recurse=False, remove_duplicate=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in constants.items():
            moved = self.get_buffer(name)
            if moved is not values and not (values.is_meta or moved.is_meta):
                moved.copy_(values)
        return self

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``(C)``, ``(N, C)`` or ``(N, C, d1, ..., dK)`` for indices or probabilities."""
        own = {name: getattr(self, name) for name in self.own}
        try:
            if self.label_smoothing:
                target = check_samples(input, target, None, self.ignore_index).smoothed(self.label_smoothing)
            return type(self).function(input, target, self.weight, self.ignore_index, self.reduction, **own)
        except AttributeError:
            check_tensors(input, target)  # here alone: it takes no time where all is well
            raise

    def extra_repr(self) -> str:
        """Return the arguments as in a call of the constructor."""
        shown: dict[str, Any] = {"weight": self.weight, "ignore_index": self.ignore_index, "reduction": self.reduction}
        shown |= {name: getattr(self, name) for name in self.own}
        if self.label_smoothing:
            shown["label_smoothing"] = self.label_smoothing
        return ", ".join(
            f"{name}={value.tolist() if isinstance(value, Tensor) else repr(value)}" for name, value in shown.items()
        )


def _label(ignore_index: int) -> int:
    try:
        return index(ignore_index)
    except TypeError as error:
        raise TypeError(
            f"Expected ignore_index as an integer, got {ignore_index!r}: leave it out where every sample has a label."
        ) from error


def _class_weight(weight: Weight, has_margin: bool) -> Tensor | None:
    if weight is None:
        return None
    weight = as_tensor(weight, "weight")
    if weight.dim() != 1 or weight.numel() == 0:
        mend = "give a list of them"
        if has_margin and weight.dim() == 0:
            mend = f"a margin is given by its name, margin={weight.item():g}"
        raise ValueError(
            f"Expected weight with one factor per class, shape (C,), got shape {tuple(weight.shape)}: {mend}."
        )
    return weight if weight.is_floating_point() else weight.float()


class HEMLoss(Criterion):
    """High error margin loss: see :func:`hem.losses.margin.hem_loss`.

    What to expect. The mean is over the samples with non-zero loss. Samples that are learnt leave it and hard ones
    stay, so **the value of the loss rises while accuracy rises**: neither stop early nor choose a checkpoint by it.
    Log the sum over all labelled samples divided by their number instead, which falls:

        >>> whole = HEMLoss(margin=0.5, reduction="sum")
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0, -100])
        >>> whole(logits, target) / (target != whole.ignore_index).sum()
        tensor(0.7500)

    The softmax of the logits is no probability before calibration (:func:`hem.calibrate`). Begin without label
    smoothing, with which the loss of every sample is non-zero. Where few samples have a loss, an optimiser step is
    longer than cross-entropy's: use its learning rate or a smaller one, and no smaller batch. On the margin see
    docs/margins.md.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        margin: μ ≥ 0 in units of the logits; ``"auto"``: √(2000 / N) for N training samples.
        class_counts: Training samples per class, for ``"auto"`` alone: any other margin leaves them unread, since
            data modules give them to each loss that takes them.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> HEMLoss(margin=0.2)(torch.tensor([[2.0, 2.5]]), torch.tensor([0]))
        tensor(0.7000)
        >>> HEMLoss(margin="auto", class_counts=[25_000, 25_000])
        HEMLoss(weight=None, ignore_index=-100, reduction='mean', margin=0.2)
    """

    function = staticmethod(functional.hem_loss)
    margin: float

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        margin: float | Literal["auto"] = 0.5,
        class_counts: Counts | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        margin = functional.auto_margin(class_counts) if margin == "auto" else margin
        super().__init__(weight, ignore_index, reduction, label_smoothing, margin=margin)


class HEMPlusLoss(Criterion):
    """HEM with wider margins for rarer classes (HEM+): see :func:`hem.losses.margin.hem_plus_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the samples that still carry error) or ``"sum"``.
        class_counts: Training samples per class s_i > 0, ``(C)``; required.
        m: The number of samples at which a balanced set has margin 1.
        competitor: Use the margin of the class compared with, instead of the target's.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> loss = HEMPlusLoss(class_counts=[4000, 250])
        >>> loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        tensor(1.)
    """

    function = staticmethod(functional.hem_plus_loss)
    class_counts: Tensor
    m: float
    competitor: bool

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_counts: Counts | None = None,
        m: float = 2000.0,
        competitor: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            weight, ignore_index, reduction, label_smoothing, class_counts=class_counts, m=m, competitor=competitor
        )


class MultiMarginLoss(Criterion):
    """Multi-class margin loss, the mean of all errors: see :func:`hem.losses.margin.multi_margin_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the labelled samples) or ``"sum"``.
        margin: In units of the logits, ≥ 0.
        p: Exponent of the errors, 1 or 2.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> MultiMarginLoss()(torch.tensor([[2.0, 2.0, 3.0, 0.0]]), torch.tensor([0]))
        tensor(0.7500)
    """

    function = staticmethod(functional.multi_margin_loss)
    margin: float
    p: int

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        margin: float = 1.0,
        p: int = 1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, margin=margin, p=p)


class LogitNormLoss(Criterion):
    """Cross-entropy of logits of constant length: see :func:`hem.losses.functional.logit_norm_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        tau: Temperature τ > 0.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> LogitNormLoss(tau=0.1)(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        tensor(2.1269)
    """

    function = staticmethod(functional.logit_norm_loss)
    tau: float

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        tau: float = 0.04,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, tau=tau)


class LogitAdjustedLoss(Criterion):
    """Cross-entropy of logits raised by log priors: see :func:`hem.losses.functional.logit_adjusted_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``; required.
        tau: Strength τ > 0 of the adjustment.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> LogitAdjustedLoss(class_counts=[3, 1])(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)
    """

    function = staticmethod(functional.logit_adjusted_loss)
    class_counts: Tensor
    tau: float

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_counts: Counts | None = None,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, class_counts=class_counts, tau=tau)


class BalancedSoftmaxLoss(Criterion):
    """Cross-entropy under the balanced softmax: see :func:`hem.losses.functional.balanced_softmax_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``; required.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> BalancedSoftmaxLoss(class_counts=[3, 1])(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)
    """

    function = staticmethod(functional.balanced_softmax_loss)
    class_counts: Tensor

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_counts: Counts | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, class_counts=class_counts)


class ClassBalancedLoss(Criterion):
    """Cross-entropy weighted by rarity: see :func:`hem.losses.functional.class_balanced_loss`.

    Args:
        weight: Factor per class beside the balancing one, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``; required.
        beta: β in [0, 1).
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> loss = ClassBalancedLoss(class_counts=[1, 2], beta=0.5, reduction="sum")
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.8318)
    """

    function = staticmethod(functional.class_balanced_loss)
    class_counts: Tensor
    beta: float

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_counts: Counts | None = None,
        beta: float = 0.9999,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, class_counts=class_counts, beta=beta)


class FocalLoss(Criterion):
    """Focal loss: see :func:`hem.losses.functional.focal_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        gamma: γ ≥ 0; 0 is cross-entropy.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> FocalLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.1733)
    """

    function = staticmethod(functional.focal_loss)
    gamma: float

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, gamma=gamma)


class LDAMLoss(Criterion):
    """Label-distribution-aware margin loss, for cosine logits: see :func:`hem.losses.functional.ldam_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_counts: Training samples per class s_j > 0, ``(C)``; required.
        max_m: The margin of the rarest class, ≥ 0.
        s: Scale > 0 of the logits.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> LDAMLoss(class_counts=[1, 16])(torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
        tensor(0.6931)
    """

    function = staticmethod(functional.ldam_loss)
    class_counts: Tensor
    max_m: float
    s: float

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_counts: Counts | None = None,
        max_m: float = 0.5,
        s: float = 30.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, class_counts=class_counts, max_m=max_m, s=s)


class OneVsRestLoss(Criterion):
    """One-versus-rest loss: see :func:`hem.losses.functional.one_vs_rest_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> OneVsRestLoss()(torch.zeros(1, 3), torch.tensor([0]))
        tensor(2.0794)
    """

    function = staticmethod(functional.one_vs_rest_loss)

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing)


class DiceLoss(Criterion):
    """Dice loss of the classes' regions in the whole batch: see :func:`hem.losses.functional.dice_loss`.

    Args:
        weight: Factor per class, ``(C)``.
        ignore_index: Index of samples that count for nothing.
        reduction: ``"none"`` (per class, ``(C)``), ``"mean"`` (over the classes) or ``"sum"``.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1].

    Example:
        >>> DiceLoss(reduction="none")(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        tensor([0.4000, 0.6667])
    """

    function = staticmethod(functional.dice_loss)
    of_samples = False

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing)


class MedianFrequencyLoss(Criterion):
    """Cross-entropy with :func:`median_frequency_weights`.

    Args:
        weight: Factor per class beside the balancing one, ``(C)``.
        ignore_index: Index of pixels that count for nothing.
        reduction: ``"none"``, ``"mean"`` (weights in the denominator, as torch has it) or ``"sum"``.
        class_frequencies: Share of each class in the images that have it, ``(C)``; required.

    Example:
        >>> MedianFrequencyLoss(class_frequencies=[0.5, 0.1, 0.2], reduction="sum")(
        ...     torch.zeros(1, 3), torch.tensor([1]))
        tensor(2.1972)
    """

    function = staticmethod(functional.ce_loss)

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        class_frequencies: Sequence[float] = (),
    ) -> None:
        if not len(class_frequencies):
            raise ValueError(
                "Expected class_frequencies, the share of each class in the images that have it, got none: "
                "give them, such as data_module.class_frequencies."
            )
        balance = median_frequency_weights(class_frequencies)
        super().__init__(balance if weight is None else balance * as_tensor(weight, "weight"), ignore_index, reduction)


class SumLoss(nn.Module):
    """A weighted sum of losses, Σ_k a_k l_k, such as cross-entropy + Dice.

    On several devices each is the loss of the global batch. With accumulated gradients two means over samples are
    refused, for their denominators differ; beside one of them Dice gets the mean of the micro-batches' gradients, see
    :class:`hem.losses.Accumulation`.

    Args:
        losses: The criteria l_k, each of which returns a scalar.
        factors: Their factors a_k; None: all 1.

    Raises:
        ValueError: If there are no losses, or not one factor for each.

    Example:
        >>> loss = SumLoss([nn.CrossEntropyLoss(), nn.CrossEntropyLoss()], [1.0, 0.5])
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(1.0397)
    """

    def __init__(self, losses: list[nn.Module], factors: list[float] | None = None) -> None:
        super().__init__()
        factors = [1.0] * len(losses) if factors is None else factors
        if not losses or len(factors) != len(losses):
            raise ValueError(f"Expected one factor for each loss, got {len(factors)} for {len(losses)} losses.")
        self.losses = nn.ModuleList(losses)
        self.factors = list(factors)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the sum, a scalar."""
        parts = [a * evaluate(loss, input, target) for a, loss in zip(self.factors, self.losses, strict=True)]
        return torch.stack(parts).sum()


def evaluate(criterion: nn.Module, input: Tensor, target: Tensor) -> Tensor:
    """Evaluate a criterion in a training step, inside :func:`global_mean` and :func:`accumulate`.

    torch's ``nn.CrossEntropyLoss`` ignores these scopes, so :func:`ce_loss` is computed with its settings instead
    (without labelled samples it is 0, not NaN, and rows of zero probabilities are ignored). Any other criterion is
    called; if it is not of this package, its means are those of one device and micro-batch.

    Args:
        criterion: A loss module.
        input: Logits, ``(N, C, ...)``.
        target: The target, as the criterion takes it.

    Returns:
        The loss, as the criterion returns it.

    Example:
        >>> evaluate(nn.CrossEntropyLoss(), torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.6931)
    """
    if type(criterion) is not nn.CrossEntropyLoss:
        return criterion(input, target)  # type: ignore[no-any-return]
    return ce_loss(
        input,
        target,
        criterion.weight,
        criterion.ignore_index,
        criterion.reduction,  # type: ignore[arg-type]
        label_smoothing=criterion.label_smoothing,
    )
