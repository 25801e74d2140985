"""The archives of `make build`; installed from the wheel, hem has its configs with it and trains from any folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Return the folder of what `make build` makes: an sdist, and the wheel that is built from it."""
    pytest.importorskip("build", reason="it comes with hem-loss[dev]")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """Return the folder that the wheel was installed into."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, *archives.glob("*.whl")], check=True)
    return site


@pytest.mark.slow
def test_both_archives(archives):
    """The sdist has what builds the wheel, and the wheel has kernels, configs and templates."""
    (wheel,), (sdist,) = archives.glob("hem_loss-*.whl"), archives.glob("hem_loss-*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hem/losses/kernels/margin.c", "hem/configs/base.yaml", "hem/py.typed"} <= names
    assert any(name.endswith(".html") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "hem/configs/base.yaml", "hem/losses/kernels/margin.c", "LICENSE"} <= inside


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
