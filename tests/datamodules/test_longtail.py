"""Profiles against the published counts, samplers against their frequencies, lists in the official layouts."""

# ruff: noqa: NPY002 (the published subsets were drawn with numpy's old generator)
import json
import math
import os

import numpy as np
import pytest
import torch

import hem.datamodules as hd
from hem.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    ImageNetLTDataModule,
    INaturalistDataModule,
    LongTail,
    PowerSampling,
)
from hem.datamodules.augment import MixUp, RandomCrop
from hem.losses import LOSSES
from tests.datamodules.test_datasets import jpeg

REAL = os.environ.get("HEM_DATA")

# profiles


@pytest.mark.parametrize(
    ("data", "imbalance", "total", "last"),
    [
        (CIFAR10DataModule, 100, 12_406, 50),
        (CIFAR10DataModule, 50, 13_996, 100),
        (CIFAR10DataModule, 10, 20_431, 500),
        (CIFAR100DataModule, 100, 10_847, 5),
        (CIFAR100DataModule, 50, 12_608, 10),
        (CIFAR100DataModule, 10, 19_573, 50),
    ],
)
def test_published_counts(data, imbalance, total, last):
    """Without the disk: class_counts are known before the data is."""
    counts = data(root="nowhere", val_fraction=0, subset=LongTail(imbalance)).class_counts
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (50_000 // len(counts), last)
    assert counts == sorted(counts, reverse=True)


def test_published_classes_of_cifar10():
    counts = CIFAR10DataModule(root="nowhere", val_fraction=0, subset=LongTail(100)).class_counts
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize("imbalance", [10, 50, 100, 200])
def test_step_profile(imbalance):
    counts = CIFAR10DataModule(root="nowhere", val_fraction=0, subset=LongTail(imbalance, "step")).class_counts
    assert counts == [5000] * 5 + [5000 // imbalance] * 5


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("there", [[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], [300, 9, 70], [7, 7]])
@pytest.mark.parametrize("imbalance", [1, 3, 7])
def test_profile_of_unequal_classes(profile, there, imbalance):
    """Every class can fill its place, one of them is used up (to rounding), and the ratios are the profile's."""
    counts = LongTail(imbalance, profile).counts(there)
    assert all(0 < kept <= n for kept, n in zip(counts, there, strict=True))
    C = len(there)
    for i in range(C):
        r = imbalance ** (-i / (C - 1)) if profile == "exponential" else 1 if i < C // 2 else 1 / imbalance
        head = counts[0] if profile == "exponential" or C > 1 else there[0]
        assert counts[i] <= (head + 1) * r
        assert counts[i] > head * r - 1 - 1e-9
    grown = LongTail(imbalance, profile).counts([2 * n for n in there])
    assert grown[0] > counts[0]


def test_imbalance_of_one_is_balanced():
    assert LongTail(1).counts([49, 50, 60]) == [49, 49, 49]


def test_rounding_leaves_no_class_empty():
    """49 (1 / 49) is 0.999... in floating point, and one sample."""
    assert LongTail(49).counts([49, 49]) == [49, 1]


# samples


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("seed", [0, 3])
def test_samples_are_those_of_the_authors(profile, seed):
    """The procedure of Cao et al.'s imbalance_cifar.py, on numpy's global generator."""
    targets = torch.from_numpy(np.random.default_rng(1).integers(0, 10, 2000))
    subset = LongTail(10, profile, seed)
    counts = subset.counts(torch.bincount(targets).tolist())
    state = np.random.get_state()
    np.random.seed(seed)
    expected = []
    for label, count in enumerate(counts):
        places = np.where(targets.numpy() == label)[0]
        np.random.shuffle(places)
        expected.extend(places[:count])
    np.random.set_state(state)
    assert subset.select(targets).tolist() == expected
    assert subset.select(targets).tolist() == expected
    assert torch.equal(torch.from_numpy(np.random.get_state()[1]), torch.from_numpy(state[1])), "no global state used"


def test_subset_of_a_data_module():
    """As many samples of each class as class_counts say; others by another seed; validation and test stay whole."""
    data = DigitsDataModule(val_fraction=0.1, subset=LongTail(20))
    images, index = data.part("train")
    assert torch.bincount(images.targets[index]).tolist() == data.class_counts
    assert len(set(index.tolist())) == len(index) == sum(data.class_counts)
    assert torch.equal(index, DigitsDataModule(val_fraction=0.1, seed=9, subset=LongTail(20)).part("train")[1])
    assert not torch.equal(index, DigitsDataModule(val_fraction=0.1, subset=LongTail(20, seed=1)).part("train")[1])
    milder = DigitsDataModule(val_fraction=0.1, subset=LongTail(10)).part("train")[1]
    assert set(index.tolist()) < set(milder.tolist())
    whole = DigitsDataModule(val_fraction=0.1)
    for part in ("val", "test"):
        assert torch.equal(data.part(part)[1], whole.part(part)[1])


@pytest.mark.skipif(not REAL, reason="HEM_DATA does not say where the real data sets are")
def test_real_cifar10():
    data = CIFAR10DataModule(val_fraction=0, subset=LongTail(100))
    images, index = data.part("train")
    assert torch.bincount(images.targets[index]).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


# frequencies of classes


def draws(power: float, counts: list[int], epochs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    taken = torch.stack([PowerSampling(power).draw(targets, seed, epoch) for epoch in range(epochs)])
    return targets, taken


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 0.3])
def test_frequencies(power):
    """Classes come by n^q, samples of a class equally often: both within four standard deviations, by plain loops."""
    counts = [600, 250, 0, 100, 40, 10]
    targets, taken = draws(power, counts, epochs=40)
    assert taken.shape == (40, 1000)
    drawn = taken.numel()
    total = sum(n**power for n in counts if n)
    per_sample = torch.bincount(taken.flatten(), minlength=len(targets))
    for label, n in enumerate(counts):
        p = n**power / total if n else 0.0
        own = per_sample[targets == label]
        assert abs(own.sum() - p * drawn) <= 4 * math.sqrt(drawn * p * (1 - p))
        if n:
            q = p / n
            assert (own - q * drawn).abs().max() <= 4.5 * math.sqrt(drawn * q * (1 - q))


def test_draws_are_a_function_of_seed_and_epoch():
    _, taken = draws(0.0, [90, 10], epochs=3)
    torch.manual_seed(77)
    assert torch.equal(taken, draws(0.0, [90, 10], epochs=3)[1])
    assert not torch.equal(taken[0], taken[1])
    assert not torch.equal(taken, draws(0.0, [90, 10], epochs=3, seed=1)[1])


def epoch_of(**kwargs) -> list[hd.Batch]:
    data = DigitsDataModule(batch_size=32, val_fraction=0, subset=LongTail(20), **kwargs)
    loader = data.loader(*data.part("train"), training=True)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_sampled_epoch():
    """As many steps as without, balanced classes, and only samples of the subset."""
    batches, plain = epoch_of(sampling=PowerSampling(0)), epoch_of()
    assert [batch.input.shape for batch in batches] == [batch.input.shape for batch in plain]
    data = DigitsDataModule(val_fraction=0, subset=LongTail(20))
    images, index = data.part("train")
    taken = torch.cat([batch.index for batch in batches])
    assert set(taken.tolist()) <= set(index.tolist())
    assert len(taken.unique()) < len(taken)
    targets = torch.cat([batch.target for batch in batches])
    assert torch.equal(targets, images.targets[taken])
    assert torch.bincount(targets, minlength=10).min() > 20
    for batch in batches:
        assert torch.equal((batch.input * 255).round().byte(), images.images[batch.index])


@pytest.mark.parametrize("augment", [[RandomCrop(2)], [RandomCrop(2), MixUp()]])
def test_repeats_are_augmented_anew(augment):
    """A rare sample that is drawn many times in an epoch is cropped differently; twice the same epoch is the same."""
    batches = epoch_of(sampling=PowerSampling(0), augment=augment)
    taken, inputs = torch.cat([b.index for b in batches]), torch.cat([b.input for b in batches])
    often = torch.bincount(taken).argmax()
    assert (taken == often).sum() >= 5
    assert len(inputs[taken == often].flatten(1).unique(dim=0)) >= 4
    again = torch.cat([b.input for b in epoch_of(sampling=PowerSampling(0), augment=augment)])
    assert torch.equal(inputs, again)


# bad input


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LongTail(0.5), "imbalance, .* to be 1 or more, got 0.5: give its inverse, 2"),
        (lambda: LongTail(0), "1 or more, got 0: give 100"),
        (lambda: LongTail(float("nan")), "1 or more, got nan"),
        (lambda: LongTail(10, "linear"), "profile to be 'exponential' or 'step', got 'linear'"),
        (
            lambda: LongTail(100).counts([20, 20]),
            "imbalance of 100 leaves class 1 without samples, since class 0 has 20",
        ),
        (lambda: LongTail(100).counts([20, 20]), "at most 20, or more data"),
        (lambda: LongTail(2).counts([20, 0, 5]), "samples of every class for a long tail, got none of class 1"),
        (lambda: DigitsDataModule(subset=LongTail(1000)).class_counts, "leaves class 7 without samples"),
        (lambda: PowerSampling(2), r"power to be 0 .* in \[0, 1\], got 2"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("loss", ["hem_plus", "logit_adjusted", "ldam", "class_balanced", "balanced_softmax"])
def test_counts_of_another_length(loss):
    """Every loss with frequencies refuses counts that are not the logits'."""
    criterion = LOSSES[loss](class_counts=LongTail(2).counts([10, 10, 10]))
    with pytest.raises(ValueError, match="Expected class_counts of 4 classes, one for each logit of input, got 3"):
        criterion(torch.zeros(2, 4), torch.tensor([0, 1]))


# ImageNet-LT


def imagenet_lt_tree(root):
    """Two training images of every odd class, one of every even one; one for validation, one for the test."""
    first = root / "imagenet" / "train" / "n00000000" / "a.JPEG"
    jpeg(first, (300, 260))
    lists = {"train": [], "val": [], "test": []}
    for k in range(1000):
        for part, split, names in (("train", "train", "ab"[: 1 + k % 2]), ("train", "val", "c"), ("val", "test", "d")):
            for name in names:
                path = f"{part}/n{k:08d}/{name}.JPEG"
                lists[split].append(f"{path} {k}\n")
                (root / "imagenet" / path).parent.mkdir(parents=True, exist_ok=True)
                if not (root / "imagenet" / path).exists():
                    os.link(first, root / "imagenet" / path)
    (root / "ImageNet_LT").mkdir()
    for split, lines in lists.items():
        (root / "ImageNet_LT" / f"ImageNet_LT_{split}.txt").write_text("".join(lines))


def test_imagenet_lt(tmp_path):
    imagenet_lt_tree(tmp_path)
    data = ImageNetLTDataModule(root=str(tmp_path), batch_size=4)
    assert data.class_counts == [1 + k % 2 for k in range(1000)]
    for split, name in (
        ("train", "train/n00000000/a.JPEG"),
        ("val", "train/n00000000/c.JPEG"),
        ("test", "val/n00000000/d.JPEG"),
    ):
        images, index = data.part(split)
        assert len(index) == (1500 if split == "train" else 1000)
        assert images.name_of(0) == str(tmp_path / "imagenet" / name)
        assert images[0][0].shape == (3, 224, 224)
    data.setup("fit")  # without a warning: the counts are the list's
    inside = ImageNetLTDataModule(root=str(tmp_path), subset=LongTail(1))
    assert inside.class_counts == [1] * 1000


def test_imagenet_lt_sentences(tmp_path):
    data = ImageNetLTDataModule(root=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"train part of ImageNet-LT is missing: .*ImageNet_LT_train\.txt is not"
    ):
        _ = data.class_counts
    imagenet_lt_tree(tmp_path)
    path = tmp_path / "ImageNet_LT" / "ImageNet_LT_train.txt"
    good = path.read_text()
    path.write_text(good + "train/n0/x.JPEG\n")
    with pytest.raises(
        ValueError, match=r"ImageNet_LT_train\.txt, line 1501: expected a path and a label from 0 to 999"
    ):
        _ = ImageNetLTDataModule(root=str(tmp_path)).class_counts
    path.write_text("".join(line for line in good.splitlines(True) if not line.endswith(" 7\n")))
    with pytest.raises(ValueError, match=r"ImageNet_LT_train\.txt has no image of class 7"):
        _ = ImageNetLTDataModule(root=str(tmp_path)).class_counts
    path.write_text(good.replace("a.JPEG", "gone.JPEG"))
    with pytest.raises(FileNotFoundError, match=r"train part of ImageNet-LT is missing: .*gone\.JPEG is not there"):
        ImageNetLTDataModule(root=str(tmp_path)).setup("fit")


@pytest.mark.skipif(not REAL, reason="HEM_DATA does not say where the real lists are")
def test_real_lists():
    """The official lists: 20 images of each class for validation, 50 for the test, wnids in the order of the labels."""
    data = ImageNetLTDataModule()
    for split, count in (("val", 20), ("test", 50)):
        names, targets = data.listed(split)
        assert torch.bincount(targets).tolist() == [count] * 1000
        wnids = [name.split("/")[1] for name in names]
        assert len({*zip(wnids, targets.tolist(), strict=True)}) == 1000
        assert sorted(set(wnids)) == [wnid for _, wnid in sorted(zip(targets.tolist(), wnids, strict=True))][::count]


# iNaturalist


def inaturalist_tree(root, version=2018, unpacked=None):
    """One image for all species, three training entries of species 0, two of species 1, one of the others."""
    classes = {2018: 8142, 2019: 1010}[version]
    folder = root / f"inaturalist{version}"
    name = f"train_val{version}/Aves/0/x.jpg"
    jpeg(folder / (name if unpacked is None else f"{unpacked}/Aves/0/x.jpg"), (300, 260))
    categories = [{"id": k, "name": f"species {k}", "supercategory": "Aves"} for k in range(classes)]
    for split, labels in (("train", [0, 0, 1, *range(classes)]), ("val", list(range(classes)))):
        content = {
            "images": [{"id": 7 * i + 1, "file_name": name} for i in range(len(labels))],
            "annotations": [{"id": i, "image_id": 7 * i + 1, "category_id": k} for i, k in enumerate(labels)],
            "categories": categories[::-1],
        }
        (folder / f"{split}{version}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("version", "unpacked"), [(2018, None), (2019, "2019")])
def test_inaturalist(tmp_path, version, unpacked):
    folder = inaturalist_tree(tmp_path, version, unpacked)
    for root in (tmp_path, folder):
        data = INaturalistDataModule(version, root=str(root), val_fraction=0)
        assert data.class_counts == [3, 2] + [1] * (data.num_classes - 2)
        assert data.class_names[:2] == ["species 0", "species 1"]
        images, index = data.part("test")
        assert images.targets[index].tolist() == list(range(data.num_classes))
        assert images[5][0].shape == (3, 224, 224)
        data.setup("fit")


def spoil(change):
    def apply(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_text(path.read_text()[:-9]), "damaged, or not in the official layout"),
        (spoil(lambda content: content.pop("categories")), "official layout .KeyError: 'categories'"),
        (spoil(lambda content: content["annotations"][0].update(image_id=-5)), "official layout .KeyError: -5"),
        (spoil(lambda content: content["annotations"][0].update(category_id=1010)), "not the official file: expected"),
        (
            spoil(lambda content: content["categories"].pop()),
            "expected images of categories 0 to 1009, .* 1009 categories",
        ),
    ],
)
def test_damaged_inaturalist(tmp_path, damage, sentence):
    path = inaturalist_tree(tmp_path, 2019) / "train2019.json"
    damage(path)
    with pytest.raises(ValueError, match=rf"train2019\.json is .*{sentence}"):
        _ = INaturalistDataModule(2019, root=str(tmp_path)).class_counts


def test_missing_inaturalist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train part of iNaturalist is missing: .*train2018\.json"):
        _ = INaturalistDataModule(root=str(tmp_path)).class_names
    folder = inaturalist_tree(tmp_path, 2019)
    os.remove(folder / "train_val2019/Aves/0/x.jpg")
    with pytest.raises(FileNotFoundError, match="test part of iNaturalist is missing"):
        INaturalistDataModule(2019, root=str(tmp_path)).setup("test")
    with pytest.raises(ValueError, match="version to be 2018 or 2019, got 2017"):
        INaturalistDataModule(2017)


def test_species_of_one_name(tmp_path):
    path = inaturalist_tree(tmp_path, 2019) / "train2019.json"
    spoil(lambda content: content["categories"][0].update(name="species 0"))(path)
    names = INaturalistDataModule(2019, root=str(tmp_path)).class_names
    assert len(set(names)) == 1010
    assert (names[0], names[1009]) == ("species 0 (0)", "species 0 (1009)")
