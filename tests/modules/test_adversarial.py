"""The adversarial task: its figures, its checks, its training, on a network and images of a few pixels."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hem.attacks import OBJECTIVES, PGD, Attack, AutoAttack, attacking, autoattack, pgd
from hem.attacks.evaluation import Row
from hem.losses import LOSSES, HEMLoss
from hem.modules import TRADES, AdversarialTask, ClassificationTask, PGDTraining
from hem.modules.adversarial_training import divergence
from hem.plots.robustness import robustness_curves
from hem.rng import key
from tests import trainers

ROOT = Path(__file__).resolve().parents[2]
QUIET = {**trainers.QUIET, "devices": 1}
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no"),  # training alone is meant
]


def net(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))


def samples(n=48, classes=4):
    """Images whose brightest corner is their class."""
    generator = torch.Generator().manual_seed(1)
    input = 0.4 * torch.rand(n, 1, 6, 6, generator=generator)
    target = torch.arange(n) % classes
    for k, (row, column) in enumerate(((0, 0), (0, 3), (3, 0), (3, 3))):
        input[target == k, :, row : row + 3, column : column + 3] += 0.3
    return TensorDataset(input, target)


def trained(loss=None):
    task = ClassificationTask(net(), loss or nn.CrossEntropyLoss(), num_classes=4)
    trainer = Trainer(**QUIET, max_epochs=20, limit_val_batches=0)
    trainer.fit(task, DataLoader(samples(), batch_size=16))
    return task


@pytest.fixture(scope="module")
def weights():
    return trained().state_dict()


def evaluate(weights, folder, loss=None, **kwargs):
    """Test a network; return the figures and the task."""
    options = {"linf": [0.05, 0.15], "steps": 5, "checks": False, "attacks": [PGD("margin")], **kwargs}
    task = AdversarialTask(net(), loss or nn.CrossEntropyLoss(), num_classes=4, **options)
    task.load_state_dict(weights, strict=False)
    (figures,) = Trainer(**QUIET, default_root_dir=folder).test(
        task, DataLoader(samples(), batch_size=10), verbose=False
    )
    return figures, task


# -- evaluation


def test_figures_and_files(weights, tmp_path, capsys):
    figures, _ = evaluate(weights, tmp_path, l2=[0.5], attacks=[PGD("ce"), PGD("margin"), PGD("loss")], images=20)
    assert figures["test/accuracy"] == 1
    for attack in ("pgd_ce", "pgd_margin", "pgd_loss", "worst"):
        small, large = (figures[f"test/robust_accuracy/linf/{eps}/{attack}"] for eps in ("0.05", "0.15"))
        assert 0 <= large <= small <= 1
        assert figures["test/robust_accuracy/l2/0.5/worst"] <= figures[f"test/robust_accuracy/l2/0.5/{attack}"]
        assert figures[f"test/images/{attack}"] == 20
    assert figures["test/robust_accuracy/linf/0.15/worst"] < 1
    with open(tmp_path / "robustness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 + 2 * 2, "four curves at three eps, and where they begin for each norm"
    for row in rows:
        assert float(row["robust_accuracy"]) == pytest.approx(
            figures[f"test/robust_accuracy/{row['norm']}/{float(row['eps']):g}/{row['attack']}"]
        )
    assert (tmp_path / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    assert "linf eps 0.15, worst" in capsys.readouterr().out


def test_figure_is_that_of_the_attack(weights, tmp_path):
    """All images at one eps: the same as calling the attack with the images' own numbers, however they are batched."""
    figures, task = evaluate(weights, tmp_path, linf=[0.12], images=None, attack_batch_size=13)
    input, target = samples().tensors
    options = {"steps": 5, "schedule": "linear", "momentum": 0.75, "seed": key(0, torch.arange(48))}
    found = pgd(task.net, input, target, 0.12, **options)
    with attacking(task.net):
        held = (task(found).argmax(1) == target).float().mean().item()
    assert figures["test/robust_accuracy/linf/0.12/pgd_margin"] == pytest.approx(held)
    assert 0.1 < held < 0.9


