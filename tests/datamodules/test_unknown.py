"""Unknown sets come in the form of the known images, the same for everyone; what is missing is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from hem.datamodules import (
    CIFAR10DataModule,
    DigitsDataModule,
    ImageNetDataModule,
    MNISTDataModule,
    OpenSetDataModule,
)
from hem.datamodules.images import NO_TARGET, MemoryImages
from hem.datamodules.unknown import UNKNOWN, kind_of, unknown_images
from tests.datamodules import test_datasets as trees

pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")
NOISE = ("uniform", "gaussian", "blobs", "nonsense")
DESTROYED = ("permuted", "phase")


def stack(images, index):
    return torch.stack([images[i][0] for i in index.tolist()])


def known(tmp_path, images):
    """An MNIST whose test part is at hand."""
    data = MNISTDataModule(root=str(tmp_path))
    data._images["test"] = MemoryImages(images, torch.zeros(len(images)), "mnist/test")
    return data


def drawing(path, size=105):
    """A black stroke on white, as Omniglot has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), 255, np.uint8)
    pixels[40:60] = 0
    Image.fromarray(pixels).convert("1").save(path)


# -- noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NOISE, *DESTROYED])
@pytest.mark.parametrize("module", [MNISTDataModule, CIFAR10DataModule])
def test_noise_has_the_form_of_the_known_and_is_a_function_of_the_seed(name, module, tmp_path):
    data = module(root=str(tmp_path))
    shape = (data.in_channels, *data.image_size)
    base = torch.randint(256, (30, *shape), generator=torch.Generator().manual_seed(0)).byte()
    data._images["test"] = MemoryImages(base, torch.zeros(30), "test")
    images, index = unknown_images(name, data, limit=20)
    pixels = stack(images, index)
    assert pixels.shape == (20, *shape)
    assert pixels.dtype == torch.uint8
    assert (images.targets[index] == NO_TARGET).all()
    assert kind_of(name) == "unrecognisable"
    torch.manual_seed(123)  # nobody asks it
    assert torch.equal(pixels, stack(*unknown_images(name, data, limit=20)))
    assert not torch.equal(pixels, stack(*unknown_images(name, data, limit=20, seed=1)))
    assert len(pixels.flatten(1).unique(dim=0)) == 20


