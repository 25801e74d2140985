"""Every data set is read from a small tree in its official layout, and says what is missing or damaged."""

import gzip
import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import hem.datamodules as hd
from hem.datamodules import DATA
from hem.datamodules.datasets.cifar import read_pickle
from hem.datamodules.datasets.mnist import read_idx
from hem.runs.data import changed_files, files_of
from tests.datamodules.mask_trees import PART_NAMES

# the trees are small, and the modules say so
pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")
RANDOM = np.random.default_rng(0)


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def pixels(*shape):
    return RANDOM.integers(256, size=shape, dtype=np.uint8)


def jpeg(path, size=(64, 64), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(size[1], size[0], 3)).convert(mode).save(path)


def mnist_tree(root, folder="MNIST", n=20, suffix=""):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    content = {}
    for part in ("train", "t10k"):
        images, labels = pixels(n, 28, 28), np.arange(n, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            (raw / f"{part}-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
        content[part] = images
    return raw, content


def cifar_tree(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        content = {"data": pixels(10, 3072), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        content = {"data": pixels(100, 3072), "fine_labels": list(range(100))}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def svhn_tree(root):
    for split in ("train", "test"):
        savemat(root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, 20), "y": (np.arange(20) % 10 + 1)[:, None]})


def tiny_tree(root):
    folder = root / "tiny-imagenet-200"
    lines = []
    for i, wnid in enumerate(DATA["tiny_imagenet"].class_names):
        jpeg(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", mode="L" if i == 3 else "RGB")
        jpeg(folder / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def imagenet_tree(root):
    for part in ("train", "val"):
        first = root / "imagenet" / part / "n00000000" / "0.JPEG"
        jpeg(first, (300, 260))
        for i in range(1, 1000):
            other = root / "imagenet" / part / f"n{i:08d}" / "0.JPEG"
            other.parent.mkdir()
            os.link(first, other)


def folder_tree(root, parts=("train",), classes=("cat", "dog"), n=5):
    for part in parts:
        for name in classes:
            for i in range(n):
                jpeg(root / part / name / f"{i}.png", (40, 30))


def members(data):
    """The files of each part."""
    return {part: {data.part(part)[0].paths[i] for i in data.part(part)[1]} for part in ("train", "val", "test")}


def batches(data, part="test"):
    return [data.on_after_batch_transfer(batch, 0) for batch in data.loader(*data.part(part), training=part == "train")]


# MNIST's family


@pytest.mark.parametrize(
    ("key", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_family(tmp_path, key, folder, suffix):
    _, content = mnist_tree(tmp_path, folder, suffix=suffix)
    data = DATA[key](root=str(tmp_path), batch_size=4)
    assert np.array_equal(data.images("train").images[:, 0].numpy(), content["train"])
    assert np.array_equal(data.images("test").images[:, 0].numpy(), content["t10k"])
    assert data.images("test").targets.tolist() == [i % 10 for i in range(20)]
    assert data.name_of(3) == f"{key}/test/00003"


def test_test_part_without_training_part(tmp_path):
    raw, _ = mnist_tree(tmp_path, "KMNIST")
    (raw / "train-images-idx3-ubyte").unlink()
    data = DATA["kmnist"](root=str(tmp_path))
    data.setup("test")
    assert len(data.images("test")) == 20
    with pytest.raises(FileNotFoundError, match="The train part of KMNIST is missing"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda data: data[:-1], "its header promises"),
        (lambda data: data + b"x", "its header promises"),
        (lambda data: b"\0\0\x0d" + data[3:], "does not begin as an idx file"),
        (lambda data: b"", "does not begin as an idx file"),
        (lambda data: data[:6], "its header promises"),
    ],
)
def test_damaged_idx(tmp_path, spoil, sentence):
    path = tmp_path / "images-ubyte"
    path.write_bytes(spoil(idx(pixels(3, 4, 5))))
    with pytest.raises(ValueError, match=f"images-ubyte is damaged: .*{sentence}"):
        read_idx(path)


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:30], lambda data: b"<html>" + data])
def test_damaged_gz(tmp_path, spoil):
    (tmp_path / "images-ubyte.gz").write_bytes(spoil(gzip.compress(idx(pixels(3, 4, 5)))))
    with pytest.raises(ValueError, match=r"images-ubyte\.gz is damaged and cannot be unpacked"):
        read_idx(tmp_path / "images-ubyte")


def test_flipped_bits_in_gz(tmp_path):
    data = bytearray(gzip.compress(idx(pixels(30, 28, 28))))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "images-ubyte.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"images-ubyte\.gz is damaged"):
        read_idx(tmp_path / "images-ubyte")


def test_idx_files_that_do_not_fit_together(tmp_path):
    raw, _ = mnist_tree(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"do not fit together: their shapes are \(20, 28, 28\) and \(19,\)"):
        DATA["mnist"](root=str(tmp_path)).setup("test")


def test_label_out_of_range(tmp_path):
    raw, _ = mnist_tree(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 11, dtype=np.uint8)))
    with pytest.raises(ValueError, match="labels of MNIST in 0 to 9, got 11 for mnist/test/00000"):
        DATA["mnist"](root=str(tmp_path)).setup("test")


