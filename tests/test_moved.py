"""Tests of former import paths."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import hem
from hem.moved import LEFT, MOVED, RENAMED

ROOT = Path(hem.__file__).parent.parent


@pytest.mark.parametrize("former", MOVED)
def test_former_paths_go_on(former):
    """A former module is no file any more, its new places exist, and a name of each is handed on with a warning."""
    path = ROOT / former.replace(".", "/")
    assert not path.with_suffix(".py").exists()
    assert not path.is_dir()
    module = importlib.import_module(former)
    for place in MOVED[former]:
        room = importlib.import_module(place)
        name = next(name for name, value in vars(room).items() if getattr(value, "__module__", None) == place)
        with pytest.warns(DeprecationWarning, match=rf"{former}.{name} is now .*\.{name}"):
            assert getattr(module, name)
    with pytest.raises(AttributeError, match=f"module '{former}' has no attribute 'nothing'"):
        _ = module.nothing


def test_former_paths_and_commands_in_a_new_process():
    """An import from a former module works before anything else of hem was imported.

    ``python -m`` of a former module runs the new one, whose name is said.
    """
    code = (
        "from hem.run import atomic_file; print(atomic_file.__module__); "
        "import runpy; runpy.run_module('hem.export', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hem.runs.files\n")
    assert "python -m hem.export is now python -m hem.inference.onnx." in done.stderr
    assert "usage: python -m hem.inference.onnx" in done.stdout


@pytest.mark.parametrize("module", LEFT)
def test_names_that_left_a_module_go_on(module):
    """A name of each new place, and those that are others now."""
    former = importlib.import_module(module)
    for place in LEFT[module]:
        name = next(
            name
            for name, value in vars(importlib.import_module(place)).items()
            if getattr(value, "__module__", None) == place and name not in vars(former)
        )
        with pytest.warns(DeprecationWarning, match=rf"{module}.{name} is now .*\.{name}"):
            assert getattr(former, name)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        _ = former.nothing


@pytest.mark.parametrize("former", RENAMED)
def test_names_that_are_others_now_go_on(former):
    module, _, name = former.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{former} is now {RENAMED[former]}."):
        assert getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "former",
    [
        "hem.cli.HemCLI", "hem.cli.one_sentence", "hem.cli.task_name", "hem.datamodules.base.place_of",
        "hem.datamodules.corruption.OfficialCorruptions", "hem.datamodules.masks.Pad",
        "hem.modules.adversarial.PGDTraining", "hem.modules.longtail.shot_accuracies",
        "hem.modules.rejection.run_rejector", "hem.modules.segmentation.PolyLR", "hem.modules.segmentation.iou",
        "hem.report.metric_table",
    ],
)  # fmt: skip
def test_names_of_former_versions(former):
    module, _, name = former.rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{former} is now hem"):
        assert callable(getattr(importlib.import_module(module), name))
