"""The figures of segmentation against plain numpy; losses, schedules and pictures of the task."""

import copy
import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import hem
from hem.losses import DiceLoss, FocalLoss, HEMLoss, SumLoss
from hem.modules import PolyLR, SegmentationTask
from hem.rejection import auroc, max_logit
from tests.datamodules.mask_trees import mask_folder_tree, pair

CLASSES, VOID = 6, 255
NAMES = [f"c{k}" for k in range(CLASSES)]


def trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)


@pytest.fixture(scope="module")
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of 10 images: void pixels, class 4 neither there nor predicted, class 5 predicted alone."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(10, CLASSES, 7, 9))
    logits[:, 4] -= 100
    target = random.choice([0, 1, 2, 3, VOID], size=(10, 7, 9), p=[0.5, 0.2, 0.1, 0.05, 0.15])
    rows = np.indices(target.shape)
    known = np.where(target == VOID, 0, target)
    logits[rows[0], known, rows[1], rows[2]] += 1.0
    return torch.from_numpy(logits).float(), torch.from_numpy(target)


def figures(sample, loss=None, batch_size=3, **options) -> dict[str, float]:
    """What ``test`` reports of logits, handed through a network that does nothing."""
    task = SegmentationTask(nn.Identity(), loss or HEMLoss(), num_classes=CLASSES, class_names=NAMES, **options)
    runner = trainer()
    runner.test(task, DataLoader(TensorDataset(*sample), batch_size=batch_size), verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in runner.callback_metrics.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_figures(sample, batch_size):
    """All over the labelled pixels of the whole set, whatever the batches: no mean of means."""
    got = figures(sample, batch_size=batch_size)
    logits, target = (x.numpy() for x in sample)
    prediction, labelled = logits.argmax(1), target != VOID
    union, each, recall = {}, {}, {}
    for c in range(CLASSES):
        true, said = labelled & (target == c), labelled & (prediction == c)
        union[c] = (true | said).sum()
        if union[c]:
            each[c] = (true & said).sum() / union[c]
        if true.any():
            recall[c] = (true & said).sum() / true.sum()
    assert set(each) == {0, 1, 2, 3, 5}
    assert each[5] == 0  # predicted, but nowhere: it counts; a class that is in neither does not
    assert got["miou"] == pytest.approx(np.mean(list(each.values())), abs=1e-6)
    assert got["mean_accuracy"] == pytest.approx(np.mean(list(recall.values())), abs=1e-6)
    assert got["accuracy"] == pytest.approx((prediction == target)[labelled].mean(), abs=1e-6)
    for c, value in each.items():
        assert got[f"iou/c{c}"] == pytest.approx(value, abs=1e-6)
    assert "iou/c4" not in got
    assert 0.2 < got["miou"] < 0.8


def test_loss_is_a_mean_over_labelled_pixels(sample):
    """HEM by its formula for each pixel; the share of pixels with error."""
    got = figures(sample, HEMLoss(margin=0.5))
    losses = []
    for z, y in zip(sample[0].double().movedim(1, -1).reshape(-1, CLASSES), sample[1].flatten(), strict=True):
        if y == VOID:
            continue
        error = (z - z[y] + 0.5).clamp(min=0)
        error[y] = 0
        kept = error[(error >= error.sum() / CLASSES) & (error > 0)]
        losses.append(float(kept.mean()) if len(kept) else 0.0)
    assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert got["active"] == pytest.approx(np.mean(np.array(losses) > 0), abs=1e-6)
    assert 0.3 < got["active"] < 0.95


@pytest.mark.parametrize("held_out", [False, True])
def test_unknown_pixels(sample, held_out):
    """AUROC of the scores over all pixels; with held-out classes the void ones are left out."""
    logits, target = sample[0], sample[1].clone()
    if held_out:
        target[target == 3] = 254
    got = figures((logits, target), unknown_index=254 if held_out else VOID)
    score = max_logit(logits.movedim(1, -1))
    unknown = target == (254 if held_out else VOID)
    expected = auroc(score[(target < CLASSES)], score[unknown])
    assert got["unknown/auroc_max_logit"] == pytest.approx(expected, abs=1e-4)
    assert "unknown/auroc_msp" in got
    assert ("iou/c3" in got) == (bool((logits.argmax(1) == 3).any()) or not held_out)


def test_windows_and_views_of_a_pixelwise_network(sample):
    """Its figures are the same through windows, scales of 1 and mirror images."""
    plain = figures(sample)
    for options in ({"window": (4, 5)}, {"window": (4, 4), "stride": (3, 1), "flip": True}, {"flip": True}):
        assert figures(sample, **options) == pytest.approx(plain, abs=1e-5)


def test_a_sample_of_pixels_is_of_the_images_alone():
    """The same pixels however images are put into batches; without a label none; few pixels all."""
    task = SegmentationTask(nn.Conv2d(3, CLASSES, 1), nn.CrossEntropyLoss(), num_classes=CLASSES, pixels=50)
    logits = torch.arange(4.0 * CLASSES * 20 * 30).reshape(4, CLASSES, 20, 30)
    labels = torch.arange(4 * 600).reshape(4, 20, 30) % CLASSES
    labels[:, :10] = task.ignore_index
    whole, target = task._sampled(logits, labels, torch.tensor([7, 2, 5, 3]))
    parts = [task._sampled(logits[i : i + 1], labels[i : i + 1], torch.tensor([k])) for i, k in enumerate((7, 2, 5, 3))]
    assert torch.equal(whole, torch.cat([each for each, _ in parts]))
    assert torch.equal(target, torch.cat([each for _, each in parts]))
    assert 60 < len(target) < 140  # half of 200
    at = (whole[:, 0] % 600).long()  # a logit says where it is from
    image = torch.arange(4).repeat_interleave(torch.tensor([len(each) for _, each in parts]))
    assert torch.equal(target, labels.flatten(1)[image, at])
    task.pixels = 600
    assert len(task._sampled(logits, labels, torch.tensor([7, 2, 5, 3]))[1]) == 4 * 300


def test_the_data_says_what_has_no_label():
    """Whatever the loss was built with, and inside a sum of losses too."""
    parts = [nn.CrossEntropyLoss(), DiceLoss(ignore_index=7)]
    task = SegmentationTask(nn.Identity(), SumLoss(parts), num_classes=3, ignore_index=9)
    assert [part.ignore_index for part in parts] == [9, 9]
    target = torch.tensor([[[0, 9]]])
    assert task.loss(torch.randn(1, 3, 1, 2), target).isfinite()


class TwoHeads(nn.Module):
    """A network with an encoder and an auxiliary head."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.heads = nn.ModuleList(nn.Conv2d(4, CLASSES, 1) for _ in range(heads))

    def forward(self, input):
        features = self.encoder(input).relu()
        found = tuple(head(features) for head in self.heads)
        return found if self.training and len(found) > 1 else found[0]


def fit(task, target, batches=3, **options):
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(2 * batches, 3, *target.shape[1:]), target[: 2 * batches])
    runner = trainer(max_epochs=1, num_sanity_val_steps=0, **options)
    runner.fit(task, DataLoader(data, batch_size=2), DataLoader(data, batch_size=2))
    return runner


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), HEMLoss(), DiceLoss(), FocalLoss(), SumLoss([HEMLoss()])])
def test_batches_without_a_label(loss):
    """A loss of 0 and no step, where cross-entropy itself gives NaN; and no metric that would be of nothing."""
    net = TwoHeads(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    task = SegmentationTask(net, loss, partial(torch.optim.SGD, lr=1.0), num_classes=CLASSES)
    with pytest.warns(UserWarning, match="Expected pixels with a label in the val images"):
        runner = fit(task, torch.full((6, 4, 5), VOID))
    assert not {"train/accuracy", "train/loss", "train/active"} & runner.callback_metrics.keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(value.isfinite() for value in runner.callback_metrics.values())


def test_auxiliary_head(sample):
    """Its loss is added with its factor, and its weights are trained; other numbers of heads are refused."""
    target = sample[1][:6]
    losses = {}

    class Told(SegmentationTask):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses[self.auxiliary[0]] = loss.item()
            return loss

    for factor in (0.0, 0.5):
        torch.manual_seed(1)
        net = TwoHeads()
        before = copy.deepcopy(net)
        optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0)
        task = Told(net, nn.CrossEntropyLoss(), optimizer, num_classes=CLASSES, auxiliary=[factor])
        fit(task, target, batches=1)
        assert torch.equal(net.heads[1].weight, before.heads[1].weight) == (factor == 0)
        assert not torch.equal(net.heads[0].weight, before.heads[0].weight)
    torch.manual_seed(0)
    input = torch.rand(2, 3, *target.shape[1:])
    auxiliary = nn.CrossEntropyLoss(ignore_index=VOID)(before.train()(input)[1], target[:2])
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * auxiliary.item(), rel=1e-4)
    for options, runs, sentence in (
        ({"auxiliary": [0.4, 0.4]}, {}, "it has 2 and the network 1 such heads"),
        ({}, {"accumulate_grad_batches": 2}, "cannot be accumulated exactly"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(SegmentationTask(TwoHeads(), nn.CrossEntropyLoss(), num_classes=CLASSES, **options), target, **runs)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_curves_hold_their_own_step(tmp_path):
    """A row has the accuracy of the step that it is of; no rows are no error."""
    right = torch.tensor([0, 1, 2, 3, 4, 5]) / 10
    target = (torch.linspace(0, 0.99, 10)[None] >= right[:, None]).long()[:, None]  # class 0 at the share `right`
    task = SegmentationTask(nn.Conv2d(3, 2, 1), nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=1e-9), num_classes=2)
    with torch.no_grad():
        task.net.backbone.weight.zero_()
        task.net.backbone.bias.copy_(torch.tensor([1.0, 0.0]))  # all pixels are of class 0
    data = DataLoader(TensorDataset(torch.rand(6, 3, 1, 10), target), batch_size=1)
    for every, rows in ((2, [(1, 0.1), (3, 0.3), (5, 0.5)]), (0, [])):
        logger = CSVLogger(tmp_path, name="", version=str(every))
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=every, logger=logger, **quiet).fit(task, data)
        path = tmp_path / str(every) / "metrics.csv"
        table = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
        found = [(int(row["step"]), float(row["train/accuracy"])) for row in table if row.get("train/accuracy")]
        assert found == [(step, pytest.approx(share)) for step, share in rows]


def test_poly_schedule(sample):
    """lr (1 - t / T)^0.9 after t of T steps, with T the steps of the whole training; encoder and rest apart."""
    seen = []

    class Watched(SegmentationTask):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append([group["lr"] for group in self.optimizers().param_groups])

    recipe = (partial(torch.optim.SGD, lr=0.2), partial(PolyLR, total_steps=None), "step")
    task = Watched(TwoHeads(1), nn.CrossEntropyLoss(), *recipe, num_classes=CLASSES, encoder_lr=0.1)
    fit(task, sample[1])
    assert seen == [pytest.approx([f * 0.2 * (1 - t / 3) ** 0.9 for f in (0.1, 1)]) for t in range(3)]
    with pytest.raises(ValueError, match="PolyLR needs total_steps"):
        PolyLR(torch.optim.SGD([torch.zeros(1)], 0.1))


def test_learning_rates_of_encoder_and_head(sample):
    """Every parameter is in one group; a schedule that overrides the rates, or a net without encoder, is refused."""

    def task(net, max_lr):
        schedule = partial(OneCycleLR, max_lr=max_lr, total_steps=3)
        optimizer = partial(torch.optim.SGD, lr=0.2)
        recipe = (optimizer, schedule, "step")
        return SegmentationTask(net, nn.CrossEntropyLoss(), *recipe, num_classes=CLASSES, encoder_lr=0.1)

    net = TwoHeads(1)
    runner = fit(task(net, [0.02, 0.2]), sample[1])
    encoder, rest = runner.optimizers[0].param_groups
    assert {id(p) for p in encoder["params"]} == {id(p) for p in net.encoder.parameters()}
    assert len(encoder["params"]) + len(rest["params"]) == len(list(net.parameters()))
    runner = fit(task(TwoHeads(1), 0.2), sample[1])  # one number, which the config has
    assert [group["max_lr"] for group in runner.optimizers[0].param_groups] == pytest.approx([0.02, 0.2])
    with pytest.raises(ValueError, match=r"rates in the proportion 0.1, 1, got .*OneCycleLR with one number"):
        fit(task(TwoHeads(1), [0.2, 0.2]), sample[1])
    with pytest.raises(ValueError, match="need a network whose encoder is its attribute `encoder`, which Conv2d"):
        fit(task(nn.Conv2d(3, CLASSES, 1), 0.2), sample[1])
    with pytest.raises(ValueError, match="above 0, got 0"):
        SegmentationTask(TwoHeads(1), nn.CrossEntropyLoss(), num_classes=CLASSES, encoder_lr=0)


FOLDER = ("--config", "configs/segmentation/mask_folder.yaml", "--config", "configs/loss/hem.yaml",
          "--model.net", "SegNet", "--model.net.widths", "[4, 8]", "--model.net.depths", "[1, 1]",
          "--model.lr_scheduler", "null", "--data.dataset.image_size", "[24, 32]", "--data.crop_size", "[16, 16]",
          "--data.batch_size", 2, "--data.num_workers", 0, "--trainer.accelerator", "cpu",
          "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
          "--trainer.log_every_n_steps", 1, "--data.val_fraction", 0.25)  # fmt: skip


def surely_classified(model: nn.Module, path: str) -> np.ndarray:
    """Where the two largest logits of a pixel differ by more than rounding."""
    with Image.open(path) as file:
        image = torch.from_numpy(np.array(file)).movedim(-1, 0)
    with torch.inference_mode():
        first, second = model(model.shape.image(image)[None])[0].topk(2, 0).values
    return model.shape.back(first - second > 1e-3, image.shape[1:]).numpy()


def test_run_folder(hem_command, tmp_path):
    """Pictures, indexed masks in the files' sizes, figures; the network comes back; a resumed run is the same run."""
    mask_folder_tree(tmp_path, n=4)
    pair(tmp_path / "test" / "images" / "other.png", tmp_path / "test" / "masks" / "other.png", np.arange(2), (20, 50))
    run = tmp_path / "run"
    common = (*FOLDER, "--data.root", tmp_path, "--run_dir", run)
    for arguments in (
        ("fit", "--trainer.max_epochs", 1),
        ("fit", "--trainer.max_epochs", 2, "--ckpt_path", "last"),
        ("test", "--ckpt_path", "last"),
        ("predict", "--ckpt_path", "last"),
    ):
        outcome = hem_command(arguments[0], *common, *arguments[1:])
        assert outcome.code == 0, outcome.err

    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert {"test/miou", "test/mean_accuracy", "test/accuracy", "test/unknown/auroc_msp"} <= set(metrics)
    assert {"test/nll", "test/brier", "test/calibration_error", "test/calibration_error_mass"} <= set(metrics)
    for name in ("confusion", "overlays", "reliability"):
        with Image.open(run / f"{name}.png") as picture:
            assert min(picture.size) > 200
    images = sorted((tmp_path / "test" / "images").iterdir())
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(map(str, images))
    model = hem.load(run, "last")
    for row, again in zip(rows, model.predict(images), strict=True):
        sure = surely_classified(model, row["file"])
        assert Path(row["mask"]).stem == Path(row["file"]).stem
        with Image.open(row["mask"]) as mask, Image.open(row["file"]) as image:
            assert (mask.mode, mask.size) == ("P", image.size)
            assert mask.getpalette()[:6] == [value for color in model.palette for value in color]
            assert set(np.unique(mask)) <= {0, 1}
            assert np.array_equal(np.asarray(mask)[sure], np.asarray(again)[sure])
            assert sure.mean() > 0.98

    before = {path: path.read_bytes() for path in run.glob("*.png")}
    part = ("--trainer.limit_test_batches", 1, "--data.batch_size", 1)
    assert hem_command("test", *common, *part, "--ckpt_path", "last").code == 0
    assert "partial" in json.loads((run / "results.json").read_text())
    assert {path: path.read_bytes() for path in run.glob("*.png")} == before, "of all images"

    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("net.") for name in state)
    outcome = hem_command("fit", *common, "--trainer.max_epochs", 2, "--run_dir", tmp_path / "whole")
    assert outcome.code == 0, outcome.err
    whole = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in whole.items())


