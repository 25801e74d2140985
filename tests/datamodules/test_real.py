"""The facts stated in the code are those of the real data, wherever HEM_DATA has it."""

import os
from pathlib import Path

import pytest
import torch

from hem.datamodules import DATA

pytestmark = pytest.mark.skipif(not os.environ.get("HEM_DATA"), reason="HEM_DATA does not name a folder of real data")
PROBE = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "kmnist": "KMNIST/raw/train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py/data_batch_1",
    "cifar100": "cifar-100-python/train",
    "svhn": "train_32x32.mat",
}


@pytest.mark.parametrize("key", ["digits", *PROBE])
def test_training_part(key):
    if key != "digits" and not (Path(os.environ["HEM_DATA"]) / PROBE[key]).exists():
        pytest.skip(f"HEM_DATA has no {PROBE[key]}")
    data = DATA[key]()
    images, train = data.part("train")
    _, val = data.part("val")
    assert torch.bincount(images.targets).tolist() == list(data.train_counts)
    assert torch.bincount(images.targets[train]).tolist() == data.class_counts
    assert torch.cat([train, val]).sort().values.tolist() == list(range(len(images)))
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.images.unbind(1)])
    level = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = (share * level).sum(1)
    std = (share * level**2).sum(1).sub(mean**2).sqrt()
    assert mean.tolist() == pytest.approx(data.mean, abs=1e-4)
    assert std.tolist() == pytest.approx(data.std, abs=2e-4)


@pytest.mark.parametrize(
    ("key", "probe"),
    [
        ("mnist", "MNIST/raw/t10k-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/t10k-images-idx3-ubyte"),
        ("kmnist", "KMNIST/raw/t10k-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("cifar100", "cifar-100-python/test"),
    ],
)
def test_test_part(key, probe):
    if not (Path(os.environ["HEM_DATA"]) / probe).exists():
        pytest.skip(f"HEM_DATA has no {probe}")
    data = DATA[key]()
    images = data.images("test")
    assert images.images.shape == (10_000, data.in_channels, *data.image_size)
    if key != "mnist":  # the others are balanced
        assert torch.bincount(images.targets).unique().tolist() == [10_000 // data.num_classes]
