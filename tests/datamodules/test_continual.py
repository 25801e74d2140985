"""A stream deals out every sample once; its labels, pixels and counts are those of its scenario."""

import numpy as np
import pytest
import torch

from hem.datamodules import ContinualDataModule, DigitsDataModule, MNISTDataModule
from hem.datamodules.continual import PermutedImages
from hem.datamodules.images import FileImages, MemoryImages
from hem.datamodules.noise import stacked


def stream(**arguments):
    return ContinualDataModule(DigitsDataModule(), **arguments)


@pytest.mark.parametrize("tasks", [1, 3, 5, 10])
@pytest.mark.parametrize("order_seed", [None, 0, 7])
def test_every_sample_is_in_one_task(tasks, order_seed):
    data = stream(tasks=tasks, order_seed=order_seed)
    classes = [data.classes(t).tolist() for t in range(tasks)]
    assert sorted(c for group in classes for c in group) == list(range(10))
    assert max(map(len, classes)) - min(map(len, classes)) <= 1
    for part in ("train", "val", "test"):
        images, index = data.part(part)
        parts = [data.part_of(part, [t]) for t in range(tasks)]
        assert torch.equal(torch.cat(parts).sort().values, index)
        for t, own in enumerate(parts):
            assert set(images.targets[own].tolist()) == set(classes[t])
            assert (data.task_of(own, part) == t).all()
    whole = DigitsDataModule()
    assert torch.equal(data.part("train")[1], whole.part("train")[1])
    assert data.class_counts == whole.class_counts


def test_the_order_of_classes_is_a_function_of_its_seed():
    orders = [[stream(order_seed=seed).classes(t).tolist() for t in range(5)] for seed in (None, 3, 3, 4)]
    assert orders[0] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert orders[1] == orders[2] != orders[3]
    assert stream(order_seed=3, seed=1).classes(0).tolist() == orders[1][0], "another seed, the same order"


def test_seen_classes():
    assert stream(tasks=5).seen(1).tolist() == [0, 1, 2, 3]
    assert stream(tasks=5, scenario="permuted").seen(0).tolist() == list(range(10))


def test_domain():
    """The label is the place within the group; counts and names follow."""
    data, whole = stream(tasks=5, scenario="domain"), DigitsDataModule()
    assert data.num_classes == 2
    assert data.class_names == ("0/2/4/6/8", "1/3/5/7/9")
    counts = whole.class_counts
    assert data.class_counts == [sum(counts[0::2]), sum(counts[1::2])]
    images, index = data.part("train")
    assert torch.bincount(images.targets[index]).tolist() == data.class_counts
    assert torch.equal(images.targets, whole.images("train").targets % 2)
    assert torch.equal(whole.images("train").targets[index] // 2, data.task_of(index))


def test_permuted_pixels():
    """Task 0 has the images as they are; each other one the same pixels in one order of its own."""
    data, whole = stream(tasks=3, scenario="permuted", order_seed=5), DigitsDataModule()
    images, index = data.part("test")
    original = whole.images("test")
    count = len(original)
    assert len(index) == len(images) == 3 * count
    assert data.num_classes == 10
    assert data.class_counts == whole.class_counts
    pixels, targets = images.take(index)
    by_task = pixels.reshape(3, count, 64).numpy()
    flat = original.images.reshape(count, 64).numpy()
    assert np.array_equal(by_task[0], flat)
    for t in (1, 2):
        order = images.orders[t].numpy()
        assert sorted(order) == list(range(64))
        assert not np.array_equal(order, np.arange(64))
        assert np.array_equal(by_task[t], flat[:, order])
    assert not torch.equal(images.orders[1], images.orders[2])
    assert torch.equal(targets, original.targets.repeat(3))
    assert torch.equal(data.task_of(index, "test"), torch.arange(3).repeat_interleave(count))
    one, target = images[count + 4]
    assert torch.equal(one, pixels[count + 4])
    assert target == int(original.targets[4])
    assert torch.equal(images.to(torch.device("cpu")).take(index)[0], pixels)


def test_channels_share_the_order():
    images = PermutedImages(
        MemoryImages(torch.arange(24).view(1, 3, 2, 4).byte(), torch.zeros(1)), torch.randperm(8)[None]
    )
    first, second, third = images[0][0].int()
    assert torch.equal(second, first + 8)
    assert torch.equal(third, first + 16)


def test_what_is_made_of_permuted_images_is_made_of_their_pixels():
    """By the numbers of the stream, of which there are more than images in memory."""
    base = torch.arange(16).view(2, 1, 2, 4).byte()
    images = PermutedImages(
        MemoryImages(base, torch.tensor([0, 1])), torch.stack([torch.arange(8), torch.arange(8).flip(0)])
    )
    index = torch.tensor([3, 0, 2])
    assert torch.equal(stacked(images, index), torch.stack([images[i][0] for i in index.tolist()]))


def test_arguments_are_the_streams_own(tmp_path):
    """The validation part, the seeds and the folder are those of the stream; the data set follows."""
    inner = DigitsDataModule(val_fraction=0.5, split_seed=9)
    data = ContinualDataModule(inner, val_fraction=0.2, split_seed=1, seed=4, batch_size=16)
    same = DigitsDataModule(val_fraction=0.2, split_seed=1)
    assert torch.equal(data.part("val")[1], same.part("val")[1])
    assert len(data.part_of("val", range(5))) == len(same.part("val")[1])
    assert ContinualDataModule(MNISTDataModule(), root=str(tmp_path)).whole.root == tmp_path
    assert ContinualDataModule(MNISTDataModule(root=str(tmp_path))).root == tmp_path


def test_batches_for_replay_are_those_of_training():
    """The same numbers give the same pixels; the words choose the augmentation, and without them there is none."""
    from hem.datamodules.augment import RandomCrop

    data = stream(augment=[RandomCrop(padding=2)])
    index = torch.tensor([5, 3, 900])
    plain = data.on_after_batch_transfer(data.fetched(index), 0)
    images = data.images("train")
    assert torch.equal(plain.input, images.images[index].float() / 255)
    assert torch.equal(plain.target, images.targets[index])
    assert torch.equal(plain.index, index)
    first, again, other = (data.on_after_batch_transfer(data.fetched(index, 1, w), 0).input for w in (2, 2, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": 11}, "as many classes as tasks, 11, got 10 of scikit-learn's digits: take at most 10"),
        ({"tasks": 0}, "tasks to be a number of tasks, 1 or more, got 0"),
        ({"tasks": 3, "scenario": "domain"}, "for 3 tasks: take a divisor of 10"),
        ({"scenario": "pixels"}, "scenario to be one of class, task, domain, permuted, got 'pixels'"),
        ({"val_fraction": 1}, "val_fraction to be a share"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        stream(**arguments)


def test_a_task_without_samples():
    data = stream()
    images = data.whole.images("train")
    chosen = images.targets > 1
    data.whole._images["train"] = MemoryImages(images.images[chosen], images.targets[chosen])
    with pytest.raises(
        ValueError, match=r"Expected train samples for every task, got none of .* for task 1 \(classes \[0, 1\]\)"
    ):
        data.part_of("train", [0])


def test_permuted_files_are_refused():
    data = stream(scenario="permuted")
    data.whole._images["train"] = FileImages(["a.png"], torch.tensor([0]), lambda image: torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="Expected images in memory for permuted pixels"):
        data.images("train")
