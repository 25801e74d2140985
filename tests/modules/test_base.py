"""The step of a task: exact over micro-batches and devices, the same with the learnt samples left out."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hem.losses import LOSSES, DiceLoss, FocalLoss, HEMLoss, HEMPlusLoss, MultiMarginLoss
from hem.metrics import sample_losses
from hem.modules import ClassificationTask
from hem.networks import ResNet8
from hem.runs.checkpoints import check_state
from tests.trainers import QUIET

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
CLASSES = 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def samples(n: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    input = torch.rand(n, 1, 3, 3, generator=generator)
    target = (4 * input[:, 0, 0, 0]).long()  # learnable, so that some samples lose their error
    return TensorDataset(input, target)


def sgd(params):
    return torch.optim.SGD(params, lr=0.5)


def train(loss: nn.Module, batch_size: int, epochs: int = 3, accumulate: int = 1, **kwargs) -> ClassificationTask:
    task = ClassificationTask(net(), loss, optimizer=sgd, num_classes=CLASSES, **kwargs)
    trainer = Trainer(max_epochs=epochs, accumulate_grad_batches=accumulate, log_every_n_steps=1, **QUIET)
    trainer.fit(task, DataLoader(samples(), batch_size=batch_size))
    return task


def make(name: str) -> nn.Module:
    loss = LOSSES[name]
    counted = ("hem_plus", "logit_adjusted", "ldam", "class_balanced", "balanced_softmax")
    return loss(class_counts=[5, 6, 6, 7]) if name in counted else loss()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "dice"])
def test_accumulated_step_is_the_step_of_the_whole_batch(name):
    """Micro-batches of 8 (and a last, incomplete accumulation) give the weights of batches of 16 and 8."""
    whole = train(make(name), batch_size=16)
    parts = train(make(name), batch_size=8, accumulate=2)
    for expected, got in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_plain_accumulation_would_differ():
    """The mean of HEM's micro-batch means is another step: what the test above would miss if it could not fail."""

    class Plain(ClassificationTask):
        def on_before_optimizer_step(self, optimizer):
            pass

        def _loss_scopes(self):
            from contextlib import ExitStack

            return ExitStack()

    whole = train(HEMLoss(), batch_size=16)
    task = Plain(net(), HEMLoss(), optimizer=sgd, num_classes=CLASSES)
    Trainer(max_epochs=3, accumulate_grad_batches=2, **QUIET).fit(task, DataLoader(samples(), batch_size=8))
    differences = [(a - b).abs().max() for a, b in zip(whole.net.parameters(), task.net.parameters(), strict=True)]
    assert max(differences) > 1e-3


class Rows(Logger):
    """Keeps what it is handed."""

    name, version = "rows", 0

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows[step] = metrics


def test_one_logit_for_two_classes_is_refused():
    """It would be argued over as class 0 for ever: the accuracy would be that of a constant."""
    task = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), HEMLoss(), num_classes=2)
    data = DataLoader(TensorDataset(torch.rand(4, 1, 2, 2), torch.zeros(4).long()), batch_size=2)
    with pytest.raises(ValueError, match=r"Expected 2 logits of the network for each sample.*got shape \(2, 1\)"):
        Trainer(max_epochs=1, **QUIET).fit(task, data)


