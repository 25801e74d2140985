"""The lines of the README that a user copies are run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import hem.networks
from hem.losses import LOSSES
from hem.networks import batch_dependent

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_drop_in():
    """The first use: the loss alone."""
    code = blocks("python")[0]
    assert "from hem.losses import HEMLoss" in code
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert namespace["logits"].grad is not None


@pytest.mark.slow
def test_commands_and_load(hem_command, tmp_path, monkeypatch):
    """The second use: each command in turn, then the network of the first run in Python."""
    shorter = ("--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    lines = [words for words in commands() if "2" not in words]
    assert [words[2] for words in lines] == ["fit", "test", "fit", "predict"]
    for words in lines:
        assert words[:2] == ["python", "cli.py"]
        seed = words[words.index("--seed_everything") + 1] if "--seed_everything" in words else "0"
        folder = tmp_path / "runs" / "classification_digits" / "hem" / f"seed{seed}"
        outcome = hem_command(*words[2:], *shorter, "--run_dir", folder)
        assert outcome.code == 0, outcome.err
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[1], {})


@pytest.mark.slow
def test_cluster(tmp_path):
    """The third use: two devices."""
    (line,) = (words for words in commands() if "--trainer.devices" in words)
    assert line[line.index("--trainer.devices") + 1] == "2"
    command = [sys.executable, *line[1:], "--trainer.max_epochs", "1", "--run_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_table_of_losses():
    """Every loss has its row."""
    for name, loss in LOSSES.items():
        assert re.search(rf"\| `{name}` \| .*`{loss.__name__}[(`]", TEXT), name


def test_the_two_commands_are_the_makefile_s():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("train", "test"):
        assert f"make {target} " in TEXT
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


def test_two_devices_train_as_one_does():
    """What is said beside the command holds for its network alone if no sample's output depends on the others."""
    (words,) = [words for words in commands() if "2" in words]
    config = yaml.safe_load((ROOT / words[words.index("--config") + 1]).read_text())
    path, arguments = config["model"]["init_args"]["net"]["class_path"], {}
    for option, value in pairwise(words):
        if option.startswith("--model.net."):
            arguments[option.rpartition(".")[2]] = yaml.safe_load(value)
    assert batch_dependent(getattr(hem.networks, path.rpartition(".")[2])(**arguments)) == []
