"""Projected gradient descent (PGD), and FGSM, its single step from the clean image."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hem.attacks.ball import Norm, ascent, check_images, project, random_start
from hem.attacks.base import Attack, Budget, Model, attacking
from hem.attacks.objectives import OBJECTIVES, Objective, mifpe, objective_of, plain_ce
from hem.names import check_name
from hem.rng import key

Schedule = Literal["constant", "linear"]


def check_counts(steps: int, restarts: int) -> None:
    """Refuse fewer than one step or restart.

    Raises:
        ValueError: If one of them is below 1.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"Expected at least 1 step and 1 restart, got {steps} and {restarts}: raise them.")


def pgd(
    model: Model,
    input: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    objective: str | Objective | nn.Module = "margin",
    schedule: Schedule | None = None,
    momentum: float | None = None,
    start: Tensor | None = None,
    early_stop: bool = True,
    seed: int | Tensor = 0,
) -> Tensor:
    """Projected gradient descent: climb an objective within eps of each image.

    From a random point of the ball, for k = 0 ... steps - 1:

        z_{k+1} = Π(x_k + η_k d_k),    d_k = sign(g_k) or g_k / ||g_k||_2,
        x_{k+1} = Π(x_k + α (z_{k+1} - x_k) + (1 - α) (x_k - x_{k-1})),

    with g_k the gradient of the objective, Π the projection onto ball and box, η_k = η or η (1 - k / steps),
    and α = 1 in the first step. A sample that is misclassified at any x_k is broken: it stays as it is, and
    the further steps and restarts attack the others. One whose gradient is exactly 0 at its random point (a margin
    loss that is met there) would stay there: it waits for the next restart.

    The random points of an image are a function of its key alone, so with a ``seed`` of one number per image
    they are the same however images are put into batches and on devices; no global generator is read. The
    network is put into evaluation mode for the time; no parameter gets a gradient.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K).
        input: Clean images, shape (N, C, H, W), in [0, 1].
        target: Class indices (N,); without ``early_stop`` whatever the objective takes.
        eps: Radius, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Number of steps per restart.
        step_size: η; by default 2.5 eps / steps (constant) or 2 eps (linear).
        restarts: How often to begin anew.
        objective: A name of :data:`OBJECTIVES`, a function, or a criterion: its loss per sample.
        schedule: ``"constant"`` or ``"linear"``; by default as the objective's paper has it: linear for MIFPE.
        momentum: α in (0, 1]; by default 0.75 for MIFPE, else 1 (none).
        start: Where to begin instead of at random, same shape as ``input``.
        early_stop: Leave broken samples alone. Without it all samples take all steps, and only the last
            point counts: for training.
        seed: Of the random starts: an integer, or int64 numbers (N,), one for each image.

    Returns:
        Images of the same shape: a misclassified one for each broken sample, else the last x of the last
        restart.

    Raises:
        TypeError: For images that are not of single or double precision.
        ValueError: For pixels outside [0, 1], or an eps, norm, objective or count out of its range.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"; momentum:
    Croce & Hein 2020, equation 3; linear schedule: Yu & Xu 2023.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> pgd(lambda x: x.flatten(1) @ weight, torch.tensor([[0.6, 0.5]]), torch.tensor([0]), 0.04)
        tensor([[0.5600, 0.5400]])
    """
    check_images(input, eps, norm)
    check_counts(steps, restarts)
    function = objective_of(objective)
    if schedule is None:
        schedule = "linear" if function is mifpe else "constant"
    if momentum is None:
        momentum = 0.75 if function is mifpe else 1.0
    if step_size is None:
        step_size = 2 * eps if schedule == "linear" else 2.5 * eps / steps
    keys = seed if isinstance(seed, Tensor) else key(seed, torch.arange(len(input)))
    keys = keys.to(input.device)
    with attacking(model):
        input, target = input.detach().clone(), target.clone()  # a tensor made in inference mode takes no gradient
        adversarial = input.clone()
        todo = torch.arange(len(input), device=input.device)
        if early_stop and len(input):
            with torch.no_grad():
                todo = todo[model(input).argmax(1) == target]
        for restart in range(restarts):
            if not len(todo):
                break
            at, clean, y = todo, input[todo], target[todo]
            x = random_start(clean, eps, norm, key(keys[todo], restart)) if start is None else start[todo]
            before, flat = x, todo[:0]
            for step in range(steps):
                x = x.detach().requires_grad_()
                logits = model(x)
                (gradient,) = torch.autograd.grad(function(logits, y).sum(), x)
                x = x.detach()
                if early_stop:
                    held = logits.detach().argmax(1) == y
                    adversarial[at[~held]] = x[~held]
                    if step == 0:  # where the objective is flat at the start, no step leads away from it
                        still = held & (gradient == 0).flatten(1).all(1)
                        flat, adversarial[at[still]] = at[still], x[still]
                        held = held & ~still
                    at, clean, y, x, before, gradient = (each[held] for each in (at, clean, y, x, before, gradient))
                    if not len(at):
                        break
                eta = step_size * (1 - step / steps if schedule == "linear" else 1)
                after = project(x + eta * ascent(gradient, norm), clean, eps, norm)
                if step and momentum < 1:
                    after = project(x + momentum * (after - x) + (1 - momentum) * (x - before), clean, eps, norm)
                before, x = x, after
            adversarial[at] = x
            if early_stop and len(at):
                with torch.no_grad():
                    at = at[model(x).argmax(1) == y]
            todo = torch.cat([at, flat])
        return adversarial


