"""Every shipped config is parsed and run: a few steps of training, a test, a prediction."""

import csv
import json
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

import hem
from hem.cli import main
from hem.cli.configs import expanded
from hem.cli.parser import build
from hem.cli.registries import spelt_out
from hem.losses import LOSSES
from hem.metrics.catalog import match, validated
from hem.strategies import STRATEGIES
from tests.datamodules import mask_trees
from tests.datamodules import test_datasets as trees
from tests.datamodules import test_longtail as long_trees

ROOT = Path(__file__).resolve().parents[1]
TASKS = sorted(
    str(p.relative_to(ROOT))
    for p in ROOT.glob("configs/*/*.yaml")
    if p.parent.name not in ("evaluate", "loss", "trainer", "strategy", "study")
)
SETS = ("cifar10", "cifar100", "svhn", "tiny_imagenet")
OF_DATA = sorted(str(p.relative_to(ROOT / "configs/evaluate")) for p in ROOT.glob("configs/evaluate/*/*.yaml"))
EXAMINATIONS = sorted(p.stem for p in ROOT.glob("configs/evaluate/*.yaml"))
OVERLAYS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("configs/trainer/*.yaml"))
STRATEGY_CONFIGS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("configs/strategy/*.yaml"))
DIGITS = "configs/classification/digits.yaml"
# a small copy in the official layout for every data set that is not at hand
STAND_INS = {
    "mnist": trees.mnist_tree,
    "fashion_mnist": lambda root: trees.mnist_tree(root, "FashionMNIST"),
    "kmnist": lambda root: trees.mnist_tree(root, "KMNIST"),
    "cifar10": trees.cifar_tree,
    "cifar100": trees.cifar_tree,
    "svhn": trees.svhn_tree,
    "tiny_imagenet": trees.tiny_tree,
    "imagenet": trees.imagenet_tree,
    "imagenet_lt": long_trees.imagenet_lt_tree,
    "inaturalist2018": long_trees.inaturalist_tree,
    "folder": lambda root: trees.folder_tree(root, parts=("train", "test"), n=8),
    "camvid": mask_trees.camvid_tree,
    "camvid_segnet": mask_trees.camvid_tree,
    "camvid_small": mask_trees.camvid_tree,
    "camvid_finetune": mask_trees.camvid_tree,
    "cityscapes": mask_trees.cityscapes_tree,
    "voc": mask_trees.voc_tree,
    "mask_folder": mask_trees.mask_folder_tree,
}


def stand_in(data_set):
    """What writes a small copy of a data set: above, else ``tree`` of its file of tests; None: it is at hand."""
    own = find_spec(f"tests.datamodules.test_{data_set}")
    return STAND_INS.get(data_set) or (own and import_module(own.name).tree)


# the stand-ins are small, and the modules say so
pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")
DEBUG = ("--config", "configs/trainer/debug.yaml", "--trainer.enable_progress_bar", "false")


def test_the_glob_finds_them():
    assert DIGITS in TASKS
    assert len(TASKS) >= 5
    assert len(OVERLAYS) >= 4


# what makes the test of an examination short; each of these options is in the configs it shortens
SHORT = {
    "rejection": ("--model.corruptions", "[brightness]", "--model.max_images", 8, "--model.nonsense_images", 4,
                  "--model.known_images", 8),
    "corruption": ("--model.corrupted.corruptions", "[brightness]", "--model.corrupted.severities", "[1]"),
    "adversarial": ("--model.steps", 1, "--model.autoattack_eps", "[]", "--model.square_queries", 0,
                    "--model.images", 4, "--model.autoattack_images", 4),
}  # fmt: skip
# a smaller network of the same kind; our own are made thin, which no option does
THIN = {"ResNet18": (4, 8, 16, 32), "ResNet32": (4, 8, 16)}
SMALL_NETWORK = {
    "camvid": ("--model.net.encoder", "tu-mobilenetv3_small_050"),
    "camvid_segnet": ("--model.net.widths", "[8, 8, 8, 8, 8]"),
    "cityscapes": ("--model.net.encoder", "tu-mobilenetv3_small_050"),
    "voc": ("--model.net.name", "deeplabv3_mobilenet_v3_large"),
    **dict.fromkeys(("imagenet", "imagenet_lt", "inaturalist2018"), ("--model.net.name", "shufflenet_v2_x0_5")),
}
# a small network in place of one whose published weights would be fetched
SMALL_START = {
    "imagenet_finetune": ("--model.net.name", "mobilenet_v3_small"),
    "inaturalist2018_finetune": ("--model.net.name", "test_convnext"),
    "folder_finetune": ("--model.net.name", "test_vit"),
}
ONE_IMAGE_PER_CLASS = ("cifar100", "tiny_imagenet", "imagenet", "imagenet_lt", "inaturalist2018")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A folder of weights, which are random, under the names that configs start from."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "tf_efficientnet_lite0.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_copy(tmp_path_factory):
    """A function that returns the root of a small copy of a data set, written once; None where it is at hand."""

    @cache
    def root(data_set):
        write = stand_in(data_set)
        folder = write and tmp_path_factory.mktemp("data")
        if write:
            write(folder)
        return folder

    return root


