"""Attacks: the image within eps of a clean one that a network gets wrong. Pure functions.

Images are in [0, 1] and eps is in the same units: a network that normalises does so inside itself.
:func:`pgd` climbs an *objective*, a function of (logits, target) that is the larger the more wrong the
network is. The choice of objective decides what an attack can find:

* the training loss of a margin classifier is flat where the margin is met: its gradient is exactly 0 there;
* cross-entropy has gradients everywhere, but badly directed ones on small logits (softmax is almost
  uniform), and none on huge logits (softmax saturates in floating point);
* the logit margin, DLR and MIFPE do not depend on the loss that the network was trained with. DLR and MIFPE
  do not depend on the scale of its logits either.

So attack with several of them and believe the worst.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hem.checks import check_pixels
from hem.names import check_name
from hem.rng import key, normal, uniform

Norm = Literal["linf", "l2"]
Schedule = Literal["constant", "linear"]
Model = Callable[[Tensor], Tensor]  # images (N, C, H, W) to logits (N, K)
Objective = Callable[[Tensor, Tensor], Tensor]  # logits (N, K) and target (N,) to (N,)


# -- objectives --------------------------------------------------------------------------------------------


def ce(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, log Σ_j exp(z_j) - z_y.

    Args:
        logits: z, shape (N, K).
        target: y, class indices, shape (N,).

    Returns:
        Shape (N,).

    Example:
        >>> ce(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """
    return F.cross_entropy(logits, target, reduction="none")


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Logit margin, max_{j != y} z_j - z_y: positive where the classification is wrong.

    Args:
        logits: z, shape (N, K).
        target: y, class indices, shape (N,).

    Returns:
        Shape (N,).

    Source: Carlini & Wagner 2017, "Towards evaluating the robustness of neural networks", f_6 without its floor.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 4.0]]), torch.tensor([0, 1]))
        tensor([-1.,  3.])
    """
    own = logits.gather(1, target[:, None])
    rival = logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True)
    return (rival - own).squeeze(1)


def dlr(logits: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio: (max_{j != y} z_j - z_y) / (z_π1 - z_π3), π the order of falling logits.

    Neither a shift nor a (positive) scale of the logits changes it.

    Args:
        logits: z, shape (N, K), K >= 4.
        target: y, class indices, shape (N,).

    Returns:
        Shape (N,).

    Raises:
        ValueError: Below four classes, for which neither the ratio (two) nor its targeted form (three) exists.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", equation 6.

    Example:
        >>> dlr(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    if logits.shape[1] < 4:
        raise ValueError(
            f"DLR compares the first with the third and fourth logit and needs 4 classes, got {logits.shape[1]}: "
            "use the objective 'margin'."
        )
    top = logits.topk(3, 1).values
    return margin(logits, target) / (top[:, 0] - top[:, 2] + 1e-12)


def mifpe(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of logits whose two largest are a set gap apart: CE(T z / (z_π1 - z_π2), y).

    The factor counts as a constant. It minimises the impact of floating-point errors: softmax neither
    saturates nor flattens, whatever the scale of the logits.

    Args:
        logits: z, shape (N, K).
        target: y, class indices, shape (N,).
        temperature: T, the gap.

    Returns:
        Shape (N,).

    Source: Yu & Xu 2023, "Efficient loss function by minimizing the detrimental effect of floating-point
    errors on gradient-based attacks". (In their public code the factor is never applied.)

    Example:
        >>> small = mifpe(torch.tensor([[0.02, 0.01, 0.0]]), torch.tensor([0]))
        >>> torch.allclose(small, mifpe(torch.tensor([[200.0, 100.0, 0.0]]), torch.tensor([0])))
        True
    """
    first, second = logits.detach().topk(2, 1).values.unbind(1)
    return ce(logits * (temperature / (first - second).clamp_min(1e-12))[:, None], target)


OBJECTIVES: dict[str, Objective] = {"ce": ce, "margin": margin, "dlr": dlr, "mifpe": mifpe}


def loss_objective(criterion: nn.Module) -> Objective:
    """Return a criterion as an objective: the loss of each sample, by its ``reduction="none"``.

    A criterion that is no mean over samples (Dice) gives its value for the batch, the same for every sample.

    Args:
        criterion: Any of :data:`hem.losses.LOSSES`, or another one called as ``criterion(logits, target)``.

    Example:
        >>> from hem.losses import HEMLoss
        >>> loss_objective(HEMLoss(margin=0.5))(torch.tensor([[2.0, 0.0], [0.1, 0.0]]), torch.tensor([0, 0]))
        tensor([0.0000, 0.4000])
    """
    alike = copy.copy(criterion)
    if hasattr(criterion, "reduction"):
        alike.reduction = "none"  # type: ignore[assignment]

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = alike(logits, target)
        if losses.shape == logits.shape[:1]:
            return losses
        value: Tensor = criterion(logits, target)
        return value.expand(len(logits)) / len(logits)

    return objective


