"""The task over a stream: its metrics, its masks, and that a run goes on as if nothing had happened."""

import csv
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from hem.datamodules import ContinualDataModule, DigitsDataModule
from hem.losses import LOSSES, HEMLoss, LogitAdjustedLoss, SumLoss
from hem.metrics.transfer import transfer
from hem.modules import ContinualTask
from hem.networks import MLP
from hem.runs import AtomicCheckpointIO
from hem.strategies import EWC, SI, STRATEGIES, DERPlusPlus, Joint, LwF, Replay
from hem.strategies.classes import among, among_targets
from tests import processes

pytestmark = [
    # a copy of a run goes on in a folder of its own
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]
ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/continual/digits.yaml"
DEBUG = ("--config", "configs/trainer/debug.yaml", "--trainer.enable_progress_bar", "false")

# -- metrics -------------------------------------------------------------------------------------------------

MATRIX = [[0.9, 0.3, 0.1, 0.2], [0.95, 0.8, 0.4, 0.1], [0.6, 0.9, 0.7, 0.35], [0.5, 0.4, 0.75, 0.85]]
BASELINE = [0.15, 0.1, 0.05, 0.2]


def test_transfer_by_hand():
    figures = transfer(MATRIX, BASELINE)
    assert figures["average_accuracy"] == pytest.approx((0.5 + 0.4 + 0.75 + 0.85) / 4)
    assert figures["average_incremental_accuracy"] == pytest.approx(
        (0.9 + (0.95 + 0.8) / 2 + (0.6 + 0.9 + 0.7) / 3 + 0.625) / 4
    )
    assert figures["forgetting"] == pytest.approx(((0.95 - 0.5) + (0.9 - 0.4) + (0.7 - 0.75)) / 3)
    assert figures["backward_transfer"] == pytest.approx(((0.5 - 0.9) + (0.4 - 0.8) + (0.75 - 0.7)) / 3)
    assert figures["forward_transfer"] == pytest.approx(((0.3 - 0.1) + (0.4 - 0.05) + (0.35 - 0.2)) / 3)


def test_transfer_by_loops():
    """Random matrices of one to six tasks, also behind fewer tasks than there are."""
    random = torch.Generator().manual_seed(0)
    for tasks in range(1, 7):
        for k in range(1, tasks + 1):
            r = torch.rand(k, tasks, generator=random, dtype=torch.float64).tolist()
            b = torch.rand(tasks, generator=random, dtype=torch.float64).tolist()
            got = transfer(r, b)
            averages = [sum(r[m][: m + 1]) / (m + 1) for m in range(k)]
            expected = {"average_accuracy": averages[-1], "average_incremental_accuracy": sum(averages) / k}
            if k > 1:
                expected["forgetting"] = sum(max(r[m][i] for m in range(k - 1)) - r[k - 1][i] for i in range(k - 1)) / (
                    k - 1
                )
                expected["backward_transfer"] = sum(r[k - 1][i] - r[i][i] for i in range(k - 1)) / (k - 1)
                expected["forward_transfer"] = sum(r[i - 1][i] - b[i] for i in range(1, k)) / (k - 1)
            assert got == pytest.approx(expected, abs=1e-9)
            assert "forward_transfer" not in transfer(r)


@pytest.mark.parametrize("matrix", [[], [[0.5], [0.5]], [[0.5, 0.5]]])
def test_no_matrix(matrix):
    with pytest.raises(ValueError, match=r"Expected rows of T accuracies"):
        transfer(matrix, [0.1] if matrix and len(matrix[0]) == 2 else None)


# -- losses among some of the classes ------------------------------------------------------------------------

COUNTS = [50, 20, 10, 40, 5, 30]
CLASSES = torch.tensor([0, 2, 3])