def assert_in_catalogue(run: Path) -> None:
    """Every key that a run has logged, into its curves or its results, is one of the catalogue's."""
    logged = set()
    if (run / "metrics.csv").is_file():
        with open(run / "metrics.csv", newline="") as file:
            logged |= {name for name in next(csv.reader(file)) if not name.startswith(("epoch", "step", "lr-"))}
    if (run / "results.json").is_file():
        logged |= json.loads((run / "results.json").read_text())["metrics"].keys()
    assert logged
    assert not [key for key in logged if match(key) is None]
    assert not [key for key in logged if key.startswith("val/") and match(key).direction and not validated(key)]


@pytest.mark.parametrize("config", TASKS)
def test_task_config(config, hem_command, tmp_path, shelf, small_copy, monkeypatch):
    """Fits two batches and tests two, on small data in the official layout where the data set is none of ours."""
    task, name = Path(config).parent.name, Path(config).stem
    data_set = re.sub("_(pgd|trades|open|small|permuted|fast|finetune|probe)$", "", name)
    data = []
    monkeypatch.setenv("HEM_WEIGHTS", str(shelf))
    for net, widths in THIN.items():
        monkeypatch.setattr(getattr(hem.networks, net), "widths", widths)
    if name in SMALL_START:
        data += [*SMALL_START[name], "--model.net.weights", "null"]
    if root := small_copy(data_set):
        data += ["--data.root", root, "--data.num_workers", 0]
        if "datamodules.LongTail" in (ROOT / config).read_text():
            data += ["--data.subset.imbalance", 1]  # there is no tail in one or two images of each class
    validation = 0 if data_set in ONE_IMAGE_PER_CLASS else 0.5
    # many attacks go through the network: a small one where the config's own is large
    small = ("--model.net", "ResNet8") if task in SHORT and "mnist" not in name else SMALL_NETWORK.get(name, ())
    if task == "segmentation":
        data += ["--data.image_size", "[48, 64]", "--data.crop_size", "[32, 48]"]
    tasks = ("--trainer.max_epochs", 2) if task == "continual" else ()  # an epoch of each of the first two
    common = (*DEBUG, *tasks, "--data.batch_size", 4, "--data.val_fraction", validation, *data, *small)
    outcome = hem_command("fit", "--config", config, *common, "--run_dir", tmp_path / "fit")
    assert outcome.code == 0, outcome.err
    checkpoint = tmp_path / "fit" / "checkpoints" / "last.ckpt"
    outcome = hem_command("test", "--config", config, *common, *SHORT.get(task, ()),
                          "--run_dir", tmp_path / "test", "--ckpt_path", checkpoint)  # fmt: skip
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "test" / "results.json").read_text())["metrics"]
    assert metrics
    assert_in_catalogue(tmp_path / "fit")
    assert_in_catalogue(tmp_path / "test")
    assert all(0 <= value <= 1 for key, value in metrics.items() if "accuracy" in key)


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """A run of digits, two batches long."""
    folder = tmp_path_factory.mktemp("examined") / "seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["fit", "--config", DIGITS, *DEBUG, "--model.net", "MLP", "--run_dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_examination_config(name, hem_command, examined):
    """Every examination is made of a run whose task is none of its own; its results lie with it."""
    outcome = hem_command("test", "--run", examined, "--config", f"configs/evaluate/{name}.yaml", *SHORT[name],
                          "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads((examined / "evaluate" / name / "results.json").read_text())["metrics"]
    assert_in_catalogue(examined / "evaluate" / name)


@pytest.mark.parametrize("own", OF_DATA)
def test_examination_of_a_data_set(own, monkeypatch):
    """What differs by data set is parsed and built behind the examination that it belongs to."""
    path = Path("configs/evaluate") / own
    files = [(ROOT / each).read_text() for each in (path.parent.with_suffix(".yaml"), path)]
    model = {"net": {"class_path": "MLP"}, "loss": {"class_path": "torch.nn.CrossEntropyLoss"}}
    for given in (yaml.safe_load(text)["model"] for text in files):
        model |= given["init_args"]
    kind = yaml.safe_load(files[0])["model"]["class_path"]
    config = {"model": {"class_path": kind, "init_args": model}, "data": {"class_path": "DigitsDataModule"}}
    monkeypatch.setattr("sys.argv", ["cli.py"])
    assert type(build(spelt_out(config), run=False).model).__name__ in kind


FORMER = [
    *(f"rejection/{data}" for data in (*SETS, "digits", "fashion_mnist", "imagenet", "mnist", "mnist_open")),
    *(f"corruption/{data}" for data in (*SETS, "fashion_mnist", "imagenet", "mnist")),
    *(f"adversarial/{data}" for data in (*SETS, "digits", "fashion_mnist", "mnist")),
]


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("form", ["configs/{}.yaml", "{}"])
def test_former_config(name, form):
    """It stands for network and data, the examination, and what differs by data set: each of them is there."""
    examination, data = name.split("/")
    with pytest.warns(FutureWarning, match=f"{name}.* is evaluate/{examination} by now"):
        command, *words = expanded(["test", "--config", form.format(name), "--ckpt_path", "best"])
    paths = words[1:-2:2]
    assert (command, words[:-2:2], words[-2:]) == ("test", ["--config"] * len(paths), ["--ckpt_path", "best"])
    assert all(Path(path).is_file() for path in paths)
    names = [str(Path(path).with_suffix("")).rpartition("configs/")[2] for path in paths]
    assert names[:2] == [f"classification/{data}", f"evaluate/{examination}"]
    assert len(names) == 3 or data in SETS or examination == "corruption"


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_config(loss, hem_command, tmp_path):
    """Every loss has a config that names its class and every argument that is not linked from the data."""
    config = f"configs/loss/{loss}.yaml"
    assert (ROOT / config).is_file(), f"LOSSES has {loss!r}, so {config} is expected"
    net = ["--model.net", "ResNet8"] if loss == "ldam" else []
    outcome = hem_command("fit", "--config", DIGITS, *net, "--config", config, *DEBUG, "--run_dir", tmp_path)
    assert outcome.code == 0, outcome.err
    text = (ROOT / config).read_text()
    assert ("CrossEntropyLoss" if loss == "ce" else f"hem.losses.{LOSSES[loss].__name__}") in text


@pytest.mark.parametrize("strategy", STRATEGY_CONFIGS)
def test_strategy_config(strategy, hem_command, tmp_path):
    """Every strategy runs on top of a stream, under a margin loss."""
    outcome = hem_command("fit", "--config", "configs/continual/digits.yaml", "--config", strategy,
                          "--config", "configs/loss/hem.yaml", *DEBUG, "--trainer.max_epochs", 2,
                          "--run_dir", tmp_path)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert_in_catalogue(tmp_path)


def test_every_strategy_has_a_config():
    text = "".join((ROOT / path).read_text() for path in STRATEGY_CONFIGS)
    assert all(f"hem.strategies.{each.__name__}" in text for each in STRATEGIES.values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay(overlay, hem_command, tmp_path, monkeypatch):
    """Every overlay parses on top of a task; it runs where the machine has what it asks for; nothing is compiled."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode=None: compiled.append(mode))
    if "slurm" in overlay:  # as srun starts the one task of a job
        for name, value in {
            "NTASKS": 1,
            "NTASKS_PER_NODE": 1,
            "NNODES": 1,
            "PROCID": 0,
            "LOCALID": 0,
            "NODEID": 0,
        }.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    asks = "gpu" in overlay or "fsdp" in overlay
    accelerator = "gpu" if asks and torch.cuda.is_available() else "cpu"
    devices = ("--trainer.accelerator", accelerator, "--trainer.devices", 1)
    first = () if overlay == DEBUG[1] else DEBUG  # a config twice is refused
    outcome = hem_command("fit", "--config", DIGITS, *first, "--config", overlay, *devices, "--run_dir", tmp_path,
                          "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2)  # fmt: skip
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if "fsdp" in overlay and accelerator == "cpu":
        assert outcome.code == 1
        assert "requires a GPU accelerator" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    assert compiled == [None] * ("compile: true" in (ROOT / overlay).read_text())


def test_run_folder(hem_command, tmp_path, monkeypatch):
    """A run leaves its config, curves, checkpoints and figures, and the network comes back as it was tested."""
    common = ("--config", DIGITS, "--config", "configs/loss/hem.yaml", "--run_dir", tmp_path,
              "--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false")  # fmt: skip
    assert hem_command("fit", *common).code == 0
    assert hem_command("test", *common, "--ckpt_path", "last").code == 0
    assert hem_command("predict", *common, "--ckpt_path", "last").code == 0

    assert {"config.yaml", "metrics.csv", "results.json", "predictions.csv"} <= {p.name for p in tmp_path.iterdir()}
    assert list(tmp_path.glob("events.*"))
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all(name.startswith("net.") for name in state)

    results = json.loads((tmp_path / "results.json").read_text())
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    data = hem.datamodules.DigitsDataModule()
    test = data.load("test")
    assert [row["file"] for row in rows] == [test.name_of(i) for i in range(len(test))]
    right = [row["label"] == data.class_names[t] for row, t in zip(rows, test.targets.tolist(), strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["metrics"]["test/accuracy"], abs=1e-6)

    monkeypatch.chdir("/")
    model = hem.load(tmp_path, "last")
    labels = [prediction.label for prediction in model.predict(test.images)]
    assert labels == [row["label"] for row in rows]
    assert not model.training

    with pytest.raises(FileNotFoundError, match="Expected the folder of a run"):
        hem.load(tmp_path / "nowhere")


def test_checkpoint_does_not_override_the_config(hem_command, tmp_path):
    """``test --ckpt_path`` takes the loss and task from the config, whatever hyper-parameters a checkpoint holds.

    Lightning's command line reads ``hyper_parameters`` out of the checkpoint and puts them over the config: a
    rejection config once ran the classification test without a word.
    """
    common = ("--config", DIGITS, *DEBUG)
    assert hem_command("fit", *common, "--run_dir", tmp_path / "a").code == 0
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert not checkpoint.get("hyper_parameters")
    checkpoint["hyper_parameters"] = {
        "_class_path": "hem.modules.ClassificationTask",
        "lr_interval": "epoch",
        "num_classes": 3,
    }
    path = tmp_path / "loose.ckpt"  # in the folder of its run, it would be examined with the run's own loss
    torch.save(checkpoint, path)
    focal = ("--config", "configs/loss/focal.yaml", "--run_dir", tmp_path / "b", "--ckpt_path", path)
    outcome = hem_command("test", *common, *focal)
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "b" / "results.json").read_text())["loss"] == "focal"


def test_lightning_options(hem_command, tmp_path):
    """Precision, accumulation, clipping and the compiled network are options of the config."""
    common = ("fit", "--config", DIGITS, *DEBUG)
    for number, options in enumerate((
        ("--trainer.precision", "bf16-mixed"),
        ("--trainer.accumulate_grad_batches", 2, "--trainer.gradient_clip_val", 1.0),
        ("--trainer.precision", "64-true"),
    )):  # fmt: skip
        outcome = hem_command(*common, *options, "--run_dir", tmp_path / str(number))
        assert outcome.code == 0, outcome.err
