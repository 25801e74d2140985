"""AutoAttack: an ensemble of four parameter-free attacks."""

from __future__ import annotations

import copy
import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hem.attacks.ball import Norm, check_images
from hem.attacks.base import Attack, Budget, Model, attacking
from hem.attacks.library import NORMS, library, seeding
from hem.rng import seed_of


class AutoAttacked(NamedTuple):
    """Result of AutoAttack."""

    input: Tensor  #: (N, C, H, W): a misclassified image for each broken sample, else the clean one
    robust: dict[str, Tensor]  #: after each of its attacks in turn, (N,): whether none so far has broken a sample
    flags: list[str]  #: what it has to say about the network, such as zero gradients


class _Flags(logging.Handler):
    """Collects the library's warnings, one of each kind."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.setdefault(record.funcName, record.getMessage())


def autoattack(
    model: Model,
    input: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    num_classes: int,
    seed: int = 0,
    batch_size: int = 250,
) -> AutoAttacked:
    """AutoAttack, standard version: APGD-CE, targeted APGD-DLR, targeted FAB, then Square on what is left.

    Targeted attacks try min(9, K - 1) classes. The result equals that of the library's own
    ``run_standard_evaluation``; its attacks are called one by one so that it is known which of them broke what.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K).
        input: Clean images, shape (N, C, H, W), in [0, 1].
        target: Class indices (N,).
        eps: Radius, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        num_classes: K, at least 4.
        seed: Of its random numbers.
        batch_size: Images per batch.

    Raises:
        ImportError: If pyautoattack is not installed.
        TypeError: For images that are not of single or double precision.
        ValueError: For pixels outside [0, 1], an eps out of its range, or fewer than 4 classes.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks".
    """
    package = library()
    if num_classes < 4:
        raise ValueError(
            f"AutoAttack's targeted DLR needs 4 classes, got {num_classes}: use pgd with the objectives 'margin', "
            "'ce' and 'mifpe', and Square."
        )
    check_images(input, eps, norm)
    log, flags = logging.getLogger("auto-attack"), _Flags()
    propagate, log.propagate = log.propagate, False
    log.addHandler(flags)
    try:
        with attacking(model, freeze=True), seeding(input.device):
            input, target = input.detach().clone(), target.clone()
            attack = package.AutoAttack(
                model, norm=NORMS[norm], eps=eps, seed=seed, device=input.device, version="standard"
            )
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, num_classes - 1)
            adversarial, robust = input.clone(), torch.ones_like(target, dtype=torch.bool)
            found = {}
            for name in attack.attacks_to_run:
                left = robust.nonzero()[:, 0]
                if len(left):
                    attack.attacks_to_run = [name]
                    points, labels = attack.run_standard_evaluation(input[left], target[left], batch_size=batch_size)
                    adversarial[left] = points
                    robust = robust.index_put((left,), labels == target[left])
                found[name] = robust
            # called alone, Square has nothing that it could be compared with
            package.checks.check_square_sr(
                {"clean": 1.0, **{name: float(r.double().mean()) for name, r in found.items()}}, logger=log
            )
            return AutoAttacked(adversarial, found, list(flags.messages.values()))
    finally:
        log.removeHandler(flags)
        log.propagate = propagate


class AutoAttack(Attack):
    """AutoAttack, see :func:`autoattack`.

    Args:
        seed: Of its random numbers; None: the evaluation's, else of the first image's key.
        batch_size: Images per batch; None: the evaluation's, else 250.
        name: What its metrics are called; None: ``autoattack``.
    """

    min_classes = 4
    at_once = True

    def __init__(self, seed: int | None = None, batch_size: int | None = None, name: str | None = None) -> None:
        self.seed, self.batch_size, self.name = seed, batch_size, name
        self.found: AutoAttacked | None = None  #: what the last call found

    def __call__(self, net: Model, input: Tensor, target: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
        """Return the images of :func:`autoattack`."""
        with attacking(net), torch.no_grad():
            num_classes = net(input[:1]).shape[1]
        seed = seed_of(int(keys[0])) if self.seed is None else self.seed
        options = {"num_classes": num_classes, "seed": seed, "batch_size": self.batch_size or 250}
        self.found = autoattack(net, input, target, eps, norm=norm, **options)
        return self.found.input

    def bound(self, loss: nn.Module, budget: Budget) -> Attack:
        """Return the attack with the evaluation's seed and batches, where it has none of its own."""
        library()
        bound = copy.copy(self)
        bound.seed = budget.seed if self.seed is None else self.seed
        bound.batch_size = self.batch_size or budget.batch_size
        return bound