def objective_of(objective: str | Objective | nn.Module) -> Objective:
    """Return the function that an objective's name, or a criterion, stands for.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(objective, nn.Module):
        return loss_objective(objective)
    if isinstance(objective, str):
        check_name(objective, OBJECTIVES, "objective")
        return OBJECTIVES[objective]
    return objective


# -- the ball ----------------------------------------------------------------------------------------------


def check_eps(eps: float, norm: str, dimension: int | None = None) -> None:
    """Refuse an eps that is not in pixel units of [0, 1], or an unknown norm.

    Args:
        eps: Radius of the ball.
        norm: ``"linf"`` or ``"l2"``.
        dimension: Numbers in an image, where it is known: the L2 diameter of [0, 1]^d is √d.

    Raises:
        ValueError: With what was expected.

    Example:
        >>> check_eps(8, "linf")
        Traceback (most recent call last):
        ...
        ValueError: Expected an L-inf eps in [0, 1], as pixels are, got 8: for 8/255 write 0.03137.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"Expected the norm 'linf' or 'l2', got '{norm}': choose one of them.")
    if norm == "linf" and not 0 <= eps <= 1:
        mend = f"for {eps:g}/255 write {eps / 255:.4g}" if 1 < eps <= 255 else "give a radius"
        raise ValueError(f"Expected an L-inf eps in [0, 1], as pixels are, got {eps:g}: {mend}.")
    limit = math.inf if dimension is None else math.sqrt(dimension)
    if norm == "l2" and not 0 <= eps <= limit * (1 + 1e-6):
        raise ValueError(
            f"Expected an L2 eps in [0, {limit:.4g}], the diagonal of [0, 1]^d, got {eps:g}: pixels are in [0, 1]."
        )


def length(flat: Tensor) -> Tensor:
    """Return the Euclidean length of each row, shape (N, 1)."""
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return lengths


def project(point: Tensor, center: Tensor, eps: float, norm: Norm) -> Tensor:
    """Return the nearest point that is within eps of the centre and in [0, 1].

    L-inf: coordinates are clamped. L2: the nearest point is center + clamp(s u, -center, 1 - center), with
    u = point - center and the largest s <= 1 that keeps its length at most eps. For a set S of clamped
    coordinates s = √((eps² - Σ_S bound²) / Σ_{not S} u²); S only grows with s, so a few rounds find it, and
    every round's point is allowed.

    Args:
        point: Shape (N, ...).
        center: Clean images in [0, 1], same shape.
        eps: Radius.
        norm: ``"linf"`` or ``"l2"``.

    Returns:
        Same shape.

    Example:
        >>> project(torch.tensor([[1.5, 0.9]]), torch.tensor([[0.9, 0.5]]), 0.5, "l2")
        tensor([[1.0000, 0.9000]])
    """
    if norm == "linf":
        return point.maximum(center - eps).minimum(center + eps).clamp(0, 1)
    u = (point - center).flatten(1)
    low, high = -center.flatten(1), 1 - center.flatten(1)
    tiny = torch.finfo(u.dtype).tiny
    scale = (eps / length(u).clamp_min(tiny)).clamp_max(1)
    inside = torch.ones_like(u, dtype=torch.bool)
    for _ in range(20):
        moved = scale * u
        free = (moved > low) & (moved < high)
        if torch.equal(free, inside):
            break
        inside = free
        bounds = torch.where(free, 0, moved.clamp(low, high)).square().sum(1, keepdim=True)
        rest = length(torch.where(free, u, 0))
        grown = (eps**2 - bounds).clamp_min(0).sqrt() / rest.clamp_min(tiny)
        scale = torch.where(rest > 0, grown.maximum(scale).clamp_max(1), scale)
    moved = (scale * u).clamp(low, high)
    return (center + moved.view_as(center)).clamp(0, 1)


