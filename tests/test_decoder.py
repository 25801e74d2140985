"""One decoder for every way in: what a file's orientation, depth, palette, transparency, inks and frames mean."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from hem.datamodules import FolderDataModule, MaskFolder, SegmentationDataModule
from hem.decoder import decode_image, decode_mask, header_fault, refuse_faults, size_of
from hem.inference.predictor import Segmenter, Trained

RANDOM = np.random.default_rng(0)
ORIENTATION = ExifTags.Base.Orientation


def noise(*shape):
    return RANDOM.integers(256, size=shape, dtype=np.uint8)


def oriented(path, image, orientation):
    """Save an image with the note that it is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)


def png16(array, color):
    """A PNG of 16 bits: (H, W, 1) grey, color 0; (H, W, 3) RGB, color 2. Pillow writes no RGB of that depth."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_png(array, bits):
    """A grey PNG of 1, 2 or 4 bits, whose values are kept; Pillow writes none but of 1 and 8."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    spread = np.unpackbits(array[..., None], axis=-1)[..., 8 - bits :].reshape(len(array), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in spread)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGB", 1), ("L", 3)])
def test_plain_files_are_as_pillow_has_them(tmp_path, name, mode, channels):
    """What an 8-bit RGB or grey file holds comes through bit for bit."""
    path = tmp_path / name
    Image.fromarray(noise(9, 7, 3)).convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    assert np.array_equal(np.asarray(decode_image(path, channels)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_images_stand_upright(tmp_path, orientation, suffix):
    """In all eight orientations and all formats that have them; the header says the upright size."""
    path = tmp_path / f"a.{suffix}"
    blocks = noise(4, 6, 3).repeat(8, 0).repeat(8, 1)
    oriented(path, Image.fromarray(blocks), orientation)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(blocks)
    image.info["exif"] = exif.tobytes()
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    found = np.asarray(decode_image(path)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 30  # JPEG and WebP lose something; another orientation is 80 away
    assert size_of(path) == found.shape[:2]


def test_colours(tmp_path):
    """Palette, transparency and inks, from a file and as a PIL image."""
    palette = Image.fromarray(noise(5, 5, 3)).quantize(7)
    palette.save(tmp_path / "palette.png")
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    half.save(tmp_path / "half.png")
    hidden = Image.new("LA", (4, 4), (0, 0))
    hidden.save(tmp_path / "hidden.png")
    keyed = Image.new("RGB", (4, 4), (9, 9, 9))
    keyed.save(tmp_path / "keyed.png", transparency=(9, 9, 9))
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "inks.tif")
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert np.array_equal(np.asarray(decode_image(tmp_path / "palette.png")), np.asarray(palette.convert("RGB")))
    pixel = {path.stem: decode_image(path).getpixel((0, 0)) for path in tmp_path.iterdir()}
    assert pixel["half"] == (255, 127, 127)  # laid on white
    assert pixel["hidden"] == pixel["keyed"] == pixel["bit"] == (255, 255, 255)
    assert pixel["inks"] == (0, 255, 255)
    assert decode_image(half).getpixel((0, 0)) == (255, 127, 127)
    grey = decode_image(Image.new("RGB", (1, 1), "cyan"), 1).getpixel((0, 0))
    assert decode_image(tmp_path / "inks.tif", 1).getpixel((0, 0)) == grey


def test_the_first_of_several(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(tmp_path / name).getpixel((3, 3)) == (255, 0, 0), name


def deep_files(folder):
    """Images of more than 8 bits: grey, RGB, floating point, integers."""
    deep = RANDOM.integers(65536, size=(6, 6, 3))
    (folder / "rgb.png").write_bytes(png16(deep, 2))
    (folder / "grey.png").write_bytes(png16(deep[..., :1], 0))
    (folder / "rgb.ppm").write_bytes(b"P6\n6 6\n65535\n" + deep.astype(">u2").tobytes())
    Image.fromarray(deep[..., 0].astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(deep[..., 0].astype(np.int32)).save(folder / "integer.tif")
    return sorted(folder.iterdir())


def test_depth_is_refused_by_every_way_in(tmp_path):
    """RGB of 16 bits too, whose lower half Pillow drops without a word."""
    model = Trained(torch.nn.Flatten(), ["a", "b"], 3, (6, 6))
    for path in deep_files(tmp_path):
        with pytest.raises(ValueError, match=rf"{path.name} is not a readable image: its pixels have more than 8 bits"):
            decode_image(path)
        with pytest.raises(ValueError, match=f"{path.name} is not a readable image: its pixels have more than 8 bits"):
            model.prepare(path)
    with pytest.raises(ValueError, match="The image is not a readable image: its pixels have more than 8 bits"):
        decode_image(Image.new("I;16", (2, 2)))


def test_every_way_in_decodes_alike(tmp_path):
    """The data module of the command line, hem.load's models and pairs of images and masks see the same pixels."""
    for name in ("a", "b"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    blocks = Image.fromarray(noise(4, 6, 4).repeat(8, 0).repeat(8, 1))  # RGBA
    path = tmp_path / "classes" / "a" / "0.png"
    oriented(path, blocks, 6)
    Image.new("RGB", (8, 8)).save(tmp_path / "classes" / "b" / "0.png")
    options = {"image_size": (48, 32), "crop_scale": None, "test_fraction": 0.0, "val_fraction": 0.0}
    data = FolderDataModule(str(tmp_path / "classes"), **options)
    expected, _ = data.images("train")[0]
    assert torch.equal(expected, torch.from_numpy(np.array(decode_image(path))).movedim(2, 0))

    model = Trained(torch.nn.Flatten(), ["a", "b"], 3, (48, 32))
    assert torch.equal((model.prepare(path) * 255).round().byte(), expected)
    with Image.open(path) as image:
        assert torch.equal((model.prepare(image) * 255).round().byte(), expected)

    for part in ("images", "masks"):
        (tmp_path / "masks" / "train" / part).mkdir(parents=True)
    (tmp_path / "masks" / "train" / "images" / "0.png").write_bytes(path.read_bytes())
    drawn = (np.arange(48 * 32).reshape(48, 32) // 500 % 2).astype(np.uint8)
    Image.fromarray(drawn).save(tmp_path / "masks" / "train" / "masks" / "0.png")
    data = SegmentationDataModule(MaskFolder(["a", "b"], image_size=(48, 32)), root=str(tmp_path / "masks"))
    image, mask = data.images("train")[0]
    assert torch.equal(image, expected)
    assert np.array_equal(mask.numpy(), drawn)

    class Seen(torch.nn.Module):
        """Keeps what it is given."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images):
            self.images = images
            return images[:, :2] + self.weight

    segmenter = Segmenter(Seen(), ["a", "b"], [(0, 0, 0), (255, 255, 255)], data.shape)
    (predicted,) = segmenter.predict([path])
    assert torch.equal((segmenter.net.images[0] * 255).round().byte(), expected)
    assert predicted.size == (32, 48)


def test_a_mask_is_drawn_on_the_upright_image(tmp_path):
    """A mask of the image as it is stored does not fit, which a sentence says; a mask's own orientation is applied."""
    for part in ("images", "masks"):
        (tmp_path / "train" / part).mkdir(parents=True)
    oriented(tmp_path / "train" / "images" / "0.png", Image.fromarray(noise(16, 24, 3)), 6)
    stored = (np.arange(16 * 24).reshape(16, 24) % 2).astype(np.uint8)
    data = SegmentationDataModule(MaskFolder(["a", "b"], image_size=(24, 16)), root=str(tmp_path))
    Image.fromarray(stored).save(tmp_path / "train" / "masks" / "0.png")
    with pytest.raises(ValueError, match=r"train/images/0.png \(24 x 16 upright, but its mask 16 x 24.*EXIF"):
        data.images("train")
    oriented(tmp_path / "train" / "masks" / "0.png", Image.fromarray(stored), 6)
    _, mask = data.images("train")[0]
    assert np.array_equal(mask.numpy(), np.rot90(stored, -1))


def test_integers_of_masks(tmp_path):
    """Whatever the depth, the stored integers; Pillow spreads 1, 2 and 4 bits over 0..255."""
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for bits in (1, 2, 4):
        expected = values % 2**bits
        (tmp_path / f"{bits}.png").write_bytes(grey_png(expected, bits))
        assert np.array_equal(decode_mask(tmp_path / f"{bits}.png"), expected), bits
    Image.fromarray(values.astype(np.uint16) * 1000).save(tmp_path / "16.png")
    assert np.array_equal(decode_mask(tmp_path / "16.png"), values.astype(int) * 1000)
    Image.fromarray(values.astype(np.int32) - 5).save(tmp_path / "32.tif")
    assert np.array_equal(decode_mask(tmp_path / "32.tif"), values.astype(int) - 5)
    indexed = Image.fromarray(values, "P")
    indexed.putpalette(noise(48).tolist())
    indexed.save(tmp_path / "palette.png", bits=4, transparency=3)
    assert np.array_equal(decode_mask(tmp_path / "palette.png"), values)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif is not a readable mask: its pixels are floating-point numbers"):
        decode_mask(tmp_path / "float.tif")


def test_files_that_cannot_be_read(tmp_path):
    """All are named at once; a damaged note of the orientation makes no image unreadable."""
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    faults = r"got 2 of 3 that cannot: empty.png \(the file is empty\); text.jpg \(no kind .*--skip"
    with pytest.raises(ValueError, match=faults) as error:
        refuse_faults(paths, header_fault, tmp_path, "--skip")
    assert str(error.value).endswith("""--skip '["empty.png", "text.jpg"]'.""")
    refuse_faults(paths[1:2], header_fault, tmp_path, "--skip")
    with pytest.raises(FileNotFoundError, match=r"The image .*nowhere.png is not there"):
        decode_image(tmp_path / "nowhere.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        assert decode_image(tmp_path / "exif.jpg").size == (4, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_files_that_were_cut_behind_their_header_are_known_from_their_end(tmp_path, suffix):
    """Before training, that is; whatever some cameras write behind the end is no fault."""
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    whole = path.read_bytes()
    assert header_fault(str(path)) is None
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in header_fault(str(path))
    path.write_bytes(whole + bytes(100))
    assert header_fault(str(path)) is None


def test_predict_refuses_pixels_outside_0_and_1():
    """Bytes as floating-point numbers and normalised images; bytes themselves are fine."""
    model = Trained(torch.nn.Conv2d(3, 2, 6), ["a", "b"], 3, (6, 6))
    images = torch.from_numpy(noise(2, 3, 6, 6))
    assert torch.equal(model(images), model(images / 255))
    with pytest.raises(ValueError, match=r"Expected pixels in \[0, 1\], got \S+ to 25\d: divide bytes by 255"):
        model.predict(images.float())
    with pytest.raises(ValueError, match=r"leave normalisation to the network"):
        model(images / 255 - 0.5)
    with pytest.raises(TypeError, match=r"Expected floating-point images in \[0, 1\], got torch.int64"):
        model(images.long())
