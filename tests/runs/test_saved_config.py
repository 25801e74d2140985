"""The config that a run keeps."""

from hem.cli import build, quiet
from hem.runs import RunFolder


def test_a_training_that_python_built_keeps_its_config(tmp_path, monkeypatch):
    """As the benchmarks train: without a command, hence without a checkpoint to go on from."""
    monkeypatch.setattr("sys.argv", ["cli.py"])  # no command line
    quiet()
    words = ["--config", "configs/classification/digits.yaml", "--run_dir", str(tmp_path), "--trainer.max_epochs=1"]
    words += [f"--trainer.limit_{part}_batches=1" for part in ("train", "val")]
    cli = build([*words, "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"], run=False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert RunFolder(tmp_path).config.is_file()