def test_autoattack_is_a_direct_call_on_the_first_images(weights, tmp_path):
    options = {"linf": [0.3], "attacks": [AutoAttack(), PGD("margin")], "autoattack_images": 6}
    figures, task = evaluate(weights, tmp_path, **options)
    assert figures["test/images/autoattack"] == 6
    assert figures["test/images/worst"] == 6
    assert figures["test/images/pgd_margin"] == 48
    input, target = samples().tensors
    found = autoattack(task.net, input, target, 0.3, num_classes=4)
    assert figures["test/robust_accuracy/linf/0.3/autoattack"] == found.robust["square"].float().mean() == 0


def test_choice_of_images_does_not_depend_on_the_batches(weights, tmp_path):
    chosen = []
    for batch_size, seed in ((7, 0), (48, 0), (7, 1)):
        task = AdversarialTask(
            net(), nn.CrossEntropyLoss(), num_classes=4, images=9, autoattack_images=9, attack_seed=seed
        )
        trainer = Trainer(**QUIET, default_root_dir=tmp_path)
        trainer.test(task, DataLoader(samples(), batch_size=batch_size), verbose=False)  # no eps: nothing is attacked
        places, inputs, _ = (torch.cat(each) for each in zip(*task._chosen, strict=True))
        assert len(places) == 9
        chosen.append(inputs[places.argsort()])
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


def test_repeatable(weights, tmp_path):
    first, _ = evaluate(weights, tmp_path, checks=True, square_queries=20)
    torch.manual_seed(99)
    second, _ = evaluate(weights, tmp_path, checks=True, square_queries=20)
    assert first == second


def test_network_is_not_changed(weights, tmp_path):
    _, task = evaluate(weights, tmp_path, checks=True, square_queries=5)
    assert all(torch.equal(value, weights[name]) for name, value in task.net.state_dict(prefix="net.").items())
    assert all(p.grad is None and p.requires_grad for p in task.net.parameters())


class Darker(Attack):
    """An attack of one's own."""

    def __call__(self, net, input, target, eps, norm, keys):
        assert keys.shape == target.shape
        return (input - eps).clamp_min(0)


def test_an_attack_of_ones_own(weights, tmp_path):
    """Beside ours: its name is its class, what it breaks at one eps is broken at larger ones."""
    figures, task = evaluate(weights, tmp_path, linf=[0.2, 0.4], attacks=[Darker(), PGD("margin")])
    input, target = samples().tensors
    held = torch.ones(48, dtype=torch.bool)
    for eps in (0.2, 0.4):
        with attacking(task.net), torch.no_grad():
            held &= task.net((input - eps).clamp_min(0)).argmax(1) == target
        assert figures[f"test/robust_accuracy/linf/{eps}/darker"] == pytest.approx(held.float().mean().item())
    assert figures["test/robust_accuracy/linf/0.4/worst"] <= figures["test/robust_accuracy/linf/0.4/darker"] < 1


def test_words_of_former_configs(weights, tmp_path):
    with pytest.warns(FutureWarning, match=r"The attack 'pgd_margin' is a class by now: hem.attacks.PGD"):
        figures, task = evaluate(weights, tmp_path, linf=[0.15], attacks=["pgd_margin"])
    assert task.attacks == [PGD("margin")]
    assert type("Stronger", (PGD,), {})("margin") != PGD("margin"), "its results are its own"
    now, _ = evaluate(weights, tmp_path, linf=[0.15])
    assert figures == now


