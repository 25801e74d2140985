"""The figures of a long tail against plain loops, the remedies against their formulas, whole runs."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hem.losses import ClassBalancedLoss, HEMLoss, LDAMLoss
from hem.metrics.longtail import shots
from hem.modules import LongTailTask
from hem.modules.posthoc import adjusted, tau_normalized
from hem.networks import CosineLinear, LeNet, Network
from tests import processes
from tests.trainers import QUIET

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
COUNTS = [300, 101, 100, 60, 20, 19, 4]
CLASSES = len(COUNTS)


def data(logits: np.ndarray, target: np.ndarray) -> DataLoader:
    return DataLoader(TensorDataset(torch.from_numpy(logits)[:, :, None, None], torch.from_numpy(target)), 16)


def figures(logits: np.ndarray, target: np.ndarray, net: nn.Module | None = None, **options: float) -> dict[str, float]:
    """What ``test`` reports of logits, handed through a network that does nothing."""
    task = LongTailTask(net or nn.Flatten(), HEMLoss(), num_classes=CLASSES, class_counts=COUNTS, **options)
    trainer = Trainer(**QUIET)
    trainer.test(task.double(), data(logits, target), verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in trainer.callback_metrics.items()}


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """90 samples, the rarer a class the worse; class 3 is not among them."""
    random = np.random.default_rng(0)
    target = random.choice([0, 1, 2, 4, 5, 6], 90)
    logits = random.normal(size=(90, CLASSES))
    logits[np.arange(90), target] += np.linspace(3, 0.5, CLASSES)[target]
    return logits, target


def expected(logits: np.ndarray, target: np.ndarray, many: int, few: int) -> dict[str, float]:
    """The same figures by plain loops."""
    each: dict[int, float] = {}
    for k in range(CLASSES):
        own = [logits[i].argmax() == k for i in range(len(target)) if target[i] == k]
        if own:
            each[k] = sum(own) / len(own)
    groups = {
        "many": [each[k] for k in each if COUNTS[k] > many],
        "medium": [each[k] for k in each if few <= COUNTS[k] <= many],
        "few": [each[k] for k in each if COUNTS[k] < few],
    }
    return {
        "accuracy": sum(logits[i].argmax() == target[i] for i in range(len(target))) / len(target),
        "balanced_accuracy": sum(each.values()) / len(each),
        "worst_class_accuracy": min(each.values()),
        **{f"{name}_shot_accuracy": sum(found) / len(found) for name, found in groups.items() if found},
    }


@pytest.mark.parametrize(("many", "few"), [(100, 20), (200, 200), (60, 19), (1000, 1)])
def test_figures(sample, many, few):
    got = figures(*sample, many=many, few=few)
    wanted = expected(*sample, many, few)
    probabilities = {"nll", "brier", "calibration_error", "calibration_error_mass"}
    others = {key for key in got if not key.startswith(("class_accuracy/", "aurc/", "error_auroc/"))}
    assert others - probabilities == {*wanted, "accuracy_top5", "loss", "active", "active_loss"}
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    if many == 100:
        assert len(set(wanted.values())) == len(wanted) == 6, "no two figures agree by chance"


def test_post_hoc_adjustment_of_half_precision():
    """What is subtracted keeps its digits: ties would go to the more frequent class."""
    task = LongTailTask(nn.Flatten(), HEMLoss(), num_classes=CLASSES, class_counts=COUNTS, adjust_tau=1.0)
    logits = torch.randn(50, CLASSES, 1, 1, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = adjusted(logits.flatten(1).double(), COUNTS)
    torch.testing.assert_close(task.variant_logits(logits)["adjusted"].double(), expected, rtol=1e-6, atol=1e-6)


def test_class_without_test_samples(sample):
    """Class 3 counts nowhere: not as 0 in the means, not as the worst."""
    logits, target = sample
    assert 3 not in target
    got = figures(logits, target)
    assert got["worst_class_accuracy"] > 0
    assert got["medium_shot_accuracy"] == pytest.approx(expected(logits, target, 100, 20)["medium_shot_accuracy"])


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.5])
def test_post_hoc_adjustment(sample, tau):
    """z_j - tau log p_j by loops; the figures of the logits as they are stay beside it."""
    logits, target = sample
    moved = np.array(
        [[logits[i, j] - tau * math.log(COUNTS[j] / sum(COUNTS)) for j in range(CLASSES)] for i in range(len(target))]
    )
    torch.testing.assert_close(adjusted(torch.from_numpy(logits), COUNTS, tau), torch.from_numpy(moved))
    got = figures(logits, target, adjust_tau=tau)
    plain = expected(logits, target, 100, 20)
    for name, value in expected(moved, target, 100, 20).items():
        assert got[f"adjusted/{name}"] == pytest.approx(value, abs=1e-6)
        assert got[name] == pytest.approx(plain[name], abs=1e-6)
    assert (got["adjusted/accuracy"] != got["accuracy"]) == (tau > 0)


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_tau_normalisation(sample, tau):
    """<w_j, f> / ||w_j||^tau by loops, on the images as features; without the biases."""
    images, target = sample
    torch.manual_seed(0)
    head = nn.Linear(CLASSES, CLASSES).double()
    head.weight.data += torch.eye(CLASSES) * torch.linspace(4, 0.5, CLASSES)
    w = head.weight.detach().numpy()
    moved = np.array([[sum(w[j] * f) / math.sqrt(sum(w[j] ** 2)) ** tau for j in range(CLASSES)] for f in images])
    torch.testing.assert_close(tau_normalized(torch.from_numpy(images), head, tau).detach(), torch.from_numpy(moved))
    got = figures(images, target, Network(nn.Flatten(), head, CLASSES), normalize_tau=tau)
    for name, value in expected(moved, target, 100, 20).items():
        assert got[f"tau_normalized/{name}"] == pytest.approx(value, abs=1e-6)
    plain = images @ w.T + head.bias.detach().numpy()
    assert got["accuracy"] == pytest.approx(expected(plain, target, 100, 20)["accuracy"], abs=1e-6)


def test_tau_normalisation_of_cosines():
    """A normalised last layer has nothing to normalise."""
    head, features = CosineLinear(5, 3), torch.randn(4, 5)
    head.weight.data *= torch.tensor([[1.0], [7.0], [0.1]])
    assert torch.equal(tau_normalized(features, head, 1.0), head(features))


def test_shots_of_the_shipped_thresholds():
    """CIFAR-100-LT has 35, 35 and 30 classes by ImageNet-LT's thresholds; CIFAR-10-LT 4, 3 and 3 by adapted ones."""
    from hem.datamodules import LongTail

    hundred = shots(LongTail(100).counts([500] * 100))
    assert [hundred.count(name) for name in ("many", "medium", "few")] == [35, 35, 30]
    ten = LongTail(100).counts([5000] * 10)
    assert "few" not in shots(ten)
    assert [shots(ten, 1000, 200).count(name) for name in ("many", "medium", "few")] == [4, 3, 3]


