"""The distribution: one version everywhere, a citation that validates, advice that names it."""

import re
import tomllib
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
