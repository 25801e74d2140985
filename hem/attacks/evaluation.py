"""Robust accuracy under every attack at every eps, on the images of one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hem.attacks.autoattack import AutoAttack
from hem.attacks.ball import Norm
from hem.attacks.base import Attack, Budget, Model, attacking

Share = Callable[[Tensor], tuple[float, int]]  # of the True among the booleans of all devices, and their number


class Row(NamedTuple):
    """A point of a robustness curve."""

    norm: str
    eps: float
    attack: str
    images: int
    robust_accuracy: float


class Settings(NamedTuple):
    """Attacks, radii and budget of an evaluation.

    Args:
        attacks: As they are bound to loss and budget.
        curves: The radii of each norm, rising.
        few_eps: At which of them attacks run that take all images at once; None: at all.
        budget: Of the attacks.
    """

    attacks: Sequence[Attack]
    curves: Sequence[tuple[Norm, Sequence[float]]]
    few_eps: Sequence[float] | None = None
    budget: Budget = Budget()


class Evaluation:
    """Run the attacks of a test on the images of one device.

    Args:
        net: The network, on the device that computes.
        loss: What it was trained with.
        settings: Attacks, radii and budget of an evaluation.
        reduce: Puts the images of all devices together.
        input: Clean images on the CPU, shape (N, C, H, W).
        target: Class indices, shape (N,).
        keys: A number of each image, from which its random starts are drawn, shape (N,).
        images: How many of them attacks get.
        few_images: How many of them attacks that take all at once, and the checks, get.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        settings: Settings,
        reduce: Share,
        input: Tensor,
        target: Tensor,
        keys: Tensor,
        images: int,
        few_images: int,
    ) -> None:
        self.net, self.loss, self.settings, self.reduce = net, loss, settings, reduce
        self.input, self.target, self.keys = input, target, keys
        self.images, self.few_images = images, few_images
        self.device = next((p.device for p in net.parameters()), input.device)
        self.clean = torch.cat([self._right(*self.taken(at)) for at in self.batches(torch.arange(len(input)))])
        # whether each image holds: by norm, eps and attack
        self.held: dict[tuple[Norm, float], dict[str, Tensor]] = {}
        self.black_box: dict[tuple[Norm, float], Tensor] = {}  # what AutoAttack's Square alone broke
        self.notes: list[str] = []

    def batches(self, at: Tensor) -> Sequence[Tensor]:
        """Cut positions into those that are attacked at once."""
        return torch.split(at, self.settings.budget.batch_size)

    def taken(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images at some positions, and their classes, where they are attacked."""
        return self.input[at].to(self.device), self.target[at].to(self.device)

    def _right(self, input: Tensor, target: Tensor) -> Tensor:
        with attacking(self.net), torch.no_grad():
            right: Tensor = self.net(input).argmax(1) == target
        return right.cpu()

    def after(
        self,
        attack: Attack,
        norm: Norm,
        eps: float,
        images: int,
        among: Tensor | None = None,
        net: Model | None = None,
    ) -> Tensor:
        """Return which of the first images are classified correctly after an attack, shape (images,).

        Args:
            attack: The attack.
            norm: ``"linf"`` or ``"l2"``.
            eps: Radius, in pixel units of [0, 1].
            images: How many of this device's.
            among: Those worth attacking, shape (images,); the others count as broken. None: all.
            net: What is attacked; None: the network itself.
        """
        held = torch.zeros(images, dtype=torch.bool)
        todo = torch.arange(images) if among is None else among[:images].nonzero()[:, 0]
        for at in (todo,) if attack.at_once else self.batches(todo):
            if len(at):
                input, target = self.taken(at)
                found = attack(self.net if net is None else net, input, target, eps, norm, self.keys[at])
                parts = zip(*(self.batches(each) for each in (found, target)), strict=True)
                held[at] = torch.cat([self._right(*part) for part in parts])
        return held

    def curve(self) -> Iterator[Row]:
        """Run every attack at every eps, in rising order; an image broken at one eps counts as broken at larger ones.

        Attacks that take all images at once are given them anew at each eps. Beside the attacks stand ``clean``, and
        ``worst``: what none breaks, of the images that all are given.
        """
        attacks = {str(attack): attack for attack in self.settings.attacks}
        sizes = (self.few_images if attack.at_once else self.images for attack in attacks.values())
        common = min(sizes, default=self.images)
        for norm, radii in self.settings.curves:
            left = dict.fromkeys(attacks, self.clean[: self.images])
            worst = self.clean[:common]
            for name, held in (("clean", self.clean[: self.images]), ("worst", worst)) if radii else ():
                yield self._row(norm, 0.0, name, held)
            for eps in radii:
                found: dict[str, Tensor] = {}
                for name, attack in attacks.items():
                    same = next(other for other, each in attacks.items() if each == attack)
                    if same in found:  # the same attack, to the bit
                        found[name] = found[same]
                    elif not attack.at_once:
                        found[name] = left[name] = self.after(attack, norm, eps, self.images, left[name])
                    elif self.settings.few_eps is None or eps in self.settings.few_eps:
                        found[name] = self.after(attack, norm, eps, self.few_images)
                        self._note(attack, norm, eps)
                    else:
                        continue
                    yield self._row(norm, eps, name, found[name])
                if found:
                    self.held[norm, eps] = found
                    worst = worst & self.worst(found, common)
                    yield self._row(norm, eps, "worst", worst)

    def _row(self, norm: Norm, eps: float, attack: str, held: Tensor) -> Row:
        share, images = self.reduce(held)
        return Row(norm, eps, attack, images, share)

    def _note(self, attack: Attack, norm: Norm, eps: float) -> None:
        """Keep what AutoAttack has to say, and what its last attack, which sees no gradients, broke alone."""
        if isinstance(attack, AutoAttack) and attack.found is not None:
            self.notes += [f"AutoAttack, {norm} {eps:g}: {flag}" for flag in attack.found.flags]
            white, held = (attack.found.robust[name].cpu() for name in ("fab-t", "square"))
            self.black_box[norm, eps] = white & ~held

    def worst(self, held: dict[str, Tensor], images: int) -> Tensor:
        """Return which of the first images every attack leaves correct."""
        return torch.stack([each[:images] for each in held.values()]).all(0)