# deferred re-weighting


class Recorder(nn.Module):
    """Cross-entropy that notes the weights it is trained with."""

    def __init__(self, weight=None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.seen = []

    def forward(self, input, target):
        if input.requires_grad:
            self.seen.append(None if self.weight is None else self.weight.tolist())
        return nn.functional.cross_entropy(input, target, self.weight)


@pytest.mark.parametrize("own", [None, [1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 3.0]])
def test_deferred_reweighting(sample, own):
    """From the epoch on, by (1 - beta) / (1 - beta^n), scaled to the sum C, times the loss's own; none of it saved."""
    loss = Recorder(None if own is None else torch.tensor(own))
    task = LongTailTask(
        nn.Sequential(nn.Flatten(), nn.Linear(CLASSES, CLASSES)),
        loss, num_classes=CLASSES, class_counts=COUNTS, drw_epoch=2, drw_beta=0.99,
    )  # fmt: skip
    trainer = Trainer(**QUIET, max_epochs=4, log_every_n_steps=1000)
    trainer.fit(task, data(sample[0].astype(np.float32), sample[1]))
    weights = [(1 - 0.99) / (1 - 0.99**n) for n in COUNTS]
    weights = [w * CLASSES / sum(weights) for w in weights]
    steps = 6
    epochs = [loss.seen[-4 * steps :][e * steps : (e + 1) * steps] for e in range(4)]
    assert epochs[:2] == [[own] * steps] * 2
    for each in epochs[2] + epochs[3]:
        assert each == pytest.approx([w * o for w, o in zip(weights, own or [1] * CLASSES, strict=True)], rel=1e-5)
    assert "loss.weight" not in task.state_dict()


def test_reweighting_is_that_of_the_class_balanced_loss(sample):
    """The weight it gives cross-entropy makes the loss of Cui et al."""
    logits, target = (torch.from_numpy(part) for part in sample)
    loss = nn.CrossEntropyLoss()
    task = LongTailTask(nn.Flatten(), loss, num_classes=CLASSES, class_counts=COUNTS, drw_epoch=0)
    task._trainer = Trainer(**QUIET)
    task.on_train_epoch_start()
    wanted = ClassBalancedLoss(class_counts=COUNTS)(logits.float(), target)
    torch.testing.assert_close(loss(logits.float(), target), wanted)


def test_averages_leave_what_the_loss_is_set_to_alone(sample):
    """An average that is the latest weights changes nothing, though the loss gets a weight on the way."""
    found = []
    batches = data(sample[0].astype(np.float32), sample[1])
    for callbacks in ([], [EMAWeightAveraging(decay=0.0)]):
        seed_everything(0)
        task = LongTailTask(
            nn.Sequential(nn.Flatten(), nn.Linear(CLASSES, CLASSES)),
            LDAMLoss(class_counts=COUNTS, s=3.0), num_classes=CLASSES, class_counts=COUNTS, drw_epoch=1,
        )  # fmt: skip
        trainer = Trainer(**QUIET, max_epochs=3, log_every_n_steps=1000, callbacks=callbacks)
        trainer.fit(task, batches, batches)
        found.append({**trainer.callback_metrics, **task.state_dict(), **dict(task.loss.named_buffers())})
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_averages_in_half_precision_are_refused(sample, precision):
    task = LongTailTask(nn.Flatten(), HEMLoss(), num_classes=CLASSES, class_counts=COUNTS)
    trainer = Trainer(**QUIET, max_epochs=1, precision=precision, callbacks=[EMAWeightAveraging()])
    with pytest.raises(ValueError, match=f"got {precision}, whose average rounds to where it is"):
        trainer.fit(task, data(sample[0].astype(np.float32), sample[1]))


def test_reweighting_behind_the_end_is_told(sample):
    task = LongTailTask(
        nn.Sequential(nn.Flatten(), nn.Linear(CLASSES, CLASSES)),
        HEMLoss(), num_classes=CLASSES, class_counts=COUNTS, drw_epoch=160,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="drw_epoch is 160, but training ends after 1 epochs"):
        Trainer(**QUIET, max_epochs=1, log_every_n_steps=1000).fit(task, data(sample[0].astype(np.float32), sample[1]))


# bad input


class NoWeight(nn.Module):
    def forward(self, input, target):
        return input.sum()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_counts": None}, "class_counts of 10 numbers, one for each class, got 0"),
        ({"class_counts": [5] * 9}, "class_counts of 10 numbers, one for each class, got 9"),
        ({"class_counts": [5] * 9 + [0]}, "class 9 has 0 training samples, but every class needs one or more"),
        ({"many": 10, "few": 20}, "0 < few <= many, got 20 and 10"),
        ({"few": 0}, "0 < few <= many"),
        ({"drw_epoch": -1}, "to be 0 or more, got -1: null means never"),
        ({"drw_beta": 1.0}, r"drw_beta in \[0, 1\), got 1"),
        ({"drw_epoch": 3, "loss": NoWeight()}, "NoWeight has none: take another loss, or leave drw_epoch null"),
        ({"adjust_tau": -1.0}, "adjust_tau, a strength, to be 0 or more, got -1"),
        ({"normalize_tau": float("inf")}, "normalize_tau, a strength, to be 0 or more, got inf"),
        ({"normalize_tau": 1.0, "net": nn.Flatten()}, "a linear `head`, which Flatten has not"),
        ({"normalize_tau": 1.0, "net": Network(nn.Flatten(), nn.Sequential(), 1)}, "which Network has not"),
    ],
)
def test_bad_input(options, sentence):
    arguments = {"net": LeNet(), "loss": HEMLoss(), "num_classes": 10, "class_counts": [50] * 10} | options
    with pytest.raises(ValueError, match=sentence):
        LongTailTask(**arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.subset.imbalance", "0.5"], ["imbalance", "0.5", "its inverse, 2"]),
        (["--data.subset.imbalance", "500"], ["without samples", "at most"]),
        (["--model.few", "500"], ["few <= many"]),
        (["--data.sampling", "PowerSampling", "--data.sampling.power", "-1"], ["power", "-1"]),
    ],
)
def test_bad_input_at_the_command_line(hem_command, tmp_path, options, words):
    outcome = hem_command("fit", "--config", "configs/longtail/digits.yaml", *options, "--run_dir", tmp_path)
    assert outcome.code == 1
    assert outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err for word in words), outcome.err


