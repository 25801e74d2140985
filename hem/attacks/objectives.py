"""Objectives that attacks maximise: functions of logits (N, K) and target (N,), one value per sample."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hem.attacks.base import Model, attacking
from hem.names import check_name

Objective = Callable[[Tensor, Tensor], Tensor]  # logits (N, K) and target (N,) to (N,)


def ce(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, log Σ_j exp(z_j) - z_y.

    Args:
        logits: z, shape (N, K).
        target: y, class indices, shape (N,).

    Returns:
        Shape (N,).

    Example:
        >>> ce(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """
    return F.cross_entropy(logits, target, reduction="none")


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Logit margin, max_{j != y} z_j - z_y: positive where the classification is wrong.

    Args:
        logits: z, shape (N, K).
        target: y, class indices, shape (N,).

    Returns:
        Shape (N,).

    Source: Carlini & Wagner 2017, "Towards evaluating the robustness of neural networks", f_6 without its floor.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 4.0]]), torch.tensor([0, 1]))
        tensor([-1.,  3.])
    """
    own = logits.gather(1, target[:, None])
    rival = logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True)
    return (rival - own).squeeze(1)


def dlr(logits: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio: (max_{j != y} z_j - z_y) / (z_π1 - z_π3), π the order of falling logits.

    Neither a shift nor a (positive) scale of the logits changes it.

    Args:
        logits: z, shape (N, K), K >= 4.
        target: y, class indices, shape (N,).

    Returns:
        Shape (N,).

    Raises:
        ValueError: Below four classes, for which neither the ratio (two) nor its targeted form (three) exists.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", equation 6.

    Example:
        >>> dlr(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    if logits.shape[1] < 4:
        raise ValueError(
            f"DLR compares the first with the third and fourth logit and needs 4 classes, got {logits.shape[1]}: "
            "use the objective 'margin'."
        )
    top = logits.topk(3, 1).values
    return margin(logits, target) / (top[:, 0] - top[:, 2] + 1e-12)


def mifpe(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of logits whose two largest are a set gap apart: CE(T z / (z_π1 - z_π2), y).

    The factor counts as a constant. It minimises the impact of floating-point errors: softmax neither
    saturates nor flattens, whatever the scale of the logits.

    Args:
        logits: z, shape (N, K).
        target: y, class indices, shape (N,).
        temperature: T, the gap.

    Returns:
        Shape (N,).

    Source: Yu & Xu 2023, "Efficient loss function by minimizing the detrimental effect of floating-point
    errors on gradient-based attacks". (In their public code the factor is never applied.)

    Example:
        >>> small = mifpe(torch.tensor([[0.02, 0.01, 0.0]]), torch.tensor([0]))
        >>> torch.allclose(small, mifpe(torch.tensor([[200.0, 100.0, 0.0]]), torch.tensor([0])))
        True
    """
    first, second = logits.detach().topk(2, 1).values.unbind(1)
    return ce(logits * (temperature / (first - second).clamp_min(1e-12))[:, None], target)


OBJECTIVES: dict[str, Objective] = {"ce": ce, "margin": margin, "dlr": dlr, "mifpe": mifpe}
"""Objectives by name."""


def loss_objective(criterion: nn.Module) -> Objective:
    """Return a criterion as an objective: the loss of each sample, by its ``reduction="none"``.

    A criterion that is no mean over samples (Dice) gives its value for the batch, the same for every sample.

    Args:
        criterion: Any of :data:`hem.losses.LOSSES`, or another one called as ``criterion(logits, target)``.

    Example:
        >>> from hem.losses import HEMLoss
        >>> loss_objective(HEMLoss(margin=0.5))(torch.tensor([[2.0, 0.0], [0.1, 0.0]]), torch.tensor([0, 0]))
        tensor([0.0000, 0.4000])
    """
    alike = copy.copy(criterion)
    of_samples = getattr(criterion, "of_samples", True)
    if hasattr(criterion, "reduction") and of_samples:
        alike.reduction = "none"  # type: ignore[assignment]

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = alike(logits, target)
        if losses.shape == logits.shape[:1] and of_samples:
            return losses
        value: Tensor = criterion(logits, target)
        return value.expand(len(logits)) / len(logits)

    return objective


def plain_ce(loss: nn.Module) -> bool:
    """Return whether a loss is the cross-entropy of each sample, which the objective ``ce`` is as well."""
    return type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.label_smoothing == 0


def objective_of(objective: str | Objective | nn.Module) -> Objective:
    """Return the function that an objective's name, or a criterion, stands for.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(objective, nn.Module):
        return loss_objective(objective)
    if isinstance(objective, str):
        check_name(objective, OBJECTIVES, "objective")
        return OBJECTIVES[objective]
    return objective


def zero_gradients(model: Model, input: Tensor, target: Tensor, objective: str | Objective | nn.Module) -> Tensor:
    """Return whether the gradient of an objective is exactly 0 at each image, where attacks cannot move.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K).
        input: Images, shape (N, C, H, W).
        target: Class indices (N,).
        objective: As :func:`pgd` takes it.

    Returns:
        Shape (N,), bool.
    """
    with attacking(model):
        x = input.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective_of(objective)(model(x), target.clone()).sum(), x)
        return (gradient == 0).flatten(1).all(1)
