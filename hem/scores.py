"""How unknown does an input look to a classifier, and how well does that tell the unknown from the known?

One convention, here and everywhere in this package: a score is an **unknownness**. Unknown is the positive
class, and a higher score means more unknown. Confidences of the literature (the largest probability, the
largest logit, the free energy) therefore appear with their sign changed.

* Scores of logits: :data:`LOGIT_SCORES`, pure functions (N, C) -> (N,).
* Scores that need more than logits, by ``pytorch-ood``: :func:`fit` (features of training images) and
  :func:`odin` (gradients with respect to the input).
* Figures of two samples of scores: :data:`METRICS`, :func:`oscr`, :func:`detection_accuracy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hem.names import check_name

# -- scores of logits --------------------------------------------------------------------------------------


def _floating(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _descents(logits: Tensor) -> Tensor:
    """z_(j) - z_(1) <= 0 for j = 2..C, the logits in descending order: (N, C - 1)."""
    ordered = _floating(logits).sort(-1, descending=True).values
    return ordered[..., 1:] - ordered[..., :1]


def msp(logits: Tensor) -> Tensor:
    """Maximum softmax probability p, as the log-odds against it.

    log((1 - p) / p) = log sum_{j > 1} exp(z_(j) - z_(1)), which falls as p rises. It orders inputs as 1 - p
    does, but without the ties that rounding makes of all probabilities near 1.

    Args:
        logits: (N, C).

    Returns:
        (N,) unknownness.

    Source: Hendrycks & Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in
    neural networks", ICLR 2017.

    Example:
        >>> msp(torch.tensor([[40.0, 0.0], [80.0, 0.0]]))  # 1 - p is 0 for both in float32
        tensor([-40., -80.])
    """
    return _descents(logits).logsumexp(-1)


def max_logit(logits: Tensor) -> Tensor:
    """Largest logit: -z_(1).

    Args:
        logits: (N, C).

    Returns:
        (N,) unknownness.

    Source: Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022;
    Vaze et al., "Open-set recognition: a good closed-set classifier is all you need", ICLR 2022 (MLS).

    Example:
        >>> max_logit(torch.tensor([[3.0, 1.0], [0.5, 0.0]]))
        tensor([-3.0000, -0.5000])
    """
    return -_floating(logits).amax(-1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Free energy: -T log sum_j exp(z_j / T).

    Args:
        logits: (N, C).
        temperature: T > 0.

    Returns:
        (N,) unknownness.

    Raises:
        ValueError: T is not positive.

    Source: Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020, equation 4.

    Example:
        >>> energy(torch.zeros(1, 4)) / math.log(4)
        tensor([-1.])
    """
    if not temperature > 0:
        raise ValueError(f"The temperature of the energy is a number above 0, but it is {temperature}.")
    return -temperature * (_floating(logits) / temperature).logsumexp(-1)


