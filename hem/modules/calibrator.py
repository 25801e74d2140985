"""Calibration of a run: fitted on validation data, evaluated on test data, saved with the run, used by ``predict``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from hem.calibration import MarginScaling, PredictionSets, Temperature, VectorScaling, calibrate, conformal
from hem.calibration.conformal import Score
from hem.calibration.scaling import Method, Scaling
from hem.metrics import (
    Accuracy,
    BrierScore,
    CalibrationError,
    MeanOf,
    NegativeLogLikelihood,
    Reliability,
    Selective,
    catalog,
    collection,
)
from hem.modules.rejector import calibration_loader, fingerprint
from hem.names import check_name
from hem.plots.reliability import reliability_diagram
from hem.rejection import LOGIT_SCORES
from hem.runs import RunFolder
from hem.runs.files import read_json, write_atomically
from hem.runs.outputs import say, write_figure
from hem.runs.ranks import gathered
from hem.runs.trainer import keeping_folder, passed, run_folder

Scores = Literal["calibrated", "raw"]
Take = Callable[[Any], tuple[Tensor, Tensor]]  # a batch to its logits (N, C) and class indices (N,)

SCALINGS: dict[str, type[Scaling]] = {"temperature": Temperature, "margin": MarginScaling, "vector": VectorScaling}

# what a temperature changes the order of, over samples; by the largest logit and the margin they stay in order
CHANGED = ("msp", "energy", "entropy")
FEW = 100  # samples, of which a temperature and a threshold say little


def probability_metrics(
    scores: Sequence[str] = (), weight: Tensor | None = None, variant: str = ""
) -> MetricCollection:
    """Return the metrics of probabilities, and of scores as predictors of errors.

    Args:
        scores: Names of :data:`LOGIT_SCORES`, of which ``aurc`` and ``error_auroc`` are wanted.
        weight: What a sample of each class counts in the metrics of probabilities, (C); None: 1.
        variant: What stands before their paths in the catalogue.
    """
    metrics: dict[str, Metric] = {
        catalog.NLL.path: NegativeLogLikelihood(weight=weight),
        catalog.BRIER.path: BrierScore(weight=weight),
        catalog.CALIBRATION_ERROR.path: CalibrationError(weight=weight),
        catalog.CALIBRATION_ERROR_MASS.path: CalibrationError(binning="mass", weight=weight),
        **{name: Selective(LOGIT_SCORES[name], name=name) for name in scores},
    }
    return collection(metrics, variant)


def diagram(metrics: MetricCollection) -> Reliability:
    """Return the reliability diagram of all processes."""
    metric: Any = metrics[catalog.CALIBRATION_ERROR.path]
    with metric.sync_context(should_sync=torch.distributed.is_available() and torch.distributed.is_initialized()):
        found: Reliability = metric.diagram()
    return found


def _options(sets: PredictionSets) -> dict[str, Any]:
    options = {name: getattr(sets, name) for name in ("coverage", "score", "penalty", "free")}
    return {"threshold": sets.threshold, **options}


def _covers(inside: Tensor, target: Tensor) -> Tensor:
    """Return whether the set of each sample holds its class."""
    return inside.gather(1, target[:, None]).squeeze(1)


def _size(inside: Tensor, target: Tensor) -> Tensor:
    """Return how many classes are in the set of each sample."""
    return inside.sum(1)


class RunCalibration(NamedTuple):
    """The calibration of a run, with the fingerprint of its network."""

    probabilities: Scaling
    sets: PredictionSets | None
    samples: int  # that they were fitted on
    weights: str  # fingerprint of the network

    def save(self, folder: RunFolder) -> None:
        """Write ``calibration.json`` into the folder of a run."""
        kind = self.probabilities
        numbers: dict[str, Any] = {name: value.double().tolist() for name, value in kind.named_buffers()}
        record = {
            "method": next(name for name, scaling in SCALINGS.items() if isinstance(kind, scaling)),
            **numbers,
            "conformal": None if self.sets is None else _options(self.sets),
            "samples": self.samples,
            "weights": self.weights,
        }
        write_atomically(folder.calibration, json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, folder: RunFolder, net: nn.Module) -> RunCalibration | None:
        """Return the calibration of a run; None where there is none for the weights of ``net``.

        Raises:
            ValueError: ``calibration.json`` is damaged.
        """
        weights = fingerprint(net)
        path = folder.of_weights(folder.calibration, weights)
        if not path.is_file():
            return None
        record = read_json(path)
        try:
            scaling = SCALINGS[record["method"]]
            numbers = {name: record[name] for name in inspect.signature(scaling).parameters}
            probabilities: Scaling = scaling(**numbers)
            options = record["conformal"]
            sets = None if options is None else PredictionSets(probabilities, **options)
            found = cls(probabilities, sets, int(record["samples"]), str(record["weights"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected the calibration of a run in {path}, got something else ({error!r}): delete it, or make it "
                "anew with `python cli.py test`."
            ) from error
        return found if found.weights == weights else None


def validation_samples(trainer: Trainer, take: Take) -> tuple[Tensor, Tensor]:
    """Return the logits (N, C) and labels (N,) of the clean validation images, of all processes, on the CPU.

    Args:
        trainer: Of the test.
        take: Gives those of a batch.

    Raises:
        LookupError: There are none; the sentence says why.
    """
    found = [take(batch) for batch in passed(trainer, calibration_loader(trainer))]
    logits, target = (gathered(trainer, [pair[k] for pair in found]) for k in (0, 1))
    if not len(target):
        raise LookupError("no validation sample with a label that counts came within limit_test_batches")
    return logits, target


class Calibrator(nn.Module):
    """Fit probabilities on validation data, evaluate them on test data, save them with the run.

    For the test (``test/``) it logs of the softmax of the logits ``nll`` (in nats), ``brier`` (0 to 2),
    ``calibration_error`` (15 bins of equal width) and ``calibration_error_mass`` (of equal mass); and for each score of
    :data:`hem.rejection.LOGIT_SCORES` how well it knows the network's mistakes, ``aurc/<score>`` and
    ``error_auroc/<score>``. The same of the calibrated probabilities is below ``calibrated/``, for the scores whose
    order a temperature changes (``msp``, ``energy``, ``entropy``); with ``temperature`` itself or, for vector scaling,
    the ``calibrated/accuracy`` of its decisions. ``reliability.png`` draws both. Prediction sets add
    ``conformal/coverage`` and ``conformal/size``. ``calibration.json`` keeps it all for ``predict``.

    Args:
        method: ``"temperature"``, one number, which changes no decision; ``"margin"``, two, which change none either;
            ``"vector"``, two for each class: see :func:`hem.calibrate`.
        coverage: The probability with which prediction sets hold the true class, in (0, 1); None: no sets.
        score: What sets are made by: see :func:`hem.calibration.nonconformity`.
        penalty: Of ``raps``.
        free: Of ``raps``.

    Raises:
        ValueError: There is no such method, or the coverage is out of range.
    """

    def __init__(
        self,
        method: Method = "temperature",
        coverage: float | None = None,
        score: Score = "aps",
        penalty: float = 0.01,
        free: int = 5,
    ) -> None:
        super().__init__()
        check_name(method, get_args(Method), "calibration method")
        check_name(score, get_args(Score), "score of prediction sets")
        if coverage is not None and not 0 < coverage < 1:
            raise ValueError(f"Expected a coverage between 0 and 1, got {coverage}: 0.9 is usual, null means no sets.")
        self.method: Method = method
        self.coverage = coverage
        self.score: Score = score
        self.penalty = penalty
        self.free = free
        self.count()
        self.right, self.covered, self.size = Accuracy(), MeanOf(_covers), MeanOf(_size)
        self.probabilities: list[Scaling] = []  # in a list, for checkpoints hold the network alone
        self.sets: list[PredictionSets] = []
        self.samples = 0

    def count(self, weight: Tensor | None = None) -> None:
        """Create the metrics, with a weight per class (C) for those of probabilities; None: 1."""
        self.before = probability_metrics(list(LOGIT_SCORES), weight)
        self.after = probability_metrics(CHANGED, weight, "calibrated")

    def begin(
        self, trainer: Trainer, take: Take, names: Sequence[str] = ("calibration",)
    ) -> tuple[Tensor, Tensor] | None:
        """Fit on the validation samples at the start of a test; print a line where there are none.

        Args:
            trainer: Of the test.
            take: Gives logits (N, C) and class indices (N,) of a batch of validation images.
            names: What there is none of, where there are no samples.

        Returns:
            The samples of all processes; None where there are none.
        """
        self.forget()
        try:
            logits, target = validation_samples(trainer, take)
        except LookupError as error:
            say(trainer, *(f"no {name}: {error}" for name in names))
            return None
        if reason := self.fit(logits, target):
            say(trainer, f"no calibration: {reason}")
        return logits, target

    def fit(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> str | None:
        """Fit on validation samples: logits (N, C), class indices (N,), weight per class (C).

        Returns:
            Why there is none, in words; None where there is one.
        """
        self.forget()
        try:
            found = calibrate(logits, target, self.method, weight=weight)
            if self.coverage is not None:
                options: Any = {"score": self.score, "penalty": self.penalty, "free": self.free}
                self.sets = [conformal(logits, target, self.coverage, probabilities=found, **options)]
        except ValueError as reason:
            return str(reason)
        self.probabilities = [found]
        self.samples = len(target)
        return None

    def forget(self) -> None:
        """Reset all metrics and drop what was fitted."""
        self.probabilities, self.sets, self.samples = [], [], 0
        for metric in (self.before, self.after, self.right, self.covered, self.size):
            metric.reset()

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch of test samples: logits (N, C), class indices (N,)."""
        self.before.update(logits, target)
        for each in self.probabilities:
            scaled = each.to(logits.device).scaled(logits)
            self.after.update(scaled, target)
            self.right.update(scaled, target)
        for sets in self.sets:
            inside = sets.to(logits.device)(logits)
            self.covered.update(inside, target)
            self.size.update(inside, target)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all processes, by their names below ``test/``."""
        found: dict[str, Tensor] = self.before.compute()
        for each in self.probabilities:
            found |= self.after.compute()
            if isinstance(each, VectorScaling):
                found[catalog.ACCURACY.key("", "calibrated")] = self.right.compute()
            else:
                found |= {name: value.to(found[catalog.NLL.path].device) for name, value in each.named_buffers()}
        if self.sets:
            found |= {catalog.COVERAGE.path: self.covered.compute(), catalog.SET_SIZE.path: self.size.compute()}
        return found

    def finish(self, trainer: Trainer, net: nn.Module) -> dict[str, Tensor]:
        """Return the metrics of a test by key; draw the reliability diagram and keep the calibration with the run."""
        found = {f"test/{name}": value for name, value in self.compute().items()}
        diagrams = {"softmax of the logits": diagram(self.before)}
        if self.probabilities:
            diagrams["calibrated"] = diagram(self.after)
        folder = keeping_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            write_figure(trainer, "reliability", reliability_diagram(diagrams))
            if self.probabilities:
                sets = self.sets[0] if self.sets else None
                kept = RunCalibration(self.probabilities[0], sets, self.samples, fingerprint(net))
                kept.save(RunFolder(folder))
                if self.samples < FEW:
                    print(
                        f"calibration: temperature and threshold rest on {self.samples} validation samples, and would "
                        "be others with a few more: a larger --data.val_fraction, or a folder val, makes them firmer"
                    )
        self.forget()
        return found


def run_calibration(trainer: Trainer, net: nn.Module) -> RunCalibration | None:
    """Return the run's calibration for these weights; print a line where there is none."""
    path = run_folder(trainer)
    if path is None:
        return None
    folder = RunFolder(path)
    found = RunCalibration.load(folder, net)
    if found is None and trainer.is_global_zero:
        state = "belongs to other weights" if folder.calibration.is_file() else "is not there"
        print(
            f"predictions without calibration: {folder.calibration} {state}; scores are the softmax of the logits. Run "
            "`python cli.py test` with this checkpoint first."
        )
    return found


