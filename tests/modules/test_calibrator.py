"""Calibration end to end: fitted and judged by test, kept in the run folder, used by predict and hem.load."""

import csv
import json
import shutil

import pytest
import torch
from lightning.pytorch import Trainer
from scipy.stats import binom
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hem
import hem.networks
from hem.calibration import calibrate
from hem.datamodules import DigitsDataModule, LongTail, MaskFolder, SegmentationDataModule
from hem.losses import HEMLoss
from hem.metrics import aurc, brier_score, calibration_error, error_auroc, negative_log_likelihood
from hem.modules import Calibrator, ClassificationTask, LongTailTask, SegmentationTask
from hem.modules.calibrator import CHANGED, RunCalibration
from hem.rejection import LOGIT_SCORES
from hem.runs import RunFolder
from tests.conftest import ROOT
from tests.datamodules.mask_trees import mask_folder_tree
from tests.trainers import QUIET

DIGITS = ("--config", "configs/classification/digits.yaml", "--trainer.enable_progress_bar", "false",
          "--trainer.accelerator", "cpu", "--config", "configs/loss/hem.yaml",
          "--trainer.max_epochs", "4")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the digits with HEM: trained, tested, predicted."""
    from hem.cli import main

    folder = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["fit", *DIGITS, "--run_dir", str(folder)]) == 0
        for command in ("test", "predict"):
            assert main([command, *DIGITS, "--run_dir", str(folder), "--ckpt_path", "last"]) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """The same run in a folder of the test's own."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def logits(run):
    """Logits and labels of the validation and of the test part."""
    net, found = hem.load(run, "last"), {}
    for part in ("val", "test"):
        images, index = DigitsDataModule().part(part)
        with torch.inference_mode():
            found[part] = net(images.images[index]), images.targets[index]
    return found


def results(folder):
    return json.loads((folder / "results.json").read_text())["metrics"]


