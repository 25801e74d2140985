"""CSV logger whose ``metrics.csv`` a resumed run continues."""

from __future__ import annotations

import csv
import io
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
from lightning.pytorch.utilities import rank_zero_only

from hem.runs.files import write_atomically


class CSVLogger(lightning.pytorch.loggers.CSVLogger):
    """Lightning's CSV logger, except that a resumed run keeps the rows that are there.

    Every row is in the file as soon as it is logged (``flush_logs_every_n_steps: 1`` in ``base.yaml``), thus before any
    checkpoint of a later step. When a resumed run logs its first row, the rows of that step and of later ones are
    dropped: the run is about to repeat them.
    """

    _row: tuple[int | None, dict[str, Any]] | None = None

    @property
    def experiment(self) -> Any:
        """The writer, which appends to an existing ``metrics.csv``."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            path = Path(self.log_dir) / "metrics.csv"
            aside = path.with_name(".metrics.csv")
            with suppress(FileNotFoundError):
                os.replace(path, aside)  # renamed meanwhile, for Lightning deletes it
            with warnings.catch_warnings():
                # of Lightning: "previous log files will be deleted", which they are not
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = super().experiment
            self._resumed = aside.is_file()
            if self._resumed:
                os.replace(aside, path)
            return writer
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log a row; with the first row of a resumed run, drop the rows of this and later steps."""
        writer = self.experiment
        if getattr(self, "_resumed", False) and step is not None:
            path = Path(self.log_dir) / "metrics.csv"
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                # the last row may be cut where the process was killed; it is one of those that are repeated
                kept = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
                writer.metrics_keys = list(reader.fieldnames or ())
            text = io.StringIO()
            table = csv.DictWriter(text, writer.metrics_keys, extrasaction="ignore")
            table.writeheader()
            table.writerows(kept)
            write_atomically(path, text.getvalue())
            self._resumed = False
        if (row := (step, metrics)) != self._row:  # the row behind a checkpoint was written before it
            super().log_metrics(metrics, step)
        self._row = row
