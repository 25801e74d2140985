"""Data sets with masks are read from small trees in their official layouts; pairs change together."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hem.datamodules import MASKS, VOC, CamVid, CamVidOriginal, Cityscapes, MaskFolder, SegmentationDataModule
from hem.datamodules.masks import HELD_OUT, VOID, count_classes
from hem.datamodules.pairs import Pad, RandomScale, Stretch, random_crop
from hem.rng import key
from hem.runs.data import files_of
from tests.datamodules import mask_trees as trees
from tests.datamodules.mask_trees import PART_NAMES


def module(dataset, root, **options):
    return SegmentationDataModule(dataset, root=str(root), **{"batch_size": 2, **options})


def test_one_number_means_both_sides(tmp_path):
    data = module(MaskFolder(["a", "b"], image_size=48), tmp_path, crop_size=24)
    assert (data.image_size, data.crop_size) == ((48, 48), (24, 24))
    assert module(MaskFolder(["a", "b"]), tmp_path, image_size=40).image_size == (40, 40)


def test_camvid(tmp_path):
    """Its own parts; 11 and 255 are void; what is published needs no disk."""
    trees.camvid_tree(tmp_path, n=3)
    data = module(CamVid(), tmp_path, image_size=(24, 32))
    assert [len(data.part(part)[1]) for part in ("train", "val", "test")] == [3, 3, 3]
    images = data.images("test")
    for i in range(3):
        raw = np.asarray(Image.open(tmp_path / "CamVid" / "testannot" / f"{i}.png"))
        image, mask = images[i]
        assert torch.equal(mask, torch.from_numpy(np.where(raw == 11, 255, raw)))
        assert torch.equal(image[0], torch.tensor(raw))
    nowhere = SegmentationDataModule(CamVid(), root="/nowhere")
    assert nowhere.class_counts[3] == 20_076_880
    assert SegmentationDataModule(CamVid(), root="/nowhere", count="images").class_counts[7] == 173


def test_camvid_original(tmp_path):
    """SegNet's split by sequence; colours become classes, black is void."""
    trees.camvid_original_tree(tmp_path)
    data = module(CamVidOriginal(), tmp_path, image_size=(8, 16))
    names = {part: [Path(data.images(part).name_of(i)).stem for i in range(2)] for part in ("train", "val", "test")}
    assert names == {
        "train": ["0001TP_006690", "0016E5_07980"],
        "val": ["0016E5_07959", "0016E5_08159"],
        "test": ["0001TP_008550", "Seq05VD_f00000"],
    }
    _, mask = data.images("train")[0]
    assert mask[::2, ::2].flatten().tolist() == [*range(31), VOID]
    assert len(set(CamVidOriginal.palette)) == 31
    trees.save(tmp_path / "CamVid" / "LabeledApproved_full" / "0001TP_006690_L.png", np.full((8, 16, 3), 7, "u1"))
    with pytest.raises(ValueError, match=r"to hold its 32 colours, got \(7, 7, 7\) in .*0001TP_006690_L.png"):
        data.images("train")[0]
    trees.save(tmp_path / "CamVid" / "LabeledApproved_full" / "0001TP_006690_L.png", np.zeros((8, 16, 2), "u1"))
    with pytest.raises(ValueError, match=r"to hold RGB colours, got a grey or palette image in .*0001TP_006690_L.png"):
        data.images("train")[0]


def test_cityscapes(tmp_path):
    """Label ids become the 19 train ids; val is the test part, and val is a share of train."""
    trees.cityscapes_tree(tmp_path)
    data = module(Cityscapes(), tmp_path, image_size=(24, 32), val_fraction=0.25)
    assert [len(data.part(part)[1]) for part in ("train", "val", "test")] == [6, 2, 4]
    # the table of the official cityscapesscripts/helpers/labels.py
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
    train_ids |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    images = data.images("train")
    seen = set()
    for i in range(len(images)):
        image, mask = images[i]
        expected = [train_ids.get(int(v), 255) for v in image[0].flatten()]
        assert mask.flatten().tolist() == expected
        seen |= set(expected)
    assert len(seen) > 15


