"""The losses once more, from their papers: one sample at a time, in plain Python, in double precision.

Nothing here knows tensors. Gradients of the margin losses are written out; the others are analytic functions
and are differentiated by the complex step, f'(x) = Im f(x + ih) / h, which has no rounding error of a difference.
"""

from __future__ import annotations

import cmath
import inspect
import math
from dataclasses import dataclass
from typing import Any

from hem.losses import LOSSES

STEP = 1e-30
MARGIN_LOSSES = ("hem", "hem_plus", "multi_margin")
Vector = list[float]


@dataclass(frozen=True)
class Traits:
    """What sets a loss apart from the others.

    per_sample: one loss for each sample, so that ``none`` has the target's shape; else one for each class.
    mean_over: what ``mean`` divides by: the weights of the labelled samples, those of the samples that still
        carry error, the number of labelled samples, or the classes' weights.
    shift: adding a number to all logits of a sample changes nothing.
    scale: multiplying all logits by a number > 0 changes nothing.
    zero: the loss reaches 0 exactly, with no gradient, once a sample is far on the right side.
    soft_weights: one-hot probabilities equal labels in the weighted mean, too.
    """

    per_sample: bool = True
    mean_over: str = "weight"
    shift: bool = True
    scale: bool = False
    zero: bool = False
    soft_weights: bool = True


TRAITS = {
    "ce": Traits(soft_weights=False),
    "hem": Traits(mean_over="weight with error", zero=True),
    "hem_plus": Traits(mean_over="weight with error", zero=True),
    "multi_margin": Traits(mean_over="samples", zero=True),
    "logit_norm": Traits(shift=False, scale=True),
    "logit_adjusted": Traits(),
    "dice": Traits(per_sample=False, mean_over="classes"),
    "focal": Traits(),
    "ldam": Traits(),
    "class_balanced": Traits(),
    "balanced_softmax": Traits(),
    "one_vs_rest": Traits(shift=False),
}


def own_arguments(name: str, num_classes: int) -> dict[str, Any]:
    """What a loss of LOSSES cannot be built without."""
    needs_counts = "class_counts" in inspect.signature(LOSSES[name]).parameters and name != "hem"
    return {"class_counts": [round(500 * 0.4**i) + 1 for i in range(num_classes)]} if needs_counts else {}


def log_softmax(z: list[complex]) -> list[complex]:
    top = max(x.real for x in z)
    log_sum = top + cmath.log(sum(cmath.exp(x - top) for x in z))
    return [x - log_sum for x in z]


def cost(name: str, z: list[complex], y: int, own: dict[str, Any]) -> complex:
    """The smooth losses of one sample with label y, without class weight."""
    counts = own.get("class_counts", [])
    if name == "logit_norm":
        length = cmath.sqrt(sum(x * x for x in z)) + 1e-7
        z = [x / length / own.get("tau", 0.04) for x in z]
    elif name == "logit_adjusted":
        z = [x + own.get("tau", 1.0) * math.log(n / sum(counts)) for x, n in zip(z, counts, strict=True)]
    elif name == "balanced_softmax":
        z = [x + math.log(n) for x, n in zip(z, counts, strict=True)]
    elif name == "ldam":
        largest = max(n**-0.25 for n in counts)
        margin = own.get("max_m", 0.5) * counts[y] ** -0.25 / largest
        z = [own.get("s", 30.0) * (x - margin if j == y else x) for j, x in enumerate(z)]
    elif name == "one_vs_rest":
        return sum(cmath.log(1 + cmath.exp(-x if j == y else x)) for j, x in enumerate(z))
    log_p = log_softmax(z)[y]
    if name == "focal":
        return -((1 - cmath.exp(log_p)) ** own.get("gamma", 2.0)) * log_p
    return -log_p


def margin_cost(name: str, z: Vector, y: int, own: dict[str, Any]) -> tuple[float, Vector]:
    """The margin losses of one sample, and their gradient as the papers' case distinctions give it."""
    n = len(z)
    if name == "hem_plus":
        margins = [math.sqrt(own.get("m", 2000.0) / (n * s)) for s in own["class_counts"]]
        mu = margins if own.get("competitor", False) else [margins[y]] * n
    else:
        mu = [own.get("margin", 0.5 if name == "hem" else 1.0)] * n
    error = [max(0.0, z[j] - z[y] + mu[j]) if j != y else 0.0 for j in range(n)]
    slope = [0.0] * n
    if name == "multi_margin":
        p = own.get("p", 1)
        loss = sum(e**p for e in error) / n
        for j in range(n):
            if error[j] > 0:
                slope[j] = p * error[j] ** (p - 1) / n
    else:
        threshold = sum(error) / n
        kept = [j for j in range(n) if error[j] >= threshold and error[j] > 0]
        loss = sum(error[j] for j in kept) / len(kept) if kept else 0.0
        for j in kept:
            slope[j] = 1 / len(kept)
    slope[y] = -sum(slope)
    return loss, slope


