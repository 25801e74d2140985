"""Two processes do what one does: real ones, talking through gloo."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn import functional as F

from hem.datamodules import DigitsDataModule
from hem.datamodules.augment import MixUp, RandomCrop
from tests.processes import Processes

pytestmark = pytest.mark.slow


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(64, 10)
        self.norm = torch.nn.BatchNorm1d(10, affine=False)  # its buffers are broadcast
        self.seen = {"train": [], "val": [], "test": []}

    def step(self, batch, part):
        self.seen[part].append(batch.index.tolist())
        return F.cross_entropy(self.linear(batch.input.flatten(1)), batch.target)

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.norm(self.linear(batch.input.flatten(1)))
        # a collective in every step
        self.log("val", self.step(batch, "val"), on_step=True, sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def predict_step(self, batch, batch_idx):
        return batch.index

    def configure_optimizers(self):
        return torch.optim.SGD(self.linear.parameters(), 0.5)


def work(out: str, devices: int, size: int) -> None:
    """Train, test and predict; every rank writes down which images it saw, and the weights."""
    data = DigitsDataModule(batch_size=100, eval_batch_size=size, augment=[RandomCrop(1), MixUp()])
    trainer = Trainer(max_epochs=2, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
                      logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    net = Net()
    trainer.fit(net, datamodule=data)
    trainer.test(net, datamodule=data, verbose=False)
    predicted = trainer.predict(net, datamodule=data)
    net.seen["predict"] = [index.tolist() for index in predicted]
    net.seen["weight"] = net.linear.weight.tolist()
    with open(f"{out}/{devices}-{trainer.global_rank}.json", "w") as file:
        json.dump(net.seen, file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    for devices in (1, 2):
        # 31 samples a step: odd, and no divisor of validation's 145 and test's 359 samples
        done = Processes(work, str(folder), devices, 31, ranks=devices).wait()
        assert done.code == 0, done.err
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")}


def test_steps_are_the_same(runs):
    for part in ("train", "val", "test", "predict"):
        together = [a + b for a, b in zip(runs["2-0"][part], runs["2-1"][part], strict=True)]
        assert together == runs["1-0"][part]


@pytest.mark.parametrize(("part", "times", "size"), [("val", 2, 145), ("test", 1, 359), ("predict", 1, 359)])
def test_evaluation_counts_once(runs, part, times, size):
    indices = [i for rank in ("2-0", "2-1") for batch in runs[rank][part] for i in batch]
    assert len(indices) == times * size
    assert len(set(indices)) == size


def test_weights_are_those_of_one_process(runs):
    rows = zip(runs["1-0"]["weight"], runs["2-0"]["weight"], runs["2-1"]["weight"], strict=True)
    for one, first, second in rows:
        assert first == second
        assert first == pytest.approx(one, abs=1e-5)
