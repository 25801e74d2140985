"""Corruption task: accuracy of a classifier under each common corruption and severity."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hem.corruptions import GROUPS
from hem.datamodules.corruption import CLEAN, ComputedCorruptions, Condition, CorruptedImages
from hem.datamodules.evaluation import EvaluationSet
from hem.metrics import catalog
from hem.modules.base import Task
from hem.modules.examination import data_of
from hem.plots.corruption import image_sheet, severity_curves
from hem.runs import RunFolder
from hem.runs.outputs import write_figure, write_table

Accuracies = dict[tuple[str, int], float]  # by corruption and severity; ("clean", 0) is among them
WHOLE = Condition("test", 0)  # of the whole test part as it is


def read_accuracies(path: str | Path) -> Accuracies:
    """Read the accuracies of another run.

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
            f"Expected metrics of the baseline in {path}, got no such file: test the baseline with the "
            "same corruption config first, and name its corruption.csv, results.json or run folder."
        )
    try:
        if path.suffix == ".json":
            metrics = json.loads(path.read_bytes())["metrics"]
            matches = {key: match for key in metrics if (match := catalog.CORRUPTION.match(key))}
            conditions = {key: (match.parts["corruption"], match.parts["severity"]) for key, match in matches.items()}
            found = {(name, int(s)): float(metrics[key]) for key, (name, s) in conditions.items()}
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
    """Return the mean corruption error (mCE): errors relative to a baseline's, averaged over corruptions.

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
        self.conditions: list[list[Condition]] = []  # of each loader
        self.right: dict[Condition, Tensor] = {}
        self.seen: dict[Condition, int] = {}
        self.found: dict[Condition, float] = {}  # what the last test found
        self.examples: dict[Condition, Tensor] = {}

    # -- Lightning's hooks ---------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Give the data module the sets to test on; check them and the baseline."""
        super().setup(stage)
        if stage != "test":
            return
        data = data_of(self.trainer)
        passes = self.corrupted.passes(data)
        self.conditions = [[WHOLE], *(each.conditions for each in passes)]
        conditions = [condition for each in passes for condition in each.conditions]
        if self.baseline is not None:
            own = {(c.corruption, c.severity): 0.0 for c in conditions}
            names = list(dict.fromkeys(c.corruption for c in conditions if c != CLEAN and not c.extra))
            mean_corruption_error(own, read_accuracies(self.baseline), names)
        whole = EvaluationSet("test", "clean", *data.part("test"))
        data.evaluation_sets = [whole, *(each.images for each in passes)]

    def teardown(self, stage: str) -> None:
        """Restore the data module."""
        if stage == "test":
            data_of(self.trainer).evaluation_sets = []

    def on_test_start(self) -> None:
        """Reset the counts; this task prints its own table in place of Lightning's, of one column per loader."""
        self.trainer.test_loop.verbose = False
        self.right, self.seen, self.examples = {}, {}, {}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count correct predictions of one batch under each of its conditions."""
        input, target, index = batch
        for condition in self.conditions[dataloader_idx]:
            images = input if condition == WHOLE else self.corrupted.apply(input, index, condition)
            right = (self(images).argmax(1) == target).sum()
            self.right[condition] = self.right.get(condition, 0) + right
            self.seen[condition] = self.seen.get(condition, 0) + len(target)
            self.examples.setdefault(condition, images[0].float().cpu())

    def on_test_epoch_end(self) -> None:
        """Reduce the counts over all processes, then log and write the results."""
        right = torch.stack(list(self.right.values()))
        counts = torch.stack([right, torch.tensor(list(self.seen.values()), device=right.device)])
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        shares = (counts[0].double() / counts[1]).tolist()
        self.found = dict(zip(self.right, shares, strict=True))
        self.log(catalog.ACCURACY.key("test"), self.found.pop(WHOLE), prog_bar=True, sync_dist=True)
        self._log()
        if self.trainer.is_global_zero:
            self._write(int(counts[1, 1:].max()))

    # -- what was found ------------------------------------------------------------------------------------

    def _mean(self, name: str) -> float:
        return mean(value for condition, value in self.found.items() if condition.corruption == name)

    def _names(self, extra: bool | None = None) -> list[str]:
        conditions = [c for c in self.found if c != CLEAN and extra in (None, c.extra)]
        return list(dict.fromkeys(c.corruption for c in conditions))

    def _log(self) -> None:
        # all into results.json; the means alone on the screen and into TensorBoard
        for (name, severity, _), value in self.found.items():
            key = catalog.CORRUPTION.key("test", corruption=name, severity=severity)
            self.log(key, value, logger=False, sync_dist=True)
        for name in self._names():
            self.log(catalog.CORRUPTION_MEAN.key("test", corruption=name), self._mean(name), sync_dist=True)
        for suffix, extra in (("", None), ("_common", False), ("_extra", True)):
            if names := self._names(extra):
                value = mean(self._mean(name) for name in names)
                self.log(catalog.CORRUPTION_ACCURACY.key("test", group=suffix), value, sync_dist=True)
        if self.baseline is None or not self._names(False):
            return
        own = {(name, severity): value for (name, severity, _), value in self.found.items()}
        baseline = read_accuracies(self.baseline)
        for template, relative in ((catalog.MCE, False), (catalog.RELATIVE_MCE, True)):
            error, left_out = mean_corruption_error(own, baseline, self._names(False), relative=relative)
            if left_out:
                rank_zero_warn(
                    f"{template.path} leaves out {', '.join(left_out)}: the baseline {self.baseline} "
                    f"{'loses' if relative else 'errs'} nothing there to compare with."
                )
            self.log(template.key("test"), error, sync_dist=True)

    # -- what is written -----------------------------------------------------------------------------------

    def _write(self, count: int) -> None:
        columns = ["corruption", "severity", "extra", "accuracy", "images"]
        conditions = (
            {**c._asdict(), "extra": int(c.extra), "accuracy": f"{value:.6f}", "images": count}
            for c, value in self.found.items()
        )
        write_table(self.trainer, "corruption", columns, conditions)
        table = Table("corruption", "accuracy (%), mean of severities")
        for name in [CLEAN.corruption, *self._names()]:
            table.add_row(name, f"{100 * self._mean(name):.2f}")
        Console().print(table)
        names, clean = self._names(), CLEAN.corruption
        severities = sorted({condition.severity for condition in self.found})
        curves = {
            name: {c.severity: value for c, value in self.found.items() if c.corruption in (name, clean)}
            for name in names
        }
        write_figure(self.trainer, "corruption", severity_curves(curves, GROUPS))
        shown = {(c.corruption, c.severity): image.movedim(0, 2).squeeze(2) for c, image in self.examples.items()}
        sheet = {name: {s: shown[name if s else clean, s].numpy() for s in severities} for name in names}
        write_figure(self.trainer, "corruption_images", image_sheet(sheet))