def cost_and_slope(name: str, z: Vector, y: int, own: dict[str, Any]) -> tuple[float, Vector]:
    if name in MARGIN_LOSSES:
        return margin_cost(name, z, y, own)
    slope = []
    for j in range(len(z)):
        bent: list[complex] = [complex(x, STEP if i == j else 0.0) for i, x in enumerate(z)]
        slope.append(cost(name, bent, y, own).imag / STEP)
    return cost(name, [complex(x) for x in z], y, own).real, slope


def class_weight(name: str, num_classes: int, weight: Vector | None, own: dict[str, Any]) -> Vector:
    weight = [1.0] * num_classes if weight is None else weight
    if name == "class_balanced":
        beta = own.get("beta", 0.9999)
        raw = [(1 - beta) / (1 - beta**n) for n in own["class_counts"]]
        weight = [w * r * num_classes / sum(raw) for w, r in zip(weight, raw, strict=True)]
    return weight


def loss_and_gradient(
    name: str,
    logits: list[Vector],
    targets: list[Any],
    weight: Vector | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    **own: Any,
) -> tuple[Any, list[Vector]]:
    """A loss of LOSSES on (N, C) and the gradient of its sum or mean; targets are labels or rows of q."""
    num_classes = len(logits[0]) if logits else 0
    soft = any(isinstance(t, list) for t in targets)
    rows = targets if soft else [[float(c == t and t != ignore_index) for c in range(num_classes)] for t in targets]
    if name == "dice":
        return dice_and_gradient(logits, rows, weight, reduction)
    w = class_weight(name, num_classes, weight, own)
    losses, slopes, mass = [], [], 0.0
    for z, q in zip(logits, rows, strict=True):
        loss, slope = 0.0, [0.0] * num_classes
        for c in range(num_classes):
            if q[c] > 0:
                value, gradient = cost_and_slope(name, z, c, own)
                loss += q[c] * w[c] * value
                slope = [s + q[c] * w[c] * g for s, g in zip(slope, gradient, strict=True)]
        losses.append(loss)
        slopes.append(slope)
        if name == "multi_margin" or (name == "ce" and soft):  # torch's mean over probabilities
            mass += any(x > 0 for x in q)
        elif name not in ("hem", "hem_plus") or loss > 0:
            mass += sum(x * v for x, v in zip(q, w, strict=True))
    if reduction == "none":
        return losses, slopes
    scale = 1.0 if reduction == "sum" else (1 / mass if mass else 0.0)
    return scale * sum(losses), [[scale * s for s in slope] for slope in slopes]


def dice(logits: list[list[complex]], rows: list[Vector], weight: Vector | None) -> list[complex]:
    num_classes = len(logits[0])
    p = [[cmath.exp(x) for x in log_softmax(z)] for z in logits]
    w = [1.0] * num_classes if weight is None else weight
    losses: list[complex] = []
    for c in range(num_classes):
        labelled = [n for n, q in enumerate(rows) if any(x > 0 for x in q)]
        present = sum(rows[n][c] for n in labelled)
        both = sum(p[n][c] * rows[n][c] for n in labelled)
        losses.append(w[c] * (1 - 2 * both / (present + sum(p[n][c] for n in labelled))) if present > 0 else 0j)
    return losses


def dice_and_gradient(
    logits: list[Vector], rows: list[Vector], weight: Vector | None, reduction: str
) -> tuple[Any, list[Vector]]:
    divisor = 1.0 if reduction != "mean" else sum(weight or [1.0] * len(logits[0]))
    losses = [x.real for x in dice([[complex(x) for x in z] for z in logits], rows, weight)]
    slopes = []
    for n in range(len(logits)):
        slopes.append([])
        for j in range(len(logits[0])):
            bent = [
                [complex(x, STEP if (m, i) == (n, j) else 0) for i, x in enumerate(z)] for m, z in enumerate(logits)
            ]
            slopes[n].append(sum(dice(bent, rows, weight), 0j).imag / STEP / divisor)
    return (losses if reduction == "none" else sum(losses) / divisor), slopes