def test_two_classes_of_one_name_are_refused():
    """The figures of one would be overwritten by those of the other."""
    with pytest.raises(ValueError, match="Expected class names that differ, got 'crane' more than once"):
        ClassificationTask(net(), HEMLoss(), num_classes=3, class_names=["crane", "cat", "crane"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_row_holds_the_metrics_of_its_own_step(accumulate):
    """Every third step has a row; loss and accuracy in it are those of that step's last micro-batch.

    The loss is the mean over all of its samples, and the one that is trained, over those with error, stands beside it.
    """
    seen, logged = [], []

    class Watched(ClassificationTask):
        def training_loss(self, logits, target):
            loss = super().training_loss(logits, target)
            mean = sample_losses(self.loss, logits, target).mean().item()
            seen.append((loss.item(), mean, (logits.argmax(1) == target).float().mean().item()))
            return loss

        def measure(self, stage, logits, target, name="plain"):
            logged.append(len(seen))
            super().measure(stage, logits, target, name)

    logger = Rows()
    trainer = Trainer(
        max_epochs=2, accumulate_grad_batches=accumulate, log_every_n_steps=3, **QUIET | {"logger": logger}
    )
    task = Watched(net(), HEMLoss(), optimizer=sgd, num_classes=CLASSES)
    trainer.fit(task, DataLoader(samples(), batch_size=4 // accumulate, shuffle=True))
    assert len(seen) == 12 * accumulate
    rows = {step: row for step, row in logger.rows.items() if "train/loss" in row}
    assert sorted(rows) == [2, 5, 8, 11]
    for step, row in rows.items():
        loss, mean, accuracy = seen[(step + 1) * accumulate - 1]
        assert row["train/loss"] == pytest.approx(mean, rel=1e-6)
        assert row["train/active_loss"] == pytest.approx(loss, rel=1e-6)
        assert loss >= mean - 1e-6
        assert row["train/accuracy"] == pytest.approx(accuracy)
        assert "train/active" in row
    assert len({row["train/loss"] for row in rows.values()}) == 4
    assert len(logged) == 4 * accumulate  # nothing is handed over in between
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(seen[-1][1], rel=1e-6)


def test_the_loss_falls_while_its_mean_over_samples_with_error_rises():
    """What HEM divides by gets fewer, the hard samples: its own value rises while the network learns.

    ``val/loss``, over all samples, falls, so that the best epoch by loss is not the first.
    """
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(128) % CLASSES
    input = 0.3 * torch.rand(128, 9, generator=generator)
    input[torch.arange(128), target] += 0.7
    wrong = torch.arange(128) % 11 == 0  # labels that a small network does not learn
    data = TensorDataset(input.view(-1, 1, 3, 3), torch.where(wrong, (target + 1) % CLASSES, target))
    logger = Rows()
    trainer = Trainer(max_epochs=28, log_every_n_steps=1, **QUIET | {"logger": logger})
    task = ClassificationTask(net(), HEMLoss(), optimizer=lambda p: torch.optim.SGD(p, lr=0.2), num_classes=CLASSES)
    trainer.fit(task, DataLoader(data, batch_size=64), DataLoader(data, batch_size=32))
    rows = [row for row in logger.rows.values() if "val/loss" in row]
    losses, means, active, accuracies = (
        [row[f"val/{name}"] for row in rows] for name in ("loss", "active_loss", "active", "accuracy")
    )
    assert accuracies[-1] > accuracies[14] > accuracies[0]
    assert means[-1] > 1.5 * means[14], "HEM's own value says the opposite"
    assert losses[-1] < 0.7 * losses[14] < 0.7 * losses[0]
    for loss, mean, share in zip(losses, means, active, strict=True):
        assert loss == pytest.approx(share * mean, rel=1e-5)


def test_the_last_step_of_an_epoch_is_there_for_callbacks():
    """Also where an epoch is shorter than the interval of the loggers, or these are switched off."""
    for every in (0, 50):
        trainer = Trainer(max_epochs=1, log_every_n_steps=every, **QUIET)
        task = ClassificationTask(net(), HEMLoss(), optimizer=sgd, num_classes=CLASSES)
        trainer.fit(task, DataLoader(samples(), batch_size=8))
        assert {"train/loss", "train/accuracy"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize(("width", "stride", "kept"), [(4, 2, True), (15, 2, True), (16, 2, False), (4, 1, False)])
def test_networks_that_channels_last_would_train_wrongly_stay_as_they_are(width, stride, kept):
    """A 1x1 convolution with a stride and few channels; its gradient is that of float64."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 32, 1, stride), nn.Flatten(), nn.LazyLinear(CLASSES)
    )
    images, target = torch.rand(8, 3, 64, 64), torch.arange(8) % CLASSES
    backbone(images)
    expected = copy.deepcopy(backbone).double()
    task = ClassificationTask(backbone, HEMLoss(), num_classes=CLASSES)
    assert backbone[0].weight.is_contiguous(memory_format=torch.channels_last) is not kept
    HEMLoss()(task(images), target).backward()
    HEMLoss()(expected(images.double()), target).backward()
    torch.testing.assert_close(backbone[1].weight.grad.double(), expected[1].weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last_is_the_same_network(channels_last):
    torch.manual_seed(0)
    backbone = ResNet8(num_classes=CLASSES)
    expected = copy.deepcopy(backbone)
    task = ClassificationTask(backbone, HEMLoss(), num_classes=CLASSES, channels_last=channels_last)
    stem = next(module for module in task.net.modules() if isinstance(module, nn.Conv2d))
    assert stem.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(task(images), expected(images), rtol=1e-4, atol=1e-5)
    task.load_state_dict({f"net.backbone.{name}": value for name, value in expected.state_dict().items()})
    assert stem.weight.is_contiguous(memory_format=torch.channels_last) is channels_last  # whatever a checkpoint's is


@pytest.mark.parametrize("loss", [HEMLoss(margin=0.5), HEMPlusLoss(class_counts=[5, 6, 6, 7], m=20), MultiMarginLoss()])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_skip_separated_gives_the_same_weights(loss, accumulate):
    whole = train(copy.deepcopy(loss), batch_size=12, epochs=12, accumulate=accumulate)
    skipping = train(copy.deepcopy(loss), batch_size=12, epochs=12, accumulate=accumulate, skip_separated=True)
    for expected, got in zip(whole.net.parameters(), skipping.net.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_skip_separated_runs_the_active_samples_alone():
    sizes = []
    task = ClassificationTask(net(), HEMLoss(), optimizer=sgd, num_classes=CLASSES, skip_separated=True)
    input, target = samples().tensors
    with torch.no_grad():
        active = int((sample_losses(task.loss, task(input), target) > 0).sum())
    task.net.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    logits = task._logits_of_active(input, target)
    assert sizes == [len(input), active]
    assert 0 < active <= len(input)
    assert logits.requires_grad


def test_skip_separated_with_nothing_left_to_learn():
    """A batch without any error gives a step with zero gradient, not a missing graph."""
    task = ClassificationTask(net(), HEMLoss(), optimizer=sgd, num_classes=CLASSES, skip_separated=True)
    with torch.no_grad():
        task.net.backbone[-1].weight.zero_()
        task.net.backbone[-1].bias.copy_(torch.tensor([100.0, 0, 0, 0]))
    input = torch.rand(6, 1, 3, 3)
    loss = task.loss(task._logits_of_active(input, torch.zeros(6, dtype=torch.long)), torch.zeros(6, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in task.net.parameters())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(9), nn.Dropout(0.5)])
def test_skip_separated_refuses_networks_whose_samples_mix(layer):
    mixed = nn.Sequential(nn.Flatten(), layer, nn.Linear(9, CLASSES))
    with pytest.raises(ValueError, match=r"skip_separated needs a network .* group or layer normalisation"):
        ClassificationTask(mixed, HEMLoss(), num_classes=CLASSES, skip_separated=True)


def test_skip_separated_refuses_losses_of_batches():
    task = ClassificationTask(net(), DiceLoss(), optimizer=sgd, num_classes=CLASSES, skip_separated=True)
    with pytest.raises(ValueError, match="skip_separated needs a loss of each sample, which DiceLoss has not"):
        task._logits_of_active(*samples().tensors)


def test_compiled_network_keeps_its_names():
    plain = ClassificationTask(net(), FocalLoss(), num_classes=CLASSES)
    compiled = ClassificationTask(net(), FocalLoss(), num_classes=CLASSES, compile=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys()


def test_check_state_says_what_differs():
    task = ClassificationTask(net(), HEMLoss(), num_classes=CLASSES)
    state = task.state_dict()
    check_state(task, state)
    name = "net.backbone.3.weight"
    with pytest.raises(ValueError, match=r"its net.backbone.3.weight has shape \(7, 16\), this config's \(4, 16\)"):
        check_state(task, {**state, name: torch.zeros(7, 16)})
    with pytest.raises(ValueError, match="it lacks 1 of this config's tensors"):
        check_state(task, {k: v for k, v in state.items() if k != name})


def test_names_of_classes_must_fit():
    with pytest.raises(ValueError, match="got 3 names for 4 classes"):
        ClassificationTask(net(), HEMLoss(), num_classes=4, class_names=["a", "b", "c"])
