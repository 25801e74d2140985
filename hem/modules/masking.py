"""Is robustness owed to masked gradients? Checks of an evaluation that would show it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hem.attacks import Norm, library, pgd, square, zero_gradients
from hem.modules.base import Task, check_state
from hem.modules.robustness import Evaluation
from hem.rng import seed_of
from hem.runs import AtomicCheckpointIO


class Check(NamedTuple):
    """One check for gradient masking."""

    name: str
    value: float  #: what was measured
    limit: float  #: the largest value that passes
    sentence: str  #: what it means where it fails
    one_attack: bool = False  #: whether it is about the figures of one attack, and the worst of all may still be right

    @property
    def failed(self) -> bool:
        """Whether the value is beyond the limit."""
        return self.value > self.limit + 1e-9


class Masking(NamedTuple):
    """What the checks found."""

    checks: list[Check]
    facts: dict[str, float]  #: figures that belong to them
    notes: list[str]  #: what else is to be said


def check_masking(evaluation: Evaluation) -> Masking:
    """Check for masked gradients where about half of the correctly classified images hold.

    Args:
        evaluation: The attacks, after its curve.
    """
    task, limit = evaluation.task, evaluation.task.tolerance
    images = min(evaluation.few_images, evaluation.pgd_images)
    clean = evaluation.clean[:images]
    norm, eps = _half_way(evaluation, clean)
    at = f"{norm} {eps:g}"
    white = evaluation.worst({"clean": clean, **evaluation.held[norm, eps]}, images)  # what no attack so far breaks

    def accuracy(held: Tensor) -> float:
        return task.share(held)[0]

    def beyond(held: Tensor) -> float:
        return accuracy(white & ~held)

    plain = evaluation.pgd(norm, eps, images, clean)
    more = evaluation.pgd(norm, eps, images, clean, steps=4 * task.steps, restarts=task.restarts + 3)
    one = evaluation.after(
        lambda x, y, keys: pgd(task.net, x, y, eps, norm=norm, steps=1, step_size=eps, start=x), images, clean
    )
    everything = 1.0 if norm == "linf" else float(evaluation.input.shape[1:].numel()) ** 0.5
    unbounded = clean
    for objective in ("margin", "ce", "mifpe"):
        unbounded = evaluation.pgd(norm, everything, images, unbounded, objective=objective)
    blind = torch.zeros(images, dtype=torch.bool)
    for some in evaluation.batches(torch.arange(images)):
        x, y = evaluation.input[some].to(task.device), evaluation.target[some].to(task.device)
        blind[some] = zero_gradients(task.net, x, y, task.loss).cpu()
    scaled = {
        factor: accuracy(
            evaluation.pgd(norm, eps, images, clean, objective="ce", model=scaled_logits(task.net, factor))
        )
        for factor in (1, 10, 100)
    }
    facts = {"eps": eps, "images": float(task.share(clean)[1])}
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
            "changes no decision: its figures (pgd_ce) flatter this network.",
            one_attack=True,
        ),
    ]
    notes = list(evaluation.notes)
    box = _black_box(evaluation, norm, eps, white, notes)
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
    if task.twin_ckpt_path is not None:
        other = twin(task, task.twin_ckpt_path)
        moved = evaluation.pgd(norm, eps, images, clean, model=other, objective="ce", early_stop=False)
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
    share = evaluation.task.share
    curve = [at for at in evaluation.held if at[0] == "linf"] or list(evaluation.held)
    half = share(clean)[0] / 2
    # the distances are shares of all devices' images, so all devices choose alike
    return min(curve, key=lambda at: abs(share(evaluation.worst(evaluation.held[at], len(clean)))[0] - half))


def _black_box(evaluation: Evaluation, norm: Norm, eps: float, white: Tensor, notes: list[str]) -> Tensor | None:
    """Which images Square breaks and no white-box attack does; None where it cannot be had."""
    task, held = evaluation.task, evaluation.held[norm, eps]
    if "autoattack" in held:
        alone = evaluation.black_box[norm, eps][: len(white)]
        others = {name: each for name, each in held.items() if name != "autoattack"}
        return alone & evaluation.worst({"clean": evaluation.clean, **others}, len(white))
    if not task.square_queries:
        return None
    try:
        library()
    except ImportError as error:
        notes.append(f"the check against Square was left out. {error}")
        return None

    def attack(x: Tensor, y: Tensor, keys: Tensor) -> Tensor:
        seed = seed_of(int(keys[0]))  # Square draws for a batch at once
        return square(task.net, x, y, eps, norm=norm, queries=task.square_queries, seed=seed)

    return white & ~evaluation.after(attack, len(white), white)


def scaled_logits(net: nn.Module, factor: float) -> nn.Module:
    """Return a network with the same decisions, whose logits are ``factor`` times those of ``net``."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input: Tensor) -> Tensor:
            logits: Tensor = self.net(input)
            return logits * factor

    return Scaled()


def twin(task: Task, path: str) -> nn.Module:
    """Return the network of a task with the weights of another checkpoint.

    Raises:
        FileNotFoundError: If there is none at ``path``.
        ValueError: If the file is no checkpoint, or one of another network.
    """
    state = AtomicCheckpointIO().load_checkpoint(path, map_location="cpu")["state_dict"]
    check_state(task, state)
    net = copy.deepcopy(task.net)
    net.load_state_dict({name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")})
    return net.eval()
