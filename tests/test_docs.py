"""Every code block of the README and of the site is run as it stands there, or says what it needs that is not here.

A page's blocks are run in turn, in a folder of their own with small data in the official layouts. A comment
``<!-- needs ... -->`` above a block says why it is not run. Trainings are cut to two batches.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

import hem.inference.onnx
import hem.networks
import hem.report
import hem.study.command
from hem.losses import LOSSES
from hem.networks import batch_dependent
from hem.study import forkserver
from tests.datamodules import mask_trees
from tests.datamodules import test_datasets as trees
from tests.test_configs import SHORT

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ("changelog", "contributing")
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md") if path.stem not in GENERATED),
]
BLOCK = re.compile(
    r"(?:^<!-- needs (?P<needs>.*?) -->\n)?^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MAKEFILE = (ROOT / "Makefile").read_text()
# the stand-ins are small, and the modules say so
pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small copies of the data sets that the pages name, in their official layouts."""
    root = tmp_path_factory.mktemp("data")
    trees.mnist_tree(root, n=200)
    trees.cifar_tree(root)
    mask_trees.camvid_tree(root)
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages presume beside one: a folder of images, one of masks, and files of theirs."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_images").mkdir()
    trees.folder_tree(folder / "my_images", parts=("train", "test"), n=8)
    for name in ("new_images", "my_unknown"):
        shutil.copytree(folder / "my_images" / "test", folder / name)
    (folder / "my_masks").mkdir()
    mask_trees.mask_folder_tree(folder / "my_masks")
    return folder