# CIFAR


def test_cifar(tmp_path):
    cifar_tree(tmp_path)
    data = DATA["cifar10"](root=str(tmp_path), batch_size=10, val_fraction=0)
    assert data.images("train").targets.tolist() == list(range(10)) * 5
    with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("rb") as file:
        content = pickle.load(file)["data"]
    assert np.array_equal(data.images("train").images[13].numpy(), content[3].reshape(3, 32, 32))
    assert batches(data, "train")[0].input.shape == (10, 3, 32, 32)
    hundred = DATA["cifar100"](root=str(tmp_path))
    assert hundred.images("test").targets.tolist() == list(range(100))
    assert hundred.num_classes == 100


class Bomb:
    def __reduce__(self):
        return os.system, ("echo a program in a pickle",)


def test_nothing_executes_from_a_pickle(tmp_path, capfd):
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": Bomb(), "labels": []}))
    with pytest.raises(ValueError, match=r"test_batch is damaged .*it calls for (posix|nt)\.system"):
        read_pickle(path, "labels")
    assert "program" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": pixels(3, 3072), "labels": [0, 1, 2]})[:-40],
        pickle.dumps({"data": pixels(3, 3072)}),
        pickle.dumps({"data": pixels(3, 3072), "labels": [0, 1]}),
        pickle.dumps({"data": pixels(3, 3072), "labels": ["a", "b", "c"]}),
        pickle.dumps({"data": pixels(3, 3072).astype(float), "labels": [0, 1, 2]}),
        pickle.dumps([1, 2]),
        b"<html>moved</html>",
        b"",
    ],
)
def test_damaged_pickle(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"test_batch is damaged"):
        read_pickle(tmp_path / "test_batch", "labels")


# SVHN


@pytest.mark.parametrize(
    ("name", "tree", "reader"), [("cifar10", "cifar_tree", "read_pickle"), ("svhn", "svhn_tree", "read_mat")]
)
def test_packed_files_are_unpacked_once(tmp_path, monkeypatch, capsys, name, tree, reader):
    """All processes share a copy by its mapping, of which none changes a byte; other files are another copy."""
    globals()[tree](tmp_path)

    def part():
        return DATA[name](root=str(tmp_path)).images("test")

    first = part()
    monkeypatch.setattr(sys.modules[DATA[name].__module__], reader, None)
    second = part()
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets, second.targets)
    assert second.images.is_contiguous()
    [copy] = (tmp_path / ".hem").iterdir()
    assert str(copy) in Path("/proc/self/maps").read_text()
    before = copy.read_bytes()
    second.images[0] += 1
    assert copy.read_bytes() == before
    assert not torch.equal(second.images, part().images)
    [source] = tmp_path.rglob("test_*")
    os.utime(source, (0, 0))
    with pytest.raises(TypeError, match="not callable"):
        part()
    monkeypatch.undo()
    copy.unlink()
    copy.parent.rmdir()
    copy.parent.write_text("no folder: as where nothing can be written")
    assert torch.equal(part().images, first.images)
    assert f"{name}/test: each process reads it for itself, for {copy.parent}" in capsys.readouterr().out


def test_files_of_mnist_are_mapped(tmp_path):
    mnist_tree(tmp_path, n=20)
    images = DATA["mnist"](root=str(tmp_path), val_fraction=0).images("test").images
    [path] = tmp_path.rglob("t10k-images*")
    assert str(path) in Path("/proc/self/maps").read_text()
    before = path.read_bytes()
    images += 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("folder", ["", "SVHN"])
