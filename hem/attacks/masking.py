"""Checks for gradient masking: signs that an evaluation overstates robustness."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hem.attacks.ball import Norm
from hem.attacks.evaluation import Evaluation
from hem.attacks.library import library
from hem.attacks.objectives import zero_gradients
from hem.attacks.pgd import FGSM, PGD
from hem.attacks.square import Square


class Check(NamedTuple):
    """One check for gradient masking."""

    name: str
    value: float  #: what was measured
    limit: float  #: the largest value that passes
    sentence: str  #: what it means where it fails
    one_attack: bool = False  #: whether it is about one attack alone, so that the worst of all may still be right

    @property
    def failed(self) -> bool:
        """Whether the value is beyond the limit."""
        return self.value > self.limit + 1e-9


class Masking(NamedTuple):
    """Results of the checks."""

    checks: list[Check]
    facts: dict[str, float]  #: numbers that belong to them
    notes: list[str]  #: what else is to be said


def check_masking(
    evaluation: Evaluation, tolerance: float = 0.02, queries: int = 2000, other: nn.Module | None = None
) -> Masking:
    """Check for gradient masking at the eps where about half of the correctly classified images are robust.

    Args:
        evaluation: The attacks, after its curve.
        tolerance: What a check forgives: a share of its images.
        queries: Per image, of Square; 0 leaves that check out.
        other: The same network from another training, whose attacks may carry over; None: that check is left out.
    """
    net, limit = evaluation.net, tolerance
    steps, restarts = evaluation.settings.budget[:2]
    images = min(evaluation.few_images, evaluation.images)
    clean = evaluation.clean[:images]
    norm, eps = _half_way(evaluation, clean)
    at = f"{norm} {eps:g}"
    seeing = {str(attack) for attack in evaluation.settings.attacks if attack.gradients}
    held = {name: each for name, each in evaluation.held[norm, eps].items() if name in seeing}
    white = evaluation.worst({"clean": clean, **held}, images)  # what no attack so far breaks that sees gradients

    def accuracy(held: Tensor) -> float:
        return evaluation.reduce(held)[0]

    def beyond(held: Tensor) -> float:
        return accuracy(white & ~held)

    plain = evaluation.after(PGD("margin", steps, restarts), norm, eps, images, clean)
    more = evaluation.after(PGD("margin", 4 * steps, restarts + 3), norm, eps, images, clean)
    one = evaluation.after(FGSM("margin"), norm, eps, images, clean)
    everything = 1.0 if norm == "linf" else float(evaluation.input.shape[1:].numel()) ** 0.5
    unbounded = clean
    for objective in ("margin", "ce", "mifpe"):
        unbounded = evaluation.after(PGD(objective, steps, restarts), norm, everything, images, unbounded)
    blind = torch.cat([zero_gradients(net, *evaluation.taken(some), evaluation.loss).cpu()
                       for some in evaluation.batches(torch.arange(images))])  # fmt: skip
    climb = PGD("ce", steps, restarts)
    scaled = {
        factor: accuracy(evaluation.after(climb, norm, eps, images, clean, Scaled(net, factor)))
        for factor in (1, 10, 100)
    }
    facts = {"eps": eps, "images": float(evaluation.reduce(clean)[1])}
    facts |= {f"scale_{factor}": value for factor, value in scaled.items()}
    checks = [
        Check(
            "more_steps",
            accuracy(more) - accuracy(plain),
            limit,
            f"more steps and restarts of PGD at {at} leave more images correct than fewer do: its gradients are "
            "not those of a hill that can be climbed.",
        ),
        Check(
            "converged",
            beyond(more),
            limit,
            f"four times the steps and three more restarts at {at} break images that no attack of the curve "
            "breaks: raise model.steps and model.restarts until they do not.",
        ),
        Check(
            "unbounded",
            accuracy(unbounded),
            0.0,
            "images survive attacks that may change every pixel at will: the attacks do not find what "
            "certainly exists, so the curve is too high.",
        ),
        Check(
            "one_step",
            accuracy(plain) - accuracy(one),
            limit,
            f"one large step at {at} breaks more images than many small ones: gradients are masked.",
        ),
        Check(
            "zero_gradients",
            accuracy(blind),
            limit,
            "the training loss has no gradient at that share of the clean images, so an attack on it alone "
            "(pgd_loss) proves nothing: read the attacks on margin, DLR and MIFPE.",
            one_attack=True,
        ),
        Check(
            "scale",
            scaled[1] - min(scaled.values()),
            limit,
            f"PGD on cross-entropy at {at} breaks more images when the logits are multiplied by 10 or 100, which "
            "changes no decision: its accuracy (pgd_ce) flatters this network.",
            one_attack=True,
        ),
    ]
    notes = list(evaluation.notes)
    box = _black_box(evaluation, norm, eps, white, queries, notes)
    if box is not None:
        checks.append(
            Check(
                "black_box",
                accuracy(box),
                limit,
                f"Square, which sees no gradients, breaks images at {at} that no white-box attack breaks: "
                "gradients are masked, so the curve is too high.",
            )
        )
    if other is not None:
        carried = PGD("ce", steps, restarts, early_stop=False)
        moved = evaluation.after(carried, norm, eps, images, clean, other)
        checks.append(
            Check(
                "transfer",
                beyond(moved),
                limit,
                f"attacks on the twin network at {at} carry over to images that no attack on this one breaks: "
                "gradients are masked, so the curve is too high.",
            )
        )
        facts["transfer_accuracy"] = accuracy(moved)
    return Masking(checks, facts, list(dict.fromkeys(notes)))


def _half_way(evaluation: Evaluation, clean: Tensor) -> tuple[Norm, float]:
    """Where about half of the correctly classified images hold, on the L-inf curve where there is one."""
    share = evaluation.reduce
    curve = [at for at in evaluation.held if at[0] == "linf"] or list(evaluation.held)
    half = share(clean)[0] / 2
    # the distances are shares of all devices' images, so all devices choose alike
    return min(curve, key=lambda at: abs(share(evaluation.worst(evaluation.held[at], len(clean)))[0] - half))


def _black_box(
    evaluation: Evaluation, norm: Norm, eps: float, white: Tensor, queries: int, notes: list[str]
) -> Tensor | None:
    """Which images Square breaks and no white-box attack does; None where it cannot be had."""
    if (norm, eps) in evaluation.black_box:  # AutoAttack has tried
        alone = evaluation.black_box[norm, eps][: len(white)]
        others = {
            str(attack): evaluation.held[norm, eps][str(attack)]
            for attack in evaluation.settings.attacks
            if attack.gradients and not attack.at_once
        }
        return alone & evaluation.worst({"clean": evaluation.clean, **others}, len(white))
    if not queries:
        return None
    try:
        library()
    except ImportError as error:
        notes.append(f"the check against Square was left out. {error}")
        return None
    return white & ~evaluation.after(Square(queries), norm, eps, len(white), white)


class Scaled(nn.Module):
    """The network with logits multiplied by ``factor``, which leaves its decisions unchanged."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.net(input)
        return logits * self.factor
