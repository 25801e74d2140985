"""Distillation: keep the outputs that the network had before the task (LwF)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hem.strategies.base import Learner, Samples, Strategy, check_weights


def distillation(logits: Tensor, old: Tensor, heads: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the distillation loss, the mean over samples of sum_h KL(p_h' || p_h).

    p_h = softmax(z_h / T) over the classes of head h, p_h' the same of the old network.

    Args:
        logits: (N, C).
        old: (N, C), without gradient.
        heads: Classes of each head, (K,) int64.
        temperature: T.

    Returns:
        A scalar.

    Source: Li & Hoiem, "Learning without forgetting", ECCV 2016, equations 2 to 4, whose cross-entropy has
    the same gradient.

    Example:
        >>> distillation(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 9.0]]), [torch.tensor([0, 1])], 2.0)
        tensor(0.1109)
    """
    terms = [
        F.kl_div(
            F.log_softmax(logits[:, head] / temperature, 1),
            F.log_softmax(old[:, head] / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        for head in heads
    ]
    return torch.stack(terms).sum()


class LwF(Strategy):
    """Learning without forgetting: distil the old network's outputs for the old classes on new images.

    The loss of the batch plus ``strength`` times :func:`distillation` from the network behind the last task.
    Heads: one for each earlier task where the task is known, else one of all classes so far.

    The softmax is cross-entropy's: the small logits of a margin loss (gaps about the margin, 0.2 to 1) at T =
    2 give nearly uniform probabilities, old and new, so that there is little to hold on to. Compare losses
    at a strength and a temperature found for each (for logits of a tenth of the size, a tenth of T).

    Source: Li & Hoiem, "Learning without forgetting", ECCV 2016; one softmax over all old classes: Rebuffi et
    al., "iCaRL", CVPR 2017, section 4.

    Args:
        strength: The paper's lambda_o.
        temperature: T > 0.

    Raises:
        ValueError: ``strength`` is negative or ``temperature`` not positive.
    """

    carried: ClassVar[tuple[str, ...]] = ("weights",)

    def __init__(self, strength: float = 1.0, temperature: float = 2.0) -> None:
        check_weights(strength=strength)
        if temperature <= 0:
            raise ValueError(f"Expected a temperature above 0, got {temperature}: 2 is usual.")
        self.strength = strength
        self.temperature = temperature
        self.teacher: nn.Module | None = None
        self.weights: dict[str, Tensor] = {}  # the teacher's

    def loss(self, learner: Learner, batch: Samples) -> Tensor:
        """Return the loss of the batch plus the distillation loss."""
        logits = learner(batch.input)
        loss = learner.loss_of(logits, batch.target, batch.index)
        if not self.weights:
            return loss
        if self.teacher is None:
            self.teacher = copy.deepcopy(learner.net).eval().requires_grad_(False)
            self.teacher.load_state_dict(self.weights)
        with torch.no_grad():
            old = self.teacher(batch.input)
        return loss + self.strength * distillation(logits, old, learner.heads(learner.current - 1), self.temperature)

    def end_task(self, learner: Learner) -> dict[str, float]:
        """Keep the weights as the next task's teacher."""
        self.weights = {name: value.detach().clone() for name, value in learner.net.state_dict().items()}
        self.teacher = None
        return {}