@pytest.mark.parametrize("name", ["uniform", "phase"])
def test_one_by_one_as_all_at_once(name, tmp_path, monkeypatch):
    data = known(tmp_path, torch.randint(256, (12, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte())
    together, index = unknown_images(name, data, limit=9)
    monkeypatch.setattr("hem.datamodules.unknown.IN_MEMORY", 0)
    lazy, positions = unknown_images(name, data, limit=9)
    assert isinstance(together, MemoryImages)
    assert not isinstance(lazy, MemoryImages)
    assert torch.equal(stack(together, index), stack(lazy, positions))


def test_moments_of_noise():
    data = MNISTDataModule()
    pixels = {name: stack(*unknown_images(name, data, limit=300)).float() / 255 for name in NOISE}
    assert pixels["uniform"].mean() == pytest.approx(0.5, abs=0.005)
    assert pixels["uniform"].std() == pytest.approx(12**-0.5, abs=0.005)
    inner = pixels["gaussian"]
    assert inner.median() == pytest.approx(0.5, abs=0.01)
    assert (inner <= 0.25).float().mean() == pytest.approx(0.1587, abs=0.005)  # one deviation below the mean
    assert (inner == 0).float().mean() == pytest.approx(0.0228, abs=0.002)  # two
    marked = pixels["blobs"]
    assert ((marked == 0) | (marked >= 0.745)).all()
    assert 0.15 < (marked > 0).float().mean() < 0.4


def test_permuted_keeps_the_pixels(tmp_path):
    base = torch.arange(784).remainder(251).byte().view(1, 1, 28, 28).expand(3, 1, 28, 28)
    pixels = stack(*unknown_images("permuted", known(tmp_path, base)))
    assert torch.equal(pixels.flatten(1).sort(1).values, base.flatten(1).sort(1).values)
    assert not torch.equal(pixels[0], pixels[1])
    data = CIFAR10DataModule()
    colour = torch.stack([torch.arange(1024).remainder(199).byte().view(32, 32) + c for c in range(3)])[None]
    data._images["test"] = MemoryImages(colour, torch.zeros(1), "test")
    moved = stack(*unknown_images("permuted", data))[0]
    assert torch.equal(moved[1], moved[0] + 1)  # the channels of a pixel move together


def test_phase_keeps_the_amplitudes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = (128 + 12 * torch.randn(4, 1, 28, 28, generator=generator)).byte()  # nothing is cut off
    pixels = stack(*unknown_images("phase", known(tmp_path, base))).double()
    amplitudes = [torch.fft.rfft2(images.double()).abs() for images in (base, pixels)]
    torch.testing.assert_close(*amplitudes, atol=30, rtol=0.02)  # of 8,000 to 100,000; pixels are rounded
    assert (pixels - base.double()).abs().mean() > 5


# -- other data sets -----------------------------------------------------------------------------------------


def test_other_data_sets_in_grey_and_colour(tmp_path):
    trees.mnist_tree(tmp_path)
    trees.cifar_tree(tmp_path)
    images, index = unknown_images("cifar10", MNISTDataModule(root=str(tmp_path)))
    assert stack(images, index).shape == (10, 1, 28, 28)
    images, index = unknown_images("mnist", CIFAR10DataModule(root=str(tmp_path)), limit=7)
    pixels = stack(images, index)
    assert pixels.shape == (7, 3, 32, 32)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert kind_of("mnist") == "novel"
    again, chosen = unknown_images("mnist", CIFAR10DataModule(root=str(tmp_path)), limit=7, seed=9)
    assert torch.equal(pixels, stack(again, chosen))  # which images are looked at hangs on no seed


OMNIGLOT = (
    *("omniglot-small1/images_background_small1", "omniglot-small2/images_background_small2"),
    *("omniglot-py/images_background", "omniglot-py/images_evaluation"),
)


@pytest.mark.parametrize("folder", OMNIGLOT)
def test_omniglot_is_white_on_black(folder, tmp_path):
    drawing(tmp_path / folder / "Greek" / "character01" / "0394_01.png")
    images, index = unknown_images("omniglot", MNISTDataModule(root=str(tmp_path)))
    pixels = stack(images, index)
    assert pixels.shape == (1, 1, 28, 28)
    assert pixels[0, 0, 0].max() == 0
    assert pixels[0, 0, 13].min() == 255


def test_both_small_parts_of_omniglot_are_read(tmp_path):
    for i in (1, 2):
        drawing(tmp_path / f"omniglot-small{i}" / f"images_background_small{i}" / "Greek" / "character01" / "a.png")
    assert len(unknown_images("omniglot", MNISTDataModule(root=str(tmp_path)))[1]) == 2


@pytest.mark.parametrize("folder", OMNIGLOT)
def test_omniglot_is_cut_as_the_known_images_are(folder, tmp_path):
    """ImageNet's evaluation scales to 256 pixels and cuts 224 out: a frame of 4 of 105 pixels is outside."""
    path = tmp_path / folder / "Greek" / "character01" / "0394_01.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.pad(np.full((97, 97), 255, np.uint8), 4)).convert("1").save(path)
    (image,) = stack(*unknown_images("omniglot", ImageNetDataModule(root=str(tmp_path))))
    assert image.shape == (3, 224, 224)
    assert image.max() == 0  # the frame is black in the file, thus white in the negative


def test_folders_are_cut_not_stretched(tmp_path):
    path = tmp_path / "dtd" / "images" / "banded" / "banded_0001.jpg"
    path.parent.mkdir(parents=True)
    pixels = np.zeros((60, 180, 3), np.uint8)
    pixels[:, 60:120] = 255  # the centre square is white
    Image.fromarray(pixels).save(path, quality=100)
    (image,) = stack(*unknown_images("textures", CIFAR10DataModule(root=str(tmp_path))))
    assert image.shape == (3, 32, 32)
    assert image[:, :, 4:28].min() > 240
    (large,) = stack(*unknown_images("textures", ImageNetDataModule(root=str(tmp_path))))
    assert large.shape == (3, 224, 224)
    own = unknown_images(str(tmp_path / "dtd"), MNISTDataModule(root="/nowhere"))
    assert stack(*own).shape == (1, 1, 28, 28)


@pytest.mark.parametrize("name", [name for name, entry in UNKNOWN.items() if entry.kind == "novel"])
def test_a_missing_set_is_named_with_its_place(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        unknown_images(name, DigitsDataModule(root=str(tmp_path)))
    if name == "held_out":
        assert "OpenSetDataModule" in str(error.value)
    else:
        assert str(tmp_path) in str(error.value)
        assert "get it from http" in str(error.value)


def test_wrong_names(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown set 'omniglott'; did you mean 'omniglot'"):
        unknown_images("omniglott", MNISTDataModule())
    with pytest.raises(ValueError, match="'mnist' cannot be unknown: it is the known one"):
        unknown_images("mnist", MNISTDataModule())
    with pytest.raises(FileNotFoundError, match="none of the folders /no/where is in"):
        unknown_images("/no/where", MNISTDataModule())


# -- open-set splits -----------------------------------------------------------------------------------------


def test_open_set_split(tmp_path):
    _, content = trees.mnist_tree(tmp_path)  # twenty images of the labels 0 to 9, twice
    data = OpenSetDataModule("mnist", [7, 2, 3], root=str(tmp_path), val_fraction=0.5, batch_size=2)
    images, index = data.part("train")
    assert images.targets.unique().tolist() == [0, 1, 2]
    assert len(index) == 3
    assert data.class_names == ("7", "2", "3")
    assert (data.mean, data.image_size) == (MNISTDataModule.mean, (28, 28))
    sevens = images.images[images.targets == 0]
    assert torch.equal(sevens[:, 0], torch.from_numpy(content["train"][[7, 17]]))
    unknown, positions = unknown_images("held_out", data)
    assert len(positions) == 14
    kept = torch.from_numpy(np.delete(content["t10k"], [2, 3, 7, 12, 13, 17], axis=0))
    assert torch.equal(stack(unknown, positions)[:, 0], kept)
    assert (unknown.targets == NO_TARGET).all()
    with pytest.raises(ValueError, match="some of its classes are known"):
        unknown_images("mnist", data)


def test_open_set_counts_need_no_disk():
    data = OpenSetDataModule("cifar10", [0, 1, 8, 9], root="/nowhere", val_fraction=0.1)
    assert (data.num_classes, data.class_counts) == (4, [4500] * 4)
    assert len(data.augment) == len(CIFAR10DataModule().augment) == 2


@pytest.mark.parametrize("classes", [[0, 10], [0, 0], list(range(10))])
def test_open_set_refuses(classes):
    with pytest.raises(ValueError, match="to be some of 0 to 9, each once and not all"):
        OpenSetDataModule("mnist", classes)


def test_open_set_refuses_names_and_one_class():
    with pytest.raises(ValueError, match=r"Unknown data set 'minst'; did you mean"):
        OpenSetDataModule("minst", [0, 1])
    with pytest.raises(ValueError, match="two known classes or more"):
        OpenSetDataModule("mnist", [4])
