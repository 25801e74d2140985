"""Own classes outside the package: found in the current folder, and what is wrong with them is said as it is."""

import shlex
import sys

import pytest

from hem.cli import main
from hem.cli.own import Unusable
from hem.cli.registries import REGISTRIES

WHOLE = ("fit", "--config", "classification/digits", "--config", "trainer/debug")
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
CODE = {
    "own_good": """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class Scaled(torch.nn.Module):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, input, target):
        return self.scale * torch.nn.functional.cross_entropy(input, target)

class Divides(Scaled):
    def forward(self, input, target):
        return 1 / 0

class Absent(Scaled):
    def __init__(self):
        {}["absent"]

class PlainData(LightningDataModule):
    pass

class PlainTask(LightningModule):
    pass

class Nothing:
    pass

class Small(torch.nn.Module):
    def __init__(self, num_classes: int, in_channels: int, image_size: tuple[int, int], width: int = 8):
        super().__init__()
        pixels = in_channels * image_size[0] * image_size[1]
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(pixels, width), torch.nn.Linear(width, num_classes))

    def forward(self, input):
        return self.layers(input)
""",
    "own_import": "import not_installed_lib\n",
    "own_syntax": "class Loss(\n",
    "own_raises": "TABLE = {}['absent']\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of one's own, from which the command is called as an installed `hem` is: it is not on the path."""
    for name, text in CODE.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for name in CODE:
        sys.modules.pop(name, None)


def test_own_loss_trains(folder, capsys):
    """The run ends with a line that says where all lies, and with a command that goes on from there as it stands."""
    assert main([*WHOLE, *QUIET, "--model.loss", "own_good.Scaled", "--model.loss.scale", "2"]) == 0
    run = "runs/classification_digits/Scaled/seed0"
    assert (folder / run / "checkpoints" / "last.ckpt").is_file()
    for written, command in (("metrics.csv", "test"), ("results.json", "predict")):
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith(f"run: {run}/")
        assert written in line
        typed = shlex.split(line.partition("next: python cli.py ")[2])
        assert typed == [command, "--run", run]
        assert main([*typed, "--trainer.enable_progress_bar", "false"]) == 0
    assert (folder / run / "predictions.csv").is_file()


def test_own_network_gets_its_sizes_from_the_data(folder):
    """Arguments without a default come from the data, also where another argument is given."""
    assert main([*WHOLE, *QUIET, "--model.net", "own_good.Small", "--model.net.width", "16"]) == 0


WRONG = {
    "import of a library that is not there": (
        "--model.loss own_import.Loss",
        2,
        ["own_import.Loss cannot be imported", "No module named 'not_installed_lib'", "own_import.py, line 1"],
    ),
    "syntax": ("--model.loss own_syntax.Loss", 2, ["SyntaxError", "own_syntax.py"]),
    "error at import": ("--model.loss own_raises.Loss", 2, ["KeyError: 'absent'", "own_raises.py, line 1"]),
    "no such module": ("--model.loss own_goood.Scaled", 2, ["there is no module 'own_goood' in the current folder"]),
    "no such class": ("--model.loss own_good.Scale", 2, ["own_good has no class 'Scale'", "did you mean 'Scaled'"]),
    "plain data module": (
        "--data own_good.PlainData",
        2,
        ["own_good.PlainData is no data module", "derive it from hem.datamodules.ImageDataModule"],
    ),
    "plain task": ("--model own_good.PlainTask", 2, ["own_good.PlainTask is no task", "hem.modules.Task"]),
    "no module of torch": ("--model.net own_good.Nothing", 2, ["own_good.Nothing is no network", "torch.nn.Module"]),
    "argument that it has not": (
        "--model.loss own_good.Scaled --model.loss.scal 2",
        2,
        ["Scaled has no argument 'scal'", "did you mean 'scale'"],
    ),
    "error in training": ("--model.loss own_good.Divides", 1, ["ZeroDivisionError", "own_good.py, line 15, forward"]),
    "error when it is built": ("--model.loss own_good.Absent", 1, ["KeyError", "own_good.py, line 19", "'absent'"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said(kind, folder, capsys):
    typed, code, words = WRONG[kind]
    assert main([*WHOLE, *QUIET, *typed.split()]) == code
    err = capsys.readouterr().err
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_in_a_file(folder, capsys):
    """The same sentence where a config names the class."""
    (folder / "mine.yaml").write_text("model: {init_args: {loss: {class_path: own_import.Loss}}}")
    assert main([*WHOLE, "--config", "mine"]) == 2
    assert "own_import.Loss cannot be imported: ModuleNotFoundError" in capsys.readouterr().err


def test_functions_serve_where_something_is_made():
    """The default optimiser is a function, so every record that keeps the default names one."""
    assert REGISTRIES["optimizer"].path("hem.modules.base.sgd") == "hem.modules.base.sgd"
    with pytest.raises(Unusable, match="Expected a class for the loss"):
        REGISTRIES["loss"].path("torch.nn.functional.cross_entropy")
