"""Rejection end to end: the table of any checkpoint against named sets, and the rejector for use."""

import csv
import json

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import roc_auc_score
from torch import nn

import hem
from hem.attacks.fooling import nonsense
from hem.cli import quiet
from hem.datamodules import DigitsDataModule
from hem.datamodules.unknown import unknown_images
from hem.modules import ClassificationTask, RejectionTask
from hem.modules.rejector import load_rejector
from hem.rejection import FORMER, KNN, LOGIT_SCORES, Rejector, accept_threshold, auroc
from hem.runs import RunFolder
from hem.runs.checkpoints import identity
from tests.conftest import ROOT
from tests.datamodules import test_datasets as trees
from tests.datamodules.test_unknown import drawing

# the small copies of data sets say that they are none of the official ones
pytestmark = pytest.mark.filterwarnings("ignore:The training part of .* is not the official one:UserWarning")

DIGITS = ("--config", "configs/classification/digits.yaml", "--trainer.enable_progress_bar", "false",
          "--trainer.accelerator", "cpu", "--model.net", "MLP")  # fmt: skip
TASK = ("--model", "hem.modules.RejectionTask", "--data", "hem.datamodules.DigitsDataModule",
        "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")  # fmt: skip
UNKNOWN = {"novel": ["omniglot", "svhn"], "unrecognisable": ["uniform", "blobs", "phase", "nonsense"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the digits with HEM: trained, tested, predicted."""
    from hem.cli import main

    folder = tmp_path_factory.mktemp("runs") / "digits"
    common = [*DIGITS, "--config", "configs/loss/hem.yaml", "--run_dir", str(folder), "--trainer.max_epochs", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["fit", *common]) == 0
        assert main(["test", *common, "--ckpt_path", "last"]) == 0
        assert main(["predict", *common, "--ckpt_path", "last"]) == 0
    return folder


def logits_of(run, images):
    with torch.inference_mode():
        return hem.load(run, "last")(images)


# -- the rejector --------------------------------------------------------------------------------------------


def test_the_threshold_keeps_the_share_of_what_is_right(run):
    rejector = Rejector(**json.loads((run / "rejector.json").read_text()))
    images, index = DigitsDataModule().part("val")
    logits = logits_of(run, images.images[index])
    right = logits.argmax(1) == images.targets[index]
    assert 0 < right.sum() < len(index) or right.all()
    expected = accept_threshold(LOGIT_SCORES["max_logit"](logits[right]), 0.95)
    assert (rejector.score, rejector.keep) == ("max_logit", 0.95)
    assert rejector.threshold == pytest.approx(expected, abs=1e-5)


def test_predict_and_load_decide_alike(run):
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = DigitsDataModule().load("test").images
    predictions = hem.load(run, "last").predict(images)
    assert [row["accepted"] for row in rows] == [str(p.accepted) for p in predictions]
    assert 0.85 < sum(p.accepted for p in predictions) / len(predictions) < 1
    assert [row["label"] for row in rows] == [p.label for p in predictions]
    scores = torch.tensor([float(row["rejection_score"]) for row in rows])
    torch.testing.assert_close(scores, torch.tensor([p.rejection_score for p in predictions]))
    torch.testing.assert_close(scores, -logits_of(run, images).amax(1))


def test_a_rejector_belongs_to_its_weights(run, tmp_path, hem_command):
    """After more training the old threshold decides nothing, and predict says why."""
    model = hem.load(run, "last")
    assert model.rejector is not None
    with torch.no_grad():
        next(model.net.parameters()).add_(1.0)
    assert load_rejector(RunFolder(run), model.net) is None
    common = (*DIGITS, "--config", "configs/loss/hem.yaml", "--run_dir", tmp_path, "--trainer.max_epochs", 1,
              "--data.val_fraction", 0)  # fmt: skip
    assert hem_command("fit", *common).code == 0
    (tmp_path / "rejector.json").write_text((run / "rejector.json").read_text())
    outcome = hem_command("predict", *common, "--ckpt_path", "last")
    assert "rejector.json belongs to other weights; run `python cli.py test`" in outcome.out
    assert "accepted" not in (tmp_path / "predictions.csv").read_text().splitlines()[0]
    (tmp_path / "rejector.json").write_text("{}")
    outcome = hem_command("predict", *common, "--ckpt_path", "last")
    assert outcome.code == 1
    assert "rejector.json is no rejector" in outcome.err
    assert "no rejector: there is no validation part" in hem_command("test", *common, "--ckpt_path", "last").out


def test_another_score_and_share(run, tmp_path, hem_command):
    common = (
        *DIGITS,
        "--config",
        "configs/loss/hem.yaml",
        "--run_dir",
        tmp_path,
        "--ckpt_path",
        run / "checkpoints/last.ckpt",
    )
    choice = ("--model.rejection_score", "margin", "--model.keep", 0.5)
    assert hem_command("test", *common, *choice).code == 0
    assert hem_command("predict", *common).code == 0
    with open(tmp_path / "predictions.csv", newline="") as file:
        accepted = [row["accepted"] == "True" for row in csv.DictReader(file)]
    assert 0.3 < sum(accepted) / len(accepted) < 0.65
    outcome = hem_command("test", *common, "--model.rejection_score", "margins")
    assert "Unknown rejection score 'margins'; did you mean 'margin'?" in outcome.err
    outcome = hem_command("test", *common, "--model.keep", 95)
    assert "in (0, 1], got 95" in outcome.err


def test_identity_sees_every_weight():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = identity(net.state_dict())
    assert identity(net.double().state_dict()) == first  # the same numbers
    net[1].running_mean[1] += 1e-6
    assert identity(net.state_dict()) != first


def test_a_trainer_from_python_writes_no_rejector(tmp_path):
    quiet()
    data = DigitsDataModule()
    task = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss())
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    trainer.test(task, data, verbose=False)
    assert not list(tmp_path.iterdir())


# -- the test of a checkpoint --------------------------------------------------------------------------------


def test_the_table_of_a_checkpoint(run, tmp_path, hem_command):
    """A checkpoint trained with HEM, which the table says, against what is there."""
    drawing(tmp_path / "data" / "omniglot-py" / "images_evaluation" / "Greek" / "character01" / "a.png")
    drawing(tmp_path / "data" / "omniglot-py" / "images_evaluation" / "Greek" / "character02" / "b.png")
    folder = tmp_path / "run"
    outcome = hem_command(
        "test", *TASK, "--run_dir", folder, "--ckpt_path", run / "checkpoints/last.ckpt",
        "--model.unknown", json.dumps(UNKNOWN), "--model.max_images", 300, "--model.nonsense_images", 50,
        "--data.root", tmp_path / "data", "--model.corruptions", "[fog]", "--model.attack_eps", 0.1,
        "--model.known_images", 64, "--model.scores", "[msp, max_logit, energy]",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "skipped: the unknown set svhn is missing" in outcome.out
    assert "novel, mean of 1/2" in outcome.out

    results = json.loads((folder / "results.json").read_text())
    assert (results["task"], results["loss"]) == ("rejection", "hem")
    found = results["metrics"]
    # what a temperature changes the order of comes twice; the largest logit does not
    named = {key.split("/")[2] for key in found if key.startswith("test/auroc/")}
    assert named == {"msp", "max_logit", "energy", "msp_calibrated", "energy_calibrated"}
    images, index = unknown_images("blobs", DigitsDataModule(), limit=300)
    test = DigitsDataModule().load("test")
    known, unknown = logits_of(run, test.images), logits_of(run, images.images[index])
    assert found["test/accuracy"] == pytest.approx((known.argmax(1) == test.targets).float().mean().item())
    label = [0] * len(known) + [1] * len(unknown)
    for name in ("msp", "max_logit", "energy"):
        score = LOGIT_SCORES[name]
        expected = roc_auc_score(label, torch.cat([score(known), score(unknown)]))
        assert found[f"test/auroc/{name}/blobs"] == pytest.approx(expected, abs=1e-5)
        present = [found[f"test/auroc/{name}/{each}"] for each in UNKNOWN["unrecognisable"]]
        assert found[f"test/auroc/{name}/unrecognisable"] == pytest.approx(sum(present) / 4, abs=1e-6)
        assert found[f"test/auroc/{name}/novel"] == found[f"test/auroc/{name}/omniglot"]
    assert not [key for key in found if "svhn" in key]

    record = json.loads((folder / "rejection.json").read_text())
    assert list(record["missing"]) == ["svhn"]
    assert record["groups"]["novel"] == {"present": ["omniglot"], "missing": ["svhn"]}
    assert record["images"] == {"clean": len(test), "corrupt": 64, "adversarial": 64, "omniglot": 2, "uniform": 300,
                                "blobs": 300, "phase": 300, "nonsense": 50}  # fmt: skip
    threshold = record["thresholds"]["energy"]
    right = known.argmax(1) == test.targets
    accepted = LOGIT_SCORES["energy"](known) <= threshold
    assert found["test/dar/energy/clean"] == pytest.approx((accepted == right).float().mean().item(), abs=2e-3)
    rejected = (LOGIT_SCORES["energy"](unknown) > threshold).float().mean().item()
    assert found["test/dar/energy/blobs"] == pytest.approx(rejected, abs=4e-3)
    dar = {kind: found[f"test/dar/energy/{kind}"] for kind in ("clean", "corrupt", "adversarial", *UNKNOWN)}
    assert found["test/dar/energy/overall"] == pytest.approx(sum(dar.values()) / 5, abs=1e-6)
    assert found["test/dar_strict/energy/adversarial"] < found["test/dar_strict/energy/clean"]

    with open(folder / "rejection.csv", newline="") as file:
        rows = {(row["score"], row["name"]): row for row in csv.DictReader(file)}
    assert float(rows["msp", "blobs"]["oscr"]) == pytest.approx(found["test/oscr/msp/blobs"], abs=1e-6)
    assert rows["msp", "unrecognisable"]["sets"] == "4"
    for score in ("msp", "max_logit", "energy"):
        assert (folder / f"rejection_{score}.png").read_bytes()[:4] == b"\x89PNG"
    assert list(folder.glob("events.*"))


def test_scores_by_pytorch_ood(run, tmp_path, hem_command):
    pytest.importorskip("pytorch_ood")
    groups = json.dumps({"noise": ["uniform", "blobs"]})
    common = ("test", *TASK, "--ckpt_path", run / "checkpoints/last.ckpt", "--model.unknown", groups,
              "--model.scores", json.dumps(["msp", *(kind.__name__ for kind, _ in FORMER.values())]),
              "--model.max_images", 100)  # fmt: skip
    outcome = hem_command(*common, "--run_dir", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "a" / "results.json").read_text())["metrics"]
    for score in ("mahalanobis", "knn", "vim"):
        assert found[f"test/auroc/{score}/noise"] > 0.8, score
    for score in ("odin", "react"):
        assert 0 < found[f"test/auroc/{score}/noise"] < 1, score
    # the logits are those of the head behind the features
    images, _ = unknown_images("blobs", DigitsDataModule(), limit=100)
    known, unknown = (
        LOGIT_SCORES["msp"](logits_of(run, i)) for i in (DigitsDataModule().load("test").images, images.images)
    )
    assert found["test/auroc/msp/blobs"] == pytest.approx(auroc(known, unknown), abs=1e-5)
    outcome = hem_command(*common, "--run_dir", tmp_path / "c", "--model.fit_images", 9)
    assert outcome.code == 1
    assert "needs features of every class" in outcome.err


OWN = """
from hem.rejection import FeatureScore

class Far(FeatureScore):
    def fit(self, features, target, head):
        centre = features.mean(0)
        return lambda each: (each - centre.to(each)).norm(dim=1)

def second(logits):
    return logits.topk(2).values[:, 1]
"""


def test_scores_of_ones_own(run, tmp_path, hem_command, monkeypatch):
    """A class that is fitted on features and a function of logits, by their paths, beside those of former words."""
    (tmp_path / "own_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    common = ("test", *TASK, "--ckpt_path", run / "checkpoints/last.ckpt", "--model.max_images", 40,
              "--model.unknown", '{"noise": [uniform]}', "--model.scores")  # fmt: skip
    with pytest.warns(FutureWarning, match="The rejection score 'knn' is a class by now: write hem.rejection.KNN"):
        outcome = hem_command(
            *common, "[max_logit, own_scores.Far, own_scores.second, knn]", "--run_dir", tmp_path / "a"
        )
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "a" / "results.json").read_text())["metrics"]
    assert {key.split("/")[2] for key in found if "auroc" in key} == {"max_logit", "far", "second", "knn"}
    known, unknown = (logits_of(run, each.images[:360]).topk(2).values[:, 1] for each in (
        DigitsDataModule().load("test"), unknown_images("uniform", DigitsDataModule(), limit=40)[0]))  # fmt: skip
    assert found["test/auroc/second/uniform"] == pytest.approx(auroc(known, unknown), abs=1e-5)
    for wrong, words in (
        ("[own_scores.third]", "own_scores has no class 'third'"),
        ("[{class_path: KNN, init_args: {neighbours: 3}}]", "KNN has no argument 'neighbours'; it takes k"),
    ):
        outcome = hem_command(*common, wrong, "--run_dir", tmp_path / "b")
        assert outcome.code in (1, 2)
        assert words in outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scores": ["mps"]}, r"Unknown rejection score 'mps'; did you mean 'msp'\?"),
        ({"unknown": {"far": ["textures", "plces"]}}, r"Unknown set 'plces'; did you mean 'places'"),
        ({"unknown": {"far": ["a/blobs", "blobs"]}}, "Two unknown sets have the same name in tables: blobs, blobs"),
        ({"unknown": {"blobs": ["blobs"]}}, "got 'blobs', which is taken"),
        ({"unknown": {"overall": ["blobs"]}}, "got 'overall', which is taken"),
        ({"corruptions": ["fogg"]}, r"Unknown corruption 'fogg'; did you mean 'fog'"),
        ({"severity": 6}, "severity from 1 to 5, got 6"),
        ({"attack_eps": 8}, r"in pixel units, in \[0, 1\], got 8"),
        ({"keep": 0}, r"in \(0, 1\], got 0"),
        ({"max_images": 0}, "max_images, a number of images, to be 1 or more, got 0"),
    ],
)
def test_mistakes_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        RejectionTask(nn.Linear(2, 2), nn.CrossEntropyLoss(), **arguments)


def test_a_checkpoint_of_other_classes(run, hem_command, tmp_path):
    other = ("--data", "hem.datamodules.OpenSetDataModule", "--data.of", "mnist", "--data.known_classes", "[0,1]")
    trees.mnist_tree(tmp_path)
    outcome = hem_command("test", *TASK, *other, "--run_dir", tmp_path, "--ckpt_path", run / "checkpoints/last.ckpt",
                          "--data.root", tmp_path)  # fmt: skip
    assert outcome.code == 1
    assert "Expected the class_names that the run" in outcome.err


def test_features_need_a_network_that_shows_them():
    task = RejectionTask(nn.Linear(2, 2), nn.CrossEntropyLoss(), scores=[KNN()])
    with pytest.raises(ValueError, match="need a network with `forward_features` and `head`, but Linear lacks them"):
        task.features(torch.rand(1, 2))


def test_nonsense_is_sure_noise():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 4))
    start = torch.rand(20, 1, 8, 8)
    with torch.inference_mode():
        images = nonsense(net, start, steps=5, size=0.02)
        assert torch.equal(images, nonsense(net, start, steps=5, size=0.02))
        before, after = net(start), net(images)
    assert (images - start).abs().max() <= 0.1 + 1e-6
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert (LOGIT_SCORES["margin"](after) < LOGIT_SCORES["margin"](before)).all()
    assert all(parameter.grad is None for parameter in net.parameters())
