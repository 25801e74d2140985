"""Installed from a wheel, hem has its configs with it and trains from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the folder that a wheel, built from a copy of the sources, was installed into."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("hem", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", source, source], check=True)
    subprocess.run([*pip, "install", *offline, "--target", site, *source.glob("*.whl")], check=True)
    return site


@pytest.mark.slow
def test_trains_from_any_folder(installed, tmp_path):
    """Short names of configs are found in the package; the run has its curves and checkpoints."""
    shipped = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(installed / "hem") for path in (installed / "hem" / "configs").rglob("*.yaml")} == shipped
    assert not (installed / "hem" / "configs").is_symlink()
    outcome = subprocess.run(
        [sys.executable, "-m", "hem", "fit", "--config", "classification/digits", "--config", "loss/hem.yaml",
         "--config", "trainer/debug", "--trainer.enable_progress_bar", "false"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    run = tmp_path / "runs" / "classification_digits" / "hem" / "seed0"
    there = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= there


@pytest.mark.slow
def test_base_config_is_needed(installed, tmp_path):
    """Without its base config a run would have no curves and no best checkpoint: it is refused."""
    broken = shutil.copytree(installed, tmp_path / "site")
    (broken / "hem" / "configs" / "base.yaml").unlink()
    outcome = subprocess.run(
        [sys.executable, "-m", "hem", "fit", "--config", "classification/digits"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(broken)}, capture_output=True, text=True,
    )  # fmt: skip
    assert outcome.returncode == 1
    assert "Expected the base config at" in outcome.stderr
    assert not (tmp_path / "runs").exists()
