"""Temperature, margin and vector scaling: logits rescaled so that probabilities fit held-out samples.

Libraries have these twenty lines as well, each at a price that a light core should not pay: torch-uncertainty fits
with L-BFGS in float32 and brings data sets of its own, netcal needs Pyro and GPyTorch, torchcp transformers and
torch_geometric, and scikit-learn's temperature is part of a classifier of numpy arrays. SciPy finds roots and minima.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hem.metrics.samples import rows

Method = Literal["temperature", "margin", "vector"]


class Temperature(nn.Module):
    """Probabilities softmax(z / T) of logits z.

    The order of a sample's classes, and so every decision, stays as it was.

    Args:
        temperature: T > 0; above 1 it makes probabilities milder, below 1 sharper.

    Raises:
        ValueError: T is not a positive number.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 9.

    Example:
        >>> Temperature(2.0)(torch.tensor([[2.0, 0.0]]))
        tensor([[0.7311, 0.2689]])
    """

    temperature: Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"Expected a temperature above 0, got {temperature}: 1 leaves probabilities as they are.")
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def scaled(self, logits: Tensor) -> Tensor:
        """Return z / T, (N, C, ...) as the logits are, in float32 or float64."""
        logits = _floating(logits)
        return logits / self.temperature.to(logits)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (C) or (N, C, ...), in their shape."""
        logits = self.scaled(logits)
        return logits.softmax(min(logits.ndim - 1, 1))

    def extra_repr(self) -> str:
        """T, as ``print`` shows it."""
        return f"{float(self.temperature):.4g}"


class MarginScaling(nn.Module):
    """Probabilities in which the margin of the largest logit over the next has a temperature of its own.

    With the logits in descending order, z_(1) >= z_(2) >= ..., the softmax is of

        z_(j) / T for j > 1,    z_(2) / T + (z_(1) - z_(2)) / S for j = 1.

    T is the temperature among the rivals, S that of the margin. A margin loss pushes that margin only as far as it
    must, and the rivals among each other not at all, so that their scales differ; with S = T this is temperature
    scaling. The order of a sample's classes, and so every decision, stays as it was.

    Args:
        temperature: T > 0.
        margin_temperature: S > 0.

    Raises:
        ValueError: T or S is not a positive number.

    Source: own; of the order-preserving families of Rahimi et al., "Intra order-preserving functions for calibration of
    multi-class neural networks", NeurIPS 2020.

    Example:
        >>> MarginScaling(1.0, 2.0)(torch.tensor([[2.0, 0.0, 0.0]])).round(decimals=4)
        tensor([[0.5761, 0.2119, 0.2119]])
    """

    temperature: Tensor
    margin_temperature: Tensor

    def __init__(self, temperature: float = 1.0, margin_temperature: float = 1.0) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("margin_temperature", margin_temperature)):
            if not 0 < value < float("inf"):
                raise ValueError(f"Expected a {name} above 0, got {value}: 1 leaves logits as they are.")
            self.register_buffer(name, torch.tensor(float(value)))

    def scaled(self, logits: Tensor) -> Tensor:
        """Return the logits with both temperatures, (N, C, ...) as they are, in float32 or float64."""
        logits = _floating(logits)
        rivals, margin = 1 / self.temperature.to(logits), 1 / self.margin_temperature.to(logits)
        return logits * rivals + _margin(logits) * (margin - rivals)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (C) or (N, C, ...), in their shape."""
        logits = self.scaled(logits)
        return logits.softmax(min(logits.ndim - 1, 1))


def _margin(logits: Tensor) -> Tensor:
    """The margin z_(1) - z_(2) where the largest logit is, else 0, in the logits' shape; 0 without a rival."""
    dim = min(logits.ndim - 1, 1)
    top = logits.topk(min(2, logits.shape[dim]), dim)
    first, last = top.values.narrow(dim, 0, 1), top.values.narrow(dim, -1, 1)
    margin = torch.where(last > -torch.inf, first - last, 0.0)
    return torch.zeros_like(logits).scatter(dim, top.indices.narrow(dim, 0, 1), margin)


