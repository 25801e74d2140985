"""What a YAML file may say about the data."""

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from hem.datamodules import DigitsDataModule, FolderDataModule, ImageDataModule, Subset
from hem.datamodules.augment import Cutout, MixUp, RandomCrop


class Half(Subset):
    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def counts(self, class_counts):
        return [int(self.share * n) for n in class_counts]

    def select(self, targets):
        return torch.arange(len(targets))


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    return parser.instantiate(parser.parse_args(list(arguments))).data


def test_short_class_name_and_arguments():
    data = parse("--data=DigitsDataModule", "--data.batch_size=32", "--data.val_fraction=0")
    assert type(data) is DigitsDataModule
    assert data.batch_size == 32


def test_augmentations_by_class_path():
    data = parse(
        "--data=DigitsDataModule",
        """--data.augment=[{class_path: hem.datamodules.augment.RandomCrop, init_args: {padding: 2}},
        {class_path: hem.datamodules.augment.Cutout, init_args: {size: 3}},
        {class_path: hem.datamodules.augment.MixUp, init_args: {alpha: 0.2}}]""",
    )
    assert [type(step) for step in data.augment + data.mixing] == [RandomCrop, Cutout, MixUp]
    assert (data.augment[0].padding, data.augment[1].size) == (2, 3)
    assert parse("--data=CIFAR10DataModule", "--data.augment=[]").augment == []


def test_subset_by_class_path():
    data = parse("--data=DigitsDataModule", f"--data.subset={__name__}.Half", "--data.subset.share=0.25")
    assert data.subset.share == 0.25


def test_folder_takes_the_arguments_of_every_module(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    data = parse(
        "--data=FolderDataModule",
        f"--data.root={tmp_path}",
        "--data.image_size=[32, 48]",
        "--data.batch_size=2",
        "--data.crop_scale=null",
    )
    assert type(data) is FolderDataModule
    assert (data.image_size, data.batch_size, data.crop_scale) == ((32, 48), 2, None)


def test_unknown_argument_is_refused():
    with pytest.raises(Exception, match="batchsize"):
        parse("--data=DigitsDataModule", "--data.batchsize=3")
