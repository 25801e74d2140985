import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.nn import functional as F

from hem.datamodules import Batch, DigitsDataModule, ImageDataModule, MemoryImages, Subset, conform
from hem.datamodules.augment import CutMix, MixUp, RandomCrop, RandomFlip
from hem.datamodules.splits import held_out, held_out_counts

pytestmark = [
    # a resumed run goes on in the folder of its checkpoints
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(64, 10)
        self.seen = []

    def step(self, batch):
        self.seen.append((self.trainer.current_epoch, batch.index.tolist()))
        return F.cross_entropy(self.linear(batch.input.flatten(1)), batch.target)

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.step(batch))

    def test_step(self, batch, batch_idx):
        self.log("test", self.step(batch))

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def epoch(data, number=0, **kwargs):
    loader = data.loader(*data.part("train"), training=True, **kwargs)
    loader.sampler.set_epoch(number)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


# the split


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.99])
def test_split_is_disjoint_exhaustive_and_stratified(fraction):
    data = DigitsDataModule(val_fraction=fraction)
    images, train = data.part("train")
    same, val = data.part("val")
    assert same is images
    assert torch.cat([train, val]).sort().values.tolist() == list(range(len(images)))
    assert torch.bincount(images.targets[train], minlength=10).tolist() == data.class_counts
    expected = [min(int(fraction * n + 0.5), n - 1) for n in data.train_counts]
    assert torch.bincount(images.targets[val], minlength=10).tolist() == expected


def test_split_depends_on_its_seed_alone():
    val = DigitsDataModule().part("val")[1]
    assert torch.equal(val, DigitsDataModule(seed=5, batch_size=7).part("val")[1])
    assert not torch.equal(val, DigitsDataModule(split_seed=1).part("val")[1])