def build(name: str, counts: list[int], **arguments) -> nn.Module:
    needs = name in ("hem_plus", "logit_adjusted", "ldam", "class_balanced", "balanced_softmax")
    return LOSSES[name](**({"class_counts": counts} if needs else {}), **arguments)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_left_out_logits_are_no_errors(name, soft):
    """The loss is that of the problem with the remaining classes, whatever the other logits are; they get no gradient.

    Put to -inf instead, they would make LogitNorm's norm infinite and count among HEM's and multi-margin's C.
    """
    random = torch.Generator().manual_seed(1)
    small = torch.randn(8, 3, generator=random, dtype=torch.float64)
    target = torch.randint(3, (8,), generator=random)
    if soft:
        target = torch.rand(8, 3, generator=random, dtype=torch.float64).softmax(1)
    expected = build(name, [COUNTS[c] for c in CLASSES.tolist()])(small, target)
    criterion = build(name, COUNTS)
    for others in (-3.0, 1e4, torch.nan):
        logits = torch.full((8, 6), others, dtype=torch.float64)
        logits[:, CLASSES] = small
        logits.requires_grad_()
        given = torch.zeros(8, 6, dtype=torch.float64).index_copy(1, CLASSES, target) if soft else CLASSES[target]
        loss = among(criterion, CLASSES, 6)(logits[:, CLASSES], among_targets(given, CLASSES, 6))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        loss.backward()
        assert (logits.grad[:, [1, 4, 5]] == 0).all()
        assert logits.grad[:, CLASSES].isfinite().all()
    if hasattr(criterion, "class_counts"):
        assert criterion.class_counts.tolist() == COUNTS, "the loss itself is as it was"


@pytest.mark.parametrize("name", ["ce", "hem", "focal"])
def test_class_weights_follow(name):
    weight = [1.0, 2.0, 3.0, 0.5, 5.0, 6.0]
    logits, target = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    whole = among(LOSSES[name](weight=torch.tensor(weight)), CLASSES, 6)
    part = LOSSES[name](weight=torch.tensor([1.0, 3.0, 0.5]))
    assert torch.equal(whole(logits, target), part(logits, target))


def test_given_counts_take_the_place_of_the_loss_s_own():
    loss = LogitAdjustedLoss(class_counts=COUNTS)
    counts = torch.arange(1.0, 7.0, dtype=torch.float64)
    assert among(loss, CLASSES, 6, counts).class_counts.tolist() == [1, 3, 4]
    assert among(nn.CrossEntropyLoss(), CLASSES, 6, counts)._buffers == {"weight": None}


def test_the_losses_of_a_sum_are_restricted_each():
    counts = torch.arange(1.0, 7.0, dtype=torch.float64)
    whole = SumLoss([LOSSES["hem"](weight=counts.float()), LogitAdjustedLoss(class_counts=COUNTS)], [0.5, 2.0])
    logits, target = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
    parts = [LOSSES["hem"](weight=[1.0, 3.0, 4.0]), LogitAdjustedLoss(class_counts=[1, 3, 4])]
    expected = 0.5 * parts[0](logits, target) + 2 * parts[1](logits, target)
    torch.testing.assert_close(among(whole, CLASSES, 6, counts)(logits, target), expected)
    assert whole.losses[1].class_counts.tolist() == COUNTS, "the loss itself is as it was"


def test_ignored_targets_stay():
    assert among_targets(torch.tensor([3, -100, 0]), CLASSES, 6).tolist() == [2, -100, 0]


# -- runs ----------------------------------------------------------------------------------------------------