def test_voc_and_sbd(tmp_path):
    """trainaug: VOC's train and both of SBD's lists without VOC's val; .mat files where VOC has no mask."""
    trees.voc_tree(tmp_path)
    data = module(VOC(), tmp_path, image_size=(40, 32), fit="pad", val_fraction=0)
    images = data.images("train")
    assert [Path(images.name_of(i)).stem for i in range(len(images))] == ["s1", "s2", "v1", "v2", "v3"]
    assert [Path(mask).suffix for mask in images.masks] == [".mat", ".mat", ".png", ".png", ".png"]
    assert set(images[0][1][:24].unique().tolist()) <= set(range(21))
    assert len(data.images("test")) == 3
    assert len(module(VOC(sbd=False), tmp_path, val_fraction=0).images("train")) == 3
    # sizes differ: padded with black and void
    image, mask = images[2]
    assert image.shape == (3, 40, 32)
    assert (mask[24:] == VOID).all()
    assert (image[:, 24:] == 0).all()


def test_mask_folder(tmp_path):
    """One's own classes; the counts are made once and kept beside the data."""
    trees.mask_folder_tree(tmp_path, classes=3)
    dataset = MaskFolder(["a", "b", "c"], image_size=(24, 32))
    data = module(dataset, tmp_path, val_fraction=0.5)
    train, val, test = (data.part(part)[1] for part in ("train", "val", "test"))
    assert sorted([*train.tolist(), *val.tolist()]) == test.tolist() == list(range(6))
    assert min(len(train), len(val)) > 0
    masks = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "train" / "masks").iterdir())])
    pixels = [int((masks == c).sum()) for c in range(3)]
    holders = [(masks == c).any((1, 2)) for c in range(3)]
    assert data.class_counts == pixels
    assert data.class_frequencies == [n / (24 * 32 * h.sum()) for n, h in zip(pixels, holders, strict=True)]
    kept = tmp_path / "mask_folder_counts.json"
    record = json.loads(kept.read_text())
    record["counts"]["images"] = [7, 7, 7]
    kept.write_text(json.dumps(record))
    assert module(dataset, tmp_path, count="images").class_counts == [7, 7, 7]
    (tmp_path / "train" / "images" / "5.png").unlink()  # another training part: counted again
    assert max(module(dataset, tmp_path, count="images").class_counts) <= 5
    for i in range(5):  # as many masks, but others
        trees.save(tmp_path / "train" / "masks" / f"{i}.png", np.full((24, 32), i % 3, "u1"))
    assert module(dataset, tmp_path, count="images").class_counts == [2, 2, 1]


def one_mask_tree(root, values, n=3):
    """Pairs whose masks hold the given values, row by row."""
    for i in range(n):
        trees.save(root / "train" / "images" / f"{i}.png", np.zeros((len(values), 4, 3), "u1"))
        trees.save(root / "train" / "masks" / f"{i}.png", np.array(values, "u1")[:, None].repeat(4, 1))


def test_masks_of_0_and_255(tmp_path):
    """Where 255 is void, a single class is left: refused at the start. Where it is a class, it can be said."""
    one_mask_tree(tmp_path, [0, 255, 255, 0])
    with pytest.raises(ValueError, match=r"two classes or more in .* 50.0 % of whose .* void, got a: .*\[0, 255"):
        module(MaskFolder(["a", "b"]), tmp_path).setup("fit")
    data = module(MaskFolder(["a", "b"], image_size=4, values=[0, 255]), tmp_path)
    data.setup("fit")
    assert data.class_counts == [24, 24]
    assert data.images("train")[0][1][:, 0].tolist() == [0, 1, 1, 0]