class VectorScaling(nn.Module):
    """Probabilities softmax(w z + b) of logits z, with a scale and a bias for each class.

    It can put right that a network gives some classes too readily, and so it can change decisions.

    Args:
        weight: w, (C).
        bias: b, (C).

    Raises:
        ValueError: The two are no vectors of one length.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2 (vector scaling).

    Example:
        >>> VectorScaling([1.0, 0.5], [0.0, 0.0])(torch.tensor([[0.0, 2.0]]))
        tensor([[0.2689, 0.7311]])
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Sequence[float] | Tensor, bias: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32).clone())
        self.register_buffer("bias", torch.as_tensor(bias, dtype=torch.float32).clone())
        if self.weight.ndim != 1 or self.weight.shape != self.bias.shape:
            raise ValueError(
                f"Expected a weight and a bias for each class, (C) and (C), got shapes {tuple(self.weight.shape)} "
                f"and {tuple(self.bias.shape)}."
            )

    def scaled(self, logits: Tensor) -> Tensor:
        """Return w z + b, (N, C, ...) as the logits are, in float32 or float64."""
        logits = _floating(logits)
        shape = (-1, *[1] * max(logits.ndim - 2, 0))
        return logits * self.weight.to(logits).view(shape) + self.bias.to(logits).view(shape)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (C) or (N, C, ...), in their shape."""
        logits = self.scaled(logits)
        return logits.softmax(min(logits.ndim - 1, 1))


Scaling = Temperature | MarginScaling | VectorScaling


def _floating(logits: Tensor) -> Tensor:
    logits = torch.as_tensor(logits)
    return logits if logits.dtype == torch.float64 else logits.float()


def calibrate(
    logits: Tensor,
    target: Tensor,
    method: Method = "temperature",
    *,
    weight: Sequence[float] | Tensor | None = None,
    ignore_index: int = -100,
) -> Scaling:
    """Fit probabilities to held-out samples: those that make the labels likeliest.

    The samples must be others than the network was trained with, and than those that its probabilities are then judged
    by: validation samples.

    Args:
        logits: What the network gives, (N, C) or (N, C, d1, ..., dK), a tensor or an array; -inf for a class that a
            sample cannot have.
        target: Class indices, (N) or (N, d1, ..., dK).
        method: ``"temperature"``, one number T, which changes no decision; ``"margin"``, two numbers, which change none
            either and suit margin losses on hard data (see :class:`MarginScaling`); or ``"vector"``, two numbers for
            each class.
        weight: What a sample of each class counts, (C): for another prior of the classes than the samples have, its
            share of the class over the samples' share. None: 1.
        ignore_index: The label of what has none.

    Returns:
        A module from logits to probabilities, on the logits' device. Its ``scaled`` gives z / T.

    Raises:
        TypeError: The logits are no floating point numbers, or the target is no integers.
        ValueError: The shapes do not fit, nothing has a label, a logit is not finite, a weight is negative or missing,
            or the logits of the labels are no larger than the others', so that no temperature makes them probabilities.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> probabilities = calibrate(logits, torch.tensor([0, 0, 1, 1]))  # sure, and right in three cases of four
        >>> probabilities(logits)[:, 0]
        tensor([0.7500, 0.7500, 0.7500, 0.2500])
    """
    if method not in get_args(Method):
        raise ValueError(f"Expected method as one of {', '.join(get_args(Method))}, got {method!r}.")
    logits, target = torch.as_tensor(logits), torch.as_tensor(target)
    with torch.inference_mode(False), torch.no_grad():  # modules made of inference tensors could not be changed
        found = _fitted(logits, target, method, weight, ignore_index)
    return found.to(logits.device)


def _fitted(
    logits: Tensor, target: Tensor, method: Method, weight: Sequence[float] | Tensor | None, ignore_index: int
) -> Scaling:
    z, y = (each.cpu().clone() for each in rows(logits, target, ignore_index))
    z = z.double()
    if not len(z):
        raise ValueError("Expected labelled samples to calibrate with, got none: hand in validation samples.")
    wrong = (z == torch.inf).any(1) | z.gather(1, y[:, None]).isinf().squeeze(1)
    if method == "vector":
        wrong |= z.isinf().any(1)
    if wrong.any():
        raise ValueError(
            f"Expected finite logits, got infinite ones in {int(wrong.sum())} samples: -inf is for classes that a "
            "sample cannot have, and not for vector scaling."
        )
    share = _shares(weight, y, z.shape[1])
    beta = _inverse_temperature(z, y, share)
    if method == "temperature":
        return Temperature(1 / beta)
    return (_margins if method == "margin" else _vector)(z, y, share, beta)


def _shares(weight: Sequence[float] | Tensor | None, target: Tensor, classes: int) -> Tensor:
    """The weight of each sample, with the sum 1."""
    if weight is None:
        return torch.full((len(target),), 1 / len(target), dtype=torch.float64)
    of_class = torch.as_tensor(weight, dtype=torch.float64).cpu()
    if of_class.shape != (classes,) or not (of_class >= 0).all() or not of_class.isfinite().all():
        raise ValueError(
            f"Expected a weight of 0 or more for each of {classes} classes, got shape {tuple(of_class.shape)}"
            f"{f', the least of them {of_class.min():g}' if of_class.numel() else ''}."
        )
    each = of_class[target]
    if not each.sum() > 0:
        raise ValueError("Expected weights that leave some sample, got 0 for the class of each.")
    return each / each.sum()


