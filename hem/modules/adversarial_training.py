"""Adversarial training: PGD training and TRADES."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hem.attacks import OBJECTIVES, Norm, attacking, check_eps, pgd, project
from hem.modules.base import Task
from hem.names import check_name
from hem.rng import normal


class AdversarialTraining(ABC):
    """Base class of adversarial training: gives the attacked batch of a step.

    Args:
        eps: Radius of the attack, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Steps of the attack.
        step_size: Of each step; None: 2.5 eps / steps.

    Raises:
        ValueError: For an eps or number of steps out of its range.
    """

    def __init__(self, eps: float, norm: Norm = "linf", steps: int = 10, step_size: float | None = None) -> None:
        check_eps(eps, norm)
        if steps < 1:
            raise ValueError(f"Expected at least 1 step of attack in training, got {steps}: give 7 or 10.")
        self.eps = eps
        self.norm: Norm = norm
        self.steps = steps
        self.step_size = step_size

    def climb(self, task: Task, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the batch attacked by :func:`hem.attacks.pgd` with this radius, norm and steps."""
        shape: dict[str, Any] = {"norm": self.norm, "steps": self.steps, "step_size": self.step_size}
        return pgd(task.net, input, target, self.eps, **shape, early_stop=False, **options)

    @abstractmethod
    def perturb(self, task: Task, input: Tensor, target: Tensor, keys: Tensor) -> Tensor:
        """Return the attacked batch that a step trains on.

        Args:
            task: Whose network is attacked.
            input: Images in [0, 1], shape (N, C, H, W).
            target: As the task's data gives it.
            keys: A number of each image, from which its random start is drawn, shape (N,).
        """


class PGDTraining(AdversarialTraining):
    """Adversarial training: the loss of the attacked batch, min_θ E max_{||δ|| <= eps} L(f(x + δ), y).

    The inner maximum is climbed on the training loss, or on an objective that does not vanish where a margin
    is met (see :mod:`hem.attacks`).

    Args:
        eps: Radius of the attack, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Steps of the attack.
        step_size: Of each step; None: 2.5 eps / steps.
        objective: What the attack climbs: ``"loss"``, the training loss, or one of :data:`hem.attacks.OBJECTIVES`.

    Raises:
        ValueError: For an eps, number of steps or objective out of its range.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"; recipe: Rice et
    al. 2020, "Overfitting in adversarially robust deep learning".
    """

    def __init__(
        self,
        eps: float,
        norm: Norm = "linf",
        steps: int = 10,
        step_size: float | None = None,
        objective: str = "loss",
    ) -> None:
        super().__init__(eps, norm, steps, step_size)
        check_name(objective, ("loss", *OBJECTIVES), "objective of adversarial training")
        self.objective = objective

    def perturb(self, task: Task, input: Tensor, target: Tensor, keys: Tensor) -> Tensor:
        """Return the batch attacked by PGD.

        Raises:
            ValueError: If the objective asks for one class of each image, and MixUp or CutMix gives probabilities.
        """
        if target.ndim > 1 and self.objective in ("margin", "dlr"):
            raise ValueError(
                f"Expected class indices for an attack on the objective {self.objective}, got class probabilities: "
                "leave MixUp and CutMix out, or take the objective loss or ce."
            )
        objective = task.loss if self.objective == "loss" else self.objective
        return self.climb(task, input, target, objective=objective, seed=keys)


class TRADES(AdversarialTraining):
    """TRADES: the clean loss plus the KL divergence between clean and attacked predictions.

        min_θ E [ L(f(x), y) + β max_{||δ|| <= eps} KL(softmax f(x) || softmax f(x + δ)) ].

    Args:
        eps: Radius of the attack, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Steps of the attack.
        step_size: Of each step; None: 2.5 eps / steps.
        beta: β.

    Raises:
        ValueError: For an eps, number of steps or beta out of its range.

    Source: Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", equation 5.
    """

    def __init__(
        self,
        eps: float,
        norm: Norm = "linf",
        steps: int = 10,
        step_size: float | None = None,
        beta: float = 6.0,
    ) -> None:
        super().__init__(eps, norm, steps, step_size)
        if beta < 0:
            raise ValueError(f"Expected TRADES' beta to be at least 0, got {beta}: the paper takes 1 to 6.")
        self.beta = beta

    def perturb(self, task: Task, input: Tensor, target: Tensor, keys: Tensor) -> Tensor:
        """Return the batch that PGD moves furthest in KL, started from x + 0.001 n (the gradient at x is 0)."""
        noise = normal(keys, input[0].numel()).to(input).view_as(input)
        with attacking(task.net), torch.no_grad():
            clean = task(input)
        start = project(input + 0.001 * noise, input, self.eps, self.norm)
        return self.climb(task, input, clean, objective=divergence, start=start)


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """Return KL(softmax(clean) || softmax(logits)) of each sample.

    Args:
        logits: Shape (N, K).
        clean: Logits too, shape (N, K).

    Returns:
        Shape (N,).

    Example:
        >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]))
        tensor([0.6931])
    """
    pair = logits.float().log_softmax(1), clean.float().log_softmax(1)
    return F.kl_div(*pair, reduction="none", log_target=True).sum(1)
