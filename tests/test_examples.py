"""HEM in other people's frameworks: each example runs, for an epoch or a step, and marks what changes."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDS = {
    "huggingface_images": "transformers",
    "huggingface_tokens": "transformers",
    "monai_masks": "monai",
    "skorch_grid_search": "skorch",
}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's frameworks
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "compile_fsdp2"])
def test_example(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="`make examples` installs it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "1"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "%" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes():
    """FSDP2, with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run([*command, str(EXAMPLES / "compile_fsdp2.py"), "2"], env=environment, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 0: loss" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_short_and_marked(name):
    """At most sixty lines, what changes is marked, and the page of examples shows it."""
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 60
    assert "CHANGED" in text
    assert f'--8<-- "examples/{name}.py"' in (EXAMPLES.parent / "docs" / "examples.md").read_text()