def test_an_attack_has_a_budget_of_its_own(weights, tmp_path):
    """And the same attack under two names is computed once."""
    calls = []

    class Counted(PGD):
        def __call__(self, *args):
            calls.append(self.options["steps"])
            return super().__call__(*args)

    attacks = [Counted("margin", steps=2, name="short"), Counted("margin"), Counted("margin", steps=5, name="same")]
    figures, _ = evaluate(weights, tmp_path, linf=[0.12], attacks=attacks)
    assert calls == [2, 5]
    at = "test/robust_accuracy/linf/0.12/"
    assert figures[f"{at}same"] == figures[f"{at}pgd_margin"] <= figures[f"{at}short"]


# -- checks for gradient masking


def test_checks_pass_for_a_plain_network(weights, tmp_path, capsys):
    figures, _ = evaluate(weights, tmp_path, steps=20, restarts=3, checks=True, square_queries=50, tolerance=0.05)
    record = json.loads((tmp_path / "masking.json").read_text())
    names = {"more_steps", "converged", "unbounded", "one_step", "black_box", "zero_gradients", "scale"}
    assert {check["name"] for check in record["checks"]} == names
    for name in names - {"scale"}:
        assert figures[f"test/masking/{name}/failed"] == 0, name
    assert figures["test/masking/eps"] in (pytest.approx(0.05), pytest.approx(0.15))
    assert "warning: black_box" not in capsys.readouterr().out


class Steps(nn.Module):
    """Rounds the image to a few grey levels: the decisions stay, the gradient is 0 everywhere."""

    def forward(self, input):
        return torch.round(input * 8) / 8 + 0 * input


def test_checks_see_masked_gradients(weights, tmp_path, capsys):
    """Behind a rounding of the image every gradient attack fails; Square and a twin without it do not."""
    torch.save({"state_dict": weights}, tmp_path / "twin.ckpt")
    task = AdversarialTask(
        net(), nn.CrossEntropyLoss(), num_classes=4, linf=[0.15], steps=5, attacks=[PGD("ce"), PGD("margin")],
        square_queries=200, twin_ckpt_path=str(tmp_path / "twin.ckpt"),
    )  # fmt: skip
    task.load_state_dict(weights, strict=False)
    task.net.normalize = Steps()
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    (figures,) = trainer.test(task, DataLoader(samples(), batch_size=16), verbose=False)
    for name in ("unbounded", "black_box", "zero_gradients"):
        assert figures[f"test/masking/{name}/failed"] == 1, name
    assert figures["test/masking/zero_gradients"] == 1
    warnings = json.loads((tmp_path / "masking.json").read_text())["warnings"]
    assert any(sentence.startswith("black_box: Square, which sees no gradients") for sentence in warnings)
    assert "warning: unbounded: images survive" in capsys.readouterr().out


def test_loss_without_gradient_is_said(tmp_path):
    """HEM with its margins met: the attack on it finds less than the one on the margin, and the result says why."""
    state = trained(HEMLoss(margin=0.05)).state_dict()
    figures, _ = evaluate(
        state, tmp_path, HEMLoss(margin=0.05), attacks=[PGD("loss"), PGD("margin")], checks=True, square_queries=0
    )
    assert figures["test/masking/zero_gradients"] > 0.5
    assert figures["test/masking/zero_gradients/failed"] == 1
    assert "test/masking/black_box" not in figures
    at = "test/robust_accuracy/linf/0.15/"
    assert figures[f"{at}pgd_loss"] > figures[f"{at}pgd_margin"] + 0.1


def test_transfer_from_a_twin(weights, tmp_path):
    """Attacks on oneself as a twin carry over, and break nothing that the white-box attacks had left."""
    torch.save({"state_dict": weights}, tmp_path / "twin.ckpt")
    figures, _ = evaluate(
        weights,
        tmp_path,
        attacks=[PGD("margin"), PGD("ce")],
        checks=True,
        square_queries=0,
        steps=20,
        restarts=3,
        twin_ckpt_path=str(tmp_path / "twin.ckpt"),
    )
    assert figures["test/masking/transfer/failed"] == 0
    assert figures["test/masking/transfer_accuracy"] < 0.9