class Reader:
    """Someone who types what a page says, in one folder and one Python session.

    Args:
        hem_command: Runs the command line in this process.
    """

    def __init__(self, hem_command: Callable) -> None:
        self.hem_command = hem_command
        self.session: dict[str, object] = {"__name__": "__main__"}

    def read(self, info: str, code: str) -> None:
        language = info.split()[0] if info.strip() else ""
        if code.startswith("--8<--"):  # a file that stands on the page, and that other tests run
            return
        if name := re.match(r"# ([\w.]+\.(?:py|yaml))$", code.splitlines()[0]):
            Path(name[1]).write_text(code)
        if language == "python":
            exec(compile(code, "page", "exec"), self.session)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    self.type(shlex.split(command, comments=True))
        elif language == "yaml":
            yaml.safe_load(code)
        else:
            assert language == "text", f"a block of '{info}' is none of python, bash, yaml and text"

    def type(self, words: list[str]) -> None:
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        match words:
            case []:
                pass
            case [".", ".venv/bin/activate"] | ["jupytext", "--to", "ipynb", _]:
                pass
            case ["hem", "study", *rest]:
                assert hem.study.command.main([*rest, *(() if "--dry-run" in rest else ("--dry-run",))]) == 0
            case ["hem", "report", folder]:
                assert folder.startswith("runs")  # of studies, which are not run here; tests of the report do
            case ["hem", *rest]:
                self.hem(rest)
            case ["python", "-m", "hem.inference.onnx", *rest]:
                with pytest.MonkeyPatch.context() as patch:  # tests of the export write real files
                    patch.setattr(hem.inference.onnx, "export_onnx", lambda *_: 0.0)
                    hem.inference.onnx.main(rest)
            case ["python", script, *_] if (ROOT / script).is_file():
                pass  # tests of examples and tutorials run them
            case ["make", *rest]:
                for word in rest:
                    known = rf"^{word}:" if "=" not in word else rf"{word.partition('=')[0]}\b"
                    assert re.search(known, MAKEFILE, flags=re.MULTILINE), word
            case ["pip", "install", *rest]:
                named = re.findall(r"\[(.*?)\]", " ".join(rest))
                project = (ROOT / "pyproject.toml").read_text()
                assert all(f"\n{extra} = [" in project for extras in named for extra in extras.split(","))
            case _:
                pytest.fail(f"nothing here runs `{shlex.join(words)}`: mark its block with <!-- needs ... -->")

    def hem(self, words: list[str]) -> None:
        short: list[object] = []
        asks = not {"--help", "--print_config"} & set(words) and not any(word.endswith(".help") for word in words)
        if words[0] in ("fit", "validate", "test", "predict") and asks:
            short += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
            if words[0] == "fit":
                short += ["--config", "trainer/debug"]
            if words[0] == "fit" and any("continual" in word for word in words):
                short += ["--trainer.max_epochs", 2]
            if "classification/folder" in words:
                short += ["--data.num_workers", 0, "--data.image_size", "[32, 32]"]
            if any("segmentation/" in word for word in words):
                short += ["--data.num_workers", 0, "--data.batch_size", 2]
                short += ["--data.image_size", "[48, 64]", "--data.crop_size", "[32, 48]"]
            for name, options in SHORT.items():
                if f"evaluate/{name}" in " ".join(words):
                    short += options
        if "--trainer.devices" in words:  # each device is a process, which is started with the arguments of its parent
            command = [*words, *map(str, short[:-2]), "--trainer.max_epochs", "1"]
            with open("out", "wb") as out:
                process = forkserver.start(forkserver.command, command, stdout=out, stderr=out)
            assert forkserver.wait(process, 300) == 0, Path("out").read_text()
            return
        outcome = self.hem_command(*words, *short)
        assert outcome.code == 0, f"{shlex.join(words)}: {outcome.err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "\n```" in (ROOT / page).read_text()])
def test_page(page, hem_command, data, own, tmp_path, monkeypatch):
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("\n```") / 2, "a block that is not closed, or is indented"
    folder = tmp_path / "here"
    shutil.copytree(own, folder)
    monkeypatch.setenv("HEM_DATA", str(data))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    before = set(sys.modules)
    reader = Reader(hem_command)
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    for block in blocks:
        if not block["needs"]:
            reader.read(block["info"], block["code"])
    for name in set(sys.modules) - before:
        if (folder / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """What a page links to is there; the site's own build looks at the places within pages as well."""
    for target in LINK.findall((ROOT / page).read_text()):
        path = target.partition("#")[0]
        if path and "://" not in path and not re.search(r"tutorials/\d\w+\.md|^\d\w+\.md", target):
            assert ((ROOT / page).parent / path).exists(), f"{page}: {target}"


def test_readme_shows_the_loss_first():
    """One screen: the drop-in and the comparison stand before everything else."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 75
    assert "from hem.losses import HEMLoss" in lines
    for target in ("train", "test"):
        assert f"make {target}" in "\n".join(lines)
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


def test_table_of_losses():
    """Every loss has its row."""
    text = (ROOT / "docs" / "losses.md").read_text()
    for name, loss in LOSSES.items():
        assert re.search(rf"\| `{name}` \| .*`{loss.__name__}[(`]", text), name


def test_two_devices_train_as_one_does():
    """What is said beside the command holds for its network alone if no sample's output depends on the others."""
    text = (ROOT / "docs" / "clusters.md").read_text()
    (line,) = (line for line in text.splitlines() if "--trainer.devices 2" in line and line.startswith("hem "))
    words = shlex.split(line)
    config = yaml.safe_load((ROOT / "configs" / f"{words[words.index('--config') + 1]}.yaml").read_text())
    path, arguments = config["model"]["init_args"]["net"]["class_path"], {}
    for option, value in pairwise(words):
        if option.startswith("--model.net."):
            arguments[option.rpartition(".")[2]] = yaml.safe_load(value)
    assert batch_dependent(getattr(hem.networks, path.rpartition(".")[2])(**arguments)) == []


@pytest.mark.slow
def test_site(tmp_path):
    """The site is built strictly: no dead link, no public name without an entry; its tutorials run, on less data."""
    pytest.importorskip("mkdocs", reason="the site needs hem-loss[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "HEM_QUICK": "1", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "tutorials" / "1_your_own_loop" / "index.html").is_file()
