"""Corrupted images: what is computed depends on the image alone; official files in their layout, missing, damaged."""

import numpy as np
import pytest
import torch

from hem.corruptions import COMMON, CORRUPTIONS, EXTRA
from hem.datamodules import DATA, ComputedCorruptions, OfficialCorruptions
from hem.datamodules.corruption import CLEAN, Condition
from hem.datamodules.corruption_files import read_array
from tests.datamodules import test_datasets as trees

# the trees are small, and the modules say so
pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")
pixels = trees.pixels


def cifar_c_tree(root, names=COMMON, n=10):
    folder = root / "CIFAR-10-C"
    folder.mkdir()
    content = {name: pixels(5 * n, 32, 32, 3) for name in names}
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "labels.npy", np.tile(np.arange(n, dtype=np.uint8) % 10, 5))
    return folder, content


def seen(corrupted, known):
    """What a task sees of every condition: images in [0, 1], targets, places."""
    found = {}
    for images, conditions in corrupted.passes(known):
        for raw in known.loader(images.images, images.index, once=True):
            batch = known.on_after_batch_transfer(raw, 0)
            for condition in conditions:
                changed = corrupted.apply(batch.input, batch.index, condition)
                found.setdefault(condition, []).append((changed, batch.target, batch.index))
    return {key: [torch.cat(parts) for parts in zip(*value, strict=True)] for key, value in found.items()}


# -- computed ------------------------------------------------------------------------------------------------


def test_computed(tmp_path):
    _, content = trees.mnist_tree(tmp_path)
    found = seen(ComputedCorruptions(), DATA["mnist"](root=str(tmp_path), batch_size=8))
    assert [(c.corruption, c.severity) for c in found] == [
        ("clean", 0),
        *((n, s) for n in CORRUPTIONS for s in range(1, 6)),
    ]
    clean = found[CLEAN][0]
    assert np.array_equal((clean[:, 0] * 255).round().byte().numpy(), content["t10k"])
    for condition, (images, target, index) in found.items():
        assert index.tolist() == list(range(20))
        assert target.tolist() == [i % 10 for i in range(20)]
        assert torch.equal(images, clean) == (
            condition == CLEAN or (condition.corruption == "saturate" and condition.severity < 4)
        )
        assert condition.extra == (condition.corruption in EXTRA)


def test_computed_is_the_same_in_other_batches_and_runs(tmp_path):
    trees.mnist_tree(tmp_path)
    make = DATA["mnist"]
    first = seen(ComputedCorruptions(["snow", "frost"], [2]), make(root=str(tmp_path), batch_size=20, seed=0))
    again = seen(ComputedCorruptions(["frost", "snow"], [2, 1]), make(root=str(tmp_path), batch_size=7, seed=5))
    for condition, (images, *_) in first.items():
        torch.testing.assert_close(again[condition][0], images, atol=1.01 / 255, rtol=0)
    other = seen(ComputedCorruptions(["snow"], [2], seed=1), make(root=str(tmp_path)))
    assert not torch.equal(other[Condition("snow", 2)][0], first[Condition("snow", 2)][0])


def test_fixed_subset(tmp_path):
    trees.mnist_tree(tmp_path)
    known = DATA["mnist"](root=str(tmp_path), batch_size=3)
    whole = seen(ComputedCorruptions(["fog"], [1]), known)
    part = seen(ComputedCorruptions(["fog"], [1], images=6), known)
    places = part[CLEAN][2]
    assert len(places) == 6
    assert places.tolist() == sorted(places.tolist())
    for condition, (images, target, index) in part.items():
        assert torch.equal(index, places)
        torch.testing.assert_close(images, whole[condition][0][places], atol=1.01 / 255, rtol=0)
        assert torch.equal(target, whole[condition][1][places])
    assert not torch.equal(seen(ComputedCorruptions(["fog"], [1], images=6, seed=1), known)[CLEAN][2], places)
    assert len(seen(ComputedCorruptions(["fog"], [1], images=99), known)[CLEAN][2]) == 20