def test_masks_of_one_bit(tmp_path):
    one_mask_tree(tmp_path, [0, 0, 1, 1])
    for path in (tmp_path / "train" / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(bool)).save(path, bits=1)
    data = module(MaskFolder(["a", "b"], image_size=4), tmp_path)
    assert data.class_counts == [24, 24]
    assert data.images("train")[0][1][:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("value", [2, 256, 257, 65535])
def test_values_that_are_no_class_are_refused_at_any_depth(tmp_path, value):
    """257 is not taken for 1, nor 65535 for 255."""
    one_mask_tree(tmp_path, [0, 1, 0, 1])
    values = np.array([[0, 1], [255, value]], np.uint16).repeat(2, 0).repeat(2, 1)
    trees.save(tmp_path / "train" / "masks" / "1.png", values)
    with pytest.raises(
        ValueError,
        match=rf"to hold 0, 1, 255, got the value {value} in .*1.png: name a further .* --data.dataset.class_names",
    ):
        module(MaskFolder(["a", "b"]), tmp_path).setup("fit")
    trees.save(tmp_path / "train" / "masks" / "1.png", np.where(values == value, 1, values))
    module(MaskFolder(["a", "b"]), tmp_path).setup("fit")


def test_classes_without_a_pixel_and_masks_of_nothing_are_named(tmp_path):
    one_mask_tree(tmp_path, [0, 1, *[255] * 198])
    with pytest.warns(UserWarning, match=r"No pixel of c, d is in the training masks of the folder in .*cannot learn"):
        module(MaskFolder(list("abcd")), tmp_path, image_size=4).setup("fit")
    one_mask_tree(tmp_path, [0, 1, *[255] * 398])
    with pytest.warns(UserWarning, match=r"Few pixels have a label in .* 99.5 % of whose .* 0.5 % of them"):
        module(MaskFolder(["a", "b"]), tmp_path, image_size=4).setup("fit")


@pytest.mark.parametrize("names", PART_NAMES)
def test_parts_of_a_mask_folder(tmp_path, names):
    """Their usual names in any case; a validation part that is there is read."""
    trees.mask_folder_tree(tmp_path, n=2, parts=names)
    (tmp_path / names[0] / "images" / ".thumbnails").mkdir()
    (tmp_path / names[0] / "images" / ".thumbnails" / "0.png").write_bytes(b"no image")
    data = module(MaskFolder(["a", "b"], image_size=(24, 32)), tmp_path)
    assert data.official_val
    assert [len(data.part(part)[1]) for part in ("train", "val", "test")] == [2, 2, 2]
    assert not module(MaskFolder(["a", "b"], has_val=False), tmp_path).official_val
    (tmp_path / "validation").mkdir(exist_ok=True)
    (tmp_path / "val").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=r"Expected one folder for the val part in .*, got .*val"):
        module(MaskFolder(["a", "b"]), tmp_path).setup("fit")


def test_pairs_that_cannot_be_used_are_named_at_once(tmp_path):
    """And are left out by name."""
    trees.mask_folder_tree(tmp_path, n=5)
    folder = tmp_path / "train"
    (folder / "images" / "1.png").write_bytes(b"no image")
    (folder / "masks" / "2.png").write_bytes(b"")
    trees.save(folder / "masks" / "3.png", np.zeros((24, 30), "u1"))
    with pytest.raises(ValueError, match=r"got 3 of 5 that cannot: ") as error:
        module(MaskFolder(["a", "b"]), tmp_path).setup("fit")
    sentence = str(error.value)
    assert "train/images/1.png (no kind of image" in sentence
    assert "train/images/2.png (its mask: the file is empty)" in sentence
    assert "train/images/3.png (24 x 32 upright, but its mask 24 x 30)" in sentence
    names = [f"train/images/{i}.png" for i in (1, 2, 3)]
    assert f"--data.dataset.skip '{json.dumps(names)}'" in sentence
    data = module(MaskFolder(["a", "b"], skip=names), tmp_path)
    data.setup("fit")
    assert [Path(path).stem for path in data.images("train").paths] == ["0", "4"]


def test_a_pair_more_moves_no_other(tmp_path):
    trees.mask_folder_tree(tmp_path, n=20)

    def held():
        data = module(MaskFolder(["a", "b"], image_size=(24, 32)), tmp_path, val_fraction=0.3)
        images, index = data.part("val")
        return {Path(images.paths[i]).name for i in index}

    before = held()
    assert 0 < len(before) < 20
    trees.pair(tmp_path / "train" / "images" / "00.png", tmp_path / "train" / "masks" / "00.png", np.arange(2))
    assert held() - {"00.png"} == before
    data = module(MaskFolder(["a", "b"], image_size=(24, 32)), tmp_path, in_memory=True)
    assert files_of(data)["train"]["count"] + files_of(data)["val"]["count"] == 21
    assert not data._images  # nothing was decoded for it