class PGD(Attack):
    """Projected gradient descent with linearly falling steps and momentum, see :func:`pgd`.

    Steps that fall, with momentum, are MIFPE's: at 40 steps they break more images with each objective than steps of
    constant size do, and the metrics of several PGD then differ by the objective alone.

    Args:
        objective: ``"loss"``, the loss that the network was trained with, a name of :data:`OBJECTIVES`, or a criterion.
        steps: Steps per restart; None: the evaluation's, else 40.
        restarts: How often to begin anew; None: the evaluation's, else 1.
        step_size: Of the first step, in pixel units of [0, 1]; None: by eps.
        schedule: ``"constant"`` or ``"linear"``.
        momentum: In (0, 1]; 1 is none.
        early_stop: Leave broken images alone; otherwise all take all steps, to carry over to other networks.
        name: What its metrics are called; None: ``pgd_<objective>``.

    Raises:
        ValueError: If there is no such objective, or fewer than one step or restart.
    """

    def __init__(
        self,
        objective: str | nn.Module = "margin",
        steps: int | None = None,
        restarts: int | None = None,
        step_size: float | None = None,
        schedule: Schedule = "linear",
        momentum: float = 0.75,
        early_stop: bool = True,
        name: str | None = None,
    ) -> None:
        if isinstance(objective, str):
            check_name(objective, (*OBJECTIVES, "loss"), "objective")
        check_counts(1 if steps is None else steps, 1 if restarts is None else restarts)
        self.options: dict[str, Any] = {
            "objective": objective,
            "steps": steps,
            "restarts": restarts,
            "step_size": step_size,
            "schedule": schedule,
            "momentum": momentum,
            "early_stop": early_stop,
        }
        self.name = name or f"pgd_{objective if isinstance(objective, str) else type(objective).__name__}"
        self.min_classes = 4 if objective == "dlr" else 2

    def __eq__(self, other: object) -> bool:
        """Whether it is the same attack, whatever it is called; one of a class of one's own is another one."""
        return type(other) is type(self) and self.options == other.options

    __hash__ = object.__hash__

    def __call__(self, net: Model, input: Tensor, target: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
        """Return the images of :func:`pgd`."""
        if self.options["objective"] == "loss":
            raise ValueError(
                "Expected an attack on the training loss to be told it, got none: give the criterion as the objective, "
                "or attack.bound(loss, Budget())."
            )
        return pgd(net, input, target, eps, norm=norm, seed=keys, **self._within(Budget()))

    def bound(self, loss: nn.Module, budget: Budget) -> Attack:
        """Return the attack bound to the loss where that is its objective, and to the budget where it has none."""
        bound = copy.copy(self)
        bound.options = self._within(budget)
        if self.options["objective"] == "loss":
            bound.options["objective"] = "ce" if plain_ce(loss) else loss
        return bound

    def _within(self, budget: Budget) -> dict[str, Any]:
        own = self.options
        return own | {"steps": own["steps"] or budget.steps, "restarts": own["restarts"] or budget.restarts}


class FGSM(Attack):
    """Fast gradient sign method: one step of length eps from the clean image (L2: along the gradient).

    Args:
        objective: A name of :data:`OBJECTIVES`.
        name: What its metrics are called; None: ``fgsm``.

    Raises:
        ValueError: If there is no such objective.

    Source: Goodfellow et al. 2015, "Explaining and harnessing adversarial examples".
    """

    def __init__(self, objective: str = "ce", name: str | None = None) -> None:
        check_name(objective, OBJECTIVES, "objective")
        self.objective, self.name = objective, name
        self.min_classes = 4 if objective == "dlr" else 2

    def __call__(self, net: Model, input: Tensor, target: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
        """Return :func:`pgd` of one step, from the images themselves."""
        return pgd(net, input, target, eps, norm=norm, steps=1, step_size=eps, objective=self.objective, start=input)
