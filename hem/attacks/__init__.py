"""Adversarial attacks: find an image within eps of a clean one that the network misclassifies.

Images are in [0, 1] and eps is in the same units: a network that normalises does so inside itself.
:func:`pgd` climbs an *objective*, a function of (logits, target) that is the larger the more wrong the
network is. The choice of objective decides what an attack can find:

* the training loss of a margin classifier is flat where the margin is met: its gradient is exactly 0 there;
* cross-entropy has gradients everywhere, but badly directed ones on small logits (softmax is almost
  uniform), and none on huge logits (softmax saturates in floating point);
* the logit margin, DLR and MIFPE do not depend on the loss that the network was trained with. DLR and MIFPE
  do not depend on the scale of its logits either.

So attack with several of them and believe the worst. One's own attack is a class under :class:`Attack`.
"""

from hem.attacks.autoattack import AutoAttack, AutoAttacked, autoattack
from hem.attacks.ball import Norm, ascent, check_eps, length, project, random_start
from hem.attacks.base import Attack, Budget, Model, attacking
from hem.attacks.library import library
from hem.attacks.objectives import (
    OBJECTIVES,
    Objective,
    ce,
    dlr,
    loss_objective,
    margin,
    mifpe,
    objective_of,
    plain_ce,
    zero_gradients,
)
from hem.attacks.pgd import FGSM, PGD, Schedule, pgd
from hem.attacks.square import Square, square

FORMER: dict[str, tuple[type[Attack], dict[str, str]]] = {
    **{f"pgd_{objective}": (PGD, {"objective": objective}) for objective in (*OBJECTIVES, "loss")},
    "autoattack": (AutoAttack, {}),
}
"""Attacks by the words of former configs: class and arguments."""

__all__ = [
    "FGSM", "FORMER", "OBJECTIVES", "PGD", "Attack", "AutoAttack", "AutoAttacked", "Budget", "Model", "Norm",
    "Objective", "Schedule", "Square", "ascent", "attacking", "autoattack", "ce", "check_eps", "dlr", "length",
    "library", "loss_objective", "margin", "mifpe", "objective_of", "pgd", "plain_ce", "project", "random_start",
    "square", "zero_gradients",
]  # fmt: skip
