"""Catalogue of every metric that a task logs: key, title, direction and unit.

Tasks make keys from these templates, and the report reads them by the same ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hem.metrics.template import WORD
from hem.metrics.template import Metric as Metric
from hem.metrics.template import Template as Template

# -- classification, and what every task logs ----------------------------------------------------------------------
LOSS = Template("loss", "loss", "lower", comparable=False)  # each loss has a scale of its own
ACTIVE_LOSS = Template("active_loss", "mean of the losses > 0", None, comparable=False)
ACTIVE = Template("active", "samples with loss > 0", None, "share")
ACCURACY = Template("accuracy", "accuracy", "higher", "share")
ACCURACY_TOP5 = Template("accuracy_top5", "top-5 accuracy", "higher", "share")
CLASS_ACCURACY = Template("class_accuracy/{name}", "accuracy of class {name}", "higher", "share")
MAX_LOGIT = Template("max_logit", "largest logit", None, "logits")
LOGIT_MARGIN = Template("logit_margin", "logit margin", None, "logits")
# -- probabilities -------------------------------------------------------------------------------------------------
NLL = Template("nll", "negative log-likelihood", "lower", "nats")
BRIER = Template("brier", "Brier score", "lower")
CALIBRATION_ERROR = Template("calibration_error", "calibration error", "lower", "share")
CALIBRATION_ERROR_MASS = Template("calibration_error_mass", "calibration error, equal mass", "lower", "share")
AURC = Template("aurc/{score}", "area under risk and coverage, {score}", "lower")
ERROR_AUROC = Template("error_auroc/{score}", "AUROC of the network's mistakes, {score}", "higher", "share")
TEMPERATURE = Template("temperature", "temperature")
MARGIN_TEMPERATURE = Template("margin_temperature", "temperature per margin")
COVERAGE = Template("conformal/coverage", "coverage of prediction sets", None, "share")
SET_SIZE = Template("conformal/size", "size of prediction sets", "lower", "classes")
# -- long tail -----------------------------------------------------------------------------------------------------
BALANCED_ACCURACY = Template("balanced_accuracy", "balanced accuracy", "higher", "share")
WORST_CLASS_ACCURACY = Template("worst_class_accuracy", "accuracy of the worst class", "higher", "share")
SHOT_ACCURACY = Template("{shot}_shot_accuracy", "{shot}-shot accuracy", "higher", "share")
# -- corruption ----------------------------------------------------------------------------------------------------
CORRUPTION_MEAN = Template("corruption/{corruption}/mean", "accuracy under {corruption}", "higher", "share")
CORRUPTION = Template(
    "corruption/{corruption}/{severity}", "accuracy under {corruption}, severity {severity}", "higher", "share"
)
CORRUPTION_ACCURACY = Template("corruption_accuracy{group}", "accuracy under corruptions, {group}", "higher", "share")
MCE = Template("mce", "mean corruption error", "lower")
RELATIVE_MCE = Template("relative_mce", "relative mean corruption error", "lower")
# -- rejection -----------------------------------------------------------------------------------------------------
AUROC = Template("auroc/{score}/{set}", "AUROC, {score}: {set}", "higher", "share")
AUPR_IN = Template("aupr_in/{score}/{set}", "AUPR of known images, {score}: {set}", "higher", "share")
AUPR_OUT = Template("aupr_out/{score}/{set}", "AUPR of unknown images, {score}: {set}", "higher", "share")
FPR95_UNKNOWN = Template(
    "fpr95_unknown_positive/{score}/{set}", "FPR at 95 % of the unknown, {score}: {set}", "lower", "share"
)
FPR95_KNOWN = Template(
    "fpr95_known_positive/{score}/{set}", "FPR at 95 % of the known, {score}: {set}", "lower", "share"
)
OSCR = Template("oscr/{score}/{set}", "OSCR, {score}: {set}", "higher", "share")
DAR = Template("dar/{score}/{set}", "treated rightly (DAR), {score}: {set}", "higher", "share")
DAR_STRICT = Template("dar_strict/{score}/{set}", "treated rightly (strict DAR), {score}: {set}", "higher", "share")
SETS = Template("sets/{set}", "unknown sets, {set}", None, "sets")
# -- attacks -------------------------------------------------------------------------------------------------------
ROBUST_ACCURACY = Template(
    "robust_accuracy/{norm}/{eps}/{attack}", "robust accuracy, {attack}, {norm}: {eps}", "higher", "share"
)
TRAINING_ROBUST_ACCURACY = Template("robust_accuracy", "robust accuracy", "higher", "share")
DIVERGENCE = Template("divergence", "divergence under attack", None, "nats")
ATTACKED_IMAGES = Template("images/{attack}", "images, {attack}", None, "images")
CURVE_IN_DOUBT = Template("masking/curve_in_doubt", "curve in doubt (1: a check for masked gradients failed)", "lower")
MASKING_FAILED = Template("masking/{check}/failed", "check {check} for masked gradients failed")
MASKING = Template("masking/{check}", "check for masked gradients: {check}")
# -- streams -------------------------------------------------------------------------------------------------------
AVERAGE_ACCURACY = Template("average_accuracy", "average accuracy", "higher", "share")
INCREMENTAL_ACCURACY = Template("average_incremental_accuracy", "average incremental accuracy", "higher", "share")
FORGETTING = Template("forgetting", "forgetting", "lower", "share")
BACKWARD_TRANSFER = Template("backward_transfer", "backward transfer", "higher", "share")
FORWARD_TRANSFER = Template("forward_transfer", "forward transfer", "higher", "share")
TASK_ACCURACY = Template("accuracy/{task}", "accuracy on task {task}", "higher", "share")
MATRIX = Template("accuracy_after/{after}/{task}", "accuracy on task {task}, behind task {after}", "higher", "share")
TASK = Template("task", "task")
TASKS_LEARNT = Template("tasks_learnt", "tasks learnt", None, "tasks")
BUFFER_SIZE = Template("memory", "replay buffer", None, "samples")
IMPORTANCE = Template("importance", "mean importance of the weights")
# -- masks ---------------------------------------------------------------------------------------------------------
MIOU = Template("miou", "mean IoU", "higher", "share")
MEAN_ACCURACY = Template("mean_accuracy", "mean accuracy of the classes", "higher", "share")
IOU = Template("iou/{name}", "IoU of class {name}", "higher", "share")
UNKNOWN_AUROC = Template("unknown/auroc_{score}", "AUROC of unknown pixels, {score}", "higher", "share")

#: all of them; the first that matches a key is the key's
CATALOG: list[Template] = [each for each in list(globals().values()) if isinstance(each, Template)]

_CALIBRATION = (
    CALIBRATION_ERROR.key("test"),
    CALIBRATION_ERROR.key("test", "calibrated"),
    NLL.key("test", "calibrated"),
)
#: What a report shows first of each task; the first one that a run has is its primary metric. ``*`` stands for a part.
HEADLINES: dict[str, tuple[str, ...]] = {
    "classification": (
        ACCURACY.key("test"),
        *_CALIBRATION,
        AURC.key("test", score="max_logit"),
        AURC.key("test", "calibrated", score="msp"),
    ),
    "rejection": (
        *(AUROC.key("test", score="max_logit", set=s) for s in ("seven", "near", "far", "novel", "unrecognisable")),
        *(
            AUROC.key("test", score=score, set=s)
            for score in ("msp", "msp_calibrated")
            for s in ("seven", "novel", "unrecognisable")
        ),
        *(DAR.key("test", score=score, set="overall") for score in ("max_logit", "msp")),
    ),
    "corruption": tuple(CORRUPTION_ACCURACY.key("test", group=group) for group in ("", "_common", "_extra")),
    "adversarial": (
        *(ROBUST_ACCURACY.key("test", norm=norm, eps="mean", attack="worst") for norm in ("linf", "l2")),
        *(ROBUST_ACCURACY.key("test", norm=norm, eps="*", attack="autoattack") for norm in ("linf", "l2")),
        ACCURACY.key("test"),
        CURVE_IN_DOUBT.key("test"),
    ),
    "longtail": (
        BALANCED_ACCURACY.key("test"),
        *(SHOT_ACCURACY.key("test", shot=shot) for shot in ("many", "medium", "few")),
        *_CALIBRATION,
    ),
    "continual": (
        AVERAGE_ACCURACY.key("test"),
        FORGETTING.key("test"),
        BACKWARD_TRANSFER.key("test"),
        *_CALIBRATION,
    ),
    "segmentation": (
        MIOU.key("test"),
        MEAN_ACCURACY.key("test"),
        ACCURACY.key("test"),
        UNKNOWN_AUROC.key("test", score="max_logit"),
        *_CALIBRATION,
    ),
}
#: What tasks log in validation as well, of the metrics by which losses can be compared.
VALIDATED = (
    LOSS, ACCURACY, ACCURACY_TOP5, CLASS_ACCURACY, NLL, BRIER, CALIBRATION_ERROR, CALIBRATION_ERROR_MASS,
    BALANCED_ACCURACY, WORST_CLASS_ACCURACY, SHOT_ACCURACY, TRAINING_ROBUST_ACCURACY, MIOU, MEAN_ACCURACY, IOU,
)  # fmt: skip


def match(key: str) -> Metric | None:
    """Return what a key stands for; None where no template has it.

    Example:
        >>> match("test/calibrated/calibration_error").label
        'calibration error after calibration in % ↓'
    """
    return next((found for template in CATALOG if (found := template.match(key))), None)


def describe(key: str) -> Metric:
    """Return title, direction and unit of a key; one that is not in the catalogue is described by its last word.

    Example:
        >>> describe("test/mine/top3_accuracy").label
        'mine/top3_accuracy in % ↑'
    """
    if found := match(key):
        return found
    stage, _, path = key.partition("/")
    last = f"_{key.rpartition('/')[2]}"
    alike = max((each for each in CATALOG if last.endswith(f"_{each.path}")), key=lambda t: len(t.path), default=None)
    title = path if stage == "test" else key
    return Metric(key, title) if alike is None else Metric(key, title, alike.direction, alike.unit, alike.comparable)


def headlines(task: str, keys: Iterable[str]) -> list[Metric]:
    """Return the headline metrics of a task that are among the keys; for a task not listed here, a classification's.

    Where nothing was tested, the same of validation.
    """
    keys = list(keys)
    for stage in ("test/", "val/"):
        wanted = [
            re.escape(stage + each.removeprefix("test/")) for each in HEADLINES.get(task, HEADLINES["classification"])
        ]
        patterns = [re.compile(each.replace(r"\*", WORD)) for each in wanted]
        if found := [describe(key) for pattern in patterns for key in keys if pattern.fullmatch(key)]:
            return found
    return []


def validated(key: str) -> bool:
    """Return whether a task of the catalogue logs a key in validation.

    Example:
        >>> validated("val/accuracy"), validated("val/forgetting"), validated("val/calibrated/nll")
        (True, False, False)
    """
    found = match(key)
    variants = ("", "adjusted", "tau_normalized")
    return found is not None and found.stage == "val" and found.template in VALIDATED and found.variant in variants


def check_mode(who: str, monitor: str, mode: str) -> None:
    """Refuse a mode that contradicts the direction of a metric.

    Args:
        who: What reads the metric, such as ``ModelCheckpoint``.
        monitor: The key.
        mode: ``"max"`` or ``"min"``, what it takes for better.

    Raises:
        ValueError: More of the metric is better and the mode is ``min``, or the other way round.

    Example:
        >>> check_mode("EarlyStopping", "val/accuracy", "min")
        Traceback (most recent call last):
        ValueError: Expected mode max of EarlyStopping, since more of val/accuracy is better, got min: set mode to max.
    """
    found = match(monitor)
    right = {"higher": "max", "lower": "min", None: mode}[found and found.direction]
    if mode != right:
        raise ValueError(
            f"Expected mode {right} of {who}, since {'more' if right == 'max' else 'less'} of {monitor} is better, got "
            f"{mode}: set mode to {right}."
        )


def with_means(metrics: dict[str, float]) -> dict[str, float]:
    """Add the mean of each robustness curve over its radii, without 0: ``test/robust_accuracy/<norm>/mean/<attack>``.

    Example:
        >>> curve = {"test/robust_accuracy/l2/1/worst": 0.5, "test/robust_accuracy/l2/2/worst": 0.25}
        >>> with_means(curve)["test/robust_accuracy/l2/mean/worst"]
        0.375
    """
    curves: dict[str, list[float]] = {}
    for key, value in metrics.items():
        found = ROBUST_ACCURACY.match(key)
        # AutoAttack runs at some of the radii only
        if (
            found
            and found.parts["attack"] != "autoattack"
            and found.parts["eps"] != "mean"
            and float(found.parts["eps"]) > 0
        ):
            mean = ROBUST_ACCURACY.key(found.stage, **{**found.parts, "eps": "mean"})
            curves.setdefault(mean, []).append(value)
    return {**metrics, **{key: sum(values) / len(values) for key, values in curves.items()}}


def best_of_validation(
    curves: Mapping[str, Mapping[Any, float]], monitor: str = "val/accuracy", mode: str = "max"
) -> dict[str, float]:
    """Return all metrics of the validation of the best checkpoint: what hyper-parameters are chosen by.

    Args:
        curves: Value of each metric by epoch, or by epoch and step.
        monitor: The metric that chooses the best checkpoint, the first among equals; where no curve has that name, the
            last validation.
        mode: ``"max"`` or ``"min"``.

    Example:
        >>> curves = {"val/miou": {1: 0.25, 2: 0.5, 3: 0.375}, "val/loss": {1: 2.0, 2: 1.5, 3: 1.0}}
        >>> best_of_validation(curves, "val/miou")
        {'val/miou': 0.5, 'val/loss': 1.5}
    """
    validation = {key: values for key, values in curves.items() if key.startswith("val/") and values}
    if not validation:
        return {}
    chosen = validation.get(monitor)
    if chosen is None:
        best = max(at for values in validation.values() for at in values)
    else:
        known = {at: value for at, value in sorted(chosen.items()) if math.isfinite(value)} or chosen
        best = {"max": max, "min": min}[mode](known, key=known.__getitem__)
    return {key: values[best] for key, values in validation.items() if best in values}