@pytest.mark.parametrize("name", MASKS)
def test_missing_data(name, tmp_path):
    """The sentence names the place; facts that need the data are no facts then."""
    dataset = MaskFolder(["a", "b"]) if name == "mask_folder" else MASKS[name]()
    data = module(dataset, tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        data.setup("fit")
    assert hasattr(data, "class_counts") == (name == "camvid")


def test_missing_mask(tmp_path):
    trees.camvid_tree(tmp_path)
    os.unlink(tmp_path / "CamVid" / "trainannot" / "4.png")
    with pytest.raises(FileNotFoundError, match=r"train/4.png has no mask: .*trainannot/4.png is not there"):
        module(CamVid(), tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((24, 32), 12, "u1"), r"masks of CamVid to hold 0, 1, .*, 11, 255, got the value 12 in .*3.png"),
        (np.zeros((24, 30), "u1"), r"got .*train/3.png of 24 x 32 and .*trainannot/3.png of 24 x 30: mend the pair"),
        (
            np.zeros((24, 32, 3), "u1"),
            r"one channel in .*trainannot/3.png, .* of CamVid .* got 3, of a colour image",
        ),
        (
            np.zeros((24, 32, 4), "u1"),
            r"one channel in .*trainannot/3.png, .* of CamVid .* got 3, of a colour image",
        ),
        (np.zeros((24, 32, 2), "u1"), r"one channel in .*trainannot/3.png, .* got 2, the second of them alpha: save"),
    ],
)
def test_bad_mask(array, sentence, tmp_path):
    trees.camvid_tree(tmp_path)
    trees.save(tmp_path / "CamVid" / "trainannot" / "3.png", array)
    with pytest.raises(ValueError, match=sentence):
        list(module(CamVid(), tmp_path).train_dataloader())
    with pytest.raises(ValueError, match=sentence):
        module(CamVid(), tmp_path, in_memory=True).setup("fit")


def test_unreadable_files(tmp_path):
    trees.voc_tree(tmp_path)
    for path in ("VOCdevkit/VOC2012/SegmentationClass/v2.png", "benchmark_RELEASE/dataset/cls/s1.mat"):
        (tmp_path / path).write_bytes(b"no mask")
    images = module(VOC(), tmp_path).images("train")
    with pytest.raises(ValueError, match=r"s1.mat is not a readable mask of SBD"):
        images[0]
    with pytest.raises(ValueError, match=r"v2.png is not a readable mask"):
        images[3]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"unknown_classes to be some of CamVid's classes.*got dog"):
        module(CamVid(), tmp_path, unknown_classes=["dog"])
    with pytest.raises(ValueError, match="unknown_classes to leave two known classes or more, got 1"):
        module(CamVid(), tmp_path, unknown_classes=CamVid.class_names[1:])
    with pytest.raises(ValueError, match=r"max_share to be a share.*got 0"):
        module(CamVid(), tmp_path, max_share=0)
    with pytest.raises(ValueError, match=r"crop_size to be a height and a width.*\[0, 4\]"):
        module(CamVid(), tmp_path, crop_size=(0, 4))
    with pytest.raises(ValueError, match="one colour per class in palette, got 1 for 2"):
        MaskFolder(["a", "b"], palette=[(0, 0, 0)])
    with pytest.raises(ValueError, match=r"Expected at most 253 classes, .* got 254"):
        MaskFolder([str(number) for number in range(254)])
    with pytest.raises(ValueError, match="void to be a value that is no class, 2 to 255, got 1"):
        MaskFolder(["a", "b"], void=1)
    with pytest.raises(ValueError, match="values to be different numbers of 0 to 255, one for each of the 2 classes"):
        MaskFolder(["a", "b"], values=[3, 3])
    with pytest.raises(ValueError, match="void to be a value of 0 to 255 that is none of values"):
        MaskFolder(["a", "b"], values=[0, 9], void=9)
    with pytest.raises(ValueError, match="Expected class names that differ, got a more than once"):
        module(MaskFolder(["a", "a"]), tmp_path)
    with pytest.raises(ValueError, match=r"factors above 0, got \[0, 1\]"):
        RandomScale((0, 1))


def test_changes_are_joint(tmp_path):
    """The image's red is its label, so a mask that was changed otherwise would show; what comes in is void."""
    trees.mask_folder_tree(tmp_path, classes=4)
    changes = [RandomScale((0.6, 2.5)), v2.RandomHorizontalFlip(), v2.RandomRotation(90)]
    data = module(MaskFolder(list("abcd"), image_size=(24, 32)), tmp_path, augment=changes, crop_size=(20, 28))
    images = data.images("train")
    seen = set()
    for i in range(6):
        for k in range(5):
            image, mask = images.augmented(i, int(key(0, k, i)))
            assert image.shape == (3, 20, 28)
            assert image.dtype == mask.dtype == torch.uint8
            inside = mask < 4
            # the blocks' edges apart, where the image is interpolated between labels and void, which is white
            assert (image[0][inside].int() - mask[inside].int() == 0).float().mean() > 0.6
            assert (mask[image[0] == VOID] == VOID).all()
            seen.add(mask.numpy().tobytes())
    assert len(seen) > 20


