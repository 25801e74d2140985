"""Robust accuracy: every attack at every eps, on the images of one device, and the curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hem.attacks import OBJECTIVES, Norm, attacking, autoattack, pgd

if TYPE_CHECKING:
    from hem.modules.adversarial import AdversarialTask

ATTACKS = (*(f"pgd_{name}" for name in OBJECTIVES), "pgd_loss", "autoattack")
# of every PGD of the evaluation, so that its figures differ by the objective alone: MIFPE's, which at 40 steps breaks
# more images with each objective than steps of constant size do
SCHEDULE: dict[str, Any] = {"schedule": "linear", "momentum": 0.75}


class Row(NamedTuple):
    """One figure of the curve."""

    norm: str
    eps: float
    attack: str
    images: int
    robust_accuracy: float


class Evaluation:
    """The attacks of one test on the images of one device.

    Args:
        task: Whose network is attacked, by whose arguments.
        input: Clean images on the CPU, in the order of the draw, shape (N, C, H, W).
        target: Class indices, shape (N,).
        keys: A number of each image, from which its random starts are drawn, shape (N,).
        pgd_images: How many of them PGD gets.
        few_images: How many of them AutoAttack and the checks get.
    """

    def __init__(
        self, task: AdversarialTask, input: Tensor, target: Tensor, keys: Tensor, pgd_images: int, few_images: int
    ) -> None:
        self.task = task
        self.input = input
        self.target = target
        self.keys = keys
        self.pgd_images = pgd_images
        self.few_images = few_images
        sizes = {few_images if attack == "autoattack" else pgd_images for attack in task.attacks}
        self.common_images = min(sizes, default=pgd_images)  # those that every attack is given
        self.clean = self.after(lambda x, y, keys: x, len(input))
        # whether each image holds: by norm, eps and attack
        self.held: dict[tuple[Norm, float], dict[str, Tensor]] = {}
        self.black_box: dict[tuple[Norm, float], Tensor] = {}  # what AutoAttack's Square alone broke
        self.notes: list[str] = []

    def batches(self, todo: Tensor) -> Iterator[Tensor]:
        """Cut positions into those that are attacked at once."""
        for start in range(0, len(todo), self.task.attack_batch_size):
            yield todo[start : start + self.task.attack_batch_size]

    def after(
        self,
        attack: Callable[[Tensor, Tensor, Tensor], Tensor],
        images: int,
        among: Tensor | None = None,
    ) -> Tensor:
        """Return which of the first images are classified correctly after an attack, shape (images,).

        Args:
            attack: Takes images, targets and their keys; returns images.
            images: How many of this device's.
            among: Those worth attacking, shape (images,); the others count as broken.
        """
        task = self.task
        held = torch.zeros(images, dtype=torch.bool)
        todo = torch.arange(images) if among is None else among[:images].nonzero()[:, 0]
        for at in self.batches(todo):
            x, y = self.input[at].to(task.device), self.target[at].to(task.device)
            attacked = attack(x, y, self.keys[at])
            with attacking(task.net), torch.no_grad():
                held[at] = (task(attacked).argmax(1) == y).cpu()
        return held

    def pgd(
        self, norm: Norm, eps: float, images: int, among: Tensor | None = None, model: Any = None, **options: Any
    ) -> Tensor:
        """Return which of the first images :func:`hem.attacks.pgd` leaves correct, shape (images,).

        Args:
            norm: ``"linf"`` or ``"l2"``.
            eps: Radius, in pixel units of [0, 1].
            images: How many of this device's.
            among: As of :meth:`after`.
            model: What is attacked; None: the task's network.
            **options: What differs from the settings of the curve.
        """
        settings: dict[str, Any] = {**SCHEDULE, "steps": self.task.steps, "restarts": self.task.restarts, **options}
        model = model or self.task.net

        def attack(x: Tensor, y: Tensor, keys: Tensor) -> Tensor:
            return pgd(model, x, y, eps, norm=norm, seed=keys, **settings)

        return self.after(attack, images, among)

    def _objective(self, attack: str) -> str | nn.Module:
        name = attack.removeprefix("pgd_")
        return self.task.loss if name == "loss" else name

    def _autoattack(self, norm: Norm, eps: float) -> Tensor:
        task = self.task
        found = autoattack(
            task.net,
            self.input[: self.few_images].to(task.device),
            self.target[: self.few_images].to(task.device),
            eps,
            norm=norm,
            num_classes=task.num_classes,
            seed=task.attack_seed,
            batch_size=task.attack_batch_size,
        )
        self.notes += [f"AutoAttack, {norm} {eps:g}: {flag}" for flag in found.flags]
        white, held = found.robust["fab-t"].cpu(), found.robust["square"].cpu()
        self.black_box[norm, eps] = white & ~held
        return held

    def _report(self, norm: str, eps: float, attack: str, held: Tensor, since: float) -> Row:
        share, images = self.task.share(held)
        if self.task.trainer.is_global_zero:
            seconds = time.perf_counter() - since
            print(f"{norm} eps {eps:g}, {attack}: {share:.1%} of {images} images hold ({seconds:.1f} s)", flush=True)
        return Row(norm, eps, attack, images, share)

    def curve(self) -> list[Row]:
        """Run every attack at every eps, in rising order."""
        task, rows = self.task, []
        for norm, radii in task.curves:
            left = dict.fromkeys(task.attacks, self.clean[: self.pgd_images])
            worst = self.clean[: self.common_images]
            if radii:
                for name, right in (("clean", self.clean[: self.pgd_images]), ("worst", worst)):
                    share, images = task.share(right)
                    rows.append(Row(norm, 0.0, name, images, share))
            for eps in radii:
                held: dict[str, Tensor] = {}
                for attack in task.attacks:
                    since = time.perf_counter()
                    if attack == "pgd_loss" and "pgd_ce" in held and plain_ce(task.loss):
                        held[attack] = left[attack] = held["pgd_ce"]  # the same attack, to the bit
                    elif attack != "autoattack":
                        objective = self._objective(attack)
                        left[attack] = self.pgd(norm, eps, self.pgd_images, left[attack], objective=objective)
                        held[attack] = left[attack]
                    elif task.autoattack_eps is None or eps in task.autoattack_eps:
                        held[attack] = self._autoattack(norm, eps)
                    else:
                        continue
                    rows.append(self._report(norm, eps, attack, held[attack], since))
                if held:
                    self.held[norm, eps] = held
                    worst = worst & self.worst(held, self.common_images)
                    rows.append(self._report(norm, eps, "worst", worst, time.perf_counter()))
        return rows

    def worst(self, held: dict[str, Tensor], images: int) -> Tensor:
        """Return which of the first images every attack leaves correct."""
        return torch.stack([each[:images] for each in held.values()]).all(0)


def plain_ce(loss: nn.Module) -> bool:
    """Return whether a loss is the cross-entropy of each sample, which ``pgd_ce`` climbs as well."""
    return type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.label_smoothing == 0
