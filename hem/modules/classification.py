"""Classification: the clean accuracy, calibration and logits of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torchmetrics import ClasswiseWrapper, MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from hem.metrics import ClassAccuracy
from hem.modules.base import Task, sample_losses
from hem.modules.calibrator import (
    Calibrator,
    Probabilities,
    RunCalibration,
    Scores,
    predicted,
    run_calibration,
)
from hem.modules.probe import use_features
from hem.modules.rejector import Rejector, run_rejector, save_rejector
from hem.names import check_name
from hem.scores import LOGIT_SCORES, check_score


def accuracies(num_classes: int, class_names: Sequence[str]) -> MetricCollection:
    """Return the figures that read logits: ``accuracy``, ``accuracy_top5`` and ``class_accuracy/<name>``.

    The last ones are NaN for classes without a sample: see :meth:`~hem.modules.base.Task.log_found`.

    Args:
        num_classes: Number of classes; with five or fewer there is no top-5.
        class_names: Name of each class.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "class": ClasswiseWrapper(
            ClassAccuracy(num_classes),
            labels=list(class_names),
            prefix="class_accuracy/",
        ),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    # not in groups: torchmetrics merges metrics whose first batches agree, such as top-5 and a perfect class
    return MetricCollection(metrics, compute_groups=False)