def test_masks_without_a_label(sample):
    """Nothing to measure is an error, not a test without figures."""
    logits, target = sample
    with pytest.raises(ValueError, match=r"Expected pixels with a label in the test images, got masks that are void"):
        figures((logits, torch.full_like(target, VOID)))


@pytest.mark.parametrize("loss", ["median_frequency", "ce_dice", "hem_plus", "ce"])
def test_losses_of_the_command_line(loss, hem_command, tmp_path):
    """What the data knows reaches the loss; a later config wins over an earlier one's ignore_index."""
    mask_folder_tree(tmp_path, n=4)
    outcome = hem_command("fit", *FOLDER, "--config", f"configs/loss/{loss}.yaml", "--data.root", tmp_path,
                          "--run_dir", tmp_path / "run", "--trainer.max_epochs", 1)  # fmt: skip
    assert outcome.code == 0, outcome.err
    with open(tmp_path / "run" / "metrics.csv") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses
    assert 0 < losses[0] < 20


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--data.dataset", "CamVidd", "unknown data set 'CamVidd'; did you mean 'CamVid'"),
        ("--model.net.class_path", "SegNett", "unknown network 'SegNett'; did you mean 'SegNet'"),
        ("--data.unknown_classes", "[dog]", "unknown_classes to be some of the folder's classes, background, object"),
    ],
)
def test_mistakes(option, value, sentence, hem_command, tmp_path):
    mask_folder_tree(tmp_path, n=2)
    outcome = hem_command("fit", *FOLDER, "--data.root", tmp_path, "--run_dir", tmp_path / "run", option, value)
    assert outcome.code != 0
    assert sentence in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