def predicted(
    logits: Tensor, index: Tensor, class_names: Sequence[str], calibration: RunCalibration | None
) -> dict[str, Any]:
    """Return columns of ``predictions.csv``: index, the five most probable classes with scores, the prediction set.

    ``label`` and ``score`` are those of the most probable class; ``label_2``, ``score_2`` to ``label_5``, ``score_5``
    of those behind it, as far as there are classes; ``set`` the names of the classes of the prediction set, ``|``
    between them.

    Args:
        logits: (N, C).
        index: (N,) of the images.
        class_names: (C).
        calibration: Of the run; None: scores are the softmax of the logits.
    """
    columns: dict[str, Any] = {"index": index}
    best = most_probable(probabilities(logits, calibration), class_names)
    for place in range(len(best[0])):
        behind = "" if place == 0 else f"_{place + 1}"
        columns[f"label{behind}"] = [each[place][0] for each in best]
        columns[f"score{behind}"] = [each[place][1] for each in best]
    if calibration is not None and calibration.sets is not None:
        columns["set"] = [
            "|".join(each) for each in named_sets(calibration.sets.to(logits.device)(logits), class_names)
        ]
    return columns


def probabilities(logits: Tensor, calibration: RunCalibration | None) -> Tensor:
    """Return the calibrated probabilities of logits (N, C, ...), or their softmax where the calibration is None."""
    if calibration is None:
        return logits.float().softmax(1)
    found: Tensor = calibration.probabilities.to(logits.device)(logits)
    return found


def most_probable(probabilities: Tensor, class_names: Sequence[str]) -> list[tuple[tuple[str, float], ...]]:
    """The five most probable classes of each sample, by name, with their probabilities (N, C)."""
    best = probabilities.topk(min(5, probabilities.shape[1]), 1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [tuple((class_names[k], p) for k, p in zip(*each, strict=True)) for each in pairs]


def named_sets(inside: Tensor, class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names of the classes of each set, of (N, C) bool."""
    return [tuple(class_names[k] for k in row.nonzero()[:, 0].tolist()) for row in inside]
