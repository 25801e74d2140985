"""Classification task: accuracy, calibration and a rejector."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from hem.metrics import MeanLoss, MeanOf, accuracies, catalog, collection
from hem.modules.base import Task
from hem.modules.calibrator import (
    Calibrator,
    RunCalibration,
    Scores,
    predicted,
    probability_metrics,
    run_calibration,
)
from hem.modules.probe import use_features
from hem.modules.rejector import run_rejector, save_rejector
from hem.names import check_name
from hem.rejection import LOGIT_SCORES, Rejector, check_score


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


def largest(logits: Tensor, target: Tensor) -> Tensor:
    """Return the largest logit of each sample."""
    return logits.amax(1)


class ClassificationTask(Task):
    """Train and test a classifier.

    Logged for validation (``val/``) and test (``test/``): ``accuracy``, ``accuracy_top5`` (more than five
    classes), ``nll``, ``brier``, ``calibration_error`` (15 bins of equal width), ``calibration_error_mass`` (of equal
    mass), ``class_accuracy/<name>``, ``loss`` (the mean over all samples, whatever the training loss divides by),
    ``active`` (the share of samples whose loss is not 0), ``active_loss`` (the mean over these), and the means of the
    largest logit, ``max_logit``, and of
    z_y - max_j z_j, ``logit_margin``. Every sample counts once, on however many devices. Training logs
    ``train/loss``, ``train/accuracy``, ``train/active`` and ``train/active_loss``.

    The test of a run also finds a rejector, ``rejector.json``: the threshold on a score of the logits that
    accepts the share ``keep`` of the rightly classified validation samples. Predictions of the same weights
    then have the columns ``rejection_score`` (higher = more unknown) and ``accepted``. And it fits probabilities on the
    validation samples, whatever the loss: what :class:`~hem.modules.Calibrator` says of them is logged, and predictions
    have them as ``score``.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        rejection_score: The rejector's score, one of :data:`hem.rejection.LOGIT_SCORES`; of the logits as they are.
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
            raise ValueError(f"Expected keep, the share of samples to accept, in (0, 1], got {keep}: 0.95 is usual.")
        self.rejection_score = rejection_score
        self.keep = keep
        self.rejector: Rejector | None = None
        self.calibrator = Calibrator() if calibrator is None else calibrator
        self.scores = scores
        self.calibration: RunCalibration | None = None
        self.held_out: tuple[Tensor, Tensor] | None = None  # logits and labels of the validation samples

    def configure_metrics(self, stage: str) -> dict[str, MetricCollection]:
        """Return loss, accuracies and means of logits; in validation also the metrics of probabilities."""
        if stage == "train":
            return super().configure_metrics(stage)
        metrics: dict[str, Metric] = {
            "losses": MeanLoss(self.loss),
            **accuracies(self.num_classes, self.class_names),
            catalog.MAX_LOGIT.path: MeanOf(largest),
            catalog.LOGIT_MARGIN.path: MeanOf(logit_margin),
            **(dict(probability_metrics().items()) if stage == "val" else {}),
        }
        return {"plain": collection(metrics)}

    def setup(self, stage: str) -> None:
        """Replace images by precomputed features where ``features`` names a folder."""
        super().setup(stage)
        if self.features is not None:
            use_features(self, self.features, stage)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the test metrics and those of probabilities with a batch."""
        self.calibrator.update(self.evaluate(batch, "test"), batch[1])

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the columns of ``predictions.csv``: index, the most probable classes with their scores, rejection."""
        input, _, index = batch
        logits = self(input)
        columns = predicted(logits, index, self.class_names, self.calibration)
        if self.rejector is not None:
            unknownness = self.rejector.unknownness(logits)
            columns |= {"rejection_score": unknownness, "accepted": self.rejector.accepts(unknownness)}
        return columns

    def on_test_start(self) -> None:
        """Fit the probabilities on the validation samples."""
        self.held_out = self.calibrator.begin(self.trainer, self.labelled, ("rejector", "calibration"))

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test; keep the run's rejector and its calibration."""
        super().on_test_epoch_end()
        self.log_found(self.calibrator.finish(self.trainer, self.net))
        if self.held_out is not None:
            save_rejector(self.trainer, self.net, self.rejection_score, self.keep, *self.held_out)
            self.held_out = None

    def on_predict_start(self) -> None:
        """Load the run's rejector and calibration for these weights, if any."""
        self.rejector = run_rejector(self.trainer, self.net)
        self.calibration = run_calibration(self.trainer, self.net) if self.scores == "calibrated" else None
