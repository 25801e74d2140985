"""The corruption test of a checkpoint: its figures equal a plain loop, beside a baseline, in files and TensorBoard."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hem.corruptions import COMMON, CORRUPTIONS, corrupt
from hem.datamodules import DATA
from hem.modules.corruption import mean_corruption_error, read_accuracies
from hem.rng import key as key_of
from tests.datamodules import test_datasets as trees

# the trees are small, and the modules say so
pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")
ROOT = Path(__file__).resolve().parents[2]
DIGITS = "configs/classification/digits.yaml"
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", 1)
TASK = ("--model", "CorruptionTask", "--data.batch_size", 100)
FEW = ("--model.corrupted", "ComputedCorruptions", "--model.corrupted.corruptions", "[fog,contrast,spatter]",
       "--model.corrupted.severities", "[1,5]")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that knows the digits a little: the folder of its run."""
    from hem.cli import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    assert (
        main(
            [str(a) for a in ("fit", "--config", ROOT / DIGITS, *QUIET, "--trainer.max_epochs", 2, "--run_dir", folder)]
        )
        == 0
    )
    return folder


def command(trained, run_dir, *args):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    return ("test", "--config", DIGITS, *QUIET, *TASK, "--ckpt_path", checkpoint, "--run_dir", run_dir, *args)


def test_figures_equal_a_plain_loop(trained, hem_command, tmp_path, monkeypatch):
    outcome = hem_command(*command(trained, tmp_path, *FEW))
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    import hem

    net = hem.load(trained, "last").net
    test = DATA["digits"]().load("test")
    images = test.images.float() / 255
    accuracy = {}
    for name in ("fog", "contrast", "spatter"):
        for severity in (1, 5):
            key = key_of(0, list(CORRUPTIONS).index(name), severity, torch.arange(len(images)))
            with torch.inference_mode():
                label = net(corrupt(images, name, severity, key)).argmax(1)
            accuracy[name, severity] = (label == test.targets).float().mean().item()
            assert metrics[f"test/corruption/{name}/{severity}"] == pytest.approx(accuracy[name, severity], abs=2e-3)
        mean = (accuracy[name, 1] + accuracy[name, 5]) / 2
        assert metrics[f"test/corruption/{name}/mean"] == pytest.approx(mean, abs=2e-3)
    assert metrics["test/accuracy"] == pytest.approx(metrics["test/corruption/clean/0"], abs=1e-6)
    assert metrics["test/accuracy"] > 0.5 > accuracy["contrast", 5]
    common = sum(accuracy[name, s] for name in ("fog", "contrast") for s in (1, 5)) / 4
    assert metrics["test/corruption_accuracy"] == pytest.approx(sum(accuracy.values()) / 6, abs=2e-3)
    assert metrics["test/corruption_accuracy_common"] == pytest.approx(common, abs=2e-3)
    assert metrics["test/corruption_accuracy_extra"] == pytest.approx(metrics["test/corruption/spatter/mean"], abs=1e-6)
    assert "test/mce" not in metrics

    with open(tmp_path / "corruption.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["corruption"], row["severity"], row["extra"]) for row in rows] == [
        ("clean", "0", "0"), ("fog", "1", "0"), ("fog", "5", "0"), ("contrast", "1", "0"), ("contrast", "5", "0"),
        ("spatter", "1", "1"), ("spatter", "5", "1"),
    ]  # fmt: skip
    assert {row["images"] for row in rows} == {str(len(images))}
    for row in rows:
        key = f"test/corruption/{row['corruption']}/{row['severity']}"
        assert float(row["accuracy"]) == pytest.approx(metrics[key], abs=1e-6)

    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"corruption", "corruption_images"} <= set(events.Tags()["images"])
    for name in ("corruption.png", "corruption_images.png"):
        with Image.open(tmp_path / name) as picture:
            colours = picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)
            assert len(colours) > 20


def test_beside_a_baseline(trained, hem_command, tmp_path):
    """Beside itself a network has mCE 1, whatever the seed and the batches of the second test."""
    assert hem_command(*command(trained, tmp_path / "a", *FEW)).code == 0
    baseline = ("--model.baseline", tmp_path / "a")
    other = ("--seed_everything", 3, "--data.batch_size", 37)
    loose = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path)  # in its run, it would have the run's seed
    other = (*other, "--ckpt_path", loose)
    outcome = hem_command(*command(trained, tmp_path / "b", *FEW, *other, *baseline))
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "b" / "results.json").read_text())["metrics"]
    assert metrics["test/mce"] == pytest.approx(1, abs=0.01)  # rounding in batches of another size
    assert metrics["test/relative_mce"] == pytest.approx(1, abs=0.02)
    one = read_accuracies(tmp_path / "a")
    assert len(one) == 1 + 3 * 2
    for path in (tmp_path / "a" / "corruption.csv", tmp_path / "a" / "results.json"):
        assert read_accuracies(path) == pytest.approx(one, abs=1e-6)

    more = ("--model.corrupted", "ComputedCorruptions", "--model.corrupted.corruptions", "[fog,snow]")
    outcome = hem_command(*command(trained, tmp_path / "c", *more, *baseline))
    assert outcome.code == 1
    assert "error: The baseline lacks 8 conditions, fog at severity 2 among them" in outcome.err
    outcome = hem_command(*command(trained, tmp_path / "d", *FEW, "--model.baseline", tmp_path / "nowhere"))
    assert outcome.code == 1
    assert "error: Expected metrics of the baseline in" in outcome.err