def test_svhn(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    svhn_tree(tmp_path / folder)
    data = DATA["svhn"](root=str(tmp_path), batch_size=5)
    assert data.images("test").targets.tolist() == [(i % 10 + 1) % 10 for i in range(20)]  # 10 means the digit 0
    assert data.images("test").images.shape == (20, 3, 32, 32)
    assert len(batches(data)) == 4


def test_damaged_mat(tmp_path):
    svhn_tree(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"test_32x32\.mat is damaged"):
        DATA["svhn"](root=str(tmp_path)).setup("test")
    savemat(path, {"X": pixels(32, 32, 3, 20), "y": np.zeros((19, 1))})
    with pytest.raises(ValueError, match=r"test_32x32\.mat is damaged: X is uint8 of shape \(32, 32, 3, 20\)"):
        DATA["svhn"](root=str(tmp_path)).setup("test")


# TinyImageNet and ImageNet


def test_tiny_imagenet(tmp_path):
    tiny_tree(tmp_path)
    data = DATA["tiny_imagenet"](root=str(tmp_path), batch_size=50, val_fraction=0)
    assert data.images("train").targets.tolist() == data.images("test").targets.tolist() == list(range(200))
    assert batches(data, "train")[0].input.shape == (50, 3, 64, 64)
    path = tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_7.JPEG"
    with Image.open(path) as image:
        assert np.array_equal(data.images("test").images[7].permute(1, 2, 0).numpy(), np.asarray(image))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"val_7\.JPEG is not a readable image"):
        DATA["tiny_imagenet"](root=str(tmp_path)).setup("test")
    listing = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    listing.write_text(listing.read_text() + "val_9.JPEG\tn00000000\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt, line 201: expected a file and one of 200 wnids"):
        DATA["tiny_imagenet"](root=str(tmp_path)).setup("test")


def test_imagenet(tmp_path):
    imagenet_tree(tmp_path)
    for root in (tmp_path, tmp_path / "imagenet"):
        data = DATA["imagenet"](root=str(root), batch_size=500, val_fraction=0)
        assert data.images("test").targets.tolist() == list(range(1000))
    images = data.images("train")
    assert images[5][0].shape == (3, 224, 224)
    with Image.open(images.paths[0]) as image:  # the centre of the image whose shorter side has 256 pixels
        expected = np.asarray(image.resize((295, 256), Image.Resampling.BILINEAR))[16:240, 36:260]
    assert np.abs(images[0][0].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 1
    assert images.augmented(0, 1)[0].shape == (3, 224, 224)
    assert not torch.equal(images.augmented(0, 1)[0], images.augmented(0, 2)[0])
    (tmp_path / "imagenet" / "val" / "n00000007" / "0.JPEG").unlink()
    with pytest.raises(ValueError, match=r"val/n00000007 holds no image"):
        DATA["imagenet"](root=str(tmp_path)).setup("test")
    (tmp_path / "imagenet" / "val" / "n00000007").rmdir()
    with pytest.raises(ValueError, match="holds 999 class folders, but ImageNet has 1000"):
        DATA["imagenet"](root=str(tmp_path)).setup("test")


# one's own folder


def test_folder_with_parts(tmp_path):
    folder_tree(tmp_path, ("train", "val", "test"))
    data = hd.FolderDataModule(str(tmp_path), image_size=(16, 24), batch_size=4)
    assert data.class_names == ["cat", "dog"]
    assert data.class_counts == [5, 5]
    data.setup("fit")
    assert [len(data.part(part)[1]) for part in ("train", "val", "test")] == [10, 10, 10]
    train, test = batches(data, "train"), batches(data)
    assert train[0].input.shape == (4, 3, 16, 24)
    assert len(train) == 2
    assert sum(len(batch.index) for batch in test) == 10
    assert data.name_of(6) == str(tmp_path / "test" / "dog" / "1.png")
    assert isinstance(data.val_dataloader(), hd.Loader)


def test_folder_without_parts_is_split_for_good(tmp_path):
    folder_tree(tmp_path, ("",), n=10)
    data = hd.FolderDataModule(str(tmp_path), val_fraction=0.25, image_size=(8, 8))
    names = members(data)
    assert data.class_counts == [sum(f"/{name}/" in path for path in names["train"]) for name in data.class_names]
    assert sum(len(paths) for paths in names.values()) == len(set.union(*names.values())) == 20
    assert min(len(paths) for paths in names.values()) > 0
    other = hd.FolderDataModule(str(tmp_path), split_seed=7, seed=3)
    assert set(other.images("test").paths) == names["test"]
    assert members(other)["val"] != names["val"]


def test_folder_of_grey_images_without_crop(tmp_path):
    folder_tree(tmp_path)
    data = hd.FolderDataModule(str(tmp_path), image_size=(8, 8), in_channels=1, crop_scale=None, batch_size=4)
    assert data.mean == (0.449,)
    assert not data.augment
    images, _index = data.part("train")
    for batch in batches(data, "train"):
        expected = torch.stack([images[int(i)][0] for i in batch.index])
        assert torch.equal((batch.input * 255).round().byte(), expected)


def test_folder_images_fill_a_size_that_is_not_square(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 40), "white").save(tmp_path / name / "tall.png")
        Image.new("RGB", (40, 30), "white").save(tmp_path / name / "wide.png")
    data = hd.FolderDataModule(str(tmp_path), image_size=(14, 28), test_fraction=0.5)
    for images in (data.images("train"), data.images("test")):
        assert all((images[i][0] == 255).all() for i in range(2))


