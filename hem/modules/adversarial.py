"""Adversarial robustness: the curve over eps, whether it can be believed, and adversarial training."""

from __future__ import annotations

import copy
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from hem.attacks import (
    OBJECTIVES,
    Norm,
    attacking,
    autoattack,
    check_eps,
    library,
    pgd,
    project,
    square,
    zero_gradients,
)
from hem.datamodules.counter import key
from hem.losses import reduction
from hem.modules.base import Task, check_state
from hem.modules.classification import accuracies
from hem.modules.examination import lay_out, write_figure, write_record, write_table
from hem.names import check_name
from hem.run import AtomicCheckpointIO

ATTACKS = (*(f"pgd_{name}" for name in OBJECTIVES), "pgd_loss", "autoattack")
VALIDATION_STEPS = 10
# of every PGD of the evaluation, so that its figures differ by the objective alone: MIFPE's, which at 40 steps breaks
# more images with each objective than steps of constant size do
SCHEDULE: dict[str, Any] = {"schedule": "linear", "momentum": 0.75}


def seed_of(*words: int) -> int:
    """Return a seed for a generator that is a function of some numbers: see :mod:`hem.datamodules.counter`.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return int(key(*words)) & (2**62 - 1)


# -- training ----------------------------------------------------------------------------------------------


class AdversarialTraining(ABC):
    """How a network is trained against attacks.

    Args:
        eps: Radius of the attack, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Steps of the attack.
        step_size: Of each step; None: 2.5 eps / steps.

    Raises:
        ValueError: For an eps or number of steps out of its range.
    """

    def __init__(self, eps: float, norm: Norm = "linf", steps: int = 10, step_size: float | None = None) -> None:
        check_eps(eps, norm)
        if steps < 1:
            raise ValueError(f"Expected at least 1 step of attack in training, got {steps}: give 7 or 10.")
        self.eps = eps
        self.norm: Norm = norm
        self.steps = steps
        self.step_size = step_size

    @abstractmethod
    def perturb(self, task: Task, input: Tensor, target: Tensor, seed: int) -> Tensor:
        """Return the attacked batch that a step trains on."""


class PGDTraining(AdversarialTraining):
    """Adversarial training: the loss of the attacked batch, min_θ E max_{||δ|| <= eps} L(f(x + δ), y).

    The inner maximum is climbed on the training loss, or on an objective that does not vanish where a margin
    is met (see :mod:`hem.attacks`).

    Args:
        eps: Radius of the attack, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Steps of the attack.
        step_size: Of each step; None: 2.5 eps / steps.
        objective: What the attack climbs: ``"loss"``, the training loss, or one of :data:`hem.attacks.OBJECTIVES`.

    Raises:
        ValueError: For an eps, number of steps or objective out of its range.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"; recipe: Rice et
    al. 2020, "Overfitting in adversarially robust deep learning".
    """

    def __init__(
        self,
        eps: float,
        norm: Norm = "linf",
        steps: int = 10,
        step_size: float | None = None,
        objective: str = "loss",
    ) -> None:
        super().__init__(eps, norm, steps, step_size)
        check_name(objective, ("loss", *OBJECTIVES), "objective of adversarial training")
        self.objective = objective

    def perturb(self, task: Task, input: Tensor, target: Tensor, seed: int) -> Tensor:
        """Return the batch after all steps of the attack."""
        return pgd(
            task.net,
            input,
            target,
            self.eps,
            norm=self.norm,
            steps=self.steps,
            step_size=self.step_size,
            objective=task.loss if self.objective == "loss" else self.objective,
            early_stop=False,
            seed=seed,
        )


class TRADES(AdversarialTraining):
    """TRADES: the loss of the clean batch, and how far the attack moves the prediction.

        min_θ E [ L(f(x), y) + β max_{||δ|| <= eps} KL(softmax f(x) || softmax f(x + δ)) ].

    Args:
        eps: Radius of the attack, in pixel units of [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        steps: Steps of the attack.
        step_size: Of each step; None: 2.5 eps / steps.
        beta: β.

    Raises:
        ValueError: For an eps, number of steps or beta out of its range.

    Source: Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", equation 5.
    """

    def __init__(
        self,
        eps: float,
        norm: Norm = "linf",
        steps: int = 10,
        step_size: float | None = None,
        beta: float = 6.0,
    ) -> None:
        super().__init__(eps, norm, steps, step_size)
        if beta < 0:
            raise ValueError(f"Expected TRADES' beta to be at least 0, got {beta}: the paper takes 1 to 6.")
        self.beta = beta

    def perturb(self, task: Task, input: Tensor, target: Tensor, seed: int) -> Tensor:
        """Return the batch that the attack moves furthest in KL, from x + 0.001 n, n normal (at x it is flat)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(input.shape, generator=generator, dtype=input.dtype).to(input.device)
        with attacking(task.net), torch.no_grad():
            clean = task(input)
        return pgd(
            task.net,
            input,
            clean,
            self.eps,
            norm=self.norm,
            steps=self.steps,
            step_size=self.step_size,
            objective=divergence,
            start=project(input + 0.001 * noise, input, self.eps, self.norm),
            early_stop=False,
        )


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """Return KL(softmax(clean) || softmax(logits)) of each sample.

    Args:
        logits: Shape (N, K).
        clean: Logits too, shape (N, K).

    Returns:
        Shape (N,).

    Example:
        >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]))
        tensor([0.6931])
    """
    pair = logits.float().log_softmax(1), clean.float().log_softmax(1)
    return F.kl_div(*pair, reduction="none", log_target=True).sum(1)


# -- evaluation --------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One figure of the curve."""

    norm: str
    eps: float
    attack: str
    images: int
    robust_accuracy: float


class Check(NamedTuple):
    """One check for gradient masking."""

    name: str
    value: float  #: what was measured
    limit: float  #: the largest value that passes
    sentence: str  #: what it means where it fails

    @property
    def failed(self) -> bool:
        """Whether the value is beyond the limit."""
        return self.value > self.limit + 1e-9


class AdversarialTask(Task):
    """Robust accuracy of a classifier under attack; with ``training``, adversarial training.

    **Test.** For every norm and eps: the share of images that an attack leaves correctly classified,
    ``test/robust_accuracy/<norm>/<eps>/<attack>``, and ``.../worst``, of those that no attack breaks at this
    eps or a smaller one (over the images that all attacks are given). The images are a fixed choice from the
    test part by ``attack_seed``; AutoAttack gets the first ``autoattack_images`` of them.
    ``test/images/<attack>`` says how many there were. An image that PGD breaks at a smaller eps counts as
    broken at a larger one; AutoAttack's figures are its own. The run folder gets ``robustness.csv`` and
    ``robustness.png``.

    Beside them stand checks whether the figures are owed to masked gradients, ``test/masking/<name>`` (and
    ``test/masking/<name>/failed``, 0 or 1), at the eps where about half of the images hold. What fails is
    said in a sentence, in the output and in ``masking.json``:

    * ``more_steps``: accuracy under four times the steps and three more restarts, less the plain attack's;
    * ``converged``: the share that these break and no attack of the curve does;
    * ``unbounded``: accuracy where eps covers every image (1, or √d in L2): 0 for any attack that works;
    * ``one_step``: accuracy under the iterated attack, less that under one step;
    * ``black_box``: the share that Square breaks and no white-box attack does;
    * ``transfer``: the share that attacks on ``twin_ckpt_path`` break and no white-box attack does;
    * ``zero_gradients``: the share of clean images where the training loss has no gradient;
    * ``scale``: accuracy under PGD on cross-entropy, less the least of that with logits times 10 and 100
      (``test/masking/scale_<factor>``).

    **Training.** With ``training``, every batch is attacked first, and ``val/robust_accuracy`` (ten steps on
    the logit margin at the training eps) chooses the best checkpoint where ``checkpoint.monitor`` names it:
    robust accuracy falls again late in training while the training loss does not show it.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        attacks: Among ``pgd_ce``, ``pgd_margin``, ``pgd_dlr``, ``pgd_mifpe``, ``pgd_loss`` (the training loss)
            and ``autoattack``.
        linf: The eps of the L-inf curve, in pixel units of [0, 1].
        l2: The eps of the L2 curve, in the same units.
        steps: Steps of PGD; their size falls linearly from 2 eps, with momentum (see :func:`hem.attacks.pgd`).
        restarts: Restarts of PGD.
        images: How many test images PGD gets; None: all.
        autoattack_images: How many test images AutoAttack and the checks get.
        autoattack_eps: At which of the eps AutoAttack runs; None: at all of them.
        attack_batch_size: Images attacked at once, on each device.
        attack_seed: Chooses images and random starts; the same for all networks that are compared.
        checks: Whether to check for masked gradients.
        square_queries: Queries per image of Square in the checks; 0 leaves that check out.
        tolerance: What a check forgives: a share of its images.
        twin_ckpt_path: Checkpoint of the same network trained with cross-entropy, for the transfer check.
        training: Adversarial training; None: the training of :class:`~hem.modules.base.Task`.
        **kwargs: See :class:`~hem.modules.base.Task`.

    Raises:
        ValueError: For an unknown attack, an eps out of its range, or a count below 1.
    """

    def __init__(
        self,
        *args: Any,
        attacks: Sequence[str] = ("pgd_ce", "pgd_margin", "pgd_dlr", "pgd_mifpe", "pgd_loss"),
        linf: Sequence[float] = (),
        l2: Sequence[float] = (),
        steps: int = 40,
        restarts: int = 1,
        images: int | None = 1000,
        autoattack_images: int = 500,
        autoattack_eps: Sequence[float] | None = None,
        attack_batch_size: int = 250,
        attack_seed: int = 0,
        checks: bool = True,
        square_queries: int = 2000,
        tolerance: float = 0.02,
        twin_ckpt_path: str | None = None,
        training: AdversarialTraining | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name in attacks:
            check_name(name, ATTACKS, "attack")
        for norm, radii in (("linf", linf), ("l2", l2)):
            for eps in radii:
                check_eps(eps, norm)
        counts = {
            "steps": steps,
            "restarts": restarts,
            "images": 1 if images is None else images,
            "autoattack_images": autoattack_images,
            "attack_batch_size": attack_batch_size,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"Expected {name} to be 1 or more, got {count}.")
        few = [name for name in ("pgd_dlr", "autoattack") if name in attacks and self.num_classes < 4]
        if few:
            raise ValueError(
                f"{' and '.join(few)} need 4 classes, for DLR compares the third and fourth logit, got "
                f"{self.num_classes}: leave them out of `attacks`; pgd_margin and pgd_mifpe take 2."
            )
        if isinstance(training, TRADES) and self.skip_separated:
            raise ValueError("TRADES needs the prediction for every sample: leave skip_separated off.")
        self.attacks = list(attacks)
        self.curves: list[tuple[Norm, list[float]]] = [("linf", sorted(linf)), ("l2", sorted(l2))]
        self.steps = steps
        self.restarts = restarts
        self.images = images
        self.autoattack_images = autoattack_images
        self.autoattack_eps = autoattack_eps
        self.attack_batch_size = attack_batch_size
        self.attack_seed = attack_seed
        self.checks = checks
        self.square_queries = square_queries
        self.tolerance = tolerance
        self.twin_ckpt_path = twin_ckpt_path
        self.adversary = training  # `self.training` is the module's mode
        self.figures = nn.ModuleDict(
            {
                stage: accuracies(self.num_classes, self.class_names).clone(prefix=f"{stage}/")
                for stage in ("val", "test")
            }
        )
        self.robust = MeanMetric()
        self._chosen: list[tuple[Tensor, Tensor, Tensor]] = []  # (place in the draw, input, target), on the CPU

    def setup(self, stage: str) -> None:
        """Find out before anything is computed whether all that is needed is there."""
        if stage == "test" and "autoattack" in self.attacks:
            library()
        if stage == "test" and self.twin_ckpt_path is not None and self.checks:
            twin(self, self.twin_ckpt_path)
        if stage == "fit" and isinstance(self.adversary, TRADES) and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"TRADES adds two means, which cannot be put together from {self.trainer.accumulate_grad_batches} "
                "micro-batches exactly: set trainer.accumulate_grad_batches to 1."
            )

    # -- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch, attacked."""
        if self.adversary is None:
            return super().training_step(batch, batch_idx)
        input, target, *_ = batch
        words = (int(os.environ.get("PL_GLOBAL_SEED", 0)), self.current_epoch, batch_idx, self.global_rank)
        attacked = self.adversary.perturb(self, input, target, seed_of(self.attack_seed, *words))
        if not isinstance(self.adversary, TRADES):
            return super().training_step((attacked, target), batch_idx)
        logits = self(input)
        distances = divergence(self(attacked), logits)
        with reduction.global_mean():
            distance = reduction.ratio(distances.sum(), distances.new_tensor(len(distances)))
        loss = self.training_loss(logits, target) + self.adversary.beta * distance
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/divergence", distance.detach())
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_training(logits.detach(), target)
        return loss

    def log_training(self, logits: Tensor, target: Tensor) -> None:
        """Log accuracy on the batch as it is trained on: attacked (PGD) or clean (TRADES)."""
        label = target.argmax(1) if target.is_floating_point() else target
        self.log("train/accuracy", (logits.argmax(1) == label).float().mean(), prog_bar=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take one batch into the validation figures."""
        input, target, *_ = batch
        self._accuracies("val").update(self(input).float(), target)
        if self.adversary is not None:
            options: dict[str, Any] = {
                "steps": VALIDATION_STEPS,
                "seed": seed_of(self.attack_seed, batch_idx, self.global_rank),
            }
            attacked = pgd(self.net, input, target, self.adversary.eps, norm=self.adversary.norm, **options)
            self.robust.update((self(attacked).argmax(1) == target).float())

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures."""
        self._log_accuracies("val")
        if self.adversary is not None:
            self.log("val/robust_accuracy", self.robust.compute(), prog_bar=True, sync_dist=True)
            self.robust.reset()

    # -- evaluation ----------------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        """Begin the choice of images."""
        lay_out(self.net)
        self._chosen = []
        self._seen = 0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Take one batch into the clean figures, and keep its images that are to be attacked."""
        input, target, *rest = batch
        self._accuracies("test").update(self(input).float(), target)
        index = rest[0] if rest else torch.arange(self._seen, self._seen + len(target), device=target.device)
        self._seen += len(target)
        place = key(self.attack_seed, index)
        self._chosen.append((place.cpu(), input.cpu(), target.cpu()))
        if self.images is not None:  # the smallest of all: a choice that depends on the seed and the indices alone
            places, inputs, targets = (torch.cat(each) for each in zip(*self._chosen, strict=True))
            first = places.argsort()[: max(self.images, self.autoattack_images)]
            self._chosen = [(places[first], inputs[first], targets[first])]

    @torch.inference_mode(False)
    @torch.no_grad()
    def on_test_epoch_end(self) -> None:
        """Attack, draw the curves, check them, and write it all down."""
        self._log_accuracies("test")
        if not self._chosen or not any(radii for _, radii in self.curves):
            return
        places, inputs, targets = (torch.cat(each) for each in zip(*self._chosen, strict=True))
        order = places.argsort()
        places, inputs, targets = places[order], inputs[order], targets[order]
        self._chosen = []
        everywhere = places
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, places)
            everywhere = torch.cat(parts).sort().values

        def first(count: int | None) -> int:
            """How many of this device's images are among the first ``count`` of all devices'."""
            last = everywhere[-1 if count is None else min(count, len(everywhere)) - 1]
            return int((places <= last).sum())

        evaluation = Evaluation(self, inputs, targets, first(self.images), first(self.autoattack_images))
        rows = evaluation.curve()
        for row in rows:
            self.log(f"test/robust_accuracy/{row.norm}/{row.eps:g}/{row.attack}", row.robust_accuracy, sync_dist=True)
        for attack, images in {row.attack: row.images for row in rows}.items():
            self.log(f"test/images/{attack}", float(images), sync_dist=True)
        if rows:
            self._write_curve(rows)
        if rows and self.checks:
            self._write_checks(*evaluation.masking())

    @rank_zero_only
    def _write_curve(self, rows: list[Row]) -> None:
        write_table(self, "robustness", Row._fields, (row._asdict() for row in rows))
        write_figure(self, "robustness", draw(rows))

    def _write_checks(self, checks: list[Check], facts: dict[str, float], notes: list[str]) -> None:
        for name, value in facts.items():
            self.log(f"test/masking/{name}", value, sync_dist=True)
        for check in checks:
            self.log(f"test/masking/{check.name}", check.value, sync_dist=True)
            self.log(f"test/masking/{check.name}/failed", float(check.failed), sync_dist=True)
        if self.trainer.is_global_zero:
            warnings = [f"{check.name}: {check.sentence}" for check in checks if check.failed]
            record = {
                "warnings": warnings,
                "notes": notes,
                "facts": facts,
                "checks": [{**check._asdict(), "failed": check.failed} for check in checks],
            }
            write_record(self, "masking", record)
            for sentence in warnings:
                print(f"warning: {sentence}")
            for sentence in notes:
                print(f"note: {sentence}")

    def share(self, held: Tensor) -> tuple[float, int]:
        """Return the share of True among the booleans of all devices, and their number."""
        pair = torch.tensor([float(held.sum()), float(len(held))], dtype=torch.float64, device=self.device)
        total: Any = self.trainer.strategy.reduce(pair, reduce_op="sum")
        count, images = total.tolist()
        return count / max(images, 1), int(images)

    def _accuracies(self, stage: str) -> Any:
        return self.figures[stage]

    def _log_accuracies(self, stage: str) -> None:
        figures = self._accuracies(stage)
        # `compute` has gathered all ranks already: sync_dist takes the mean of equal numbers, and Lightning asks for it
        for name, value in figures.compute().items():
            self.log(name, value, prog_bar=name.endswith("/accuracy"), sync_dist=True)
        figures.reset()


class Evaluation:
    """The attacks of one test on the images of one device.

    Args:
        task: Whose network is attacked, by whose arguments.
        input: Clean images on the CPU, in the order of the draw, shape (N, C, H, W).
        target: Class indices, shape (N,).
        pgd_images: How many of them PGD gets.
        few_images: How many of them AutoAttack and the checks get.
    """

    def __init__(self, task: AdversarialTask, input: Tensor, target: Tensor, pgd_images: int, few_images: int) -> None:
        self.task = task
        self.input = input
        self.target = target
        self.pgd_images = pgd_images
        self.few_images = few_images
        sizes = {few_images if attack == "autoattack" else pgd_images for attack in task.attacks}
        self.common_images = min(sizes, default=pgd_images)  # those that every attack is given
        self.clean = self._held(lambda x, y, seed: x, len(input))
        # whether each image holds: by norm, eps and attack
        self.held: dict[tuple[Norm, float], dict[str, Tensor]] = {}
        self.black_box: dict[tuple[Norm, float], Tensor] = {}  # what AutoAttack's Square alone broke
        self.notes: list[str] = []

    def _batches(self, todo: Tensor) -> Iterator[Tensor]:
        """Cut positions into those that are attacked at once."""
        for start in range(0, len(todo), self.task.attack_batch_size):
            yield todo[start : start + self.task.attack_batch_size]

    def _held(
        self,
        attack: Callable[[Tensor, Tensor, int], Tensor],
        images: int,
        among: Tensor | None = None,
    ) -> Tensor:
        """Return which of the first images are classified correctly after an attack, shape (images,).

        Args:
            attack: Takes images, targets and a seed; returns images.
            images: How many of this device's.
            among: Those worth attacking, shape (images,); the others count as broken.
        """
        task = self.task
        held = torch.zeros(images, dtype=torch.bool)
        todo = torch.arange(images) if among is None else among[:images].nonzero()[:, 0]
        for number, at in enumerate(self._batches(todo)):
            x, y = self.input[at].to(task.device), self.target[at].to(task.device)
            attacked = attack(x, y, seed_of(task.attack_seed, number, task.global_rank))
            with attacking(task.net), torch.no_grad():
                held[at] = (task(attacked).argmax(1) == y).cpu()
        return held

    def _pgd(
        self, norm: Norm, eps: float, images: int, among: Tensor | None = None, model: Any = None, **options: Any
    ) -> Tensor:
        settings: dict[str, Any] = {**SCHEDULE, "steps": self.task.steps, "restarts": self.task.restarts, **options}
        model = model or self.task.net

        def attack(x: Tensor, y: Tensor, seed: int) -> Tensor:
            return pgd(model, x, y, eps, norm=norm, seed=seed, **settings)

        return self._held(attack, images, among)

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
                share, images = task.share(self.clean[: self.pgd_images])
                rows.append(Row(norm, 0.0, "clean", images, share))
            for eps in radii:
                held: dict[str, Tensor] = {}
                for attack in task.attacks:
                    since = time.perf_counter()
                    if attack == "pgd_loss" and "pgd_ce" in held and plain_ce(task.loss):
                        held[attack] = left[attack] = held["pgd_ce"]  # the same attack, to the bit
                    elif attack != "autoattack":
                        objective = self._objective(attack)
                        left[attack] = self._pgd(norm, eps, self.pgd_images, left[attack], objective=objective)
                        held[attack] = left[attack]
                    elif task.autoattack_eps is None or eps in task.autoattack_eps:
                        held[attack] = self._autoattack(norm, eps)
                    else:
                        continue
                    rows.append(self._report(norm, eps, attack, held[attack], since))
                if held:
                    self.held[norm, eps] = held
                    worst = worst & self._worst(held, self.common_images)
                    rows.append(self._report(norm, eps, "worst", worst, time.perf_counter()))
        return rows

    def _worst(self, held: dict[str, Tensor], images: int) -> Tensor:
        """Return which of the first images every attack leaves correct."""
        return torch.stack([each[:images] for each in held.values()]).all(0)

    def masking(self) -> tuple[list[Check], dict[str, float], list[str]]:
        """Check for masked gradients where about half of the correctly classified images hold.

        Returns:
            The checks; figures that belong to them; what else is to be said.
        """
        task, limit = self.task, self.task.tolerance
        images = min(self.few_images, self.pgd_images)
        clean = self.clean[:images]
        half = task.share(clean)[0] / 2
        # L-inf before L2; the distances are shares of all devices' images, so all devices choose alike
        norm, eps = min(
            self.held,
            key=lambda at: (
                at[0] != task_norm(self.held),
                abs(task.share(self._worst(self.held[at], images))[0] - half),
            ),
        )
        white = self._worst({"clean": clean, **self.held[norm, eps]}, images)
        facts = {"eps": eps, "images": float(task.share(clean)[1])}
        plain = self._pgd(norm, eps, images, clean)
        more = self._pgd(norm, eps, images, clean, steps=4 * task.steps, restarts=task.restarts + 3)
        one = self._held(
            lambda x, y, seed: pgd(task.net, x, y, eps, norm=norm, steps=1, step_size=eps, start=x), images, clean
        )
        everything = 1.0 if norm == "linf" else float(self.input.shape[1:].numel()) ** 0.5
        unbounded = clean
        for objective in ("margin", "ce", "mifpe"):
            unbounded = self._pgd(norm, everything, images, unbounded, objective=objective)
        blind = torch.zeros(images, dtype=torch.bool)
        for some in self._batches(torch.arange(images)):
            x, y = self.input[some].to(task.device), self.target[some].to(task.device)
            blind[some] = zero_gradients(task.net, x, y, task.loss).cpu()
        scaled = {
            factor: task.share(
                self._pgd(norm, eps, images, clean, objective="ce", model=scaled_logits(task.net, factor))
            )[0]
            for factor in (1, 10, 100)
        }
        facts |= {f"scale_{factor}": value for factor, value in scaled.items()}

        def beyond(held: Tensor) -> float:
            return task.share(white & ~held)[0]

        at = f"{norm} {eps:g}"
        checks = [
            Check(
                "more_steps",
                task.share(more)[0] - task.share(plain)[0],
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
                task.share(unbounded)[0],
                0.0,
                "images survive attacks that may change every pixel at will: the attacks do not find what "
                "certainly exists, so the curve is too high.",
            ),
            Check(
                "one_step",
                task.share(plain)[0] - task.share(one)[0],
                limit,
                f"one large step at {at} breaks more images than many small ones: gradients are masked.",
            ),
            Check(
                "zero_gradients",
                task.share(blind)[0],
                limit,
                "the training loss has no gradient at that share of the clean images, so an attack on it alone "
                "(pgd_loss) proves nothing: read the attacks on margin, DLR and MIFPE.",
            ),
            Check(
                "scale",
                scaled[1] - min(scaled.values()),
                limit,
                f"PGD on cross-entropy at {at} breaks more images when the logits are multiplied by 10 or 100, which "
                "changes no decision: its figures (pgd_ce) flatter this network.",
            ),
        ]
        box = self._black_box(norm, eps, white)
        if box is not None:
            checks.append(
                Check(
                    "black_box",
                    task.share(box)[0],
                    limit,
                    f"Square, which sees no gradients, breaks images at {at} that no white-box attack breaks: "
                    "gradients are masked, so the curve is too high.",
                )
            )
        if task.twin_ckpt_path is not None:
            moved = self._pgd(
                norm, eps, images, clean, model=twin(task, task.twin_ckpt_path), objective="ce", early_stop=False
            )
            checks.append(
                Check(
                    "transfer",
                    beyond(moved),
                    limit,
                    f"attacks on the twin network at {at} carry over to images that no attack on this one breaks: "
                    "gradients are masked, so the curve is too high.",
                )
            )
            facts["transfer_accuracy"] = task.share(moved)[0]
        return checks, facts, list(dict.fromkeys(self.notes))

    def _black_box(self, norm: Norm, eps: float, white: Tensor) -> Tensor | None:
        """Return which images Square breaks and no white-box attack does; None where it cannot be had."""
        task = self.task
        if "autoattack" in self.held[norm, eps]:
            alone = self.black_box[norm, eps][: len(white)]
            others = {name: each for name, each in self.held[norm, eps].items() if name != "autoattack"}
            return alone & self._worst({"clean": self.clean, **others}, len(white))
        if not task.square_queries:
            return None
        try:
            library()
        except ImportError as error:
            self.notes.append(f"the check against Square was left out. {error}")
            return None

        def attack(x: Tensor, y: Tensor, seed: int) -> Tensor:
            return square(task.net, x, y, eps, norm=norm, queries=task.square_queries, seed=seed)

        return white & ~self._held(attack, len(white), white)


def plain_ce(loss: nn.Module) -> bool:
    """Return whether a loss is the cross-entropy of each sample, which ``pgd_ce`` climbs as well."""
    return type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.label_smoothing == 0


def task_norm(held: dict[tuple[Norm, float], dict[str, Tensor]]) -> Norm:
    """Return the norm whose curve is checked: L-inf where there is one."""
    return "linf" if any(norm == "linf" for norm, _ in held) else "l2"


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


def draw(rows: list[Row]) -> Figure:
    """Return the curves: robust accuracy over eps, a panel for each norm, a line for each attack."""
    norms = list(dict.fromkeys(row.norm for row in rows))
    figure = Figure(figsize=(5 * len(norms), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, norm in enumerate(norms):
        axes = figure.add_subplot(1, len(norms), panel + 1)
        clean = [row for row in rows if (row.norm, row.attack) == (norm, "clean")]
        for attack in dict.fromkeys(row.attack for row in rows if row.norm == norm and row.attack != "clean"):
            points = [row for row in rows if (row.norm, row.attack) == (norm, attack)]
            label = f"{attack} ({points[0].images} images)"
            points = [*clean, *points]
            x, y = [row.eps for row in points], [100 * row.robust_accuracy for row in points]
            style = {"color": "black", "linewidth": 2.5, "zorder": 1} if attack == "worst" else {"linewidth": 1.2}
            axes.plot(x, y, marker=".", label=label, **style)
        axes.set(xlabel=f"eps ({'L∞' if norm == 'linf' else 'L2'}, pixels in [0, 1])", ylabel="robust accuracy in %")
        axes.set(xlim=(0, None), ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
