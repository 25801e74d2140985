"""Segmentation on two processes is that on one: the training of HEM by pixels, and every figure of the test."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from hem.datamodules import MaskFolder, SegmentationDataModule
from hem.losses import HEMLoss
from hem.modules import SegmentationTask
from tests.datamodules.mask_trees import mask_folder_tree
from tests.processes import Processes

pytestmark = pytest.mark.slow


def work(root: str, devices: int) -> None:
    """Train and test; the first rank writes down the figures and a weight."""
    torch.manual_seed(0)
    # no batch normalisation, whose statistics are per process
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    data = SegmentationDataModule(
        MaskFolder(["a", "b", "c"], image_size=(24, 32)),
        root=root,
        batch_size=4,
        eval_batch_size=4,
        crop_size=(16, 16),
        unknown_classes=["b"],
        val_fraction=0.25,
    )
    task = SegmentationTask(
        net, HEMLoss(margin=0.5), partial(torch.optim.SGD, lr=0.5), num_classes=2, unknown_index=data.unknown_index
    )
    trainer = Trainer(max_epochs=3, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
                      logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      num_sanity_val_steps=0, use_distributed_sampler=False)  # fmt: skip
    trainer.fit(task, datamodule=data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
    trainer.test(task, datamodule=data, verbose=False)
    found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    found["weight"] = net[0].weight.flatten().tolist()
    if trainer.is_global_zero:
        with open(f"{root}/{devices}.json", "w") as file:
            json.dump(found, file)


def test_two_processes_are_one(tmp_path):
    """The 7 test images make batches of 4 and 3, which two processes share 2 + 2 and 2 + 1; masks have void pixels,
    other numbers on each side."""
    mask_folder_tree(tmp_path, n=8, classes=3)
    (tmp_path / "test" / "images" / "7.png").unlink()
    for devices in (1, 2):
        done = Processes(work, str(tmp_path), devices, ranks=devices).wait()
        assert done.code == 0, done.err
    one, two = (json.loads((tmp_path / f"{devices}.json").read_text()) for devices in (1, 2))
    assert one.keys() == two.keys()
    assert {"val/miou", "test/miou", "test/iou/0", "test/loss", "test/unknown/auroc_msp"} <= one.keys()
    for name, expected in one.items():
        assert two[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name