def logit_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return z_y - max_{j != y} z_j of each sample: positive where it is classified rightly.

    Args:
        logits: Shape (N, C).
        target: Class indices, shape (N,).

    Example:
        >>> logit_margin(torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 4.0]]), torch.tensor([0, 1]))
        tensor([ 1., -3.])
    """
    own = logits.gather(1, target[:, None])
    rival = logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True)
    return (own - rival).squeeze(1)


def log_batch(task: Task, logits: Tensor, target: Tensor) -> None:
    """Log accuracy on a batch as it is trained on, and the share of its samples that still carry error."""
    label = target.argmax(1) if target.is_floating_point() else target
    task.log("train/accuracy", (logits.argmax(1) == label).float().mean(), prog_bar=True)
    losses = sample_losses(task.loss, logits, target)
    if losses is not None:
        task.log("train/active", (losses > 0).float().mean())


class ClassificationTask(Task):
    """Train and test a classifier.

    Logged for validation (``val/``) and test (``test/``): ``accuracy``, ``accuracy_top5`` (more than five
    classes), ``nll``, ``brier``, ``calibration_error`` (15 bins of equal width), ``calibration_error_mass`` (of equal
    mass), ``class_accuracy/<name>``, ``loss`` (the mean over all samples, whatever the training loss divides by),
    ``active`` (the share of samples whose loss is not 0), and the means of the largest logit, ``max_logit``, and of
    z_y - max_j z_j, ``logit_margin``. Every sample counts once, on however many devices. Training logs
    ``train/loss``, ``train/accuracy``, ``train/active``.

    The test of a run also finds a rejector, ``rejector.json``: the threshold on a score of the logits that
    accepts the share ``keep`` of the rightly classified validation samples. Predictions of the same weights
    then have the columns ``rejection_score`` (higher = more unknown) and ``accepted``. And it fits probabilities on the
    validation samples, whatever the loss: what :class:`~hem.modules.Calibrator` says of them is logged, and predictions
    have them as ``score``.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        rejection_score: The rejector's score, one of :data:`hem.scores.LOGIT_SCORES`; of the logits as they are.
        keep: The share, in (0, 1].
        calibrator: Fits the probabilities; None: one temperature.
        scores: Whether predictions have ``"calibrated"`` probabilities, or ``"raw"`` ones, the softmax of the logits.
        features: A folder in which the features of the images are kept, computed once, so that an epoch of the last
            layer takes a second; for encoders that stand still (``frozen_epochs: all``) and data without augmentation.
        **kwargs: See :class:`~hem.modules.base.Task`.
    """

    def __init__(
        self,
        *args: Any,
        rejection_score: str = "max_logit",
        keep: float = 0.95,
        calibrator: Calibrator | None = None,
        scores: Scores = "calibrated",
        features: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.features = features
        check_name(scores, get_args(Scores), "kind of scores")
        check_score(rejection_score, LOGIT_SCORES)
        if not 0 < keep <= 1:
            raise ValueError(f"keep is the share of samples to accept, in (0, 1], but it is {keep}.")
        self.rejection_score = rejection_score
        self.keep = keep
        self.rejector: Rejector | None = None
        self.calibrator = Calibrator() if calibrator is None else calibrator
        self.scores = scores
        self.calibration: RunCalibration | None = None
        self.held_out: tuple[Tensor, Tensor] | None = None  # logits and labels of the validation samples
        self.figures = nn.ModuleDict(
            {
                stage: nn.ModuleDict(
                    {
                        "accuracies": accuracies(self.num_classes, self.class_names).clone(prefix=f"{stage}/"),
                        **({"probabilities": Probabilities()} if stage == "val" else {}),
                        **{name: MeanMetric() for name in ("loss", "active", "max_logit", "logit_margin")},
                    }
                )
                for stage in ("val", "test")
            }
        )

    def setup(self, stage: str) -> None:
        """Take features in place of images, where they are to be kept."""
        if self.features is not None:
            use_features(self, self.features, stage)

    def log_training(self, logits: Tensor, target: Tensor) -> None:
        """Log accuracy on the batch as it is trained on, and the share of samples that still carry error."""
        log_batch(self, logits, target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take one batch into the validation figures."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Take one batch into the test figures."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the columns of ``predictions.csv``: index, the most probable classes with their scores, rejection."""
        input, _, index = batch
        logits = self(input)
        columns = predicted(logits, index, self.class_names, self.calibration)
        if self.rejector is not None:
            unknownness = self.rejector.unknownness(logits)
            columns |= {"rejection_score": unknownness, "accepted": self.rejector.accepts(unknownness)}
        return columns

    def _evaluate(self, batch: Any, stage: str) -> None:
        input, target, *_ = batch
        logits = self(input).float()
        figures: Any = self.figures[stage]
        figures["accuracies"].update(logits, target)
        (figures["probabilities"] if stage == "val" else self.calibrator).update(logits, target)
        losses = sample_losses(self.loss, logits, target)
        if losses is not None:
            figures["loss"].update(losses)
            figures["active"].update((losses > 0).float())
        else:
            figures["loss"].update(self.loss(logits, target), weight=len(target))
        figures["max_logit"].update(logits.amax(1))
        figures["logit_margin"].update(logit_margin(logits, target))

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures."""
        self._log_figures("val")

    def on_test_start(self) -> None:
        """Fit the probabilities on the validation samples."""
        self.held_out = self.calibrator.begin(self, ("rejector", "calibration"))

    def on_test_epoch_end(self) -> None:
        """Log the test figures; keep the run's rejector and its calibration."""
        self._log_figures("test")
        self.calibrator.finish(self)
        if self.held_out is not None:
            save_rejector(self, self.rejection_score, self.keep, *self.held_out)
            self.held_out = None

    def on_predict_start(self) -> None:
        """Take the run's rejector and its calibration, if there are such for these weights."""
        self.rejector = run_rejector(self)
        self.calibration = run_calibration(self) if self.scores == "calibrated" else None

    def _log_figures(self, stage: str) -> None:
        figures: Any = self.figures[stage]
        self.log_found(figures["accuracies"].compute(), (f"{stage}/accuracy",))
        if stage == "val":
            self.log_found({f"val/{name}": value for name, value in figures["probabilities"].compute().items()})
        for name, metric in figures.items():
            if name not in ("accuracies", "probabilities") and metric.update_called:
                self.log(f"{stage}/{name}", metric.compute(), sync_dist=True)
            metric.reset()