class Recorded(ContinualTask):
    """Keeps the samples that the loss saw, and the classes that got a gradient, by epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.touched = {}, {}

    def loss_of(self, logits, target, index):
        self.seen.setdefault(self.current_epoch, []).extend(index.tolist())
        touched = self.touched.setdefault(self.current_epoch, set())
        logits.register_hook(lambda g: touched.update((g != 0).any(0).nonzero()[:, 0].tolist()))
        return super().loss_of(logits, target, index)


def fit(folder, strategy=None, *, epochs=10, ckpt_path=None, loss=None, task=ContinualTask, mask="unseen",
        counts="stream", seed=0, **data):  # fmt: skip
    """Train a small perceptron on a stream of digits in this process; every epoch's checkpoint is kept."""
    seed_everything(seed, verbose=False)
    stream = ContinualDataModule(DigitsDataModule(), seed=seed, **{"batch_size": 64, **data})
    net = MLP(stream.num_classes, image_size=(8, 8), widths=[24])
    module = task(net, loss or nn.CrossEntropyLoss(), strategy=strategy, mask=mask, counts=counts,
                  num_classes=stream.num_classes, mean=stream.mean, std=stream.std)  # fmt: skip
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[keep], default_root_dir=folder,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
                      reload_dataloaders_every_n_epochs=1, plugins=[AtomicCheckpointIO()],
                      log_every_n_steps=1)  # fmt: skip
    trainer.fit(module, datamodule=stream, ckpt_path=ckpt_path)
    return module, stream, trainer


def same_weights(first, second) -> bool:
    pairs = zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


MAKERS = {
    **STRATEGIES,
    "naive": lambda: None,
    "replay": lambda: Replay(30),
    "replay_balanced": lambda: Replay(30, balanced=True, per_step="epoch"),
    "derpp": lambda: DERPlusPlus(30),
    "ewc": lambda: EWC(10.0, samples=64),
}


def shown(folder, strategy, **more):
    """Train with the frequencies of the classes that were shown in the loss."""
    return fit(folder, strategy, loss=LogitAdjustedLoss(class_counts=[100] * 10), counts="presented", **more)[0]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """A function that returns the uninterrupted run of a strategy, trained once, and its folder."""
    root = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(name):
        return shown(root / name, MAKERS[name]()), root / name

    return run


@pytest.mark.parametrize("name", MAKERS)
def test_resumed_in_the_third_task(name, whole_runs, tmp_path):
    """From a checkpoint within the third task and from one before it: matrix and weights, bit for bit."""
    whole, checkpoints = whole_runs(name)
    assert len(whole.matrix) == 5
    assert not any(math.isnan(value) for row in whole.matrix for value in row)
    for epoch in (4, 3) if name == "derpp" else (4,):  # 4: within the third task; 3: behind the second
        checkpoint = checkpoints / f"epoch={epoch}.ckpt"
        resumed = shown(tmp_path / f"resumed{epoch}", MAKERS[name](), ckpt_path=checkpoint)
        assert resumed.matrix == whole.matrix
        assert resumed.baseline == whole.baseline
        assert same_weights(resumed, whole)
    state = torch.load(checkpoints / "epoch=4.ckpt", weights_only=True)
    assert all(key.startswith("net.") for key in state["state_dict"])


def test_strategies_do_something(whole_runs, tmp_path):
    """They end with other weights than fine-tuning does, and with strength 0 with the same ones, bit for bit."""
    naive, _ = whole_runs("naive")
    for name in MAKERS.keys() - {"naive"}:
        assert not same_weights(whole_runs(name)[0], naive), name
    for strategy in (EWC(0.0, samples=64), SI(0.0), LwF(0.0)):
        again = shown(tmp_path / type(strategy).__name__, strategy)
        assert again.matrix == naive.matrix
        assert same_weights(again, naive), type(strategy).__name__


def test_ewc_of_hem_without_strength_is_naive(tmp_path):
    naive, _, _ = fit(tmp_path / "naive", loss=HEMLoss(margin=0.5))
    ewc, _, trainer = fit(tmp_path / "ewc", EWC(0.0, samples=64), loss=HEMLoss(margin=0.5))
    assert same_weights(naive, ewc)
    assert trainer.callback_metrics["stream/importance"] > 0