def test_order_and_augmentation_repeat(tmp_path):
    """Both are functions of (seed, epoch, index): the same again, other ones in another epoch or under another seed."""
    trees.mask_folder_tree(tmp_path)

    def epoch(seed, number, state=None, **options):
        torch.manual_seed(torch.seed() % 2**32)  # nothing hangs on the global generator
        data = module(MaskFolder(["a", "b"], image_size=(24, 32)), tmp_path, seed=seed, crop_size=(16, 16), **options)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        if state:
            loader.load_state_dict(state)
        return [data.on_after_batch_transfer(batch, 0) for batch in loader]

    def same(a, b):
        return all(torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))

    first = epoch(0, 0)
    assert first[0].target.dtype == torch.int64
    assert first[0].target.shape == (2, 16, 16)
    assert same(first, epoch(0, 0))
    assert same(first, epoch(0, 0, in_memory=True))
    assert not same(first, epoch(0, 1))
    assert not same(first, epoch(1, 0))
    assert same(first[1:], epoch(0, 0, {"epoch": 0, "position": 1}))


def test_crops_avoid_what_has_no_label():
    image, mask = torch.zeros(3, 40, 40, dtype=torch.uint8), torch.full((40, 40), VOID, dtype=torch.uint8)
    mask[:, 20:] = 3
    mask[20:, 30:] = 1
    torch.manual_seed(0)
    parts = [random_crop(image, mask, (8, 8))[1] for _ in range(200)]
    assert all((part != VOID).any() for part in parts)
    mixed = [random_crop(image, mask, (8, 8), max_share=0.9, attempts=50)[1] for _ in range(100)]
    assert all(0 < (part == 1).sum() < (part != VOID).sum() for part in mixed)
    nothing = torch.full((40, 40), VOID, dtype=torch.uint8)
    assert (random_crop(image, nothing, (8, 8))[1] == VOID).all()


def test_held_out_classes(tmp_path):
    """They are no classes any more; their pixels have a label of their own."""
    trees.mask_folder_tree(tmp_path, classes=4)
    dataset = MaskFolder(list("abcd"), image_size=(24, 32))
    data = module(dataset, tmp_path, unknown_classes=["b"])
    assert (data.class_names, data.num_classes, data.unknown_index) == (("a", "c", "d"), 3, HELD_OUT)
    assert len(data.palette) == len(data.class_counts) == 3
    whole = module(dataset, tmp_path)
    assert whole.unknown_index == whole.ignore_index == VOID
    for i in range(6):
        old, new = whole.images("test")[i][1], data.images("test")[i][1]
        for before, after in ((0, 0), (1, HELD_OUT), (2, 1), (3, 2), (VOID, VOID)):
            assert (new[old == before] == after).all()


@pytest.mark.parametrize("shape", [Stretch((20, 30)), Pad((20, 30))])
@pytest.mark.parametrize("size", [(10, 15), (20, 30), (30, 30), (50, 75)])
def test_there_and_back(shape, size):
    """A mask comes back in its own size; exactly, where it was not scaled down."""
    mask = torch.arange(5, dtype=torch.uint8).repeat_interleave(size[1] // 5).expand(size[0], -1).contiguous()
    there = shape.mask(mask)
    back = shape.back(there, size)
    assert there.shape == (20, 30)
    assert back.shape == size
    assert (back == mask).float().mean() > 0.9
    if size in ((20, 30), (10, 15)):
        assert torch.equal(back, mask)
    assert shape.image(torch.zeros(3, *size, dtype=torch.uint8)).shape == (3, 20, 30)


@pytest.mark.skipif(not os.environ.get("HEM_DATA"), reason="HEM_DATA does not say where CamVid is")
def test_real_camvid():
    """The published counts are those of the masks."""
    root = Path(os.environ["HEM_DATA"])
    if not (root / "CamVid").is_dir():
        pytest.skip("CamVid is not there")
    dataset = CamVid()
    assert [len(dataset.files(root, part)) for part in ("train", "val", "test")] == [367, 101, 233]
    counts = count_classes((dataset.read_mask(mask) for _, mask in dataset.files(root, "train")), 11)
    assert counts == CamVid.counts