def random_start(center: Tensor, eps: float, norm: Norm, keys: Tensor) -> Tensor:
    """Return a point of the ball around each image, brought into [0, 1]: drawn uniformly, by the image's key (N,)."""
    count = center.flatten(1).shape[1]
    if norm == "linf":
        noise = uniform(keys, count) * 2 - 1
    else:
        noise = normal(keys, count)
        radius = uniform(key(keys, 1), 1) ** (1 / count)
        noise = noise / length(noise) * radius
    return project(center + eps * noise.to(center).view_as(center), center, eps, norm)


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the unit step that a linear objective rises fastest by: sign(g), or g / ||g||_2; 0 where g is 0.

    Example:
        >>> ascent(torch.tensor([[3e-30, -4e-30]]), "l2")
        tensor([[ 0.6000, -0.8000]])
    """
    gradient = torch.nan_to_num(gradient)  # one NaN would count as a successful attack
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    tiny = torch.finfo(flat.dtype).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)  # squares of small gradients underflow
    flat = flat / length(flat).clamp_min(tiny)
    return flat.view_as(gradient)


# -- the attack --------------------------------------------------------------------------------------------


@contextmanager
def attacking(model: Model, freeze: bool = False) -> Iterator[None]:
    """Put a network into the state in which it is attacked, and back into the one it was in.

    Evaluation mode, so that no BatchNorm statistic moves and dropout is off; gradients on, also inside
    Lightning's inference mode.

    Args:
        model: The network; a plain function is left alone.
        freeze: Whether its parameters stop asking for gradients: for attacks that call ``backward()``.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    learning = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) and freeze else []
    try:
        for module in modules:
            module.training = False
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)
        # autocast keeps the weights that it has cast; those cast without gradients must not serve the training step
        torch.clear_autocast_cache()


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
        ValueError: For pixels outside [0, 1], or an eps, norm, objective or count out of its range.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"; momentum:
    Croce & Hein 2020, equation 3; linear schedule: Yu & Xu 2023.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> pgd(lambda x: x.flatten(1) @ weight, torch.tensor([[0.6, 0.5]]), torch.tensor([0]), 0.04)
        tensor([[0.5600, 0.5400]])
    """
    check_pixels(input)
    check_eps(eps, norm, input[0].numel() if len(input) else None)
    if steps < 1 or restarts < 1:
        raise ValueError(f"Expected at least 1 step and 1 restart, got {steps} and {restarts}: raise them.")
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


# -- attacks of the library pyautoattack -------------------------------------------------------------------


class AutoAttacked(NamedTuple):
    """What AutoAttack found."""

    input: Tensor  #: (N, C, H, W): a misclassified image for each broken sample, else the clean one
    robust: dict[str, Tensor]  #: after each of its attacks in turn, (N,): whether none so far has broken a sample
    flags: list[str]  #: what it has to say about the network, such as zero gradients


def library() -> Any:
    """Return the package that has AutoAttack.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pyautoattack.square
    except ImportError as error:
        raise ImportError(
            "AutoAttack and Square come with the package pyautoattack, which is not installed: "
            "pip install 'hem[attack]'."
        ) from error
    return pyautoattack


@contextmanager
def _seeding(device: torch.device) -> Iterator[None]:
    """Keep the global generators and the tracer as they are: the library seeds the former and drops the latter."""
    tracer = sys.gettrace()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        sys.settrace(tracer)


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
    check_pixels(input)
    check_eps(eps, norm, input[0].numel() if len(input) else None)
    log, flags = logging.getLogger("auto-attack"), _Flags()
    propagate, log.propagate = log.propagate, False
    log.addHandler(flags)
    try:
        with attacking(model, freeze=True), _seeding(input.device):
            input, target = input.detach().clone(), target.clone()
            attack = package.AutoAttack(
                model,
                norm={"linf": "Linf", "l2": "L2"}[norm],
                eps=eps,
                seed=seed,
                device=input.device,
                version="standard",
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
            return AutoAttacked(adversarial, found, list(flags.messages.values()))
    finally:
        log.removeHandler(flags)
        log.propagate = propagate


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
        ValueError: For pixels outside [0, 1], or an eps out of its range.

    Source: Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via
    random search".
    """
    package = library()
    check_pixels(input)
    check_eps(eps, norm, input[0].numel() if len(input) else None)
    if not len(input):
        return input.clone()
    with attacking(model), torch.no_grad(), _seeding(input.device):
        attack = package.square.SquareAttack(
            model,
            norm={"linf": "Linf", "l2": "L2"}[norm],
            n_queries=queries,
            eps=eps,
            p_init=0.8,
            seed=seed,
            device=input.device,
            resc_schedule=False,
        )
        adversarial: Tensor = attack.perturb(input.detach().clone(), target.clone())
        return adversarial


def zero_gradients(model: Model, input: Tensor, target: Tensor, objective: str | Objective | nn.Module) -> Tensor:
    """Return whether an objective has no gradient at all at each image: an attack on it cannot move from there.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, K).
        input: Images, shape (N, C, H, W).
        target: Class indices (N,).
        objective: As :func:`pgd` takes it.

    Returns:
        Shape (N,), bool.
    """
    with attacking(model):
        x = input.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective_of(objective)(model(x), target.clone()).sum(), x)
        return (gradient == 0).flatten(1).all(1)
