"""Robustness to common corruptions: the accuracy of a classifier under each corruption and severity."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import track
from torch import Tensor

from hem.corruptions import GROUPS
from hem.datamodules.corruption import CLEAN, ComputedCorruptions, Condition, CorruptedImages
from hem.modules.base import Task
from hem.modules.examination import data_of, write_figure, write_table
from hem.modules.rejector import limited
from hem.plots.corruption import image_sheet, severity_curves
from hem.runs import RunFolder

Accuracies = dict[tuple[str, int], float]  # by corruption and severity; ("clean", 0) is among them
PREFIX = "test/corruption/"  # of the keys in results.json


def read_accuracies(path: str | Path) -> Accuracies:
    """The accuracies of another run, to compare with.

    Args:
        path: A ``corruption.csv`` or ``results.json``, or the run folder that holds them.

    Returns:
        Accuracy in [0, 1] by (corruption, severity).

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It holds no accuracies under corruption.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = RunFolder(path).corruption
    if not path.is_file():
        raise FileNotFoundError(
            f"The baseline's figures are expected in {path}, but there is no such file: test the baseline with the "
            "same corruption config first, and name its corruption.csv, results.json or run folder."
        )
    try:
        if path.suffix == ".json":
            metrics = json.loads(path.read_text())["metrics"]
            keys = {key: key.removeprefix(PREFIX).split("/") for key in metrics if key.startswith(PREFIX)}
            found = {(name, int(s)): float(metrics[key]) for key, (name, s) in keys.items() if s.isdigit()}
        else:
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            found = {(row["corruption"], int(row["severity"])): float(row["accuracy"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no corruption.csv or results.json of a run: {error!r}.") from error
    if (CLEAN.corruption, CLEAN.severity) not in found or len(found) < 2:
        raise ValueError(f"{path} holds no accuracies under corruption: test that run with a corruption config.")
    return found


def mean_corruption_error(
    own: Accuracies, baseline: Accuracies, corruptions: list[str], *, relative: bool = False
) -> tuple[float, list[str]]:
    """How large the errors are beside a baseline's, on average over corruptions: 1 is as good, less is better.

    mCE = mean_c sum_s E_{c,s} / sum_s B_{c,s}, with E the error of the network, B the baseline's, s the
    severities. Relative: E_{c,s} - E_clean in place of E_{c,s}, the same for B: how much is lost. The paper
    gives both in percent.

    Args:
        own: Accuracy in [0, 1] by (corruption, severity).
        baseline: The same of the baseline.
        corruptions: Those that are averaged.
        relative: What is lost in place of the error.

    Returns:
        The mean, and the corruptions that it leaves out, since the baseline's sum is not positive there (NaN
        where none remains).

    Raises:
        ValueError: The baseline lacks a condition.

    Source:
        Hendrycks & Dietterich, ICLR 2019, section 4.1.

    Example:
        >>> own = {("clean", 0): 0.9, ("fog", 1): 0.8, ("fog", 2): 0.6}
        >>> other = {("clean", 0): 0.9, ("fog", 1): 0.7, ("fog", 2): 0.5}
        >>> mean, left_out = mean_corruption_error(own, other, ["fog"])
        >>> round(mean, 3), left_out
        (0.75, [])
    """
    clean = (CLEAN.corruption, CLEAN.severity)
    if missing := sorted(key for key in own if key[0] in corruptions and key not in baseline):
        raise ValueError(
            f"The baseline lacks {len(missing)} conditions, {missing[0][0]} at severity {missing[0][1]} among them: "
            "test it with the same corruptions and severities."
        )
    ratios, left_out = [], []
    for name in corruptions:
        errors = [
            sum(1 - accuracy[name, s] - ((1 - accuracy[clean]) if relative else 0) for c, s in own if c == name)
            for accuracy in (own, baseline)
        ]
        if errors[1] > 1e-12:
            ratios.append(errors[0] / errors[1])
        else:
            left_out.append(name)
    return (mean(ratios) if ratios else float("nan")), left_out


class CorruptionTask(Task):
    """Test any classifier under common corruptions.

    ``test`` goes through the clean images and through every corruption and severity. ``results.json`` has
    ``test/accuracy`` of the whole clean test part, ``test/corruption/<name>/<severity>``,
    ``test/corruption/<name>/mean`` over the severities, ``test/corruption/clean/0`` of the same images
    uncorrupted, the mean over all corruptions ``test/corruption_accuracy``, and over the 15 common and the 4
    extra ones apart, ``test/corruption_accuracy_common`` and ``_extra``; beside a baseline ``test/mce`` and
    ``test/relative_mce`` over the common ones (:func:`mean_corruption_error`). All lie in [0, 1], mCE at 1
    for the baseline itself.

    ``corruption.csv`` holds the accuracies, ``corruption.png`` their curves against severity,
    ``corruption_images.png`` a sheet of one image under every condition; TensorBoard has both pictures.
    Training with this task is training with clean images.

    Source:
        Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
        perturbations", ICLR 2019.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        corrupted: The corrupted images: computed here, or from the official files.
        baseline: The run that mCE compares with: its ``corruption.csv``, ``results.json`` or folder; the
            paper's is AlexNet. None: no mCE.
        **kwargs: See :class:`~hem.modules.base.Task`.
    """

    def __init__(
        self, *args: Any, corrupted: CorruptedImages | None = None, baseline: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.corrupted = ComputedCorruptions() if corrupted is None else corrupted
        self.baseline = baseline
        self.found: dict[Condition, float] = {}  # what the last test found
        self.examples: dict[Condition, Tensor] = {}

    # -- Lightning's hooks ---------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Refuse what cannot be tested or compared, before the work begins."""
        conditions = self.corrupted.conditions(data_of(self))
        if self.baseline is not None:
            own = {(c.corruption, c.severity): 0.0 for c in [CLEAN, *conditions]}
            names = list(dict.fromkeys(c.corruption for c in conditions if not c.extra))
            mean_corruption_error(own, read_accuracies(self.baseline), names)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Take one batch into the clean accuracy."""
        self.log_accuracy(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Go through the corrupted images, then log and write what was found."""
        self.found, count = self._run()
        self._log()
        if self.trainer.is_global_zero:
            self._write(count)

    # -- the test ------------------------------------------------------------------------------------------

    def _run(self) -> tuple[dict[Condition, float], int]:
        """Accuracy of every condition over all processes, and the number of images that one has."""
        trainer, self.examples = self.trainer, {}
        right: dict[Condition, Tensor] = {}
        seen: dict[Condition, Tensor] = {}
        for loader, conditions in self.corrupted.passes(data_of(self)):
            batches: Any = islice(loader, limited(trainer.limit_test_batches, len(loader)))
            if trainer.progress_bar_callback is not None and trainer.is_global_zero:
                title = "all corruptions" if len(conditions) > 1 else "{} {}".format(*conditions[0])
                batches = track(batches, title, total=len(loader), transient=True)
            for raw in batches:
                input, target, index = trainer.strategy.batch_to_device(raw, dataloader_idx=0)
                for condition in conditions:
                    images = self.corrupted.apply(input, index, condition)
                    with trainer.precision_plugin.forward_context():
                        label = self(images).argmax(1)
                    hits = (label == target).sum()
                    right[condition] = right.get(condition, 0) + hits
                    seen[condition] = seen.get(condition, 0) + torch.ones_like(target).sum()
                    self.examples.setdefault(condition, images[0].float().cpu())
        # one sum over all processes: right and seen of every condition
        counts = torch.stack([torch.stack(list(each.values())) for each in (right, seen)])
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        shares = (counts[0].double() / counts[1]).tolist()
        return dict(zip(right, shares, strict=True)), int(counts[1].max())

    def _mean(self, name: str) -> float:
        return mean(value for condition, value in self.found.items() if condition.corruption == name)

    def _names(self, extra: bool | None = None) -> list[str]:
        conditions = [c for c in self.found if c != CLEAN and extra in (None, c.extra)]
        return list(dict.fromkeys(c.corruption for c in conditions))

    def _log(self) -> None:
        # all into results.json; the means alone on the screen and into TensorBoard
        for (name, severity, _), value in self.found.items():
            self.log(f"{PREFIX}{name}/{severity}", value, logger=False, sync_dist=True)
        for name in self._names():
            self.log(f"{PREFIX}{name}/mean", self._mean(name), sync_dist=True)
        for suffix, extra in (("", None), ("_common", False), ("_extra", True)):
            if names := self._names(extra):
                value = mean(self._mean(name) for name in names)
                self.log(f"test/corruption_accuracy{suffix}", value, sync_dist=True)
        if self.baseline is None or not self._names(False):
            return
        own = {(name, severity): value for (name, severity, _), value in self.found.items()}
        baseline = read_accuracies(self.baseline)
        for key, relative in (("mce", False), ("relative_mce", True)):
            error, left_out = mean_corruption_error(own, baseline, self._names(False), relative=relative)
            if left_out:
                rank_zero_warn(
                    f"{key} leaves out {', '.join(left_out)}: the baseline {self.baseline} "
                    f"{'loses' if relative else 'errs'} nothing there to compare with."
                )
            self.log(f"test/{key}", error, sync_dist=True)

    # -- what is written -----------------------------------------------------------------------------------

    def _write(self, count: int) -> None:
        columns = ["corruption", "severity", "extra", "accuracy", "images"]
        conditions = (
            {**c._asdict(), "extra": int(c.extra), "accuracy": f"{value:.6f}", "images": count}
            for c, value in self.found.items()
        )
        write_table(self, "corruption", columns, conditions)
        names, clean = self._names(), CLEAN.corruption
        severities = sorted({condition.severity for condition in self.found})
        curves = {
            name: {c.severity: value for c, value in self.found.items() if c.corruption in (name, clean)}
            for name in names
        }
        write_figure(self, "corruption", severity_curves(curves, GROUPS))
        shown = {(c.corruption, c.severity): image.movedim(0, 2).squeeze(2) for c, image in self.examples.items()}
        sheet = {name: {s: shown[name if s else clean, s].numpy() for s in severities} for name in names}
        write_figure(self, "corruption_images", image_sheet(sheet))
