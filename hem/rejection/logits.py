"""Scores of logits: functions (N, C) -> (N,), higher is more unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hem.names import check_name


def _floating(logits: Tensor) -> Tensor:
    """Logits, also those of an array or lists, in float32, or in float64 where they are."""
    logits = torch.as_tensor(logits)
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
        >>> energy(torch.zeros(1, 4))
        tensor([-1.3863])
    """
    if not temperature > 0:
        raise ValueError(f"Expected a temperature of the energy above 0, got {temperature}: 1 is usual.")
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
        >>> entropy(torch.zeros(1, 8))
        tensor([2.0794])
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
"""Scores of logits by name."""


def check_score(name: str, among: Iterable[str] = LOGIT_SCORES) -> None:
    """Refuse an unknown score.

    Raises:
        ValueError: It is not ``among`` them.
    """
    check_name(name, among, "rejection score")