def table(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_temperature_is_that_of_the_validation_logits(run, logits):
    record = json.loads((run / "calibration.json").read_text())
    expected = calibrate(*logits["val"]).temperature.item()
    assert record["method"] == "temperature"
    assert record["samples"] == len(logits["val"][1])
    assert record["temperature"] == pytest.approx(expected, rel=1e-4)
    assert results(run)["test/temperature"] == pytest.approx(expected, rel=1e-4)
    assert expected < 1  # HEM's logits are short


def test_figures_before_and_after(run, logits):
    z, y = logits["test"]
    found = results(run)
    scaled = calibrate(*logits["val"]).scaled(z)
    metrics = {
        "nll": negative_log_likelihood,
        "brier": brier_score,
        "calibration_error": calibration_error,
        "calibration_error_mass": lambda z, y: calibration_error(z, y, binning="mass"),
    }
    for name, metric in metrics.items():
        assert found[f"test/{name}"] == pytest.approx(float(metric(z, y)), rel=1e-3, abs=1e-4), name
        assert found[f"test/calibrated/{name}"] == pytest.approx(float(metric(scaled, y)), rel=1e-3, abs=1e-4), name
        assert found[f"test/calibrated/{name}"] < found[f"test/{name}"]
    correct = z.argmax(1) == y
    for where, values, names in (("test", z, LOGIT_SCORES), ("test/calibrated", scaled, CHANGED)):
        for name in names:
            unknownness = LOGIT_SCORES[name](values.double())
            assert found[f"{where}/aurc/{name}"] == pytest.approx(aurc(unknownness, correct), rel=1e-3, abs=1e-4)
            assert found[f"{where}/error_auroc/{name}"] == pytest.approx(error_auroc(unknownness, correct), abs=1e-3)
    assert not {f"test/calibrated/aurc/{name}" for name in LOGIT_SCORES if name not in CHANGED} & found.keys()


def test_scores_that_a_temperature_leaves_in_order(logits):
    """And those that it does not: what `CHANGED` says."""
    z, _ = logits["test"]
    for name, score in LOGIT_SCORES.items():
        same = torch.equal(score(z.double()).argsort(stable=True), score(z.double() / 0.2).argsort(stable=True))
        assert same == (name not in CHANGED), name


def test_predict_and_load_give_the_calibrated_probabilities(run, logits):
    model = hem.load(run, "last")
    images = DigitsDataModule().load("test").images
    predictions, rows = model.predict(images), table(run)
    p = calibrate(*logits["val"])(logits["test"][0])
    best = p.topk(5, 1)
    assert [row["label"] for row in rows] == [each.label for each in predictions]
    assert [int(each.label) for each in predictions] == logits["test"][0].argmax(1).tolist()
    for place, name in enumerate(("", "_2", "_3", "_4", "_5")):
        scores = torch.tensor([float(row[f"score{name}"]) for row in rows])
        torch.testing.assert_close(scores, best.values[:, place], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor([each.top[place][1] for each in predictions]), scores)
        assert [row[f"label{name}"] for row in rows] == [each.top[place][0] for each in predictions]
    assert all(each.calibrated and each.top[0] == (each.label, each.score) for each in predictions)
    assert "set" not in rows[0]
    assert predictions[0].labels is None


def test_raw_scores_are_the_softmax_and_decide_alike(run, copy, hem_command):
    model = hem.load(run, "last")
    images = DigitsDataModule().load("test").images
    raw, usual = model.predict(images, scores="raw"), model.predict(images)
    with torch.inference_mode():
        expected = model(images).softmax(1).amax(1)
    torch.testing.assert_close(torch.tensor([each.score for each in raw]), expected)
    assert not any(each.calibrated for each in raw)
    for name in ("label", "accepted", "rejection_score"):
        assert [getattr(each, name) for each in raw] == [getattr(each, name) for each in usual]
    arguments = ("--run_dir", copy, "--ckpt_path", "last", "--model.scores", "raw")
    assert hem_command("predict", *DIGITS, *arguments).code == 0
    scores = torch.tensor([float(row["score"]) for row in table(copy)])
    torch.testing.assert_close(scores, expected)
    assert [row["accepted"] for row in table(copy)] == [row["accepted"] for row in table(run)]
    with pytest.raises(ValueError, match="Unknown kind of scores 'row'; did you mean 'raw'"):
        model.predict(images, scores="row")


def test_the_diagram_is_a_file_and_in_tensorboard(run):
    assert (run / "reliability.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(run)).Reload()
    assert "reliability" in events.Tags()["images"]


def test_a_calibration_belongs_to_its_weights(run, copy, hem_command):
    net = hem.load(copy, "last").net
    assert RunCalibration.load(RunFolder(copy), net) is not None
    with torch.no_grad():
        next(net.parameters()).add_(1)
    assert RunCalibration.load(RunFolder(copy), net) is None
    (copy / "calibration.json").write_text('{"method": "temperature"}')
    with pytest.raises(
        ValueError, match=r"Expected the calibration of a run in .*calibration.json, got something else"
    ):
        hem.load(copy, "last")
    (copy / "calibration.json").unlink()
    outcome = hem_command("predict", *DIGITS, "--run_dir", copy, "--ckpt_path", "last")
    assert "predictions without calibration:" in outcome.out
    scores = torch.tensor([float(row["score"]) for row in table(copy)])
    assert scores.mean() < torch.tensor([float(row["score"]) for row in table(run)]).mean()
    assert not hem.load(copy, "last").predict(torch.rand(1, 1, 8, 8))[0].calibrated


def test_a_limit_that_leaves_the_test_whole_leaves_its_calibration_whole():
    """The validation part has more batches than the test part here: 23, not 12."""
    torch.manual_seed(0)
    task = ClassificationTask(hem.networks.MLP(in_channels=1, image_size=(8, 8)), HEMLoss())
    data = DigitsDataModule(val_fraction=0.5, eval_batch_size=32)
    found = []
    for limit in (1.0, 12, 11):
        trainer = Trainer(**QUIET, limit_test_batches=limit)
        trainer.test(task, datamodule=data, verbose=False)
        found.append(float(trainer.callback_metrics["test/temperature"]))
    assert found[0] == found[1] != found[2]


def test_without_validation_images(tmp_path, hem_command):
    arguments = (*DIGITS, "--run_dir", tmp_path, "--data.val_fraction", "0", "--trainer.max_epochs", "1")
    for options in (("fit",), ("test", "--ckpt_path", "last")):
        outcome = hem_command(options[0], *arguments, *options[1:])
        assert outcome.code == 0, outcome.err
    assert "no calibration: there is no validation part" in outcome.out
    assert not (tmp_path / "calibration.json").exists()
    assert "test/nll" in results(tmp_path)
    assert not any("calibrated" in key or "temperature" in key for key in results(tmp_path))


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_prediction_sets(score, copy, hem_command):
    options = ("--run_dir", copy, "--ckpt_path", "last", "--model.calibrator", "Calibrator",
               "--model.calibrator.coverage", "0.9", "--model.calibrator.score", score)  # fmt: skip
    for command in ("test", "predict"):
        outcome = hem_command(command, *DIGITS, *options)
        assert outcome.code == 0, outcome.err
    rows, targets = table(copy), DigitsDataModule().load("test").targets.tolist()
    sets = [row["set"].split("|") for row in rows]
    covered = sum(str(target) in each for target, each in zip(targets, sets, strict=True))
    low, _ = binom.interval(0.999, len(rows), 0.9)  # no upper end: the most probable class is in every set
    assert covered >= low
    found = results(copy)
    assert found["test/conformal/coverage"] == pytest.approx(covered / len(rows), abs=1e-6)
    assert found["test/conformal/size"] == pytest.approx(sum(map(len, sets)) / len(rows), rel=1e-5)
    images = DigitsDataModule().load("test").images
    assert [list(each.labels) for each in hem.load(copy, "last").predict(images)] == sets


def test_coverage_and_size_keep_their_digits_in_half_precision(logits):
    """Sums over hundreds of samples, in a module whose parameters and buffers are bfloat16."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        calibrator = Calibrator(coverage=0.9).to(dtype)
        assert calibrator.fit(*logits["val"]) is None
        for z, y in zip(logits["test"][0].split(7), logits["test"][1].split(7), strict=True):
            calibrator.update(z, y)
        found[dtype] = {name: float(value) for name, value in calibrator.compute().items() if "conformal" in name}
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=1e-6)


def test_margin_scaling(copy, hem_command, logits):
    options = ("--run_dir", copy, "--ckpt_path", "last", "--model.calibrator", "Calibrator",
               "--model.calibrator.method", "margin")  # fmt: skip
    assert hem_command("test", *DIGITS, *options).code == 0
    expected = calibrate(*logits["val"], "margin")
    for name in ("temperature", "margin_temperature"):
        assert results(copy)[f"test/{name}"] == pytest.approx(getattr(expected, name).item(), rel=1e-2)
    loaded = hem.load(copy, "last")
    p = torch.tensor([each.score for each in loaded.predict(DigitsDataModule().load("test").images)])
    torch.testing.assert_close(p, expected(logits["test"][0]).amax(1), rtol=1e-2, atol=1e-3)


def test_vector_scaling(copy, hem_command, logits):
    options = ("--run_dir", copy, "--ckpt_path", "last", "--model.calibrator", "Calibrator",
               "--model.calibrator.method", "vector")  # fmt: skip
    assert hem_command("test", *DIGITS, *options).code == 0
    found = results(copy)
    expected = calibrate(*logits["val"], "vector")
    z, y = logits["test"]
    assert found["test/calibrated/nll"] == pytest.approx(
        float(negative_log_likelihood(expected.scaled(z), y)), rel=1e-2
    )
    accuracy = (expected.scaled(z).argmax(1) == y).double().mean().item()
    assert found["test/calibrated/accuracy"] == pytest.approx(accuracy, abs=3e-3)
    assert "test/temperature" not in found
    scores = hem.load(copy, "last").predict(DigitsDataModule().load("test").images)
    p = torch.tensor([each.score for each in scores])
    torch.testing.assert_close(p, expected(z).amax(1), rtol=1e-2, atol=1e-2)


def test_a_network_that_tells_nothing_has_none(tmp_path):
    """The sentence, not a temperature of 10^6."""
    sets = Calibrator()
    assert "no temperature makes them probabilities" in sets.fit(torch.zeros(20, 3), torch.arange(20) % 3)
    assert sets.probabilities == []


def test_a_trainer_from_python(tmp_path):
    """Without a data module: figures before, no calibration, nothing written."""
    data = TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)
    task = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), HEMLoss())
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      default_root_dir=tmp_path)  # fmt: skip
    trainer.test(task, DataLoader(data, batch_size=7, num_workers=0), verbose=False)
    assert "test/nll" in trainer.callback_metrics
    assert not list(tmp_path.iterdir())
    assert not any(name.startswith("calibrator") for name in task.state_dict())


class Brightness(nn.Module):
    """Knows the class of a pixel by its brightness, and errs in some places."""

    def forward(self, input):
        place = torch.arange(input[0, 0].numel(), device=input.device).reshape(input.shape[2:])
        seen = 255 * input[:, :1] + 0.9 * torch.sin(12.9898 * place)
        return -(seen - torch.arange(3.0, device=input.device)[:, None, None]).square() / 3


def figures_of(task, data, folder):
    """What ``test`` finds, in a folder that looks like a run's."""
    folder.mkdir()
    (folder / "config.yaml").touch()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      default_root_dir=folder)  # fmt: skip
    trainer.test(task, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_pixels_of_masks(tmp_path):
    """All pixels of small images: the temperature of the whole validation part, the figures of the whole test part."""
    mask_folder_tree(tmp_path, n=8, classes=3)
    source = MaskFolder(["a", "b", "c"], image_size=(24, 32))
    data = SegmentationDataModule(source, root=str(tmp_path), eval_batch_size=3, val_fraction=0.25)
    task = SegmentationTask(Brightness(), HEMLoss(), num_classes=3, pixels=768)
    found = figures_of(task, data, tmp_path / "run")
    parts = {}
    for part in ("val", "test"):
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.loader(*data.part(part))]
        with torch.inference_mode():
            parts[part] = torch.cat([task.net(each.input) for each in batches]), torch.cat([b.target for b in batches])
    fitted = calibrate(*parts["val"], ignore_index=255)
    assert found["test/temperature"] == pytest.approx(fitted.temperature.item(), rel=1e-4)
    z, y = parts["test"]
    for where, logits in (("", z), ("calibrated/", fitted.scaled(z))):
        expected = negative_log_likelihood(logits, y, ignore_index=255).item()
        assert found[f"test/{where}nll"] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "run" / "reliability.png").exists()
    assert RunCalibration.load(RunFolder(tmp_path / "run"), task.net).samples == (parts["val"][1] != 255).sum()


@pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")
def test_a_long_tail_has_two_priors(tmp_path):
    """That of the validation part, and that of the training samples, by weights in the fit and in the figures."""
    data = DigitsDataModule(val_fraction=0.3, subset=LongTail(10))
    images, index = data.part("train")
    pixels, targets = images.images[index].flatten(1).float() / 255, images.targets[index]
    means = torch.stack([pixels[targets == k].mean(0) for k in range(10)])
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # the nearest mean
    net[1].weight.data, net[1].bias.data = 2 * means, -means.square().sum(1)
    task = LongTailTask(net, HEMLoss(), num_classes=10, class_counts=data.class_counts)
    found = figures_of(task, data, tmp_path / "run")
    parts = {}
    for part in ("val", "test"):
        images, index = data.part(part)
        with torch.inference_mode():
            parts[part] = task.net(images.images[index].float() / 255), images.targets[index]
    share = torch.tensor(data.class_counts) / sum(data.class_counts)
    weight = {part: share / (y.bincount() / len(y)) for part, (_, y) in parts.items()}
    (val, label), (z, y) = parts["val"], parts["test"]
    for prefix, fitted, own in (
        ("", calibrate(val, label), None),
        ("train_prior/", calibrate(val, label, weight=weight["val"]), weight["test"]),
    ):
        assert found[f"test/{prefix}temperature"] == pytest.approx(fitted.temperature.item(), rel=1e-4)
        for where, logits in ((prefix, z), (f"{prefix}calibrated/", fitted.scaled(z))):
            for name, metric in (("nll", negative_log_likelihood), ("calibration_error", calibration_error)):
                assert found[f"test/{where}{name}"] == pytest.approx(metric(logits, y, weight=own).item(), rel=1e-4)
    kept = RunCalibration.load(RunFolder(tmp_path / "run"), task.net)
    assert kept.probabilities.temperature.item() == pytest.approx(found["test/temperature"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "vektor"}, "Unknown calibration method 'vektor'; did you mean 'vector'"),
        ({"score": "rap"}, "Unknown score of prediction sets 'rap'"),
        ({"coverage": 90.0}, "Expected a coverage between 0 and 1, got 90.0"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(ValueError, match=words):
        Calibrator(**arguments)