def test_double_precision_stays(tmp_path):
    trees.mnist_tree(tmp_path)
    corrupted = ComputedCorruptions(["fog"], [1])
    images = corrupted.apply(torch.zeros(2, 1, 28, 28).double(), torch.arange(2), Condition("fog", 1))
    assert images.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"corruptions": ["blur"]}, "Unknown corruption 'blur'; did you mean 'zoom_blur'"),
        ({"severities": [0, 1]}, "1 to 5, got 0"),
        ({"severities": [1, 1]}, r"severities to be one or more, each once, got \[1, 1\]"),
        ({"corruptions": []}, r"corruptions to be one or more, each once, got \[\]"),
        ({"images": 0}, "images to be a number of images, 1 or more, got 0"),
    ],
)
def test_mistakes_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ComputedCorruptions(**arguments)


def test_frost_without_photographs(tmp_path):
    trees.mnist_tree(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"Expected photographs of frost .* in {tmp_path}"):
        ComputedCorruptions(frost=str(tmp_path)).conditions(DATA["mnist"](root=str(tmp_path)))


# -- official ------------------------------------------------------------------------------------------------


def test_cifar_c(tmp_path):
    trees.cifar_tree(tmp_path)
    _, content = cifar_c_tree(tmp_path, (*COMMON, "spatter"))
    found = seen(OfficialCorruptions(), DATA["cifar10"](root=str(tmp_path), batch_size=4))
    assert len(found) == 1 + 16 * 5
    assert [c.corruption for c in found if c.extra] == ["spatter"] * 5  # the other extras are not there
    for (name, severity, _), (images, target, index) in found.items():
        if severity:
            expected = content[name][10 * (severity - 1) : 10 * severity].transpose(0, 3, 1, 2)
            assert np.array_equal((images * 255).round().byte().numpy(), expected)
        assert target.tolist() == list(range(10))
        assert index.tolist() == list(range(10))


def test_subset_of_cifar_c(tmp_path):
    trees.cifar_tree(tmp_path)
    cifar_c_tree(tmp_path, ("fog", "snow"))
    known = DATA["cifar10"](root=str(tmp_path))
    found = seen(OfficialCorruptions(["snow"], [5, 2], images=4), known)
    assert [(c.corruption, c.severity) for c in found] == [("clean", 0), ("snow", 5), ("snow", 2)]
    computed = seen(ComputedCorruptions(["snow"], [5], images=4), known)
    for _, _, index in found.values():
        assert torch.equal(index, computed[CLEAN][2])  # the same images, computed or read


def test_mnist_c(tmp_path):
    trees.mnist_tree(tmp_path)
    folder = tmp_path / "elsewhere"
    content = {}
    for name in ("zigzag", "fog"):
        (folder / name).mkdir(parents=True)
        content[name] = pixels(20, 28, 28, 1)
        np.save(folder / name / "test_images.npy", content[name])
        np.save(folder / name / "test_labels.npy", np.arange(20) % 10)
    known = DATA["mnist"](root=str(tmp_path))
    found = seen(OfficialCorruptions(["zigzag", "fog"], folder=str(folder)), known)
    assert [(c.corruption, c.severity) for c in found] == [("clean", 0), ("zigzag", 1), ("fog", 1)]
    for name, expected in content.items():
        images = found[Condition(name, 1)][0]
        assert np.array_equal((images[:, 0] * 255).round().byte().numpy(), expected[..., 0])
    with pytest.raises(ValueError, match="Unknown corruption 'zigzagg'; did you mean 'zigzag'"):
        OfficialCorruptions(["zigzagg"]).conditions(known)
    with pytest.raises(FileNotFoundError, match=r"MNIST-C is missing: .*elsewhere/shot_noise is not there"):
        OfficialCorruptions(folder=str(folder)).conditions(known)