def test_twin_of_another_shape(weights, tmp_path):
    other = {f"net.backbone.{name}": value for name, value in net(7).state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "twin.ckpt")
    with pytest.raises(ValueError, match="The checkpoint holds another network"):
        evaluate(weights, tmp_path, checks=True, twin_ckpt_path=str(tmp_path / "twin.ckpt"))


# -- training


def fit(folder, training, loss=None, epochs=8, **kwargs):
    task = AdversarialTask(net(), loss or nn.CrossEntropyLoss(), num_classes=4, training=training, **kwargs)
    trainer = Trainer(**QUIET, max_epochs=epochs, default_root_dir=folder)
    data = DataLoader(samples(), batch_size=16)
    trainer.fit(task, data, DataLoader(samples(), batch_size=16))
    return task, trainer


@pytest.mark.parametrize("training", [PGDTraining(0.15, steps=5), TRADES(0.15, steps=5)])
def test_training_makes_robust(training, weights, tmp_path):
    """Beside plain training of the same length, validation is more robust under the same attack."""
    _, trainer = fit(tmp_path, training, epochs=20)
    robust = trainer.callback_metrics["val/robust_accuracy"].item()
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    plain = AdversarialTask(net(), nn.CrossEntropyLoss(), num_classes=4, training=training)
    plain.load_state_dict(weights, strict=False)
    (figures,) = Trainer(**QUIET, default_root_dir=tmp_path).validate(
        plain, DataLoader(samples(), batch_size=16), verbose=False
    )
    assert robust > figures["val/robust_accuracy"] + 0.1


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("training", [PGDTraining(0.1, steps=1), TRADES(0.1, steps=1)], ids=["pgd", "trades"])
def test_training_takes_every_loss(name, training, tmp_path):
    counts = {"class_counts": [12] * 4}
    needs = ("hem_plus", "logit_adjusted", "ldam", "class_balanced", "balanced_softmax")
    _, trainer = fit(tmp_path, training, LOSSES[name](**(counts if name in needs else {})), epochs=1)
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_training_step_is_the_step_on_the_attacked_batch(tmp_path):
    """And TRADES' is L(f(x), y) + β KL(f(x) || f(x')), written out here."""
    seen = {}

    class Watched(PGDTraining):
        def perturb(self, task, input, target, keys):
            seen["mode"] = task.net.training
            seen["moved"] = super().perturb(task, input, target, keys)
            return seen["moved"]

    _, trainer = fit(tmp_path, Watched(0.1, steps=2, objective="margin"), epochs=1)
    assert seen["mode"]
    assert trainer.callback_metrics["train/loss"] > 0
    clean = samples().tensors[0][-16:]
    assert 0.05 < (seen["moved"] - clean).abs().max() <= 0.1 + 1e-6

    logits, moved = torch.randn(2, 5, 4).unbind()
    p = logits.softmax(1)
    torch.testing.assert_close(divergence(moved, logits), (p * (p.log() - moved.softmax(1).log())).sum(1))
    _, trainer = fit(tmp_path, TRADES(0.1, steps=2, beta=0.0), epochs=1)
    _, same = fit(tmp_path, None, epochs=1)
    # in training mode BatchNorm sees other batches in between, but uses those of the batch itself
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], same.callback_metrics["train/loss"])


def test_training_is_repeatable(tmp_path):
    weights = []
    for draws in (0, 5):
        task = AdversarialTask(net(), nn.CrossEntropyLoss(), num_classes=4, training=PGDTraining(0.1, steps=2))
        torch.rand(draws)
        trainer = Trainer(**QUIET, max_epochs=2, limit_val_batches=0, default_root_dir=tmp_path)
        trainer.fit(task, DataLoader(samples(), batch_size=16))
        weights.append(task.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    "given", [{"accumulate_grad_batches": 2}, {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]}]
)
def test_trades_refuses_what_it_cannot_do_exactly(given, tmp_path):
    task = AdversarialTask(net(), nn.CrossEntropyLoss(), num_classes=4, training=TRADES(0.1))
    trainer = Trainer(**QUIET, max_epochs=1, **given, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="TRADES adds two means"):
        trainer.fit(task, DataLoader(samples(), batch_size=16))


