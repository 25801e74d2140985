"""The folder of a run: what lies in it, and where.

``runs/<task>_<dataset>/<loss>/seed<k>/`` holds ``config.yaml`` (the record of the run), ``events.*`` and
``metrics.csv`` (curves), ``checkpoints/best.ckpt`` and ``last.ckpt``, ``results.json`` (every test figure),
``rejector.json``, ``calibration.json`` and ``predictions.csv``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hem.runs.checkpoints import LAST, last_checkpoint
from hem.runs.files import read_json


class RunFolder:
    """The folder of a run: the one place that knows how its files are named.

    Args:
        path: The folder; it need not be there yet.
    """

    CONFIG = "config.yaml"
    RESULTS = "results.json"
    STUDY = "study.json"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """``config.yaml``: the merged config that the run began with."""
        return self.path / self.CONFIG

    def config_of(self, stage: str) -> Path:
        """The merged config of a stage: ``config.yaml`` of ``fit``, ``config_test.yaml`` of ``test``."""
        return self.config if stage == "fit" else self.path / f"config_{stage}.yaml"

    @property
    def curves(self) -> Path:
        """``metrics.csv``: what training logged, a row for each step that logs."""
        return self.path / "metrics.csv"

    @property
    def results(self) -> Path:
        """``results.json``: every figure of the test."""
        return self.path / self.RESULTS

    @property
    def results_validate(self) -> Path:
        """``results_validate.json``: every figure of a validation that was asked for by itself."""
        return self.path / "results_validate.json"

    @property
    def predictions(self) -> Path:
        """``predictions.csv``: a row for each image."""
        return self.path / "predictions.csv"

    @property
    def rejector(self) -> Path:
        """``rejector.json``: the threshold that accepts most of what the network classifies rightly."""
        return self.path / "rejector.json"

    @property
    def calibration(self) -> Path:
        """``calibration.json``: what makes probabilities of the network's logits."""
        return self.path / "calibration.json"

    @property
    def study(self) -> Path:
        """``study.json``: the commands that a study has done here."""
        return self.path / self.STUDY

    @property
    def lock(self) -> Path:
        """``lock``: the file that whoever works in the folder holds a lock on."""
        return self.path / "lock"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """``checkpoints/last.ckpt``: the newest checkpoint, whether or not it is there and whole."""
        return self.checkpoints / LAST

    def checkpoint(self, which: str) -> Path:
        """Return the ``best`` or ``last`` checkpoint.

        Raises:
            FileNotFoundError: If the run has none.
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

    def read_study(self) -> dict[str, dict[str, Any]]:
        """What ``study.json`` holds: ``arguments`` and, once it is done, ``seconds`` of each step; empty: no file.

        Raises:
            ValueError: It is damaged.
        """
        found = read_json(self.study) if self.study.is_file() else {}
        if not all(isinstance(step, dict) for step in found.values()):
            raise ValueError(f"{self.study} holds no steps, but {found!r}: delete it, and it will be made anew.")
        return found
