"""Short names: of configs from any folder, of our classes in YAML as on the command line; lists of both."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from hem.cli import main
from hem.cli.configs import SHIPPED, find, short_names
from hem.cli.help import OPTIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["loss/hem", "loss/hem.yaml", "configs/loss/hem", "configs/loss/hem.yaml"])
def test_shipped_configs_are_found_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find(name).read_text() == (SHIPPED / "loss" / "hem.yaml").read_text()


def test_own_configs_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "loss").mkdir(parents=True)
    (tmp_path / "configs" / "loss" / "hem.yaml").write_text("own: in configs")
    assert find("loss/hem").read_text() == "own: in configs"
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "hem.yaml").write_text("own: as it is named")
    assert find("loss/hem").read_text() == "own: as it is named"
    with pytest.raises(FileNotFoundError, match=r"did you mean 'loss/hem\.yaml'"):
        find("loss/hen.yaml")


def printed(capsys, *args):
    """The config that a command would run."""
    capsys.readouterr()
    assert main(["fit", *args, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_one_config_by_all_its_names(tmp_path, monkeypatch, capsys):
    """Short names, paths and class names in YAML give the config that the full paths give."""
    monkeypatch.chdir(tmp_path)
    full = printed(capsys, "--config", str(SHIPPED / "classification" / "digits.yaml"), "--model.net",
                   "hem.networks.MLP", "--model.loss", "hem.losses.HEMLoss")  # fmt: skip
    (tmp_path / "mine.yaml").write_text("model: {init_args: {net: {class_path: MLP}, loss: HEMLoss}}")
    assert printed(capsys, "--config", "classification/digits", "--config=mine") == full
    assert printed(capsys, "-c", "classification/digits", "--model.net=MLP", "--model.loss", "HEMLoss") == full
    inline = "{model: {init_args: {net: {class_path: MLP}, loss: {class_path: HEMLoss}}}}"
    assert printed(capsys, "-c", "classification/digits", "--config", inline) == full
    assert full["model"]["init_args"]["net"]["class_path"] == "hem.networks.MLP"  # torchvision has an MLP, too


def test_lists(capsys):
    """Each shipped config and class has a line that says what it is."""
    assert main(["configs"]) == 0
    rows = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == short_names()
    assert all(len(row) == 2 and row[1].strip() for row in rows)
    assert main(["configs", "loss"]) == 0
    assert all(line.startswith("loss/") for line in capsys.readouterr().out.splitlines())
    for kind, name in (("losses", "HEMLoss"), ("data", "DigitsDataModule"), ("networks", "LeNet"), ("tasks", "Task")):
        assert main([kind]) == 0
        out = capsys.readouterr().out
        assert name in out
        assert ":func:" not in out


def test_help_imports_nothing_heavy():
    """The first help, the list of configs and a misspelt config are there at once: torch is not imported."""
    code = (
        "import sys; from hem.cli import main; codes = [main(a.split()) for a in "
        "('--help', 'configs', 'trian', 'fit --config loss/hemm', 'fit --config loss/hem --config loss/hem')]; "
        "assert codes == [0, 0, 2, 2, 2], codes; assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_help(capsys):
    """The help of a command is short, and every option in it is one that the parser knows."""
    assert main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert out.count("python cli.py fit --config") >= 5
    assert main(["fit", "--help", "all"]) == 0
    everything = capsys.readouterr().out
    for option in OPTIONS:
        name = option.split()[0]
        known = "--model " if name.startswith("--model") else "--data " if name.startswith("--data") else f"{name} "
        assert known in everything
    inside = [f"{name.split()[0]}.help" for name in OPTIONS if name.split()[0].rpartition(".")[2] in ("net", "loss")]
    assert inside == ["--model.net.help", "--model.loss.help"]
    assert main(["fit", "--model.loss.help", "HEMLoss"]) == 0
    assert "margin" in capsys.readouterr().out


def test_one_batch_is_not_all_batches(monkeypatch, capsys):
    """Whatever typing makes of Lightning's ``int | float`` where other libraries were imported first."""
    monkeypatch.setitem(Trainer.__init__.__annotations__, "limit_test_batches", float | int | None)
    for written, expected in (("1", 1), ("1.0", 1.0)):
        config = printed(capsys, "--config", "classification/digits", "--trainer.limit_test_batches", written)
        found = config["trainer"]["limit_test_batches"]
        assert (found, type(found)) == (expected, type(expected))
