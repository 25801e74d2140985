"""A user's mistake gets one sentence: what was expected, what came, the mend. No traceback, nothing overwritten.

The list below is the promise: each row is a kind of mistake, what is typed, the exit code (2: the arguments
are wrong; 1: the run could not be done) and words that the sentence must hold.
"""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

DIGITS = "configs/classification/digits.yaml"
DEBUG = ("--config", "configs/trainer/debug.yaml")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images(folder: Path, *classes: str, count: int = 12) -> None:
    """Write a folder of small images, one sub-folder per class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (20 * index % 256, 100 * number % 256, 0)).save(folder / name / f"{index}.png")


# kind: (arguments, exit code, words of the sentence); {tmp} is a folder of the test's own
ARGUMENTS = {
    "unknown loss": (
        ["--model.loss", "Hem"],
        2,
        ["unknown loss 'Hem'", "did you mean 'HEMLoss'", "FocalLoss"],
    ),
    "unknown network": (
        ["--model.net", "ResNet19"],
        2,
        ["unknown network 'ResNet19'", "'ResNet18'", "LeNet"],
    ),
    "unknown data set": (["--data", "CIFAR11"], 2, ["unknown data module 'CIFAR11'", "CIFAR10DataModule"]),
    "unknown task": (
        ["--model", "ClasificationTask"],
        2,
        ["unknown task", "did you mean 'ClassificationTask'"],
    ),
    "unknown optimiser": (["--model.optimizer", "SDG"], 2, ["unknown optimiser 'SDG'", "'SGD'"]),
    "unknown argument of the loss": (
        ["--model.loss", "HEMLoss", "--model.loss.margn", "1"],
        2,
        ["HEMLoss has no argument 'margn'", "did you mean 'margin'"],
    ),
    "unknown argument of the data": (
        ["--data.bach_size", "3"],
        2,
        ["DigitsDataModule has no argument", "'batch_size'"],
    ),
    "unknown option": (
        ["--trainer.max_epohcs", "3"],
        2,
        ["no option 'trainer.max_epohcs'", "'trainer.max_epochs'"],
    ),
    "not a number": (
        ["--trainer.max_epochs", "many"],
        2,
        ["trainer.max_epochs expects int or null, got 'many'"],
    ),
    "not a number, inside": (["--data.batch_size", "many"], 2, ["data.batch_size expects int, got 'many'"]),
    "wrong word": (
        ["--model.loss", "HEMLoss", "--model.loss.reduction", "average"],
        2,
        ["reduction", "'average'"],
    ),
    "config missing": (["--config", "nowhere.yaml"], 2, ["nowhere.yaml"]),
    "batch size of nought": (["--data.batch_size", "0"], 1, ["batch_size", "0"]),
    "margin below nought": (["--model.loss", "HEMLoss", "--model.loss.margin", "-1"], 1, ["margin", "-1"]),
    "class weights of another length": (["--model.loss.weight", "[1.0, 2.0]"], 1, ["weight", "10"]),
    "one sample at a time through BatchNorm": (
        ["--data.batch_size", "1"],
        1,
        ["BatchNorm", "--data.batch_size"],
    ),
    "nothing to train on": (["--model.loss.reduction", "none"], 1, ["reduction", "'mean'"]),
    "unknown torchvision or timm name": (
        ["--model.net", "Named", "--model.net.name", "resnet81"],
        1,
        ["resnet81", "resnet18"],
    ),
    "data missing": (
        ["--data", "MNISTDataModule", "--data.root", "{tmp}/nowhere"],
        1,
        ["MNIST", "{tmp}/nowhere", "--data.download true"],
    ),
    "checkpoint missing": (["--ckpt_path", "last"], 1, ["last checkpoint", "cli.py fit"]),
    "checkpoint missing, by path": (
        ["--ckpt_path", "{tmp}/nowhere.ckpt"],
        1,
        ["nowhere.ckpt", "no such file"],
    ),
    "more devices than there are": (["--trainer.accelerator", "gpu", "--trainer.devices", "99"], 1, ["gpu"]),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_arguments(kind, hem_command, tmp_path):
    """Every mistake in the arguments is answered by its sentence, and leaves no file behind."""
    given, code, words = ARGUMENTS[kind]
    run = tmp_path / "run"
    arguments = [argument.format(tmp=tmp_path) for argument in given]
    outcome = hem_command("fit", "--config", DIGITS, *DEBUG, "--run_dir", run, *arguments)
    assert outcome.code == code, outcome.err
    for word in words:
        assert word.format(tmp=tmp_path) in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert outcome.err.count("error: ") == 1
    assert len(outcome.err.splitlines()) <= 2
    assert not list(tmp_path.rglob("*.ckpt"))


YAML = {
    "broken YAML": ("model: [", ["YAML", "{config}"]),
    "unknown loss in a file": (
        "model: {init_args: {loss: {class_path: Hem}}}",
        ["unknown loss 'Hem'", "'HEMLoss'"],
    ),
    "unknown key in a file": ("trainr: {max_epochs: 3}", ["trainr", "'trainer"]),
    "unknown argument in a file": (
        "model: {init_args: {loss: {class_path: hem.losses.HEMLoss, init_args: {margn: 3}}}}",
        ["HEMLoss has no argument 'margn'"],
    ),
}


@pytest.mark.parametrize("kind", YAML)
def test_config_files(kind, hem_command, tmp_path):
    """The same mistakes in a file."""
    text, words = YAML[kind]
    config = tmp_path / "config.yaml"
    config.write_text(text)
    outcome = hem_command("fit", "--config", DIGITS, "--config", config, "--run_dir", tmp_path / "run")
    assert outcome.code == 2
    for word in words:
        assert word.format(config=config) in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), ["fit", "test", "predict"]), (("trian",), ["trian", "fit"]), (("fit",), ["hem configs"])],
)
def test_no_command_no_config(arguments, words, hem_command):
    """Nothing, a wrong command, and a command without a config say what is needed."""
    outcome = hem_command(*arguments)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err


def test_run_folder_is_not_trained_over(hem_command, tmp_path):
    """A second training into the folder of a run is refused, and every file of the first stays as it was."""
    arguments = ("fit", "--config", DIGITS, *DEBUG, "--run_dir", tmp_path)
    assert hem_command(*arguments).code == 0
    before = files(tmp_path)
    outcome = hem_command(*arguments, "--seed_everything", 1)
    assert outcome.code == 1
    for word in (str(tmp_path), "--ckpt_path last", "--run_dir"):
        assert word in outcome.err
    assert files(tmp_path) == before


def test_checkpoints(hem_command, tmp_path):
    """A checkpoint of another network, a damaged one and a file of another kind are named; nothing is executed."""
    run = tmp_path / "run"
    assert hem_command("fit", "--config", DIGITS, *DEBUG, "--run_dir", run).code == 0
    good = run / "checkpoints" / "last.ckpt"
    test = ("test", "--config", DIGITS, *DEBUG, "--run_dir", tmp_path / "test", "--ckpt_path")

    outcome = hem_command(*test, good, "--model.net", "MLP")
    assert outcome.code == 1
    assert "--model.net hem.networks.MLP (the run: hem.networks.LeNet)" in outcome.err
    loose = shutil.copy(good, tmp_path)
    outcome = hem_command(*test, loose, "--model.net", "MLP")
    assert outcome.code == 1
    assert "another network" in outcome.err

    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(good.read_bytes()[:5000])
    outcome = hem_command(*test, damaged)
    assert outcome.code == 1
    assert str(damaged) in outcome.err
    assert "cut short" in outcome.err

    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": {}, "harm": Harmful()}, damaged)
    assert hem_command(*test, damaged).code == 1
    assert not (tmp_path / "executed").exists()

    torch.save([1, 2], damaged)
    outcome = hem_command(*test, damaged)
    assert outcome.code == 1
    assert "state_dict" in outcome.err


def test_folders_of_images(hem_command, tmp_path):
    """An empty class folder is named, and so are all unreadable images, before anything is trained."""
    images(tmp_path / "data", "cat", "dog")
    arguments = ("fit", "--config", DIGITS, *DEBUG, "--data", "FolderDataModule", "--data.batch_size", 8)
    where = ("--data.root", tmp_path / "data", "--run_dir", tmp_path / "run")

    (tmp_path / "data" / "bird").mkdir()
    outcome = hem_command(*arguments, *where)
    assert outcome.code == 1
    assert str(tmp_path / "data" / "bird") in outcome.err

    (tmp_path / "data" / "bird").rmdir()
    for path in (tmp_path / "data" / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    outcome = hem_command(*arguments, *where)
    assert outcome.code == 1
    for index in range(12):
        assert f"cat/{index}.png (" in outcome.err
    assert "--data.skip" in outcome.err
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in outcome.err


def test_run_dir_is_a_file(hem_command, tmp_path):
    """A run folder that cannot be made is named."""
    (tmp_path / "file").write_text("in the way")
    outcome = hem_command("fit", "--config", DIGITS, *DEBUG, "--run_dir", tmp_path / "file" / "run")
    assert outcome.code == 1
    assert str(tmp_path / "file") in outcome.err
    assert (tmp_path / "file").read_text() == "in the way"