# runs


def test_run(hem_command, tmp_path):
    """A run leaves the accuracy of each class; every loss with counts gets them; other tasks examine its checkpoint."""
    config = ("--config", "configs/longtail/digits.yaml", "--config", "configs/loss/logit_adjusted.yaml")
    quiet = ("--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false")
    options = (*config, *quiet, "--model.drw_epoch", 1, "--run_dir", tmp_path / "run")
    outcome = hem_command("fit", *options)
    assert outcome.code == 0, outcome.err
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(name.startswith("net.") for name in state)
    assert hem_command("test", *options, "--ckpt_path", "last").code == 0
    assert hem_command("predict", *options, "--ckpt_path", "last").code == 0
    assert {"longtail.csv", "longtail.png", "predictions.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}

    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    with open(tmp_path / "run" / "longtail.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["training_samples"]) for row in rows] == [142, 101, 72, 52, 37, 26, 19, 13, 9, 7]
    assert [row["shot"] for row in rows] == ["many"] * 2 + ["medium"] * 4 + ["few"] * 4
    for prefix, column in (
        ("", "accuracy"),
        ("adjusted/", "adjusted_accuracy"),
        ("tau_normalized/", "tau_normalized_accuracy"),
    ):
        each = [float(row[column]) for row in rows]
        assert sum(each) / 10 == pytest.approx(metrics[f"test/{prefix}balanced_accuracy"], abs=1e-5)
        assert min(each) == pytest.approx(metrics[f"test/{prefix}worst_class_accuracy"], abs=1e-5)
        seen = [int(row["test_samples"]) for row in rows]
        right = sum(a * n for a, n in zip(each, seen, strict=True))
        assert right / sum(seen) == pytest.approx(metrics[f"test/{prefix}accuracy"], abs=1e-5)

    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("longtail.*")}
    part = ("--trainer.limit_test_batches", 1, "--data.batch_size", 50)
    assert hem_command("test", *options, *part, "--ckpt_path", "last").code == 0
    assert "partial" in json.loads((tmp_path / "run" / "results.json").read_text())
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("longtail.*")} == before, "of all images"

    digits = ("--config", "configs/classification/digits.yaml", "--ckpt_path", last)
    outcome = hem_command("test", *digits, "--run_dir", tmp_path / "again", "--trainer.enable_progress_bar", "false")
    assert outcome.code == 0, outcome.err
    again = json.loads((tmp_path / "again" / "results.json").read_text())["metrics"]
    assert again["test/accuracy"] == metrics["test/accuracy"]