# -- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"linf": [8]}, "Expected an L-inf eps in .0, 1., as pixels are, got 8: for 8/255 write 0.03137"),
        ({"l2": [-1.0]}, "Expected an L2 eps"),
        ({"attacks": ["pgd_marign"]}, "Unknown attack 'pgd_marign'; did you mean 'pgd_margin'.* Available: pgd_ce"),
        ({"images": 0}, "Expected images to be 1 or more, got 0"),
        ({"attacks": [AutoAttack(), PGD("dlr")], "num_classes": 3}, "autoattack and pgd_dlr need 4 classes, got 3"),
        ({"attacks": [PGD("ce"), PGD("ce", steps=9)]}, "attacks of different names.*, got 'pgd_ce'"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdversarialTask(net(), nn.CrossEntropyLoss(), **{"num_classes": 4, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGDTraining(8), "for 8/255 write"),
        (
            lambda: PGDTraining(0.1, objective="los"),
            "Unknown objective of adversarial training 'los'; did you mean 'loss'",
        ),
        (lambda: PGDTraining(0.1, steps=0), "at least 1 step"),
        (
            lambda: PGDTraining(0.1, objective="margin").perturb(None, None, torch.ones(2, 3), None),
            "got class probabilities: leave MixUp and CutMix out",
        ),
        (lambda: TRADES(0.1, beta=-1), "beta to be at least 0"),
    ],
)
def test_mistakes_of_training(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_of_attacks_are_drawn():
    names = [*(str(PGD(objective)) for objective in OBJECTIVES), "autoattack"]
    rows = [
        Row(norm, eps, attack, 10, 0.5) for norm in ("linf", "l2") for eps in (0.1, 0.2) for attack in (*names, "worst")
    ]
    rows = [row for row in rows if (row.attack, row.eps) != ("autoattack", 0.1)]
    figure = robustness_curves(rows)
    assert len(figure.axes) == 2
    styles = {line.get_label().split()[0]: line.get_linestyle() for line in figure.axes[0].lines}
    assert styles["autoattack"] == "None", "points alone where an attack ran at some of the eps"
    assert styles["worst"] == styles["pgd_ce"] == "-"
    assert {line.get_label() for line in figure.axes[0].lines} == {f"{name} (10 images)" for name in (*names, "worst")}


# -- the command line


PGDS = "[{class_path: PGD, init_args: {objective: loss}}, PGD]"


def test_command_line(hem_command, tmp_path):
    """Any checkpoint of a classification is attacked by a config; the curve lies in the run folder."""
    debug = ("--config", "configs/trainer/debug.yaml", "--trainer.enable_progress_bar", "false")
    digits = ("--config", "configs/classification/digits.yaml", "--config", "configs/loss/hem.yaml")
    assert hem_command("fit", *digits, *debug, "--run_dir", tmp_path / "a").code == 0
    outcome = hem_command(
        "test", *digits, *debug, "--run_dir", tmp_path / "b", "--ckpt_path", tmp_path / "a/checkpoints/last.ckpt",
        "--model", "AdversarialTask", "--model.linf", "[0.1]", "--model.attacks", PGDS,
        "--model.steps", 2, "--model.images", 20, "--model.square_queries", 5,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert "test/robust_accuracy/linf/0.1/worst" in results["metrics"]
    assert results["metrics"]["test/images/pgd_margin"] == 20
    assert {"robustness.csv", "robustness.png", "masking.json"} <= {path.name for path in (tmp_path / "b").iterdir()}