def margin(logits: Tensor) -> Tensor:
    """Margin between the two largest logits: -(z_(1) - z_(2)).

    Args:
        logits: (N, C), C >= 2.

    Returns:
        (N,) unknownness.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([-1.])
    """
    top = _floating(logits).topk(2, -1).values
    return top[..., 1] - top[..., 0]


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax, in nats.

    H = log(1 + s) - sum_{j > 1} d_j exp(d_j) / (1 + s), where d_j = z_(j) - z_(1) <= 0 and
    s = sum_{j > 1} exp(d_j). All terms are positive, so that nothing cancels near 0.

    Args:
        logits: (N, C).

    Returns:
        (N,) unknownness.

    Example:
        >>> entropy(torch.zeros(1, 8)) / math.log(2)
        tensor([3.])
    """
    descents = _descents(logits)
    others = descents.exp()
    total = others.sum(-1)
    # 0 * -inf, for a logit of -inf, is 0 here
    return total.log1p() - torch.where(others > 0, descents * others, 0.0).sum(-1) / (1 + total)


LOGIT_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "msp": msp,
    "max_logit": max_logit,
    "energy": energy,
    "margin": margin,
    "entropy": entropy,
}

# -- scores that need more than logits ---------------------------------------------------------------------

FEATURE_SCORES = ("mahalanobis", "vim", "knn", "react")
INPUT_SCORES = ("odin",)
SCORES = (*LOGIT_SCORES, *FEATURE_SCORES, *INPUT_SCORES)


def check_score(name: str, among: Iterable[str] = SCORES) -> None:
    """Refuse the name of a score that there is none of.

    Raises:
        ValueError: It is not ``among`` them.
    """
    check_name(name, among, "rejection score")


def _need_pytorch_ood(score: str) -> None:
    try:
        import pytorch_ood.detector  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The score '{score}' is computed by pytorch-ood, which is not installed: pip install 'hem-loss[ood]'."
        ) from error


@contextmanager
def _float64() -> Iterator[None]:
    """New tensors are float64: pytorch-ood inverts a sum of squares, which float32 makes singular."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fit(name: str, features: Tensor, target: Tensor, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Fit a score on the features of training images, by ``pytorch-ood``.

    * ``mahalanobis``: distance to the nearest class mean under the shared covariance (Lee et al., NeurIPS
      2018).
    * ``vim``: the residual outside the principal subspace as a virtual logit (Wang et al., CVPR 2022), with
      the authors' dimensions: 1000 where D >= 2048, 512 where D >= 768, else D // 2.
    * ``knn``: distance to the 50th nearest feature, all of unit length (Sun et al., ICML 2022).
    * ``react``: energy behind features cut off at their 90th percentile (Sun et al., NeurIPS 2021).

    Args:
        name: One of :data:`FEATURE_SCORES`.
        features: (N, D), what the last layer sees.
        target: Class indices (N,).
        head: The last layer: (N, D) to logits (N, C).

    Returns:
        Maps features (M, D) to unknownness (M,), on the features' device.

    Raises:
        ValueError: The name is none of them; a class has no feature (Mahalanobis); the head is not linear
            (ViM); fewer features than neighbours (KNN).
        ImportError: ``pytorch-ood`` is not installed.
    """
    check_score(name, FEATURE_SCORES)
    _need_pytorch_ood(name)
    from pytorch_ood import detector

    features, target = features.detach().float().cpu(), target.cpu()
    if name == "mahalanobis":
        classes = int(head(features[:1].to(next(head.parameters()))).shape[-1])
        counts = torch.bincount(target, minlength=classes)
        if absent := (counts == 0).nonzero()[:, 0].tolist():
            raise ValueError(
                f"The score 'mahalanobis' needs features of every class, but {len(absent)} of {classes} have "
                f"none (class {absent[0]} first): fit on more training images, or leave this score out."
            )
        with _float64():
            gaussian = detector.Mahalanobis(None).fit_features(features.double(), target)
        return lambda z: _at(z, gaussian.predict_features(z.double().cpu()))
    if name == "vim":
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"The score 'vim' needs a linear last layer, but this one is {type(head).__name__}: leave it out."
            )
        width = features.shape[1]
        principal = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        bias = head.bias if head.bias is not None else torch.zeros(head.out_features)
        virtual = detector.ViM(None, principal, head.weight.detach().cpu(), bias.detach().cpu())
        virtual.fit_features(features, target)
        return lambda z: _at(z, virtual.predict_features(z.cpu()))
    if name == "knn":
        if len(features) < 50:
            raise ValueError(
                f"The score 'knn' looks at 50 neighbours, but there are {len(features)} training features: "
                "fit on more training images, or leave this score out."
            )
        neighbours = detector.KNN(None).fit_features(features, target)
        return lambda z: _at(z, neighbours.predict_features(z.float().cpu()))
    react = detector.ReAct(nn.Identity(), head).fit_feature_maps(features, target)
    return lambda z: _at(z, react.predict_feature_maps(z))


def _at(features: Tensor, scores: Tensor) -> Tensor:
    return scores.to(features.device)


def odin(net: nn.Module, input: Tensor, temperature: float = 1000.0, eps: float = 0.0014) -> Tensor:
    """ODIN: -max_j softmax(f(x') / T)_j, where x' = x + eps sign(grad log p), by ``pytorch-ood``.

    Args:
        net: Images to logits (N, C).
        input: Images (N, C, H, W) in [0, 1].
        temperature: T.
        eps: The step, in pixel units of [0, 1].

    Returns:
        (N,) unknownness.

    Raises:
        ImportError: ``pytorch-ood`` is not installed.

    Source: Liang et al., "Enhancing the reliability of out-of-distribution image detection in neural
    networks", ICLR 2018, equations 1 and 2.
    """
    _need_pytorch_ood("odin")
    from pytorch_ood.detector import ODIN

    with torch.inference_mode(False):
        # in float64: at T = 1000 the probabilities differ in their last digits alone
        model = _Float64(net)
        scores: Tensor = ODIN(model, eps=eps, temperature=temperature).predict(input.clone())
    return scores


class _Float64(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.net(input)
        return logits.double()


# -- figures -----------------------------------------------------------------------------------------------


def _checked(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples of scores in float64 on the CPU."""
    for kind, scores in (("known", known), ("unknown", unknown)):
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(
                f"Expected the scores of the {kind} samples as a vector of one or more, "
                f"got shape {tuple(scores.shape)}."
            )
        if scores.isnan().any():
            raise ValueError(
                f"{int(scores.isnan().sum())} of {len(scores)} scores of the {kind} samples are NaN: "
                "the network's logits are not finite."
            )
    return known.detach().double().cpu(), unknown.detach().double().cpu()


def _counts(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many known and unknown samples have each distinct score, and the scores, in descending order."""
    values, place = torch.cat([known, unknown]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    of_known, of_unknown = (
        torch.bincount(p, minlength=len(values)) for p in (place[: len(known)], place[len(known) :])
    )
    return of_known.flip(0), of_unknown.flip(0), values.flip(0)


class Roc(NamedTuple):
    """A ROC curve with unknown as the positive class: what is rejected where ``score >= threshold``."""

    fpr: Tensor  # share of the known that is rejected, ascending from 0 to 1
    tpr: Tensor  # share of the unknown that is rejected
    threshold: Tensor  # descending from +inf


def roc(known: Tensor, unknown: Tensor) -> Roc:
    """The ROC curve at every distinct score, as ``sklearn.metrics.roc_curve(drop_intermediate=False)``.

    Args:
        known: Unknownness of the known samples, (N,).
        unknown: Unknownness of the unknown samples, (M,).

    Raises:
        ValueError: A sample of scores is empty, no vector or has a NaN.

    Example:
        >>> curve = roc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        >>> curve.fpr.tolist(), curve.tpr.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    known, unknown = _checked(known, unknown)
    of_known, of_unknown, values = _counts(known, unknown)
    start = torch.zeros(1, dtype=torch.float64)
    return Roc(
        torch.cat([start, of_known.cumsum(0).double() / len(known)]),
        torch.cat([start, of_unknown.cumsum(0).double() / len(unknown)]),
        torch.cat([start + torch.inf, values]),
    )


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Area under the ROC curve: P(unknown > known) + P(unknown = known) / 2.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    curve = roc(known, unknown)
    return float(torch.trapezoid(curve.tpr, curve.fpr))


def aupr_out(known: Tensor, unknown: Tensor) -> float:
    """Average precision with the unknown as positives: sum_n (R_n - R_{n-1}) P_n, as scikit-learn's.

    Example:
        >>> round(aupr_out(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])), 4)
        0.8333
    """
    known, unknown = _checked(known, unknown)
    of_known, of_unknown, _ = _counts(known, unknown)
    hits = of_unknown.cumsum(0)
    precision = hits.double() / (hits + of_known.cumsum(0))
    return float((precision * of_unknown).sum() / len(unknown))


def aupr_in(known: Tensor, unknown: Tensor) -> float:
    """Average precision with the known as positives, by confidence (the score with its sign changed)."""
    known, unknown = _checked(known, unknown)
    return aupr_out(-unknown, -known)


def fpr95_unknown_positive(known: Tensor, unknown: Tensor) -> float:
    """Share of the known that is rejected where at least 95 % of the unknown is: OpenOOD's FPR@95.

    Example:
        >>> fpr95_unknown_positive(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.5
    """
    curve = roc(known, unknown)
    return float(curve.fpr[int((curve.tpr >= 0.95).int().argmax())])


def fpr95_known_positive(known: Tensor, unknown: Tensor) -> float:
    """Share of the unknown that is accepted where at least 95 % of the known is: the older FPR@95."""
    known, unknown = _checked(known, unknown)
    return fpr95_unknown_positive(-unknown, -known)


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "fpr95_unknown_positive": fpr95_unknown_positive,
    "fpr95_known_positive": fpr95_known_positive,
}


def oscr_curve(known: Tensor, correct: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """The open-set classification rate curve, over every threshold t on unknownness u.

    CCR(t) = #{known, rightly classified, u <= t} / #known against FPR(t) = #{unknown, u <= t} / #unknown.

    Args:
        known: Unknownness of the known samples, (N,).
        correct: Which of them are classified rightly, (N,) bool.
        unknown: Unknownness of the unknown samples, (M,).

    Returns:
        FPR and CCR, ascending from 0.

    Raises:
        ValueError: As :func:`roc`, or ``correct`` has another length.

    Source: Dhamija et al., "Reducing network agnostophobia", NeurIPS 2018, equations 5 and 6.
    """
    if correct.shape != known.shape:
        raise ValueError(
            f"Expected one `correct` per known sample, got shapes {tuple(correct.shape)} and {tuple(known.shape)}."
        )
    known, unknown = _checked(known, unknown)
    kept = known[correct.cpu().bool()]
    of_kept, of_unknown, _ = (part.flip(0) for part in _counts(kept, unknown))
    start = torch.zeros(1, dtype=torch.float64)
    return (
        torch.cat([start, of_unknown.cumsum(0).double() / len(unknown)]),
        torch.cat([start, of_kept.cumsum(0).double() / len(known)]),
    )


def oscr(known: Tensor, correct: Tensor, unknown: Tensor) -> float:
    """Area under the open-set classification rate curve, 1 at best and never above the accuracy.

    Example:
        >>> known, correct = torch.tensor([0.0, 1.0]), torch.tensor([True, False])
        >>> oscr(known, correct, torch.tensor([2.0, 3.0]))
        0.5
    """
    fpr, ccr = oscr_curve(known, correct, unknown)
    return float(torch.trapezoid(ccr, fpr))


def accept_threshold(scores: Tensor, keep: float = 0.95) -> float:
    """The smallest of the scores that, as the threshold of ``score <= threshold``, accepts the share ``keep``.

    Of the scores of rightly classified clean validation samples this is, for keep = 0.95, the 5th percentile
    of their confidence.

    Args:
        scores: Unknownness, (N,).
        keep: Share in (0, 1].

    Raises:
        ValueError: No score, a NaN, or ``keep`` out of range.

    Example:
        >>> accept_threshold(torch.arange(100.0), keep=0.95)
        94.0
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is the share of samples to accept, in (0, 1], but it is {keep}.")
    scores, _ = _checked(scores, scores)
    rank = math.ceil(keep * len(scores) - 1e-9)  # 0.07 * 100 is a little more than 7
    return float(scores.kthvalue(max(1, rank)).values)


def detection_accuracy(scores: Tensor, correct: Tensor | bool, threshold: float, *, strict: bool = False) -> float:
    """DAR: the share of samples that are treated rightly when all above a threshold is rejected.

    A known sample is treated rightly when it is accepted and classified rightly, or classified wrongly and
    rejected; an unknown one when it is rejected. Both are ``accepted == correct``, an unknown sample being
    never classified rightly.

    Args:
        scores: Unknownness of samples of one kind, (N,).
        correct: Which are classified rightly, (N,) bool; ``False`` for unknown samples.
        threshold: From :func:`accept_threshold`.
        strict: Rejecting a known sample is never right, even where it is misclassified. For unknown samples
            (``correct=False``) there is no difference.

    Source: Spratling, "A comprehensive assessment benchmark for rigorously evaluating deep learning image
    classifiers", Neural Networks 192, 2025; the threshold and the strict variant are our choices.

    Example:
        >>> scores, correct = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([True, False, True, False])
        >>> detection_accuracy(scores, correct, 1.0), detection_accuracy(scores, correct, 1.0, strict=True)
        (0.5, 0.25)
        >>> detection_accuracy(torch.tensor([0.0, 2.0]), False, 1.0)
        0.5
    """
    scores, _ = _checked(scores, scores)
    accepted = scores <= threshold
    if isinstance(correct, bool):
        return float((accepted == correct).double().mean())
    correct = correct.cpu().bool()
    return float(((accepted & correct) if strict else (accepted == correct)).double().mean())
