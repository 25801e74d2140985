import pytest
import torch
from torch.nn import functional as F

from hem.datamodules.augment import CutMix, Cutout, MixUp, RandomCrop, RandomErasing, RandomFlip, check
from hem.rng import key

N = 400
INPUT = torch.rand(N, 3, 12, 10, generator=torch.Generator().manual_seed(0))
KEYS = key(0, 0, torch.arange(N))
SINGLES = [
    RandomCrop(2),
    RandomCrop(3, "reflect"),
    RandomFlip(),
    Cutout(4),
    Cutout(5, p=0.5),
    RandomErasing(),
]
MIXTURES = [MixUp(), MixUp(0.2, p=0.5), CutMix(), CutMix(0.3, p=0.5)]


def name(augment):
    return f"{type(augment).__name__}-{len(vars(augment))}"


@pytest.mark.parametrize("augment", SINGLES, ids=name)
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(augment):
    whole = augment(INPUT, KEYS)
    chosen = torch.tensor([5, 5, 17, 2, 399])
    assert whole.shape == INPUT.shape
    assert torch.equal(whole[chosen], augment(INPUT[chosen], KEYS[chosen]))
    assert not torch.equal(whole, INPUT)
    assert not torch.equal(whole, augment(INPUT, key(0, 1, torch.arange(N))))  # another epoch, another change


@pytest.mark.parametrize("augment", MIXTURES, ids=name)
def test_a_mixture_does_not_depend_on_the_rest_of_the_batch(augment):
    partner = INPUT.flip(0)
    mixed, share = augment(INPUT, partner, KEYS)
    chosen = torch.tensor([5, 17, 2, 399])
    again, share_again = augment(INPUT[chosen], partner[chosen], KEYS[chosen])
    assert torch.equal(mixed[chosen], again)
    assert torch.equal(share[chosen], share_again)
    assert share.min() >= 0
    assert share.max() <= 1


@pytest.mark.parametrize("augment", SINGLES, ids=name)
def test_global_random_state_is_neither_read_nor_changed(augment):
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), augment(INPUT, KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, augment(INPUT, KEYS))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crops_are_the_windows_of_the_padded_image(mode):
    padded = F.pad(INPUT, (2,) * 4, mode=mode)
    windows = torch.stack([padded[:, :, i : i + 12, j : j + 10] for i in range(5) for j in range(5)])
    equal = (windows == RandomCrop(2, mode)(INPUT, KEYS)).flatten(2).all(2)
    assert equal.any(0).all()  # each result is a window
    counts = equal.sum(1).double()
    assert ((counts - N / 25) ** 2 / (N / 25)).sum() < 24 + 5 * 48**0.5  # and each window is as likely


def test_flip_mirrors_half_of_the_images():
    output = RandomFlip()(INPUT, KEYS)
    mirrored = (output == INPUT.flip(-1)).flatten(1).all(1)
    assert torch.equal(output[~mirrored], INPUT[~mirrored])
    assert abs(mirrored.sum().item() - N / 2) < 5 * (N / 4) ** 0.5
    assert torch.equal(RandomFlip(0.0)(INPUT, KEYS), INPUT)


def test_cutout_blackens_a_square_cut_by_the_border():
    output = Cutout(4)(torch.ones(N, 3, 12, 10), KEYS)
    hole = output == 0
    area = hole[:, 0].sum((1, 2))
    assert area.max() == 16
    assert area.min() >= 4
    assert (area < 16).any()
    assert torch.equal(hole[:, 0], hole[:, 2])
    rows, columns = hole[:, 0].any(2).sum(1), hole[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, area)  # a rectangle
    assert abs((Cutout(4, p=0.25)(torch.ones(N, 1, 12, 10), KEYS) == 0).flatten(1).any(1).double().mean() - 0.25) < 0.1


def test_random_erasing_keeps_to_area_and_aspect():
    output = RandomErasing(p=1.0, scale=(0.1, 0.3), ratio=(0.5, 2.0), value=0.5)(torch.ones(N, 1, 40, 40), KEYS)
    hole = (output == 0.5)[:, 0]
    height, width = hole.any(2).sum(1).double(), hole.any(1).sum(1).double()
    assert torch.equal(height * width, hole.sum((1, 2)).double())
    assert (height * width / 1600 > 0.08).all()
    assert (height * width / 1600 < 0.33).all()
    assert (height / width > 0.45).all()
    assert (height / width < 2.2).all()


def test_mixup_share_is_beta_distributed_and_the_image_is_mixed_by_it():
    keys = key(0, torch.arange(20_000))
    for alpha in (0.2, 1.0, 4.0):
        mixed, share = MixUp(alpha)(torch.ones(20_000, 1, 1, 1), torch.zeros(20_000, 1, 1, 1), keys)
        assert torch.equal(mixed.flatten(), share)
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(share.double().mean() - 0.5) < 5 * (variance / 20_000) ** 0.5
        assert abs(share.double().var() - variance) < 0.01


def test_cutmix_share_is_the_area_that_is_seen():
    mixed, share = CutMix()(torch.ones(N, 2, 12, 10), torch.zeros(N, 2, 12, 10), KEYS)
    assert torch.allclose(mixed.mean((1, 2, 3)), share)
    assert share.std() > 0.1


def test_order_of_the_list():
    singles, mixtures = check([RandomCrop(2), RandomFlip(), MixUp(), CutMix()])
    assert [type(a) for a in singles] == [RandomCrop, RandomFlip]
    assert [type(a) for a in mixtures] == [MixUp, CutMix]
    with pytest.raises(
        ValueError, match=r"mixtures \(MixUp, CutMix\) at the end of augment, got \['MixUp', 'RandomFlip'\]: put"
    ):
        check([MixUp(), RandomFlip()])
    with pytest.raises(TypeError, match="in augment, got str"):
        check(["RandomFlip"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RandomCrop(-1), "padding to be a number of pixels, 0 or more, got -1"),
        (lambda: RandomFlip(1.5), r"p to be a probability in \[0, 1\], got 1.5"),
        (lambda: Cutout(0), "side of a square in pixels, 1 or more, got 0"),
        (lambda: RandomErasing(scale=(0.5, 0.2)), "scale to be a range"),
        (lambda: RandomErasing(ratio=(0.0, 2.0)), "ratio to be a range of positive"),
        (lambda: MixUp(0.0), "alpha, the parameter of a Beta distribution, to be positive, got 0.0"),
        (lambda: RandomCrop(12, "reflect")(INPUT, KEYS), "got 12 for 12 x 10 pixels: lower it"),
    ],
)
def test_sentences(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
