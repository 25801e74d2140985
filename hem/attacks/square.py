"""Square attack: random search on the logits, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hem.attacks.ball import Norm, check_images
from hem.attacks.base import Attack, Budget, Model, attacking
from hem.attacks.library import NORMS, library, seeding
from hem.rng import seed_of


def square(
    model: Model,
    input: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    queries: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Square: random search with squares of changed pixels, without gradients.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K).
        input: Clean images, shape (N, C, H, W), in [0, 1].
        target: Class indices (N,).
        eps: Radius, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        queries: How often the network may be asked about each image.
        seed: Of its random numbers.

    Returns:
        Images of the same shape: a misclassified one for each broken sample, else the clean one.

    Raises:
        ImportError: If pyautoattack is not installed.
        TypeError: For images that are not of single or double precision.
        ValueError: For pixels outside [0, 1], or an eps out of its range.

    Source: Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via
    random search".
    """
    package = library()
    check_images(input, eps, norm)
    if not len(input):
        return input.clone()
    with attacking(model), torch.no_grad(), seeding(input.device):
        attack = package.square.SquareAttack(
            model,
            norm=NORMS[norm],
            n_queries=queries,
            eps=eps,
            p_init=0.8,
            seed=seed,
            device=input.device,
            resc_schedule=False,
        )
        adversarial: Tensor = attack.perturb(input.detach().clone(), target.clone())
        return adversarial


class Square(Attack):
    """Square, see :func:`square`; the images of a batch draw together, from the key of the first.

    Args:
        queries: How often the network may be asked about each image.
        name: What its metrics are called; None: ``square``.
    """

    gradients = False

    def __init__(self, queries: int = 5000, name: str | None = None) -> None:
        self.queries, self.name = queries, name

    def __call__(self, net: Model, input: Tensor, target: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
        """Return the images of :func:`square`."""
        seed = seed_of(int(keys[0])) if len(keys) else 0
        return square(net, input, target, eps, norm=norm, queries=self.queries, seed=seed)

    def bound(self, loss: nn.Module, budget: Budget) -> Attack:
        """Return the attack; it has no budget but its own."""
        library()
        return self
