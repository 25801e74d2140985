"""None, one or several loggers: a run trains with each, and all that is written lies in its folder."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ("fit", "--config", "classification/digits", "--config", "trainer/debug",
         "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")  # fmt: skip
LISTED = "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: elsewhere}}]"
LOGGERS = {
    "none": ("false", set()),
    "true": ("true", {"metrics.csv", "events"}),
    "one": ("CSVLogger --trainer.logger.save_dir elsewhere", {"metrics.csv"}),
    "one, of TensorBoard": ("TensorBoardLogger --trainer.logger.save_dir elsewhere", {"events"}),
    "a list of one": (LISTED, {"metrics.csv"}),
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_logger(kind, hem_command, tmp_path):
    """Curves lie in the run folder itself; without a logger no callback complains that the user never named."""
    logger, curves = LOGGERS[kind]
    options = [logger] if logger == LISTED else logger.split()
    outcome = hem_command(*WHOLE, "--run_dir", tmp_path / "run", "--trainer.logger", *options)
    assert outcome.code == 0, outcome.err
    there = {path.name.partition(".out.tfevents")[0] for path in (tmp_path / "run").iterdir()}
    assert there & {"metrics.csv", "events", "lightning_logs", "version_0"} == curves
    assert not (ROOT / "elsewhere").exists()