def test_replay_of_everything_has_joint_training_s_distribution(tmp_path):
    """In an epoch of each task both see every sample so far once (but for the incomplete last batch)."""
    runs = [fit(tmp_path / str(n), strategy, task=Recorded, epochs=5)
            for n, strategy in enumerate((Replay(None, per_step="epoch"), Joint()))]  # fmt: skip
    stream = runs[0][1]
    for epoch in range(5):
        so_far = stream.part_of("train", range(epoch + 1))
        earlier = set(stream.part_of("train", range(epoch)).tolist()) if epoch else set()
        replay, joint = (run[0].seen[epoch] for run in runs)
        for seen in (replay, joint):
            assert len(set(seen)) == len(seen), "each once"
            assert set(seen) <= set(so_far.tolist())
            assert len(so_far) - len(seen) < 64
        assert earlier <= set(replay)
        targets = stream.images("train").targets
        shares = [torch.bincount(targets[seen], minlength=10) / len(seen) for seen in (replay, joint)]
        assert (shares[0] - shares[1]).abs().max() < 0.03


@pytest.mark.parametrize(
    ("mask", "loss"),
    [("none", nn.CrossEntropyLoss()), ("unseen", HEMLoss(margin=0.5)), ("other_tasks", nn.CrossEntropyLoss())],
)
def test_masks(mask, loss, tmp_path):
    """Which classes get a gradient in which task."""
    module, stream, _ = fit(tmp_path, Replay(30), task=Recorded, epochs=5, mask=mask, loss=loss)
    for task in range(5):
        expected = {"none": set(range(10)), "unseen": set(stream.seen(task).tolist()),
                    "other_tasks": set(stream.seen(task).tolist())}[mask]  # fmt: skip
        assert module.touched[task] == expected


def test_the_loss_of_own_tasks_is_the_mean_of_groups(tmp_path):
    """`other_tasks`: each sample among the classes of its own task, the tasks weighted by their samples."""
    module, stream, _ = fit(tmp_path, Replay(30), epochs=5, mask="other_tasks", loss=HEMLoss(margin=0.5))
    index = torch.cat([stream.part_of("train", [t])[: 3 + t] for t in (0, 3)])
    logits = torch.randn(len(index), 10)
    target = stream.images("train").targets[index]
    hem = HEMLoss(margin=0.5)
    expected = (3 * hem(logits[:3, :2], target[:3]) + 6 * hem(logits[3:, 6:8], target[3:] - 6)) / 9
    assert module.loss_of(logits, target, index).item() == pytest.approx(expected.item(), rel=1e-6)


def test_sample_gradients_are_those_of_single_samples(tmp_path):
    """Against one backward pass for each sample, with batch normalisation in evaluation mode."""
    module, stream, _ = fit(tmp_path, epochs=5, loss=HEMLoss(margin=0.5))
    found = list(module.sample_gradients(20, chunk=8))
    assert [len(part["backbone.head.weight"]) for part in found] == [8, 8, 4]
    got = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    index = stream.part_of("train", [4])
    from hem.rng import permutation

    index = index[permutation(len(index), stream.seed, 4)[:20].sort().values]
    batch = stream.on_after_batch_transfer(stream.fetched(index), 0)
    module.eval()
    active = 0
    for n in range(20):
        module.zero_grad()
        loss = module.loss_of(module(batch.input[n : n + 1]), batch.target[n : n + 1], index[n : n + 1])
        loss.backward()
        active += loss.item() > 0
        for name, p in module.net.named_parameters():
            assert torch.allclose(got[name][n], p.grad, atol=1e-6), name
    assert active > 0


