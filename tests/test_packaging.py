"""The distribution: one version everywhere, a citation that validates, both archives, losses with torch alone."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import hem

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == hem.__version__ == citation["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", hem.__version__)


@pytest.mark.filterwarnings("default")  # cffconvert's own
def test_citation_validates():
    citation = pytest.importorskip("cffconvert", reason="it comes with hem-loss[dev]").Citation
    citation((ROOT / "CITATION.cff").read_text()).validate()


def test_advice_names_the_distribution():
    """`hem` is another project on the package index: what a missing extra tells must not install that."""
    for path in (*ROOT.glob("hem/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"):
        for advice in re.findall(r"pip install [^\n`]*", path.read_text()):
            assert not re.search(r"install '?hem(\[|'|$|\s)", advice), f"{path.name}: {advice}"
    for extra in re.findall(r"hem-loss\[(\w+)\]", "".join(path.read_text() for path in ROOT.glob("hem/**/*.py"))):
        assert extra in PROJECT["optional-dependencies"], extra


def test_the_losses_need_torch_alone():
    """`pip install --no-deps` beside torch gives the losses: nothing else is imported."""
    others = (
        "lightning",
        "torchmetrics",
        "torchvision",
        "timm",
        "sklearn",
        "scipy",
        "PIL",
        "matplotlib",
        "rich",
        "yaml",
    )
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others!r})); "  # importing them raises
        "import torch; from hem.losses import LOSSES, HEMLoss; "
        "x = torch.randn(4, 3, requires_grad=True); HEMLoss()(x, torch.tensor([0, 1, 2, 0])).backward(); "
        "assert len(LOSSES) > 10"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_both_archives(tmp_path):
    """`make build`: the sdist has what builds the wheel, and the wheel has kernels, configs and templates."""
    pytest.importorskip("build", reason="it comes with hem-loss[dev]")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = tmp_path.glob("hem_loss-*.whl"), tmp_path.glob("hem_loss-*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hem/losses/kernels/margin.c", "hem/configs/base.yaml", "hem/py.typed"} <= names
    assert any(name.endswith(".html") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "hem/configs/base.yaml", "hem/losses/kernels/margin.c", "LICENSE"} <= inside