def test_mean_corruption_error():
    """The paper's sums by hand."""
    own = {("clean", 0): 0.95, ("fog", 1): 0.9, ("fog", 2): 0.7, ("snow", 1): 0.8, ("snow", 2): 0.6}
    other = {("clean", 0): 0.90, ("fog", 1): 0.8, ("fog", 2): 0.6, ("snow", 1): 0.9, ("snow", 2): 0.8}
    mce, left_out = mean_corruption_error(own, other, ["fog", "snow"])
    assert mce == pytest.approx((0.4 / 0.6 + 0.6 / 0.3) / 2)
    assert not left_out
    relative, left_out = mean_corruption_error(own, other, ["fog", "snow"], relative=True)
    assert relative == pytest.approx(((0.4 - 0.1) / (0.6 - 0.2) + (0.6 - 0.1) / (0.3 - 0.2)) / 2)
    assert not left_out
    perfect = {**other, ("fog", 1): 1.0, ("fog", 2): 1.0}
    mce, left_out = mean_corruption_error(own, perfect, ["fog", "snow"])
    assert (mce, left_out) == (pytest.approx(2), ["fog"])
    mce, left_out = mean_corruption_error(own, perfect, ["fog"])
    assert math.isnan(mce)
    with pytest.raises(ValueError, match="The baseline lacks 1 conditions, snow at severity 2 among them"):
        mean_corruption_error(own, {k: v for k, v in other.items() if k != ("snow", 2)}, ["fog", "snow"])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("results.json", '{"metrics": {"test/accuracy": 0.9}}', "holds no accuracies under corruption"),
        ("results.json", "{", "is no corruption.csv or results.json"),
        ("results.json", '{"metrics": {"test/corruption/fog": 1}}', "holds no accuracies under corruption"),
        ("corruption.csv", "a,b\n1,2\n", "is no corruption.csv or results.json"),
        ("corruption.csv", "", "holds no accuracies under corruption"),
    ],
)
def test_what_is_no_baseline(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_accuracies(tmp_path / name)


def test_mistakes_get_a_sentence(trained, hem_command, tmp_path):
    for argument, value, code, sentence in (
        ("corruptions", "[foggy]", 1, "Unknown corruption 'foggy'; did you mean 'fog'?"),
        ("severities", "[6]", 1, "Expected a severity of 1 to 5, got 6."),
    ):
        args = ("--model.corrupted", "ComputedCorruptions", f"--model.corrupted.{argument}", value)
        outcome = hem_command(*command(trained, tmp_path, *args))
        assert sentence in outcome.err
        assert outcome.code in (code, 2)
    outcome = hem_command(*command(trained, tmp_path, "--model.corrupted", "OfficialCorruptions"))
    assert outcome.code == 1
    assert "There are no official corrupted files of scikit-learn's digits" in outcome.err


def test_shipped_config_on_a_classification_checkpoint(hem_command, tmp_path):
    """A former config of one data set, on MNIST in its official layout, whatever loss a checkpoint was trained with."""
    trees.mnist_tree(tmp_path)
    quick = ("--config", "configs/trainer/debug.yaml", "--trainer.enable_progress_bar", "false",
             "--data.root", tmp_path, "--data.batch_size", 4)  # fmt: skip
    fit = ("fit", "--config", "configs/classification/mnist.yaml", "--config", "configs/loss/hem.yaml", *quick)
    outcome = hem_command(*fit, "--data.val_fraction", 0.5, "--run_dir", tmp_path / "fit")
    assert outcome.code == 0, outcome.err
    checkpoint = tmp_path / "fit" / "checkpoints" / "last.ckpt"
    test = ("test", "--config", "configs/corruption/mnist.yaml", *quick, "--ckpt_path", checkpoint)
    with pytest.warns(FutureWarning, match="configs/corruption/mnist.yaml is evaluate/corruption by now"):
        outcome = hem_command(*test, "--run_dir", tmp_path / "test")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "test" / "results.json").read_text())["metrics"]
    assert {f"test/corruption/{name}/{s}" for name in CORRUPTIONS for s in range(1, 6)} <= metrics.keys()
    with open(tmp_path / "test" / "corruption.csv", newline="") as file:
        assert {row["images"] for row in csv.DictReader(file)} == {"8"}  # two batches, as debug.yaml says

    official = ("--model.corrupted", "OfficialCorruptions")
    test = ("test", "--run", tmp_path / "fit", "--config", "evaluate/corruption", *quick)
    outcome = hem_command(*test, "--run_dir", tmp_path / "official", *official)
    assert outcome.code == 1
    assert f"MNIST-C is missing: {tmp_path}/mnist_c/shot_noise is not there" in outcome.err


def test_there_is_a_config_for_every_official_set():
    from hem.datamodules.corruption_files import OFFICIAL

    assert set(OFFICIAL) <= set(DATA)
    assert len(COMMON) == 15