def test_test_part_of_digits_is_fixed_and_not_in_train():
    data = DigitsDataModule(split_seed=9, seed=9)
    train, test = data.images("train"), data.images("test")
    assert len(train) + len(test) == 1797
    rows = torch.cat([train.images, test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797
    assert torch.equal(test.images, DigitsDataModule().images("test").images)
    assert test.images[:20].long().sum() == 101136  # this very split, for good


def test_held_out_never_takes_a_whole_class():
    assert held_out_counts([0, 1, 2, 10], 0.9) == [0, 0, 1, 9]
    assert held_out(torch.tensor([0, 1, 1]), 3, 0.9, seed=0).tolist().count(True) == 1


# order and augmentation


def test_same_seed_same_batches_other_epoch_other_order():
    augment = [RandomCrop(1), RandomFlip()]
    first = epoch(DigitsDataModule(augment=augment))
    torch.manual_seed(123)
    again = epoch(DigitsDataModule(augment=augment))
    assert all(torch.equal(x, y) for a, b in zip(first, again, strict=True) for x, y in zip(a, b, strict=True))
    for other in (
        epoch(DigitsDataModule(augment=augment), 1),
        epoch(DigitsDataModule(augment=augment, seed=1)),
    ):
        assert not torch.equal(first[0].index, other[0].index)


@pytest.mark.parametrize("augment", [[RandomCrop(1), RandomFlip()], [RandomCrop(1), MixUp(), CutMix()]])
def test_augmentation_does_not_depend_on_batch_size(augment):
    def by_index(size):
        batches = epoch(DigitsDataModule(augment=augment, batch_size=size))
        return {int(i): (x, y) for b in batches for x, y, i in zip(*b, strict=True)}

    small, large = by_index(16), by_index(64)
    common = small.keys() & large.keys()
    assert len(common) > 1000
    assert all(torch.equal(small[i][0], large[i][0]) and torch.equal(small[i][1], large[i][1]) for i in common)


def test_batch_is_what_the_contract_says():
    data = DigitsDataModule(batch_size=32)
    batch = epoch(data)[0]
    assert isinstance(batch, Batch)
    input, target, *_ = batch
    images = data.images("train")
    assert input.dtype == torch.float32
    assert input.min() == 0
    assert input.max() == 1
    assert torch.equal((input * 255).round().byte(), images.images[batch.index])
    assert torch.equal(target, images.targets[batch.index])
    assert target.dtype == torch.int64


def test_mixed_targets_are_probabilities_of_two_classes():
    batch = epoch(DigitsDataModule(augment=[MixUp()], batch_size=64))[0]
    assert batch.target.shape == (64, 10)
    assert batch.input.shape == (64, 1, 8, 8)
    assert batch.index.shape == (64,)
    assert torch.allclose(batch.target.sum(1), torch.ones(64))
    assert ((batch.target > 0).sum(1) <= 2).all()
    assert ((batch.target > 0).sum(1) == 2).any()
    own = DigitsDataModule().images("train").targets[batch.index]
    assert (batch.target[torch.arange(64), own] > 0).all()


def test_both_mixtures_are_used_and_each_sample_gets_one():
    kinds = {"mixup": [MixUp()], "cutmix": [CutMix()], "both": [MixUp(), CutMix()]}
    made = {name: epoch(DigitsDataModule(augment=augment, batch_size=64))[0] for name, augment in kinds.items()}
    assert torch.equal(made["both"].index, made["mixup"].index)
    images = DigitsDataModule().images("train").images.float() / 255
    untouched = (made["both"].input == images[made["both"].index]).flatten(1).float().mean(1)
    assert 0.2 < (untouched > 0.45).float().mean() < 0.9  # cutmix leaves pixels of the background and of the image
    assert not torch.equal(made["both"].input, made["mixup"].input)


def test_a_foreign_batch_passes():
    batch = (torch.ones(2, 1, 8, 8), torch.tensor([0, 1]))
    assert DigitsDataModule().on_after_batch_transfer(batch, 0) is batch


# a subset


class FirstOfEach(Subset):
    def __init__(self, n):
        self.n = n

    def counts(self, class_counts):
        return [min(self.n, count) for count in class_counts]

    def select(self, targets):
        return torch.cat([(targets == c).nonzero()[: self.n, 0] for c in range(10)])


def test_subset_restricts_training_alone():
    data = DigitsDataModule(subset=FirstOfEach(5), batch_size=10)
    images, index = data.part("train")
    assert data.class_counts == [5] * 10 == torch.bincount(images.targets[index]).tolist()
    assert torch.equal(index, index.sort().values)
    assert torch.equal(data.part("val")[1], DigitsDataModule().part("val")[1])
    assert sorted(torch.cat([b.index for b in epoch(data)]).tolist()) == index.tolist()


# a new data set takes this much


class Checker(ImageDataModule):
    name, title, source = "checker", "Checkerboards", "nowhere"
    class_names = ("even", "odd")
    train_counts = (6, 6)
    in_channels, image_size, mean, std = 1, (4, 4), (0.5,), (0.5,)

    def load(self, split):
        targets = torch.arange(12) % 2
        board = (torch.arange(4)[:, None] + torch.arange(4) + targets[:, None, None]) % 2
        return MemoryImages(board[:, None].byte() * 255, targets, f"checker/{split}")


def test_a_data_set_of_ones_own():
    data = Checker(batch_size=4, val_fraction=0.34)
    assert (data.num_classes, data.class_counts) == (2, [4, 4])
    assert len(epoch(data)) == 2


def test_failed_download_is_a_sentence():
    class Offline(Checker):
        def fetch(self):
            raise RuntimeError("no route to host")

    with pytest.raises(ConnectionError, match=r"Checkerboards could not be downloaded \(no route to host\)"):
        Offline(download=True).prepare_data()
    Offline().prepare_data()
    Checker(download=True).prepare_data()


def test_label_out_of_range_names_the_sample():
    class Wrong(Checker):
        def load(self, split):
            images = super().load(split)
            images.targets[3] = 2
            return images

    with pytest.raises(ValueError, match="labels of Checkerboards in 0 to 1, got 2 for checker/train/00003"):
        Wrong().setup("fit")


def test_training_part_of_another_size_is_told():
    class Short(Checker):
        train_counts = (60, 60)

    with pytest.warns(UserWarning, match="it has 12 images, not 120"):
        Short().setup("fit")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size to be a number of images, 1 or more, got 0"),
        ({"eval_batch_size": -3}, "eval_batch_size to be a number of images, 1 or more, got -3"),
        ({"val_fraction": 1.0}, r"val_fraction to be a share of the training part in \[0, 1\), got 1.0"),
        ({"val_fraction": -0.1}, "got -0.1"),
        ({"num_workers": -1}, "num_workers to be a number of processes, 0 or more, got -1"),
    ],
)
def test_sentences(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        DigitsDataModule(**arguments)


def test_too_many_workers_are_told_and_cut():
    with pytest.warns(UserWarning, match="num_workers is 5000, but there are"):
        assert DigitsDataModule(num_workers=5000).num_workers < 5000


def test_root_falls_back_to_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HEM_DATA", str(tmp_path))
    assert DigitsDataModule().root == tmp_path
    assert str(DigitsDataModule(root="elsewhere").root) == "elsewhere"
    monkeypatch.delenv("HEM_DATA")
    assert str(DigitsDataModule().root) == "data"


# predict


def test_predict_folder_brings_images_to_the_sets_form(tmp_path):
    Image.new("RGB", (20, 30), (255, 255, 255)).save(tmp_path / "b.png")
    (tmp_path / "sub").mkdir()
    Image.new("L", (5, 5), 0).save(tmp_path / "sub" / "a.jpg")
    data = DigitsDataModule(predict_folder=str(tmp_path))
    data.setup("predict")
    (batch,) = [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]
    assert batch.input.shape == (2, 1, 8, 8)
    assert batch.input.mean((1, 2, 3)).tolist() == [1.0, 0.0]
    assert batch.target.tolist() == [-100, -100]
    assert [data.name_of(i) for i in batch.index.tolist()] == [
        str(tmp_path / "b.png"),
        str(tmp_path / "sub" / "a.jpg"),
    ]
    assert DigitsDataModule().name_of(12) == "digits/test/00012"


def test_predict_folder_sentences(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder for predict_folder, got .*nowhere, which does not exist"):
        DigitsDataModule(predict_folder=str(tmp_path / "nowhere")).setup("predict")
    with pytest.raises(ValueError, match=r"in predict_folder .*, got none"):
        DigitsDataModule(predict_folder=str(tmp_path)).setup("predict")


def test_conform():
    colour = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    grey = conform(colour, 1, (32, 32))
    expected = [Image.fromarray(x.permute(1, 2, 0).numpy()).convert("L") for x in colour]
    pixels = torch.stack([torch.tensor(list(x.get_flattened_data())).reshape(32, 32) for x in expected])
    assert (grey[:, 0].long() - pixels).abs().max() <= 1
    assert conform(colour, 3, (28, 28)).shape == (3, 3, 28, 28)
    assert torch.equal(conform(grey, 3, (32, 32))[:, 2], grey[:, 0])


# under a trainer


def test_fit_validate_test_predict():
    trainer = Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
    data, net = DigitsDataModule(batch_size=100), Net()
    trainer.fit(net, datamodule=data)
    train = [index for e, index in net.seen if e == 0][:12]
    assert trainer.global_step == 2 * 12
    expected = [b.index.tolist() for b in epoch(data)]
    assert train == expected
    net.seen.clear()
    trainer.test(net, datamodule=data, verbose=False)
    assert sorted(i for _, index in net.seen for i in index) == list(range(359))
    predicted = trainer.predict(net, datamodule=data)
    assert sum(len(b.index) for b in predicted) == 359


def test_without_validation_part():
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    net = Net()
    trainer.fit(net, datamodule=DigitsDataModule(val_fraction=0))
    assert trainer.global_step == 1438 // 128
    with pytest.raises(ValueError, match="a validation part, got none for val_fraction 0"):
        trainer.validate(net, datamodule=DigitsDataModule(val_fraction=0), verbose=False)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_true_precisions_get_their_dtype(precision):
    trainer = Trainer(max_steps=1, precision=precision, enable_checkpointing=False, limit_val_batches=0, **QUIET)
    trainer.fit(Net(), datamodule=DigitsDataModule())


@pytest.mark.parametrize("every", [5, 10, 13])
def test_resume_in_the_middle_of_an_epoch_gives_the_same_weights(every, tmp_path):
    def run(max_epochs, ckpt=None, callbacks=()):
        net = Net()
        trainer = Trainer(
            max_epochs=max_epochs, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **QUIET
        )
        trainer.fit(net, datamodule=DigitsDataModule(augment=[RandomCrop(1)]), ckpt_path=ckpt, weights_only=True)
        return net

    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    whole = run(3, callbacks=[keep])  # 10 steps an epoch
    resumed = run(3, tmp_path / f"step={every}.ckpt", [keep])
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    train = [seen for seen in whole.seen if len(seen[1]) == 128]
    assert [seen for seen in resumed.seen if len(seen[1]) == 128] == train[every:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("on_device", [True, False])
def test_batches_on_the_accelerator_are_those_of_the_processor(on_device):
    augment = [RandomCrop(1), RandomFlip(), MixUp(), CutMix()]

    class Record(Net):
        def training_step(self, batch, batch_idx):
            self.seen.append([x.cpu() for x in batch])
            return super().step(batch)

    net = Record()
    arguments = QUIET | {"accelerator": "gpu", "devices": 1}
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **arguments)
    data = DigitsDataModule(augment=augment, on_device=on_device)
    trainer.fit(net, datamodule=data)
    assert data.images("train").images.is_cuda == on_device
    seen = [batch for batch in net.seen if isinstance(batch, list)]
    for ours, theirs in zip(seen, epoch(DigitsDataModule(augment=augment)), strict=True):
        assert torch.equal(ours[2], theirs.index)
        assert torch.allclose(ours[0], theirs.input, atol=1e-6)
        assert torch.allclose(ours[1], theirs.target, atol=1e-6)


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_share_that_leaves_nothing_to_validate_on_is_named(stage):
    """At the start, not as `0 samples for 1 processes` before the first validation."""
    data = DigitsDataModule(val_fraction=0.001)
    with pytest.raises(ValueError, match=r"to validate on, got none: val_fraction 0.001 of 1438 .* larger"):
        data.setup(stage)