def _inverse_temperature(logits: Tensor, target: Tensor, share: Tensor) -> float:
    """The root of the derivative of the negative log-likelihood by beta = 1 / T.

    L(beta) = sum_i s_i (log sum_j exp(beta z_ij) - beta z_iy) is convex, and with p = softmax(beta z_i)

        L'(beta) = sum_i s_i (sum_j p_j z_ij - z_iy)

    rises from sum_i s_i (mean_j z_ij - z_iy) at 0 to sum_i s_i (max_j z_ij - z_iy). Where it begins at 0 or above, no
    beta > 0 is better than 0. Where it ends at 0, every sample is classified rightly, and no beta is large enough: then
    one sample more of the N is taken for an error, the targets being (N + 1) / (N + 2) for the label and the rest of 1
    for all others alike.

    Source: Guo et al., ICML 2017, section 4.2; targets: Platt, "Probabilistic outputs for support vector machines",
    1999, section 2.2.
    """
    from scipy.optimize import brentq  # deferred: the losses need torch alone

    own = logits.gather(1, target[:, None])
    possible = logits > -torch.inf
    # from the label's logit, which shifts nothing and keeps all digits; what cannot be adds nothing
    descents = torch.where(possible, logits - own, 0.0)
    others = possible.sum(1) - 1
    if not (share * descents.sum(1) / (others + 1)).sum() < 0:
        raise ValueError(
            "Expected logits that are larger for the label than for the other classes on average, got none such: no "
            "temperature makes them probabilities. Is the target that of these logits, and the network trained?"
        )
    aim = torch.zeros(len(logits), dtype=torch.float64)  # what the expectation of z - z_y should be
    if not (descents[share > 0] > 0).any():
        aim = descents.sum(1) / others.clamp(min=1) / (len(logits) + 2)

    def slope(log_beta: float) -> float:
        scaled = torch.where(possible, np.exp(log_beta) * descents, -torch.inf)
        expected = (descents * scaled.softmax(1)).sum(1)
        return float((share * (expected - aim)).sum())

    # from where a typical difference of logits is 1, factors of 4 to either side; L' changes its sign within them
    low = high = -float(np.log(float(descents.abs().mean())))
    while slope(low) >= 0:
        low -= 1.4
    while slope(high) < 0:
        high += 1.4
    return float(np.exp(brentq(slope, low, high, xtol=1e-12)))


def _vector(logits: Tensor, target: Tensor, share: Tensor, beta: float) -> VectorScaling:
    """Softmax(w z + b), from w = 1 / T and b = 0."""
    classes = logits.shape[1]
    start = torch.cat([torch.ones(classes), torch.zeros(classes)]).double()
    best = _likeliest(lambda free: logits * (beta * free[:classes]) + free[classes:], start, target, share)
    return VectorScaling(beta * best[:classes], best[classes:] - best[classes:].mean())


def _margins(logits: Tensor, target: Tensor, share: Tensor, beta: float) -> MarginScaling:
    """Both temperatures, from the one that suits both."""
    possible, margin = logits > -torch.inf, _margin(logits)
    finite = torch.where(possible, logits - logits.amax(1, keepdim=True), 0.0)

    def scaled(free: Tensor) -> Tensor:
        found = beta * (finite * free[0] + margin * (free[1] - free[0]))
        return torch.where(possible, found, -torch.inf)

    start = torch.ones(2, dtype=torch.float64)
    best = 1 / (beta * _likeliest(scaled, start, target, share, [(1e-3, None)] * 2))
    return MarginScaling(float(best[0]), float(best[1]))


def _likeliest(
    scaled: Callable[[Tensor], Tensor],
    start: Tensor,
    target: Tensor,
    share: Tensor,
    bounds: Sequence[tuple[float, None]] | None = None,
) -> Tensor:
    """Minimise the negative log-likelihood of softmax(scaled(free)), which is convex where ``scaled`` is linear.

    A class that all samples are right about, or that has none, asks for infinite numbers; so the N samples stand
    against a prior that is worth one of them: |free - start|^2 / (2 N).
    """
    from scipy.optimize import minimize

    def objective(values: np.ndarray) -> tuple[float, Any]:
        free = torch.from_numpy(values).clone().requires_grad_()
        losses = F.cross_entropy(scaled(free), target, reduction="none")
        loss = (share * losses).sum() + (free - start).square().sum() / (2 * len(target))
        loss.backward()  # type: ignore[no-untyped-call]
        assert free.grad is not None
        return loss.item(), free.grad.numpy()

    options = {"maxiter": 1000, "ftol": 1e-12}
    with torch.enable_grad():
        found = minimize(objective, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return torch.from_numpy(found.x)
