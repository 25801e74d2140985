"""Adversarial task: robust accuracy over eps, checks for gradient masking, adversarial training."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchmetrics import MetricCollection

from hem.attacks import FORMER, OBJECTIVES, PGD, Attack, Budget, Norm, check_eps, pgd
from hem.attacks.evaluation import Evaluation, Row, Settings
from hem.attacks.masking import Masking, check_masking
from hem.losses import reduction
from hem.metrics import Accuracy, MeanLoss, accuracies, catalog, collection
from hem.modules.adversarial_training import TRADES, AdversarialTraining, divergence
from hem.modules.base import Task
from hem.modules.examination import refuse_masks
from hem.modules.optimization import most_accumulated
from hem.names import former
from hem.plots.robustness import robustness_curves
from hem.rng import key
from hem.runs import AtomicCheckpointIO
from hem.runs.checkpoints import check_state
from hem.runs.outputs import write_figure, write_record, write_table
from hem.runs.ranks import of_all_ranks

VALIDATION_STEPS = 10


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


class AdversarialTask(Task):
    """Robust accuracy of a classifier under attack; with ``training``, adversarial training.

    **Test.** For every norm and eps: the share of images that an attack leaves correctly classified,
    ``test/robust_accuracy/<norm>/<eps>/<attack>``, and ``.../worst``, of those that no attack breaks at this
    eps or a smaller one (over the images that all attacks are given). The images are a fixed choice from the
    test part by ``attack_seed``; AutoAttack gets the first ``autoattack_images`` of them.
    ``test/images/<attack>`` says how many there were. An image that an attack breaks at a smaller eps counts as
    broken at a larger one; AutoAttack's numbers are its own. The run folder gets ``robustness.csv`` and
    ``robustness.png``. An attack is called ``pgd_<objective>``, ``autoattack``, ``square``, ..., or by its ``name``.

    There are also checks whether the accuracies are due to masked gradients, ``test/masking/<name>`` (and
    ``test/masking/<name>/failed``, 0 or 1), at the eps where about half of the images hold. What fails is
    said in a sentence, in the output and in ``masking.json``. ``test/masking/curve_in_doubt`` is 1 where any of
    them fails but the last two, which are about the accuracy of one attack:

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
        attacks: Of :mod:`hem.attacks`, or one's own under :class:`~hem.attacks.Attack`; None:
            :class:`~hem.attacks.PGD` on each of its objectives and on the training loss.
        linf: The eps of the L-inf curve, in pixel units of [0, 1].
        l2: The eps of the L2 curve, in the same units.
        steps: Steps of PGD, where an attack has none of its own, and of the checks.
        restarts: Restarts of PGD, likewise.
        images: How many test images attacks get; None: all.
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
        ValueError: For an unknown attack, two of one name, an eps out of its range, or a count below 1.
    """

    shown = Task.shown | {catalog.TRAINING_ROBUST_ACCURACY.key("val")}

    def __init__(
        self,
        *args: Any,
        attacks: list[Attack] | None = None,
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
        attacks = [PGD(name) for name in (*OBJECTIVES, "loss")] if attacks is None else attacks
        self.attacks = [former(each, FORMER, "attack") if isinstance(each, str) else each for each in attacks]
        names = list(map(str, self.attacks))
        if twice := [name for name in names if names.count(name) > 1 or name in ("clean", "worst")]:
            raise ValueError(
                f"Expected attacks of different names, none of them 'clean' or 'worst', got '{twice[0]}': give it "
                "another `name`."
            )
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
        if few := [each for each in self.attacks if each.min_classes > self.num_classes]:
            raise ValueError(
                f"{' and '.join(map(str, few))} need {few[0].min_classes} classes, got {self.num_classes}: leave them "
                "out of `attacks`; PGD on margin, ce and mifpe takes 2."
            )
        if isinstance(training, TRADES) and self.skip_separated:
            raise ValueError("TRADES needs the prediction for every sample: leave skip_separated off.")
        self.curves: list[tuple[Norm, list[float]]] = [("linf", sorted(linf)), ("l2", sorted(l2))]
        self.budget = Budget(steps, restarts, attack_seed, attack_batch_size)
        self.images = images
        self.autoattack_images = autoattack_images
        self.autoattack_eps = autoattack_eps
        self.attack_seed = attack_seed
        self.checks = checks
        self.square_queries = square_queries
        self.tolerance = tolerance
        self.twin_ckpt_path = twin_ckpt_path
        self.adversary = training  # `self.training` is the module's mode
        self._chosen: list[tuple[Tensor, Tensor, Tensor]] = []  # (place in the draw, input, target), on the CPU

    def setup(self, stage: str) -> None:
        """Check before the test that attacks can be bound and checkpoints loaded."""
        super().setup(stage)
        if stage == "test":
            refuse_masks(self.trainer)
            self._bound()
        if stage == "test" and self.twin_ckpt_path is not None and self.checks:
            twin(self, self.twin_ckpt_path)
        if (
            stage == "fit"
            and isinstance(self.adversary, TRADES)
            and (accumulated := most_accumulated(self.trainer)) > 1
        ):
            raise ValueError(
                f"TRADES adds two means, which cannot be put together from {accumulated} "
                "micro-batches exactly: set trainer.accumulate_grad_batches to 1."
            )

    def _bound(self) -> list[Attack]:
        return [attack.bound(self.loss, self.budget) for attack in self.attacks]

    # -- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one attacked batch."""
        if self.adversary is None:
            return super().training_step(batch, batch_idx)
        input, target, *_ = batch
        run = int(os.environ.get("PL_GLOBAL_SEED", 0))
        attacked = self.adversary.perturb(self, input, target, self._keys(batch, batch_idx, run, self.current_epoch))
        if not isinstance(self.adversary, TRADES):
            return super().training_step((attacked, target), batch_idx)
        logits = self(input)
        distances = divergence(self(attacked), logits)
        with reduction.global_mean():
            distance = reduction.ratio(distances.sum(), distances.new_tensor(len(distances)))
        loss = self.training_loss(logits, target) + self.adversary.beta * distance
        if self.logs_this_step:
            self.log(catalog.DIVERGENCE.key("train"), distance.detach())
        self.log_training(logits, target)
        return loss

    def configure_metrics(self, stage: str) -> dict[str, MetricCollection]:
        """Return loss and accuracies; in validation also the accuracy on attacked images."""
        if stage == "train":
            return super().configure_metrics(stage)
        metrics = {"losses": MeanLoss(self.loss), **accuracies(self.num_classes, self.class_names)}
        attacked = {catalog.TRAINING_ROBUST_ACCURACY.path: Accuracy()}
        return {"plain": collection(metrics), "attacked": collection(attacked)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the validation metrics with a batch, clean and attacked."""
        super().validation_step(batch, batch_idx)
        if self.adversary is not None:
            input, target, *_ = batch
            eps, norm, keys = self.adversary.eps, self.adversary.norm, self._keys(batch, batch_idx)
            attacked = pgd(self.net, input, target, eps, norm=norm, steps=VALIDATION_STEPS, seed=keys)
            self.measure("val", self(attacked), target, "attacked")

    def _keys(self, batch: Any, batch_idx: int, *words: int) -> Tensor:
        """Return a random key per image: from its index, or from its position where the data has no indices."""
        input, _, *rest = batch
        if rest:
            return key(self.attack_seed, *words, rest[0])
        return key(self.attack_seed, *words, batch_idx, self.global_rank, torch.arange(len(input)))

    # -- evaluation ----------------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        """Clear the images chosen so far."""
        self._chosen = []
        self._seen = 0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the metrics, and keep the images of the batch that are to be attacked."""
        input, target, *rest = batch
        self.evaluate(batch, "test")
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
        """Run the attacks, plot and check the curves, and write the results."""
        super().on_test_epoch_end()
        if not self._chosen or not any(radii for _, radii in self.curves):
            return
        places, inputs, targets = (torch.cat(each) for each in zip(*self._chosen, strict=True))
        order = places.argsort()
        places, inputs, targets = places[order], inputs[order], targets[order]
        self._chosen = []
        everywhere = torch.cat(of_all_ranks(self.trainer, places)).sort().values

        def first(count: int | None) -> int:
            """How many of this device's images are among the first ``count`` of all devices'."""
            last = everywhere[-1 if count is None else min(count, len(everywhere)) - 1]
            return int((places <= last).sum())

        settings = Settings(self._bound(), self.curves, self.autoattack_eps, self.budget)
        counts = first(self.images), first(self.autoattack_images)
        evaluation = Evaluation(self.net, self.loss, settings, self.share, inputs, targets, places, *counts)
        rows = list(self._told(evaluation.curve()))
        for row in rows:
            name = catalog.ROBUST_ACCURACY.key("test", norm=row.norm, eps=row.eps, attack=row.attack)
            self.log(name, row.robust_accuracy, sync_dist=True)
        for attack, images in {row.attack: row.images for row in rows}.items():
            self.log(catalog.ATTACKED_IMAGES.key("test", attack=attack), float(images), sync_dist=True)
        if rows:
            self._write_curve(rows)
        if rows and self.checks:
            other = None if self.twin_ckpt_path is None else twin(self, self.twin_ckpt_path)
            self._write_checks(check_masking(evaluation, self.tolerance, self.square_queries, other))

    def _told(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Print each point as it is found, with its time."""
        since = time.perf_counter()
        for row in rows:
            if self.trainer.is_global_zero and row.eps:
                point = (
                    f"{row.norm} eps {row.eps:g}, {row.attack}: {row.robust_accuracy:.1%} of {row.images} images hold"
                )
                print(f"{point} ({time.perf_counter() - since:.1f} s)", flush=True)
            since = time.perf_counter()
            yield row

    @rank_zero_only
    def _write_curve(self, rows: list[Row]) -> None:
        write_table(self.trainer, "robustness", Row._fields, (row._asdict() for row in rows))
        write_figure(self.trainer, "robustness", robustness_curves(rows))

    def _write_checks(self, masking: Masking) -> None:
        for name, value in masking.facts.items():
            self.log(catalog.MASKING.key("test", check=name), value, sync_dist=True)
        for check in masking.checks:
            self.log(catalog.MASKING.key("test", check=check.name), check.value, sync_dist=True)
            self.log(catalog.MASKING_FAILED.key("test", check=check.name), float(check.failed), sync_dist=True)
        in_doubt = any(check.failed and not check.one_attack for check in masking.checks)
        self.log(catalog.CURVE_IN_DOUBT.key("test"), float(in_doubt), sync_dist=True)
        if self.trainer.is_global_zero:
            warnings = [f"{check.name}: {check.sentence}" for check in masking.checks if check.failed]
            record = {
                "warnings": warnings,
                "notes": masking.notes,
                "facts": masking.facts,
                "checks": [{**check._asdict(), "failed": check.failed} for check in masking.checks],
            }
            write_record(self.trainer, "masking", record)
            for sentence in warnings:
                print(f"warning: {sentence}")
            for sentence in masking.notes:
                print(f"note: {sentence}")

    def share(self, held: Tensor) -> tuple[float, int]:
        """Return the share of True among the booleans of all devices, and their number."""
        pair = torch.tensor([float(held.sum()), float(len(held))], dtype=torch.float64, device=self.device)
        total: Any = self.trainer.strategy.reduce(pair, reduce_op="sum")
        count, images = total.tolist()
        return count / images if images else math.nan, int(images)