def test_calibration_is_among_the_classes_that_are_seen(monkeypatch):
    """Of two tasks of five: no sample of a later one, and no later class in the softmax."""
    task = ContinualTask(nn.Flatten(), nn.CrossEntropyLoss())
    monkeypatch.setattr(ContinualTask, "stream", ContinualDataModule(DigitsDataModule()))
    task.matrix = [[0.0] * 5] * 2
    target, tasks = torch.tensor([0, 3, 4, 9]), torch.tensor([0, 1, 2, 4])
    logits, known = task._known(torch.arange(40.0).reshape(4, 10), target, tasks)
    assert known.tolist() == [0, 3]
    assert logits[0].softmax(0)[4:].sum() == 0
    assert logits[0, :4].isfinite().all()


def test_decisions_are_among_the_classes_of_the_scenario(tmp_path):
    """With the task known two classes are left; without, those seen or those up to the image's task."""
    module, stream, _ = fit(tmp_path / "a", epochs=5)
    images, index = stream.part("test")
    input, tasks = images.images[index].float() / 255, stream.task_of(index, "test")
    module.eval()
    early = module._among(module(input), tasks, 1).argmax(1)
    for t in range(5):
        assert early[tasks == t].max() < 2 * (max(t, 1) + 1)
    module.mask = "none"
    assert torch.equal(module._among(module(input), tasks, 1).argmax(1), module(input).argmax(1))
    stream.scenario = "task"
    assert torch.equal(module._among(module(input), tasks, -1).argmax(1) // 2, tasks)


def test_a_schedule_begins_anew_with_each_task(tmp_path):
    """A one-cycle schedule spans the steps of a task; the optimiser has no state of the task before."""
    rates = []

    class Watched(ContinualTask):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            rates.append((self.current, self.lr_schedulers().get_last_lr()[0]))

        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            if self.current_epoch % 2 == 0:
                assert not self.optimizers().state

        def configure_optimizers(self):
            from functools import partial

            self.lr_scheduler = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=None)
            self.lr_interval = "step"
            return super().configure_optimizers()

    fit(tmp_path, task=Watched)
    for task in range(5):
        own = [rate for t, rate in rates if t == task]
        assert max(own) == pytest.approx(0.05, rel=0.1)
        assert own[-2] < 0.001 * max(own), "of the last step; behind it, nobody uses the rate"


@pytest.mark.parametrize("scenario", ["task", "domain", "permuted"])
def test_scenarios_learn(scenario, tmp_path):
    """With replay, all tasks together well above chance behind the last one, and the last one well."""
    module, _, _ = fit(tmp_path, Replay(100, balanced=True), scenario=scenario,
                         mask="other_tasks", epochs=10, tasks=2 if scenario == "permuted" else 5)  # fmt: skip
    chance = 0.1 if scenario == "permuted" else 0.5
    assert sum(module.matrix[-1]) / len(module.matrix[-1]) > 1.3 * chance
    assert module.matrix[-1][-1] > 0.8


# -- from the command line -----------------------------------------------------------------------------------


def read_matrix(folder: Path) -> list[list[str]]:
    with open(folder / "accuracy_matrix.csv", newline="") as file:
        return list(csv.reader(file))


