"""Folder of a run: its files, their names and how they are read.

``runs/<task>_<dataset>/<loss>/seed<k>/`` holds ``config.yaml`` (the merged config), ``data.json`` (class names,
channels and size of the images), ``events.*`` and ``metrics.csv`` (curves), ``checkpoints/best.ckpt`` and
``last.ckpt``, ``results.json`` (every test metric), ``rejector.json``, ``calibration.json``, ``predictions.csv``,
``masks/``, and, in ``evaluate/<name>/``, the results of each examination. Results belong to the weights of one
checkpoint and to the options of their test; before those of others are written, they are renamed together with the
other files of their test, never overwritten. ``resumes.json`` lists when the training was resumed.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from hem.runs.files import read_json, write_atomically
from hem.runs.newest import BEFORE, LAST, last_checkpoint


def _mark_of(weights: str | None) -> str:
    """What is added to the names of files that were set aside for those of other weights."""
    return f"{RunFolder.ASIDE}{weights[:8] if weights else 'earlier'}"


class RunFolder:
    """Folder of a run, and the only place that knows the names of its files.

    Args:
        path: The folder; it need not exist yet.
    """

    CONFIG = "config.yaml"
    RESULTS = "results.json"
    STUDY = "study.json"
    EVALUATIONS = "evaluate"
    ASIDE = "@"  # separates name and weights of results that were set aside
    PART = "-partial"  # suffix of results of a part of the images
    OF_TEST = (  # patterns of the files that tests write beside their results
        "rejector.json", "calibration.json", "reliability.png", "longtail.*", "confusion.png", "overlays.png",
        "accuracy_matrix.*", "rejection.*", "rejection_*.png", "corruption.*", "corruption_images.png", "robustness.*",
        "masking.json",
    )  # fmt: skip
    OF_PREDICT = ("predictions.csv", "masks")

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> RunFolder | None:
        """Return the run that a checkpoint belongs to; None: the checkpoint lies in no run folder."""
        folder = Path(checkpoint).absolute().parent
        run = cls(folder.parent)
        return run if folder.name == "checkpoints" and run.config.is_file() else None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / self.CONFIG  #: the merged config that the run began with
        self.curves = self.path / "metrics.csv"  #: logged values of the training, a row for each logged step
        self.results = self.path / self.RESULTS  #: all metrics of the test
        self.results_validate = self.path / "results_validate.json"  #: all metrics of the command validate
        self.predictions = self.path / "predictions.csv"  #: a row for each image
        self.predicted = self.path / "predictions.json"  #: weights and checkpoint of the predictions
        self.masks = self.path / "masks"  #: the predicted mask of each image
        self.corruption = self.path / "corruption.csv"  #: accuracy under each corruption and severity
        self.rejector = self.path / "rejector.json"  #: score and threshold for the rejection of unknown images
        self.calibration = self.path / "calibration.json"  #: parameters of the calibration of probabilities
        self.data = self.path / "data.json"  #: the record of the data: classes, channels, size, files
        self.study = self.path / self.STUDY  #: commands of a study that were executed here
        self.lock = self.path / "lock"  #: locked by the process that works in the folder
        self.checkpoints = self.path / "checkpoints"  #: the folder of the checkpoints
        self.last = self.checkpoints / LAST  #: the newest checkpoint, which may be missing or damaged
        self.resumes = self.path / "resumes.json"  #: date, checkpoint and changed options of each resume

    def config_of(self, stage: str) -> Path:
        """Return the path of a stage's merged config: ``config.yaml`` of ``fit``, ``config_test.yaml`` of ``test``."""
        return self.config if stage == "fit" else self.path / f"config_{stage}.yaml"

    def checkpoint(self, which: str) -> Path:
        """Return the path of the ``best`` or ``last`` checkpoint.

        Raises:
            FileNotFoundError: If the run has no such checkpoint.
        """
        path = self.checkpoints / f"{which}.ckpt"
        if which == "last":
            path = last_checkpoint(self.checkpoints) or path
        if not path.is_file():
            found = ", ".join(sorted(str(p) for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise FileNotFoundError(
                f"Expected the {which} checkpoint of this run at {path}; the folder has: {found}. Train first with "
                "`python cli.py fit` and the same configs, or give the path of a checkpoint as --ckpt_path."
            )
        return path

    def read_config(self) -> dict[str, Any]:
        """Return the merged config that the run began with.

        Raises:
            FileNotFoundError: If the folder holds no run.
            ValueError: If the file is damaged.
        """
        if not self.config.is_file():
            raise FileNotFoundError(
                f"Expected the folder of a run with its config.yaml, got {self.path}: train one with `python cli.py "
                "fit`, or name the folder that lies under runs/."
            )
        try:
            found = yaml.safe_load(self.config.read_bytes())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.config} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(found, dict) or not {"model", "data"} <= found.keys():
            raise ValueError(
                f"Expected the config of a run in {self.config}, with model and data, got "
                f"{'an empty file' if found is None else 'another one'}: train again, or bring it back from a copy."
            )
        return found

    def read_data(self) -> dict[str, Any] | None:
        """Return the content of ``data.json``; None: a run of a version that did not write it.

        Raises:
            ValueError: If the file is damaged.
        """
        return read_json(self.data) if self.data.is_file() else None

    def write_data(self, record: Mapping[str, Any]) -> None:
        """Write ``data.json``."""
        write_atomically(self.data, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def read_validations(self) -> dict[str, dict[tuple[float, float], float]]:
        """Return for each metric of validation its values in ``metrics.csv``, by epoch, from 1, and step.

        A training may validate several times in an epoch, and a checkpoint is of one of them. A row that is being
        written is left out.

        Raises:
            ValueError: If the file is damaged.
        """
        lines = self.curves.read_text("utf-8").splitlines(keepends=True) if self.curves.is_file() else []
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        keys = [key for key in rows.fieldnames or () if key.startswith("val/")]
        found: dict[str, dict[tuple[float, float], float]] = {key: {} for key in keys}
        for row in rows:
            for key in keys:
                if row.get("epoch") and row[key]:
                    found[key][float(row["epoch"]) + 1, float(row.get("step") or 0)] = float(row[key])
        return found

    # -- examinations --------------------------------------------------------------------------------------

    @property
    def kept_whole(self) -> bool:
        """Whether results of a test on all images were set aside here: a test on a part must not replace its files."""
        kept = self.results.stem + self.ASIDE
        return any(not path.stem.endswith(self.PART) for path in self.path.glob(f"{kept}*.json"))

    @property
    def examines(self) -> bool:
        """Whether this is the folder of an examination, ``evaluate/<name>``."""
        return self.path.parent.name == self.EVALUATIONS

    def evaluation(self, name: str) -> RunFolder:
        """Return the folder of an examination, ``evaluate/<name>``.

        Raises:
            ValueError: If the name cannot be that of a folder, or is one of results that were set aside.
        """
        if not name or Path(name).name != name or self.ASIDE in name or name.startswith("."):
            raise ValueError(
                f"Expected the name of an examination, such as rejection, got '{name}': it becomes a folder's name."
            )
        return RunFolder(self.path / self.EVALUATIONS / name)

    def of_weights(self, path: Path, weights: str) -> Path:
        """Return the path of a test's file for some weights: the one that was set aside, if any, else the usual one.

        Args:
            path: :attr:`rejector` or :attr:`calibration`.
            weights: The hash of the weights, see :func:`hem.runs.checkpoints.identity`.
        """
        with suppress(FileNotFoundError, ValueError):
            if read_json(path).get("weights") == weights:
                return path
        return [path, *self._aside(path, weights)][-1]

    def make_room(
        self, results: Path, weights: str | None, partial: bool = False, options: str | None = None
    ) -> Path | None:
        """Rename results that must not be overwritten: of other weights or options, or of all images before a part's.

        The files that the test wrote beside them (:attr:`OF_TEST`) are renamed as well, unless a part is tested of the
        same weights: predictions need the threshold and temperature of all images, which a test of a part does not
        replace. In the folder of an examination (:attr:`examines`) all files move to ``<name>@<weights>``; elsewhere
        each becomes ``<file>@<weights>``, and results of a part ``results@<weights>-partial.json``. Where such a name
        is taken by results of other options, ``-2`` and so on is added.

        Args:
            results: :attr:`results`, :attr:`results_validate` or :attr:`predicted` of this folder.
            weights: The weights that are tested now, see :func:`hem.runs.checkpoints.identity`.
            partial: Whether a part of the images is tested.
            options: A hash of the options that the results depend on; None: not known, taken for the same.

        Returns:
            The new path of the former results; None: there are none, or they may be overwritten.
        """
        try:
            there = read_json(results)
        except (FileNotFoundError, ValueError):  # none, or a damaged file
            if results != self.predicted or not self.predictions.is_file():
                return None
            there = {}  # of an older version
        former, part = there.get("weights"), self.PART if "partial" in there else ""
        same = former == weights and (partial or options is None or there.get("options", options) == options)
        if same and (part or not partial):
            return None
        mark = self._mark(results, there)
        predicted = results == self.predicted
        if self.examines and not predicted:
            kept = self.path.with_name(self.path.name + mark)
            kept.mkdir(exist_ok=True)
            for path in self.path.iterdir():
                if path not in (self.lock, self.study) and path.suffix != ".log":  # of a study that is at work here
                    os.replace(path, kept / path.name)
            return kept
        if predicted or (not same and results == self.results):
            patterns = self.OF_PREDICT if predicted else self.OF_TEST
            wholes = self._aside(results, former) if part and not predicted else []  # a part wrote no such files then
            whose = wholes[-1].stem.removeprefix(results.stem) if wholes else mark
            for path in {path for pattern in patterns for path in self.path.glob(pattern)}:
                if self.ASIDE not in path.name:
                    aside = path.with_stem(path.stem + whose)
                    if aside.is_dir():  # an earlier one of the same weights
                        shutil.rmtree(aside)
                    os.replace(path, aside)
        stage = {self.predicted: "predict", self.results_validate: "validate"}.get(results, "test")
        kept = results.with_stem(results.stem + mark)
        for path in (self.config_of(stage), results):
            with suppress(FileNotFoundError):
                os.replace(path, path.with_stem(path.stem + mark))
        return kept.with_suffix(".csv") if predicted else kept

    def _aside(self, path: Path, weights: str | None) -> list[Path]:
        """The files of tests of all images with some weights that were set aside, the newest last."""
        found = self.path.glob(f"{path.stem}{_mark_of(weights)}*{path.suffix}")
        return sorted((each for each in found if self.PART not in each.stem), key=lambda each: each.stat().st_mtime_ns)

    def _mark(self, results: Path, there: Mapping[str, Any]) -> str:
        """What is added to the names of results that are set aside, so that they take no place of others."""
        mark, part = _mark_of(there.get("weights")), self.PART if "partial" in there else ""
        together = self.examines and results != self.predicted
        for each in chain([mark], (f"{mark}-{number}" for number in count(2))):
            kept = results.with_stem(results.stem + each + part)
            if together:
                kept = self.path.with_name(self.path.name + each + part) / results.name
            with suppress(ValueError):  # a damaged one is left where it is
                if not kept.is_file() or read_json(kept).get("options") == there.get("options"):
                    return each + part
        raise AssertionError("there is always a further number")

    def write_predicted(self, weights: str | None, checkpoint: str | None, partial: bool, options: str) -> None:
        """Write ``predictions.json``, the weights and options of the predictions, before the predictions themselves."""
        record: dict[str, Any] = {"weights": weights, "options": options, "checkpoint": checkpoint}
        if partial:
            record["partial"] = True
        write_atomically(self.predicted, json.dumps(record, indent=2) + "\n")

    def read_study(self) -> dict[str, dict[str, Any]]:
        """Return the content of ``study.json``: by step its ``arguments`` and, once done, ``seconds``; empty: no file.

        Raises:
            ValueError: If the file is damaged.
        """
        found = read_json(self.study) if self.study.is_file() else {}
        if not all(isinstance(step, dict) for step in found.values()):
            raise ValueError(f"{self.study} holds no steps, but {found!r}: delete it, and it will be made anew.")
        return found

    # -- what holds a run, and what does not ---------------------------------------------------------------

    @property
    def used(self) -> bool:
        """Whether the folder holds a run: a checkpoint or results. A training that failed earlier leaves neither."""
        return any(self.checkpoints.glob("*.ckpt")) or self.results.is_file()

    @property
    def begun(self) -> bool:
        """Whether the training can go on: there is its newest checkpoint, or the one before it."""
        return any((self.checkpoints / name).is_file() for name in (LAST, BEFORE))

    def clear(self) -> None:
        """Remove temporary files, and the config and curves of a training that wrote no checkpoint."""
        for path in [*self.path.glob(".*"), *self.checkpoints.glob(".*")]:
            if re.fullmatch(r"\..+\.\d+", path.name):
                path.unlink(missing_ok=True)
        if not self.used:
            for path in (self.config, self.data, self.curves, self.resumes, *self.path.glob("events.*")):
                path.unlink(missing_ok=True)

    # -- resumes -------------------------------------------------------------------------------------------

    def read_resumes(self) -> list[dict[str, Any]]:
        """Return the content of ``resumes.json``; empty: the run was never resumed.

        Raises:
            ValueError: If the file is damaged.
        """
        found: list[dict[str, Any]] = read_json(self.resumes)["resumes"] if self.resumes.is_file() else []
        return found

    def add_resume(self, resume: Mapping[str, Any]) -> None:
        """Add an entry to ``resumes.json``."""
        record = {"resumes": [*self.read_resumes(), resume]}
        write_atomically(self.resumes, json.dumps(record, indent=1) + "\n")
