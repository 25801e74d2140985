"""Regularisation: penalise changes of weights that matter to earlier tasks (EWC, SI)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hem.strategies.base import Learner, Samples, Strategy, check_counts, check_weights, trained

Weights = dict[str, Tensor]
CHUNK = 64  # samples whose gradients are held at once


def copied(weights: Weights) -> Weights:
    """Return detached copies of parameters."""
    return {name: value.detach().clone() for name, value in weights.items()}


def penalty(weights: Weights, importance: Weights, anchor: Weights) -> Tensor:
    """Return the sum over all weights of F_i (theta_i - theta*_i)^2.

    Example:
        >>> w, f, a = ({"w": torch.tensor([x, 1.0])} for x in (3.0, 2.0, 1.0))
        >>> penalty(w, f, a)
        tensor(8.)
    """
    return torch.stack([(importance[n] * (w - anchor[n]).square()).sum() for n, w in weights.items()]).sum()


def mean_of(weights: Weights) -> float:
    """Return the mean over all weights, each counting once."""
    total = sum(float(value.double().sum()) for value in weights.values())
    return total / sum(value.numel() for value in weights.values())


def moved(all_weights: list[Weights], like: nn.Module) -> list[Weights]:
    """Return the tensors on the device of a network."""
    device = next(like.parameters()).device
    return [{name: value.to(device) for name, value in weights.items()} for weights in all_weights]


class EWC(Strategy):
    """Elastic weight consolidation: a quadratic penalty for each earlier task.

        l(B) + strength / 2 sum_{s < t} sum_i F_{s,i} (theta_i - theta*_{s,i})^2
        F_{s,i} = 1 / N sum_n (d l(x_n, y_n) / d theta_i)^2    behind task s, over N of its training samples

    F is the *empirical* diagonal of the Fisher information where l is cross-entropy: with the labels of the
    data, and with l the loss that is trained, of each sample by itself and the network in evaluation mode.

    Under a margin loss F is no Fisher information, and samples beyond the margin have gradient 0: a task
    that is learnt to the end leaves importances near or at 0, and nothing holds its weights. The mean of F is
    in the log (``stream/importance``). Its scale depends on the loss, so that one strength is not comparable
    between losses.

    Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 114, 2017,
    equation 3, with a penalty of its own for each task.

    Args:
        strength: The paper's lambda.
        samples: N, at most.

    Raises:
        ValueError: ``strength`` is negative or ``samples`` below 1.
    """

    carried: ClassVar[tuple[str, ...]] = ("importances", "anchors")

    def __init__(self, strength: float = 1000.0, samples: int = 1024) -> None:
        check_weights(strength=strength)
        check_counts(samples=samples)
        self.strength = strength
        self.samples = samples
        self.importances: list[Weights] = []  # of each task so far
        self.anchors: list[Weights] = []

    def loss(self, learner: Learner, batch: Samples) -> Tensor:
        """Return the loss of the batch with the penalty."""
        loss = super().loss(learner, batch)
        weights = trained(learner.net)
        for importance, anchor in zip(self.importances, self.anchors, strict=True):
            loss = loss + self.strength / 2 * penalty(weights, importance, anchor)
        return loss

    def begin_task(self, learner: Learner) -> None:
        """Move the restored state to the device."""
        self.importances, self.anchors = moved(self.importances, learner.net), moved(self.anchors, learner.net)

    def end_task(self, learner: Learner) -> dict[str, float]:
        """Compute the importances of the task."""
        importance = {name: torch.zeros_like(value) for name, value in trained(learner.net).items()}
        count = 0
        for gradients in learner.sample_gradients(self.samples, CHUNK):
            for name, gradient in gradients.items():
                importance[name] += gradient.square().sum(0)
            count += len(gradient)
        importance = {name: value / count for name, value in importance.items()}
        self.importances.append(importance)
        self.anchors.append(copied(trained(learner.net)))
        return {"importance": mean_of(importance)}


class SI(Strategy):
    """Synaptic intelligence: importance is the loss decrease along each weight's path.

        omega_i = - sum_steps g_i Delta theta_i      over the steps of a task, g the gradient of its loss
        Omega_i = sum_{s < t} max(0, omega_{s,i}) / ((theta*_{s,i} - theta*_{s-1,i})^2 + damping)
        l(B) + strength sum_i Omega_i (theta_i - theta*_i)^2

    theta* are the weights behind the last task. g is of the loss without the penalty. As g is 0 where a
    margin loss is, the way counts only while samples carry error; the mean of Omega is in the log
    (``stream/importance``), and a strength found with one loss is not comparable under another.

    Source: Zenke, Poole & Ganguli, "Continual learning through synaptic intelligence", ICML 2017, equations
    3 to 5; negative contributions are cut off, as in the authors' code.

    Args:
        strength: The paper's c.
        damping: The paper's xi > 0.

    Raises:
        ValueError: ``strength`` is negative or ``damping`` not positive.
    """

    carried: ClassVar[tuple[str, ...]] = ("importance", "anchor", "path")

    def __init__(self, strength: float = 1.0, damping: float = 0.1) -> None:
        check_weights(strength=strength)
        if damping <= 0:
            raise ValueError(f"Expected a damping above 0, which keeps a division finite, got {damping}: 0.1 is usual.")
        self.strength = strength
        self.damping = damping
        self.importance: Weights = {}
        self.anchor: Weights = {}
        self.path: Weights = {}
        self._before: tuple[Weights, Weights] | None = None  # weights and gradients of a step in progress

    def begin_task(self, learner: Learner) -> None:
        """Start the path integral at the current weights."""
        weights = trained(learner.net)
        self.path = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.anchor = copied(weights)
        if not self.importance:
            self.importance = {name: torch.zeros_like(value) for name, value in weights.items()}

    def loss(self, learner: Learner, batch: Samples) -> Tensor:
        """Return the loss of the batch with the penalty."""
        weights = trained(learner.net)
        if any(self.importance[name].device != weight.device for name, weight in weights.items()):  # from a checkpoint
            self.importance, self.anchor, self.path = moved([self.importance, self.anchor, self.path], learner.net)
        return super().loss(learner, batch) + self.strength * penalty(weights, self.importance, self.anchor)

    def before_step(self, learner: Learner) -> None:
        """Keep the weights and the gradient of the loss, without the penalty's."""
        weights = trained(learner.net)
        gradients = {}
        for name, weight in weights.items():
            pull = 2 * self.strength * self.importance[name] * (weight.detach() - self.anchor[name])
            gradients[name] = (torch.zeros_like(weight) if weight.grad is None else weight.grad.detach()) - pull
        self._before = copied(weights), gradients

    def after_step(self, learner: Learner) -> None:
        """Accumulate the path integral of the step."""
        if self._before is None:
            return
        weights, gradients = self._before
        self._before = None
        for name, weight in trained(learner.net).items():
            self.path[name] -= gradients[name] * (weight.detach() - weights[name])

    def end_task(self, learner: Learner) -> dict[str, float]:
        """Add the importances of the task."""
        for name, weight in trained(learner.net).items():
            length = (weight.detach() - self.anchor[name]).square() + self.damping
            self.importance[name] = self.importance[name] + self.path[name].clamp(min=0) / length
        return {"importance": mean_of(self.importance)}
