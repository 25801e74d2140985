"""Long-tail task: accuracy by class frequency, deferred re-weighting, post-hoc logit adjustment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from hem.datamodules.base import ImageDataModule
from hem.losses.functional import effective_number_weights
from hem.metrics import MeanLoss, accuracies, catalog, collection
from hem.metrics.longtail import ShotAccuracy, shots
from hem.modules.base import Task
from hem.modules.calibrator import Calibrator, RunCalibration, Scores, predicted, run_calibration
from hem.modules.posthoc import adjusted, tau_normalized
from hem.modules.probe import use_features
from hem.names import check_name
from hem.networks import CosineLinear
from hem.plots.longtail import frequency_curves
from hem.runs.outputs import write_figure, write_table
from hem.runs.trainer import datamodule, run_folder


class LongTailTask(Task):
    """Train and test a classifier on classes of very different frequency.

    Logged for validation (``val/``) and test (``test/``): ``accuracy``, ``balanced_accuracy`` (the mean over the
    classes), ``many_shot_accuracy``, ``medium_shot_accuracy``, ``few_shot_accuracy`` (means over the classes with
    more than ``many``, with ``few`` to ``many``, with fewer than ``few`` training samples),
    ``worst_class_accuracy``, ``accuracy_top5``, ``class_accuracy/<name>``, ``loss``, ``active`` and
    ``active_loss``. Every sample counts once, on however many devices. Two remedies that leave the training as it was
    add metrics beside these, under ``test/adjusted/...`` and ``test/tau_normalized/...``. Test also writes
    ``longtail.csv`` and ``longtail.png``, the accuracy of each class against its frequency. Training logs
    ``train/accuracy``, ``train/loss``, ``train/active`` and ``train/active_loss``.

    Deferred re-weighting gives the loss a ``weight`` from one epoch on: effective numbers
    w_j = (1 - beta) / (1 - beta^n_j), scaled to the sum C (Cui et al. 2019; deferred: Cao et al. 2019), times the
    weight that the loss has. The sampling of classes is the data module's: see
    :class:`~hem.datamodules.PowerSampling`.

    Probabilities are fitted on the validation samples in the test, as :class:`~hem.modules.Calibrator` says, and
    predictions have them as ``score``: they are those of the validation part's prior, which for a long tail is cut from
    balanced data or balanced itself. Where classes come as often as in training, other probabilities are right: below
    ``test/train_prior/`` stand the same metrics with every sample counting its class's share in training over its share
    in the part, the ``temperature`` fitted so as well.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        class_counts: Training samples of each class, (C); linked from the data module.
        many: More training samples than these make a class many-shot; 100 in ImageNet-LT.
        few: Fewer make it few-shot; 20 in ImageNet-LT.
        drw_epoch: The first epoch (from 0) with re-weighting; None: never.
        drw_beta: beta in [0, 1).
        adjust_tau: Strength of post-hoc logit adjustment, z_j - tau log p_j: see :func:`adjusted`. None: no such
            metrics.
        normalize_tau: Strength of tau-normalisation of the last layer: see :func:`tau_normalized`. None: no such
            metrics.
        features: A folder in which the features of the images are kept, computed once, so that an epoch of the last
            layer takes a second; for encoders that stand still (``frozen_epochs: all``) and data without augmentation.
        calibrator: Fits the probabilities; None: one temperature.
        scores: Whether predictions have ``"calibrated"`` probabilities, or ``"raw"`` ones, the softmax of the logits.
        **kwargs: See :class:`~hem.modules.base.Task`.

    Raises:
        ValueError: ``class_counts`` has another length or an empty class, the thresholds are out of order, or the
            loss cannot be re-weighted, the network not be normalised.
    """

    def __init__(
        self,
        *args: Any,
        class_counts: Sequence[int] | None = None,
        many: int = 100,
        few: int = 20,
        drw_epoch: int | None = None,
        drw_beta: float = 0.9999,
        adjust_tau: float | None = None,
        normalize_tau: float | None = None,
        features: str | None = None,
        calibrator: Calibrator | None = None,
        scores: Scores = "calibrated",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_name(scores, get_args(Scores), "kind of scores")
        self.features = features
        if class_counts is None or len(class_counts) != self.num_classes:
            raise ValueError(
                f"Expected class_counts of {self.num_classes} numbers, one for each class, got "
                f"{len(class_counts or ())}: give the training samples of each class, such as data_module.class_counts."
            )
        if min(class_counts) < 1:
            empty = next(k for k, n in enumerate(class_counts) if n < 1)
            raise ValueError(
                f"class {self.class_names[empty]} has {class_counts[empty]} training samples, but every class needs "
                "one or more: leave it out, or bring some."
            )
        if not 0 < few <= many:
            raise ValueError(
                f"Expected numbers of training samples with 0 < few <= many, got {few} and {many}: "
                "ImageNet-LT has 20 and 100."
            )
        for name, tau in (("adjust_tau", adjust_tau), ("normalize_tau", normalize_tau)):
            if tau is not None and not 0 <= tau < float("inf"):
                raise ValueError(f"Expected {name}, a strength, to be 0 or more, got {tau:g}: null leaves it out.")
        if not 0 <= drw_beta < 1:
            raise ValueError(f"Expected drw_beta in [0, 1), got {drw_beta:g}: 0.9999 is usual.")
        if drw_epoch is not None:
            if drw_epoch < 0:
                raise ValueError(
                    f"Expected drw_epoch, the number of an epoch, to be 0 or more, got {drw_epoch}: null means never."
                )
            if not hasattr(self.loss, "weight"):
                raise ValueError(
                    f"drw_epoch re-weights the loss by its `weight`, but {type(self.loss).__name__} has none: take "
                    "another loss, or leave drw_epoch null."
                )
        backbone: Any = self.net.backbone
        head = getattr(backbone, "head", None)
        if normalize_tau is not None and not (
            hasattr(backbone, "forward_features") and isinstance(head, (nn.Linear, CosineLinear))
        ):
            raise ValueError(
                f"normalize_tau scales the weights of a linear last layer, so it needs a network with "
                f"`forward_features` and a linear `head`, which {type(backbone).__name__} has not: take another "
                "network, or leave normalize_tau null."
            )
        self.class_counts = list(class_counts)
        self.groups = shots(class_counts, many, few)
        self.drw_epoch = drw_epoch
        self.drw_beta = drw_beta
        self.adjust_tau = adjust_tau
        self.normalize_tau = normalize_tau
        self.calibrator = Calibrator() if calibrator is None else calibrator
        self.scores = scores
        self.calibration: RunCalibration | None = None
        self.train_prior = nn.ModuleDict()
        own = getattr(self.loss, "weight", None)
        self.own_weight = None if own is None else own.clone()

    def configure_metrics(self, stage: str) -> dict[str, MetricCollection]:
        """Return loss and accuracies by frequency, also under each post-hoc correction."""
        if stage == "train":
            return super().configure_metrics(stage)
        own = {"losses": MeanLoss(self.loss), **accuracies(self.num_classes, self.class_names)}
        del own[catalog.ACCURACY.path]  # the shots' have it
        found = {"plain": collection({**own, "shots": ShotAccuracy(self.groups)})}
        remedies = {"adjusted": self.adjust_tau, "tau_normalized": self.normalize_tau}
        for name, tau in remedies.items():
            if tau is not None:
                found[name] = collection({"shots": ShotAccuracy(self.groups)}, name)
        return found

    def setup(self, stage: str) -> None:
        """Replace images by precomputed features where ``features`` names a folder."""
        super().setup(stage)
        if self.features is not None:
            use_features(self, self.features, stage)

    # -- training ------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Warn where the re-weighting would begin after the end of training."""
        last = self.trainer.max_epochs
        if self.drw_epoch is not None and last is not None and 0 <= last <= self.drw_epoch:
            rank_zero_warn(
                f"drw_epoch is {self.drw_epoch}, but training ends after {last} epochs: nothing is re-weighted."
            )

    def on_train_start(self) -> None:
        """Re-weight the loss where a run resumes within an epoch, which has no ``on_train_epoch_start``."""
        super().on_train_start()
        self._reweight()

    def on_train_epoch_start(self) -> None:
        """Re-weight the loss from ``drw_epoch`` on."""
        super().on_train_epoch_start()
        self._reweight()

    def _reweight(self) -> None:
        if self.drw_epoch is not None and self.current_epoch >= self.drw_epoch:
            counts = torch.tensor(self.class_counts, device=self.device)
            weight = effective_number_weights(counts, self.drw_beta, torch.float32)
            if self.own_weight is not None:
                weight = weight * self.own_weight.to(weight)
            # not saved: a checkpoint holds the network alone (torch's own losses would save it)
            self.loss.register_buffer("weight", weight, persistent=False)

    # -- evaluation ----------------------------------------------------------------------------------------

    def variant_logits(self, input: Tensor) -> dict[str, Tensor]:
        """Return the logits (N, C) of a batch: ``plain``, and under each post-hoc correction."""
        found: dict[str, Tensor] = {}
        if self.normalize_tau is None:
            found["plain"] = self(input)
        else:
            net: Any = self.net
            features = input if input.ndim == 2 else net.backbone.forward_features(net.normalize(input))
            found["plain"] = net.backbone.head(features)
            found["tau_normalized"] = tau_normalized(features, net.backbone.head, self.normalize_tau)
        if self.adjust_tau is not None:
            found["adjusted"] = adjusted(found["plain"].float(), self.class_counts, self.adjust_tau)
        return {name: logits.float() for name, logits in found.items()}

    def evaluate(self, batch: Any, stage: str) -> Tensor:
        """Update the metrics of a stage under each correction; return the plain logits."""
        input, target, *_ = batch
        found = self.variant_logits(input)
        for name, logits in found.items():
            self.measure(stage, logits, target, name)
        return found["plain"]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the test metrics and those of probabilities with a batch."""
        logits = self.evaluate(batch, "test")
        for calibrator in (self.calibrator, *self.train_prior.values()):
            calibrator.update(logits, batch[1])  # type: ignore[operator]

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the columns of ``predictions.csv``: index, the most probable classes with their scores."""
        input, _, index = batch
        return predicted(self(input), index, self.class_names, self.calibration)

    def on_predict_start(self) -> None:
        """Load the run's calibration for these weights, if any."""
        self.calibration = run_calibration(self.trainer, self.net) if self.scores == "calibrated" else None

    def on_test_start(self) -> None:
        """Fit the probabilities on the validation samples, for their own prior and for that of the training samples."""
        self.train_prior = nn.ModuleDict()
        held_out = self.calibrator.begin(self.trainer, self.labelled)
        data = datamodule(self.trainer)
        if held_out is None or not isinstance(data, ImageDataModule):
            return
        logits, target = held_out
        images, index = data.part("test")
        shifted = Calibrator(self.calibrator.method)
        shifted.count(self._shares(images.targets.cpu()[index]))
        if shifted.fit(logits, target, self._shares(target)) is None:
            self.train_prior["shifted"] = shifted.to(self.device)

    def _shares(self, target: Tensor) -> Tensor:
        """Return the ratio of class frequencies in training to those in a part, (C); 0 for absent classes."""
        counts = torch.tensor(self.class_counts, dtype=torch.float64)
        there = torch.bincount(target.cpu(), minlength=self.num_classes).double()
        return torch.where(there > 0, counts / there, 0.0) * len(target) / counts.sum()

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test; write the accuracy of each class."""
        super().on_test_epoch_end()
        self.log_found(self.calibrator.finish(self.trainer, self.net))
        for shifted in self.train_prior.values():
            assert isinstance(shifted, Calibrator)
            found = {f"test/train_prior/{name}": value for name, value in shifted.compute().items()}
            # how well mistakes are known is of the samples as they are: no matter of a prior
            self.log_found({name: value for name, value in found.items() if "auroc" not in name and "aurc" not in name})
        self.train_prior = nn.ModuleDict()
        if self.trainer.is_global_zero:
            self._write()

    # -- what is written -----------------------------------------------------------------------------------

    def _write(self) -> None:
        if run_folder(self.trainer) is None:
            return
        metrics: Any = self.metrics
        counts = {name.partition("/")[2]: group["shots"].counts for name, group in metrics.items()}
        accuracy = {name: (right / seen).tolist() for name, (right, seen) in counts.items()}
        columns = {name: "accuracy" if name == "plain" else f"{name}_accuracy" for name in counts}
        seen = counts["plain"][1].tolist()
        rows = [
            {
                "class": name,
                "training_samples": self.class_counts[k],
                "shot": self.groups[k],
                "test_samples": seen[k],
                **{column: f"{accuracy[variant][k]:.6f}" if seen[k] else "" for variant, column in columns.items()},
            }
            for k, name in enumerate(self.class_names)
        ]
        write_table(self.trainer, "longtail", list(rows[0]), rows)
        shown = {"as trained" if name == "plain" else name.replace("_", "-"): each for name, each in accuracy.items()}
        write_figure(self.trainer, "longtail", frequency_curves(self.class_counts, shown))
