"""`make train` and `make tensorboard`: what they call, shortened, and what a user then sees."""

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from hem import quickstart

ROOT = Path(__file__).resolve().parents[1]


def recipe(target: str) -> list[str]:
    """The words of the last line of a target in the Makefile, behind the program."""
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert lines is not None
    return shlex.split(lines[1].splitlines()[-1])[1:]


@pytest.mark.slow
def test_train_and_tensorboard(tmp_path, monkeypatch, capsys):
    assert recipe("train") == ["-m", "hem.quickstart"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(quickstart, "RUNS", tmp_path / "runs" / "quickstart")
    monkeypatch.setattr(quickstart, "SEEDS", 2)
    command = quickstart.command
    short = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    monkeypatch.setattr(quickstart, "command", lambda words: command([*words, *short]))
    assert quickstart.main() == 0
    shown = capsys.readouterr().out
    for word in ("cross-entropy", "HEM", "AUROC %", "`make tensorboard`"):
        assert word in shown
    runs = {path.parent.name for path in (tmp_path / "runs" / "quickstart").rglob("results.json")}
    assert runs == {"seed0", "seed1"}

    monkeypatch.chdir(tmp_path)
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *recipe("tensorboard"), "--port", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        for _ in range(100):  # it reads the runs after it has begun to answer
            with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=10) as answer:
                tags = json.load(answer)
            if len(tags) == 4:
                break
            time.sleep(0.2)
        assert all({"train/loss", "val/accuracy"} <= set(curves) for curves in tags.values())
        assert set(tags) == {
            f"quickstart/classification_digits/{loss}/seed{k}" for loss in ("ce", "hem") for k in (0, 1)
        }
    finally:
        server.terminate()
        server.communicate()