@pytest.mark.parametrize("names", PART_NAMES)
def test_names_of_the_parts(tmp_path, names):
    """The usual ones in any case; they are never classes."""
    folder_tree(tmp_path, names)
    data = hd.FolderDataModule(str(tmp_path), image_size=8)
    assert data.class_names == ["cat", "dog"]
    assert data.official_val
    files = members(data)
    for part, name in zip(("train", "val", "test"), names, strict=True):
        assert {path.split("/")[-3] for path in files[part]} == {name}


def test_folders_that_are_nearly_the_layout(tmp_path):
    """What was found and what is expected; a class that is called as a part is one where it holds images itself."""
    folder_tree(tmp_path / "no_train", ("validation", "testing"))
    with pytest.raises(ValueError, match=r"Expected .*train/<class>/<image>.*, got validation, testing without train"):
        hd.FolderDataModule(str(tmp_path / "no_train"))
    folder_tree(tmp_path / "coins", ("",), classes=("valid", "invalid"))
    with pytest.warns(UserWarning, match=r"valid in .*coins is taken for a class, since there is no train"):
        assert hd.FolderDataModule(str(tmp_path / "coins")).class_names == ["invalid", "valid"]
    folder_tree(tmp_path / "flat", ("",), classes=("valid", "test"))
    with pytest.raises(ValueError, match=r"got valid, test without train among test, valid"):
        hd.FolderDataModule(str(tmp_path / "flat"))
    folder_tree(tmp_path / "twice", ("train", "val", "valid"))
    with pytest.raises(ValueError, match=r"Expected one folder for the val part in .*twice, got val and valid"):
        hd.FolderDataModule(str(tmp_path / "twice"))
    folder_tree(tmp_path / "more", ("train", "holdout"))
    with pytest.warns(UserWarning, match=r"more holds train, and beside them holdout, which are not read"):
        hd.FolderDataModule(str(tmp_path / "more"))
    folder_tree(tmp_path / "deeper" / "data")
    with pytest.raises(ValueError, match=r"Expected two class folders or more, .*got data"):
        hd.FolderDataModule(str(tmp_path / "deeper"))