# class-balanced, with augmentation, and re-weighting from the second epoch on
SAMPLED = (
    "--config", "configs/longtail/digits.yaml", "--trainer.enable_progress_bar", "false",
    "--trainer.accelerator", "cpu", "--trainer.max_epochs", "3", "--model.lr_scheduler.total_steps", "27",
    "--model.net", "MLP", "--model.net.batch_norm", "false", "--data.batch_size", "50", "--model.drw_epoch", "1",
    "--data.sampling", "PowerSampling",
    "--data.augment", "[{class_path: hem.datamodules.augment.RandomCrop, init_args: {padding: 1}}]",
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_resumed_behind_the_reweighting(hem_command, tmp_path):
    """Stopped after two of three epochs: sampling, augmentation and weights of the third come back, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for options in (
        ("--run_dir", whole),
        ("--run_dir", parts, "--trainer.max_epochs", 2),
        ("--run_dir", parts, "--ckpt_path", "last"),
    ):
        outcome = hem_command("fit", *SAMPLED, *options)
        assert outcome.code == 0, outcome.err
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(parts).items())


@pytest.mark.slow
def test_two_processes_are_one(hem_command, tmp_path):
    """Drawn samples, weights and figures are those of one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    for command, options in (("fit", ()), ("test", ("--ckpt_path", "last"))):
        outcome = hem_command(command, *SAMPLED, *options, "--run_dir", one)
        assert outcome.code == 0, outcome.err
        done = processes.hem(command, *SAMPLED, *options, "--run_dir", two, ranks=2).wait()
        assert done.code == 0, done.err
    expected = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    alone, together = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert (alone["devices"], together["devices"]) == (1, 2)
    assert alone["metrics"].keys() == together["metrics"].keys()
    for name, value in alone["metrics"].items():
        assert together["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