def test_run_folder(hem_command, tmp_path):
    """``fit`` writes the matrix as it goes, ``test`` gives it with its figures; others can examine the network."""
    common = ("--config", CONFIG, "--trainer.max_epochs", 5, "--trainer.enable_progress_bar", "false",
              "--trainer.accelerator", "cpu", "--run_dir", tmp_path / "run")  # fmt: skip
    outcome = hem_command("fit", *common)
    assert outcome.code == 0, outcome.err
    rows = read_matrix(tmp_path / "run")
    assert rows[0] == ["after", *(f"task_{t}" for t in range(1, 6))]
    assert [row[0] for row in rows[1:]] == list("012345")
    assert (tmp_path / "run" / "accuracy_matrix.png").stat().st_size > 1000
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        curves = [row for row in csv.DictReader(file) if row.get("stream/average_accuracy")]
    assert len(curves) == 5

    outcome = hem_command("test", *common, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    assert read_matrix(tmp_path / "run") == rows, "the last row once more, the others from the checkpoint"
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    matrix = [[metrics[f"test/accuracy_after/{k}/{i}"] for i in range(1, 6)] for k in range(6)]
    for got, row in zip(matrix, rows[1:], strict=True):  # Lightning logs in float32, the file has six digits
        assert got == pytest.approx([float(value) for value in row[1:]], abs=1e-6)
    assert metrics["test/tasks_learnt"] == 5
    for name, value in transfer(matrix[1:], matrix[0]).items():
        assert metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6)
    assert float(curves[-1]["stream/forgetting"]) == pytest.approx(metrics["test/forgetting"], abs=1e-6)
    images = len(DigitsDataModule().load("test"))
    counts = ContinualDataModule(DigitsDataModule()).task_of(torch.arange(images), "test").bincount().tolist()
    right = sum(share * count for share, count in zip(matrix[-1], counts, strict=True))
    assert metrics["test/accuracy"] == pytest.approx(right / images, abs=1e-6)
    assert hem_command("predict", *common, "--ckpt_path", "last").code == 0
    temperature = json.loads((tmp_path / "run" / "calibration.json").read_text())["temperature"]
    assert temperature == pytest.approx(metrics["test/temperature"])
    assert metrics["test/calibrated/nll"] < metrics["test/nll"]

    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    outcome = hem_command("test", "--config", "configs/classification/digits.yaml", "--ckpt_path", checkpoint,
                          "--run_dir", tmp_path / "examined")  # fmt: skip
    assert outcome.code == 0, outcome.err
    examined = json.loads((tmp_path / "examined" / "results.json").read_text())["metrics"]
    assert examined["test/accuracy"] == pytest.approx(metrics["test/accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.tasks", 11], "Expected at least as many classes as tasks, 11"),
        (["--model.strategy.size", 9], "a sample of each of the 10 classes, got size 9: set size to 10"),
        (["--data.scenario", "permuted", "--model.strategy.size", 49], "each of the 50 classes of all tasks"),
        (["--trainer.max_epochs", 7], "got max_epochs 7: set trainer.max_epochs to a multiple of 5"),
        (["--trainer.reload_dataloaders_every_n_epochs", 0], "set trainer.reload_dataloaders_every_n_epochs to 1"),
        (["--trainer.accumulate_grad_batches", 2], "got 2: set trainer.accumulate_grad_batches to 1"),
        (["--trainer.callbacks+", "GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 1, 1: 3}"],
         "got 3: set trainer.accumulate_grad_batches to 1"),
        (["--config", "configs/trainer/ema.yaml"], "got EMAWeightAveraging, whose averages"),
        (["--model.skip_separated", "true", "--model.net", "MLP", "--model.net.batch_norm", "false"],
         "leave skip_separated off"),
        (["--data", "DigitsDataModule"], "Expected a stream for ContinualTask, got DigitsDataModule"),
        (["--model.strategy", "Reply"], "unknown strategy 'Reply'; did you mean 'Replay'"),
        (["--model.mask", "all"], "got 'all'"),
        (["--config", "configs/strategy/derpp.yaml", "--data.augment", "[MixUp]"], "Expected single images for DER++"),
        (["--config", "configs/strategy/joint.yaml", "--data.scenario", "task", "--model.mask", "other_tasks",
          "--data.augment", "[MixUp]"], "got Joint with MixUp or CutMix over the images of all tasks"),
    ],
)  # fmt: skip
def test_bad_input(options, words, hem_command, tmp_path):
    epochs = () if "--trainer.max_epochs" in options else ("--trainer.max_epochs", 5)
    outcome = hem_command("fit", "--config", CONFIG, *DEBUG, *epochs, *options, "--run_dir", tmp_path)
    assert outcome.code in (1, 2)
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_checkpoint_within_a_task_leaves_the_matrix(hem_command, tmp_path):
    """Validated within epochs, ``best.ckpt`` is saved before the row of its task is there."""
    run = tmp_path / "run"
    common = ("--config", CONFIG, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
    outcome = hem_command("fit", *common, "--trainer.max_epochs", 5, "--trainer.val_check_interval", 0.5,
                          "--run_dir", run)  # fmt: skip
    assert outcome.code == 0, outcome.err
    matrix = (run / "accuracy_matrix.csv").read_text()
    assert len(matrix.splitlines()) == 7
    examine = ("test", "--run", run, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    outcome = hem_command(*examine)
    assert outcome.code == 0, outcome.err
    assert "last.ckpt" in json.loads((run / "results.json").read_text())["checkpoint"]
    assert len((run / "accuracy_matrix.csv").read_text().splitlines()) == 7
    matrix = (run / "accuracy_matrix.csv").read_text()
    outcome = hem_command(*examine, "--ckpt_path", run / "checkpoints" / "best.ckpt")
    assert outcome.code == 0, outcome.err
    assert "saved before its task ended" in outcome.out
    assert [each.read_text() for each in run.glob("accuracy_matrix*.csv")] == [matrix]  # with the results set aside


def test_resuming_what_cannot_be(hem_command, tmp_path):
    """With another strategy, or from a checkpoint of another task."""
    common = ("--config", CONFIG, *DEBUG, "--run_dir", tmp_path / "run")
    assert hem_command("fit", *common).code == 0
    outcome = hem_command("test", *common, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    assert "only 1 of the 5 tasks are learnt" in outcome.out
    (tmp_path / "run" / "config.yaml").unlink()  # which would say so as well
    for options, words in (
        (("--model.strategy", "Naive"), "trained with the strategy Replay, but the config has Naive"),
        (("--data.tasks", 2, "--trainer.max_epochs", 2), "of a stream of 5 tasks, but the config has 2"),
    ):
        outcome = hem_command("fit", *common, *options, "--ckpt_path", "last")
        assert outcome.code == 1
        assert words in outcome.err
    classifier = ("--config", "configs/classification/digits.yaml", *DEBUG, "--run_dir", tmp_path / "other")
    assert hem_command("fit", *classifier).code == 0
    (tmp_path / "other" / "config.yaml").unlink()
    checkpoint = tmp_path / "other" / "checkpoints" / "last.ckpt"
    outcome = hem_command("fit", *common[:-1], tmp_path / "third", "--ckpt_path", checkpoint)
    assert outcome.code == 1
    assert "holds no state of a stream" in outcome.err
    outcome = hem_command("test", *common[:-1], tmp_path / "third", "--ckpt_path", checkpoint)
    assert outcome.code == 0, "but its network can be tested on the tasks"


COMMAND = ["fit", "--config", CONFIG, "--config", "configs/strategy/derpp.yaml", "--config", "configs/loss/hem.yaml",
           "--trainer.max_epochs", "10", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
           "--trainer.enable_model_summary", "false"]  # fmt: skip


@pytest.mark.slow
def test_killed_in_the_third_task(hem_command, tmp_path):
    """Killed with SIGKILL in the third of five tasks and resumed from ``last``: the uninterrupted run's matrix."""
    assert hem_command(*COMMAND, "--run_dir", tmp_path / "whole").code == 0
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    processes.hem(*COMMAND, "--run_dir", folder).kill_after(5, last)
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert 4 <= epoch < 6, "in the third task"
    outcome = hem_command(*COMMAND, "--run_dir", folder, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err

    assert read_matrix(folder) == read_matrix(tmp_path / "whole")
    ends = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (folder, tmp_path / "whole")]
    assert ends[0]["continual"]["matrix"] == ends[1]["continual"]["matrix"]
    assert all(torch.equal(ends[0]["state_dict"][name], value) for name, value in ends[1]["state_dict"].items())
    memories = [end["continual"]["state"]["buffer"] for end in ends]
    assert all(torch.equal(memories[0][name], memories[1][name]) for name in memories[0])