@pytest.mark.parametrize("group", ["", "weather"])
def test_folders_of_files(tmp_path, group):
    trees.tiny_tree(tmp_path)
    known = DATA["tiny_imagenet"](root=str(tmp_path), batch_size=64)
    for number, wnid in enumerate(known.class_names):
        trees.jpeg(tmp_path / "Tiny-ImageNet-C" / group / "fog" / "3" / wnid / f"val_{number}.JPEG")
    found = seen(OfficialCorruptions(["fog"], [3]), known)
    images, target, _ = found[Condition("fog", 3)]
    assert images.shape == (200, 3, 64, 64)
    assert target.tolist() == list(range(200))
    with pytest.raises(FileNotFoundError, match=r"Tiny-ImageNet-C lacks a severity: .*fog/5 is not there"):
        seen(OfficialCorruptions(["fog"], [3, 5]), known)
    for path in (tmp_path / "Tiny-ImageNet-C" / group / "fog" / "3" / known.class_names[-1]).iterdir():
        path.unlink()
        path.parent.rmdir()
    with pytest.raises(ValueError, match="holds 199 class folders, but TinyImageNet has 200 classes"):
        seen(OfficialCorruptions(["fog"], [3]), known)


def test_missing_files_get_a_sentence(tmp_path):
    trees.cifar_tree(tmp_path)
    known = DATA["cifar10"](root=str(tmp_path))
    sentence = (
        r"CIFAR-10-C is missing: .*CIFAR-10-C/gaussian_noise\.npy is not there\. Get it from .*2535967 .* unpack it "
        rf"into {tmp_path};"
    )
    with pytest.raises(FileNotFoundError, match=sentence):
        OfficialCorruptions().conditions(known)
    with pytest.raises(ValueError, match="no official corrupted files of KMNIST, only of mnist, cifar10"):
        OfficialCorruptions().conditions(DATA["kmnist"](root=str(tmp_path)))
    folder, _ = cifar_c_tree(tmp_path, ("fog",))
    (folder / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.npy is not there, though its folder is"):
        seen(OfficialCorruptions(["fog"]), known)


class Trap:
    """A pickle that would run a program."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("file", "spoil", "sentence"),
    [
        ("fog", lambda p: p.write_bytes(p.read_bytes()[:-1]), r"fog\.npy is damaged and cannot be read"),
        ("fog", lambda p: p.write_bytes(b""), r"fog\.npy is damaged and cannot be read"),
        ("fog", lambda p: p.write_bytes(b"<html>"), r"fog\.npy is damaged and cannot be read"),
        ("fog", lambda p: np.save(p, np.array([Trap()]), allow_pickle=True), r"fog\.npy is damaged and cannot be read"),
        ("fog", lambda p: np.save(p, pixels(50, 3, 32, 32)), r"fog\.npy is damaged: expected .* \(5 n, 32, 32, 3\)"),
        ("fog", lambda p: np.save(p, pixels(49, 32, 32, 3)), r"fog\.npy is damaged: .* of shape \(49, 32, 32, 3\)"),
        ("fog", lambda p: np.save(p, np.zeros((50, 32, 32, 3))), r"fog\.npy is damaged: .* has float64"),
        ("fog", lambda p: np.save(p, np.uint8(3)), r"fog\.npy is damaged: .* of shape \(\)"),
        ("labels", lambda p: np.save(p, np.zeros(49, np.uint8)), r"labels\.npy and .*fog\.npy do not fit together"),
        ("labels", lambda p: np.save(p, np.full(50, 10)), r"labels\.npy is damaged: expected .* labels, 0 to 9"),
    ],
)  # fmt: skip
def test_damaged_files_get_a_sentence(tmp_path, capfd, file, spoil, sentence):
    trees.cifar_tree(tmp_path)
    folder, _ = cifar_c_tree(tmp_path, ("fog",))
    spoil(folder / f"{file}.npy")
    with pytest.raises(ValueError, match=sentence):
        seen(OfficialCorruptions(["fog"]), DATA["cifar10"](root=str(tmp_path)))
    assert "executed" not in capfd.readouterr().out


def test_reading_leaves_the_file_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3, np.uint8))
    before = (tmp_path / "a.npy").read_bytes()
    torch.from_numpy(read_array(tmp_path / "a.npy")).fill_(7)
    assert (tmp_path / "a.npy").read_bytes() == before
