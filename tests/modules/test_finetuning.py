"""Fine-tuning: learning rates by depth, an encoder that stands still, for every task."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from hem.modules import ClassificationTask, ContinualTask, LongTailTask
from hem.modules.finetuning import depths, groups
from hem.networks import LeNet, Named, ResNet8
from tests.trainers import QUIET

CLASSES = 4


def samples() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    input = torch.rand(12, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(input, torch.arange(12) % CLASSES), batch_size=6)


def lenet() -> LeNet:
    torch.manual_seed(0)
    return LeNet(CLASSES, image_size=(8, 8))


class Watched(ClassificationTask):
    """Notes the rates and whether the encoder moves, its statistics too."""

    def on_train_epoch_end(self):
        self.rates = [group["lr"] for group in self.optimizers().param_groups]
        self.seen = [*getattr(self, "seen", []), {k: v.clone() for k, v in self.net.backbone.state_dict().items()}]


def fit(task, epochs=1, **kwargs) -> Trainer:
    trainer = Trainer(max_epochs=epochs, **QUIET, **kwargs)
    trainer.fit(task, samples(), samples())
    return trainer


def task(kind=Watched, net=None, schedule=None, **kwargs):
    optimizer = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    if kind is LongTailTask:
        kwargs["class_counts"] = [3] * CLASSES
    return kind(net or lenet(), nn.CrossEntropyLoss(), optimizer, schedule, "step", num_classes=CLASSES, **kwargs)


@pytest.mark.parametrize("kind", [ClassificationTask, LongTailTask])
def test_every_task_trains_its_encoder_at_a_rate_of_its_own(kind):
    made = task(kind, encoder_lr=0.1)
    encoder, rest = fit(made).optimizers[0].param_groups
    assert {id(p) for p in encoder["params"]} == {id(p) for p in made.net.backbone.body.parameters()}
    assert {id(p) for p in rest["params"]} == {id(p) for p in made.net.backbone.head.parameters()}
    assert [encoder["lr"], rest["lr"]] == pytest.approx([0.02, 0.2])


def test_a_schedule_with_one_rate_keeps_the_proportion():
    """OneCycleLR would give every group the one number that a config has."""
    made = task(schedule=partial(OneCycleLR, max_lr=0.2, total_steps=None), encoder_lr=0.1)
    optimizer = fit(made).optimizers[0]
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.2])
    made = task(schedule=partial(CosineAnnealingLR, T_max=4), encoder_lr=0.1)
    fit(made)
    assert made.rates[0] == pytest.approx(0.1 * made.rates[1])


def test_the_rates_of_a_transformer_fall_from_layer_to_layer():
    net = Named("test_vit", CLASSES, 1, (8, 8), options={"patch_size": 4})
    found = groups(net, encoder_lr=0.5, layer_decay=0.7)
    assert sum(len(group.params) for group in found) == len(list(net.parameters()))
    scale = {id(p): group.scale for group in found for p in group.params}
    of = {name: scale[id(p)] for name, p in net.named_parameters()}
    count = max(depths(net.body).values()) + 1
    assert of["head.weight"] == 1
    assert of["body.pos_embed"] == of["body.patch_embed.proj.weight"] == pytest.approx(0.5 * 0.7**count)
    blocks = [of[f"body.blocks.{k}.mlp.fc1.weight"] for k in range(len(net.body.blocks))]
    assert [later / earlier for earlier, later in pairwise(blocks)] == pytest.approx([1 / 0.7] * (len(blocks) - 1))


def test_the_depth_of_a_librarys_and_of_our_layers():
    ours = depths(ResNet8().encoder)
    assert next(iter(ours.values())) == 0
    assert max(ours.values()) >= 3  # the stem and three stages
    assert list(ours.values()) == sorted(ours.values())
    with torch.device("meta"):
        theirs = depths(Named("vit_b_16").body)
        own = timm.create_model("vit_tiny_patch16_224")
    order = [theirs[f"encoder.layers.encoder_layer_{k}.ln_1.weight"] for k in range(12)]
    assert order == list(range(order[0], order[0] + 12))
    assert theirs["conv_proj.weight"] < order[0] < theirs["encoder.ln.weight"]
    assert depths(own)["blocks.3.norm1.weight"] == depths(own)["blocks.2.norm1.weight"] + 1


def same(a: dict, b: dict, part: str) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a if key.startswith(part))


def test_an_encoder_stands_still_for_some_epochs():
    """Its weights, its BatchNorm statistics, its counters; the validation between does not wake it."""
    made = task(frozen_epochs=2)
    before = {k: v.clone() for k, v in made.net.backbone.state_dict().items()}
    fit(made, epochs=3)
    first, second, third = made.seen
    assert same(before, first, "body.")
    assert same(before, second, "body.")
    assert not same(before, first, "head.")
    moved = [key for key in before if key.startswith("body.") and not torch.equal(before[key], third[key])]
    assert "body.0.weight" in moved
    assert "body.1.running_mean" in moved


def test_an_encoder_stands_still_for_good():
    made = task(frozen_epochs="all", encoder_lr=0.5)
    before = {k: v.clone() for k, v in made.net.backbone.state_dict().items()}
    trainer = fit(made, epochs=2)
    assert same(before, made.seen[-1], "body.")
    assert not same(before, made.seen[-1], "head.")
    (group,) = trainer.optimizers[0].param_groups
    assert len(group["params"]) == 2
    assert group["lr"] == 0.2


def test_a_resumed_run_lets_the_encoder_go_when_the_uninterrupted_one_does(hem_command, tmp_path):
    common = ("--config", "configs/classification/digits.yaml", "--model.frozen_epochs", 2, "--model.encoder_lr", 0.5,
              "--trainer.max_epochs", 3, "--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1,
              "--trainer.log_every_n_steps", 1,
              "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")  # fmt: skip
    for run, stops in (("whole", [3]), ("parts", [1, 3])):
        for stop in stops:
            arguments = ("--trainer.max_epochs", stop, "--run_dir", tmp_path / run, "--ckpt_path", "auto")
            schedule = ("--model.lr_scheduler.total_steps", 6)
            assert hem_command("fit", *common, *schedule, *arguments).code == 0
    states = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "parts")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"encoder_lr": 0}, "above 0, got 0"),
        ({"layer_decay": 1.5}, r"layer_decay, a factor of the learning rate, in \(0, 1\], got 1.5"),
        ({"frozen_epochs": -1}, "0 or more, or all, got -1"),
        ({"net": nn.Flatten(), "frozen_epochs": "all"}, "its attribute `encoder`, which Flatten has not"),
        ({"net": nn.Flatten(), "layer_decay": 0.5}, "its attribute `encoder`, which Flatten has not"),
        ({"kind": ContinualTask, "frozen_epochs": 1}, "A stream begins its optimiser anew.*not 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        task(**arguments)


def test_a_schedule_that_overrides_the_rates_is_refused():
    made = task(schedule=partial(OneCycleLR, max_lr=[0.2, 0.2], total_steps=10), encoder_lr=0.1)
    with pytest.raises(ValueError, match=r"rates in the proportion 0.1, 1, got 0.008, 0.008 from the schedule"):
        fit(made)


def test_devices_that_wait_for_gradients_are_told():
    """An encoder that is held for some epochs has none to share; DDP would stop with a message of its own."""
    made = task(frozen_epochs=1)
    wrapped = SimpleNamespace(find_unused_parameters=False)
    made._trainer = SimpleNamespace(current_epoch=0, strategy=SimpleNamespace(model=wrapped))
    with pytest.raises(ValueError, match=r"set trainer.strategy to ddp_find_unused_parameters_true"):
        made.on_train_start()