def test_hidden_folders_are_no_data(tmp_path):
    folder_tree(tmp_path, ("train", "train/.cache"))
    folder_tree(tmp_path / "train" / "cat", (".thumbnails", "__MACOSX"))
    data = hd.FolderDataModule(str(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert data.train_counts == [len(data.images("train")) - data.train_counts[1], data.train_counts[1]]
    assert sum(map(len, members(data).values())) == 10


def test_an_image_more_moves_no_other(tmp_path):
    """Between no parts, wherever it sorts, whatever is taken away; and the shares are met on average."""
    folder_tree(tmp_path, ("",), n=100)
    before = members(hd.FolderDataModule(str(tmp_path), val_fraction=0.1))
    assert 20 <= len(before["test"]) <= 60  # 40 of 200 expected, 6 the standard deviation
    assert 5 <= len(before["val"]) <= 35
    for name in ("000.png", "zzz.png", "50b.png"):
        jpeg(tmp_path / "cat" / name, (9, 9))
    (tmp_path / "dog" / "7.png").unlink()
    after = members(hd.FolderDataModule(str(tmp_path), val_fraction=0.1))
    old = set.union(*before.values()) - {str(tmp_path / "dog" / "7.png")}
    assert {part: paths & old for part, paths in after.items()} == {part: paths & old for part, paths in before.items()}


def test_the_lists_of_files_are_known_again(tmp_path):
    """Wherever the folder lies and however it is listed; a file more or another name is another list."""
    folder_tree(tmp_path / "a", ("",), n=20)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def module(name, **options):
        return hd.FolderDataModule(str(tmp_path / name), **options)

    kept = files_of(module("a"))
    assert {part: len(paths) for part, paths in members(module("a")).items()} == {
        part: found["count"] for part, found in kept.items()
    }
    assert files_of(module("b")) == kept
    assert changed_files(module("b"), kept) == []
    with open(tmp_path / "b" / "cat" / "1.png", "ab") as file:
        file.write(bytes(1))
    (changed,) = changed_files(module("b"), kept)
    assert "of the same names, but other sizes" in changed
    old = {part: {key: value for key, value in facts.items() if key != "bytes"} for part, facts in kept.items()}
    assert changed_files(module("b"), old) == []  # of a run that kept the names alone
    (tmp_path / "b" / "cat" / "0.png").rename(tmp_path / "b" / "cat" / "new.png")
    changed = changed_files(module("b"), kept)
    assert changed
    assert all(str(tmp_path / "b") in sentence for sentence in changed)
    assert changed_files(module("a", split_seed=1), kept)[0].startswith("The train part of the folder in")
    assert "trained before there was one" in changed_files(module("a"), None)[0]
    folder_tree(tmp_path / "c", ("train", "val", "test"))
    assert changed_files(module("c"), None) == []  # no part was ever drawn
    digits = hd.DigitsDataModule()
    assert files_of(digits) == {}
    assert changed_files(digits, None) == changed_files(digits, {}) == []


def test_images_of_kinds_that_are_not_read_are_named(tmp_path):
    folder_tree(tmp_path, ("train", "test"))
    (tmp_path / "train" / "cat" / "IMG_0042.HEIC").touch()
    with pytest.warns(UserWarning, match=r"holds 1 images of other kinds, such as .*IMG_0042.HEIC, which are not read"):
        hd.FolderDataModule(str(tmp_path))


def test_broken_images_to_predict_are_named_at_once(tmp_path):
    folder_tree(tmp_path, ("",), classes=("some",))
    for name in ("1.png", "3.png"):
        (tmp_path / "some" / name).write_bytes(b"no image")
    data = hd.DigitsDataModule(predict_folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"got 2 of 5 that cannot: some/1.png .*; some/3.png .*remove them.$"):
        data.setup("predict")


def test_few_images_leave_each_class_one_to_train_on(tmp_path):
    folder_tree(tmp_path, ("",), classes=("a", "b", "c", "d", "e"), n=1)
    assert hd.FolderDataModule(str(tmp_path), test_fraction=0.9, val_fraction=0.9).class_counts == [1] * 5
    folder_tree(tmp_path / "more", ("",), n=4)
    data = hd.FolderDataModule(str(tmp_path / "more"), test_fraction=0.01, val_fraction=0.01)
    assert [len(paths) for paths in members(data).values()] == [6, 1, 1]


def test_broken_images_are_named_at_once_and_left_out_by_name(tmp_path):
    folder_tree(tmp_path, ("train", "test"))
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    (tmp_path / "test" / "dog" / "3.png").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "train" / "dog" / "4.png")
    names = ["train/cat/0.png", "train/dog/4.png", "test/dog/3.png"]
    with pytest.raises(ValueError, match=r"got 3 of 20 that cannot: train/cat/0.png \(no kind of image") as error:
        hd.FolderDataModule(str(tmp_path))
    sentence = str(error.value)
    assert "train/dog/4.png (its pixels have more than 8 bits" in sentence
    assert "test/dog/3.png (the file is empty)" in sentence
    assert f"--data.skip '{json.dumps(names)}'" in sentence
    data = hd.FolderDataModule(str(tmp_path), val_fraction=0, skip=names)
    assert [len(paths) for paths in members(data).values()] == [8, 0, 9]
    with pytest.raises(ValueError, match=r"skip names train/cat/9.png, but .*9.png is no image"):
        hd.FolderDataModule(str(tmp_path), skip=[*names, "train/cat/9.png"])
    with pytest.raises(ValueError, match=r"skip leaves no test image of the class dog"):
        hd.FolderDataModule(str(tmp_path), skip=[f"test/dog/{i}.png" for i in range(5)])


def test_folder_sentences(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder of images .*nowhere is not there"):
        hd.FolderDataModule(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"Expected two class folders or more, .*got none"):
        hd.FolderDataModule(str(tmp_path))
    folder_tree(tmp_path / "whole" / "images", ("",))
    with pytest.raises(ValueError, match=r"one level below, in images \(cat, dog\): give .*images as --data.root"):
        hd.FolderDataModule(str(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "whole")
    folder_tree(tmp_path, ("train", "test"))
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(ValueError, match=r"The class folder .*train/eel holds no image .*: delete it, or put"):
        hd.FolderDataModule(str(tmp_path))
    jpeg(tmp_path / "train" / "eel" / "0.jpg")
    with pytest.raises(FileNotFoundError, match=r"The class eel has no folder: .*test/eel is not there"):
        hd.FolderDataModule(str(tmp_path))
    jpeg(tmp_path / "test" / "eel" / "0.jpg")
    jpeg(tmp_path / "test" / "fox" / "0.jpg")
    with pytest.raises(ValueError, match=r"test/fox is a folder, but there is no such class: cat, dog, eel"):
        hd.FolderDataModule(str(tmp_path))
    with pytest.raises(ValueError, match="in_channels to be 3 for colour or 1 for grey, got 2"):
        hd.FolderDataModule(str(tmp_path), in_channels=2)
    with pytest.raises(ValueError, match=r"one number per channel .* in mean and std, got"):
        hd.FolderDataModule(str(tmp_path), mean=[0.5])
    with pytest.raises(ValueError, match="test_fraction to be a share"):
        hd.FolderDataModule(str(tmp_path), test_fraction=1.0)
    with pytest.raises(ValueError, match="crop_scale to be a range"):
        hd.FolderDataModule(str(tmp_path / "train"), crop_scale=(0.0, 1.0)).setup("fit")


# all of them

FIXED = [
    key for key in DATA if key not in ("folder", "open_set")
]  # the facts of these two are of what they are made of
LISTED = ("imagenet_lt", "inaturalist")  # class_counts are in a file of the data set


@pytest.mark.parametrize("key", [key for key in FIXED if key not in LISTED])
def test_facts_need_no_disk(key, tmp_path):
    data = DATA[key](root=str(tmp_path / "nowhere"))
    assert data.num_classes == len(data.class_names) == len(set(data.class_names)) == len(data.class_counts)
    assert len(data.mean) == len(data.std) == data.in_channels
    assert all(0 < m < 1 and 0 < s < 0.5 for m, s in zip(data.mean, data.std, strict=True))
    assert data.name == key
    assert type(data).__name__ in hd.__all__


@pytest.mark.parametrize(
    ("key", "total"),
    [
        ("mnist", 60_000),
        ("fashion_mnist", 60_000),
        ("kmnist", 60_000),
        ("cifar10", 50_000),
        ("cifar100", 50_000),
        ("svhn", 73_257),
        ("tiny_imagenet", 100_000),
        ("imagenet", 1_281_167),
        ("digits", 1438),
    ],
)
def test_published_sizes(key, total):
    assert sum(DATA[key](val_fraction=0).class_counts) == total


@pytest.mark.parametrize("key", [key for key in FIXED if key != "digits"])
@pytest.mark.parametrize(("stage", "part"), [("fit", "train"), ("test", "test")])
def test_missing_data_says_what_and_where_and_how(key, stage, part, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        DATA[key](root=str(tmp_path / "nowhere")).setup(stage)
    sentence = str(error.value)
    assert f"The {part} part of {DATA[key].title} is missing" in sentence
    assert str(tmp_path / "nowhere") in sentence
    assert "http" in sentence
    assert "--data.root" in sentence
    assert "HEM_DATA" in sentence
    assert ("--data.download true" in sentence) == (DATA[key].fetch is not hd.ImageDataModule.fetch)
