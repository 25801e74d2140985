"""An examination takes network, data, loss and seed from the run, and its results lie with it."""

import json
import re
import shutil
from fnmatch import fnmatch

import pytest
import torch
import yaml
from PIL import Image

import hem
from hem.cli import main
from hem.cli.examine import usual_checkpoint
from hem.losses import HEMLoss
from hem.runs import RunFolder
from hem.runs.checkpoints import identity_of
from hem.runs.files import write_atomically
from tests.conftest import ROOT

QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
         "--trainer.enable_model_summary", "false")  # fmt: skip
DIGITS = ("--config", "configs/classification/digits.yaml")
SMALL = (
    "--model.unknown",
    '{"unrecognisable": [uniform]}',
    "--model.scores",
    "[max_logit]",
    "--model.attack_eps",
    "null",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of HEM with a margin of its own; tests take copies."""
    folder = tmp_path_factory.mktemp("trained") / "runs" / "classification_digits" / "hem" / "seed3"
    arguments = ("fit", *DIGITS, "--config", "configs/loss/hem.yaml", "--model.loss.margin", 0.2, "--model.net", "MLP",
                 "--seed_everything", 3, "--trainer.max_epochs", 1, *QUICK, "--run_dir", folder)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([str(argument) for argument in arguments]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return RunFolder(shutil.copytree(trained, tmp_path / "seed3"))


def results(folder: RunFolder) -> dict:
    return json.loads(folder.results.read_text())


def changed_weights(run: RunFolder) -> None:
    """Make the last checkpoint another one than the best."""
    state = torch.load(run.last, weights_only=True)
    state["state_dict"]["net.backbone.head.bias"] += 1
    torch.save(state, run.last)


@pytest.mark.filterwarnings("ignore:The config .* by now:FutureWarning")
@pytest.mark.parametrize("way", ["run", "checkpoint"])
def test_inherits_the_run(hem_command, run, way):
    """With ``--run``, and by the checkpoint's folder under the configs of old, which name another network and loss."""
    named = {
        "run": ("--run", run.path, "--config", "configs/evaluate/rejection.yaml"),
        "checkpoint": ("--config", "configs/rejection/digits.yaml", "--ckpt_path", run.checkpoints / "best.ckpt"),
    }[way]
    outcome = hem_command("test", *named, *SMALL, *QUICK)
    assert outcome.code == 0, outcome.err
    folder = run.evaluation("rejection")
    found = results(folder)
    facts = {"task": "rejection", "data": "digits", "loss": "hem", "seed": 3, "run": str(run.path)}
    assert {key: found[key] for key in facts} == facts
    assert found["weights"] == identity_of(run.checkpoints / "best.ckpt")
    model = yaml.safe_load(folder.config_of("test").read_text())["model"]["init_args"]
    assert model["net"]["class_path"] == "hem.networks.MLP"
    assert model["loss"]["init_args"]["margin"] == 0.2
    assert model["unknown"] == {"unrecognisable": ["uniform"]}
    assert "corruptions" not in model or model["corruptions"] is None, "digits are too small for them"
    assert not run.results.exists(), "the run itself has not been tested"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.loss", "FocalLoss"), "--model.loss hem.losses.FocalLoss (the run: hem.losses.HEMLoss)"),
        (("--config", "configs/loss/hem.yaml"), "--model.loss.margin 0.5 (the run: 0.2)"),
        (("--model.net", "LeNet"), "--model.net hem.networks.LeNet (the run: hem.networks.MLP)"),
        (("--seed_everything", 4), "--seed_everything 4 (the run: 3)"),
        (("--data.split_seed", 4), "--data.split_seed 4 (the run: 0)"),
        (("--ckpt_path", "{other}"), "name one run alone"),
        (("--name", "a/b"), "Expected the name of an examination"),
        (("--ckpt_path", "epoch3"), "Expected a checkpoint at epoch3"),
    ],
)
def test_contradictions_are_refused(hem_command, run, trained, options, words):
    options = [str(option).format(other=trained / "checkpoints" / "last.ckpt") for option in options]
    outcome = hem_command("test", "--run", run.path, *options, *QUICK)
    assert outcome.code == 1
    assert words in outcome.err
    assert not run.results.exists()


def test_best_and_last_are_of_the_run_of_the_config(hem_command, run):
    """Without ``--run`` as well: the loss of the folder that is tested cannot be another one."""
    outcome = hem_command("test", *DIGITS, "--model.net", "MLP", *QUICK, "--run_dir", run.path, "--ckpt_path", "last")
    assert outcome.code == 1
    assert "--seed_everything 0 (the run: 3)" in outcome.err


def test_only_runs_are_examined(hem_command, run, tmp_path):
    outcome = hem_command("test", "--run", tmp_path / "nowhere", *QUICK)
    assert outcome.code == 1
    assert "Expected the folder of a run with its config.yaml" in outcome.err
    outcome = hem_command("fit", "--run", run.path, *QUICK)
    assert outcome.code == 1
    assert "Expected --run with validate, test, predict" in outcome.err


def test_results_of_other_weights_are_kept(hem_command, run):
    """Of the run itself and of an examination: the best and the last checkpoint, whole and partial results."""
    changed_weights(run)
    best = identity_of(run.checkpoints / "best.ckpt")
    rejection = ("--config", "configs/evaluate/rejection.yaml", *SMALL)
    for options, folder in (((), run), (rejection, run.evaluation("rejection"))):
        first = hem_command("test", "--run", run.path, *options, *QUICK)  # the best
        assert first.code == 0, first.err
        assert results(folder)["weights"] == best
        outcome = hem_command("test", "--run", run.path, "--ckpt_path", "last", *options, *QUICK)
        assert outcome.code == 0, outcome.err
        assert results(folder)["weights"] == identity_of(run.last)
        assert results(folder)["checkpoint"].endswith("last.ckpt")
        kept = {run.path: run.path / f"results@{best[:8]}.json"}.get(
            folder.path, folder.path.with_name(f"rejection@{best[:8]}") / "results.json"
        )
        assert f"are kept in {kept if folder is run else kept.parent}" in outcome.out
        assert json.loads(kept.read_text())["weights"] == best
    assert not (run.evaluation("rejection").path / "rejection@").exists()
    assert {"rejection.csv", "config_test.yaml"} <= {path.name for path in kept.parent.iterdir()}


def test_trial_runs_write_nothing_and_partial_ones_say_so(hem_command, run):
    assert hem_command("test", "--run", run.path, *QUICK).code == 0
    whole = results(run)
    assert "partial" not in whole
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and "events" not in path.name}
    for command in ("test", "validate", "predict"):
        assert hem_command(command, "--run", run.path, "--trainer.fast_dev_run", "true", *QUICK).code == 0
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and "events" not in path.name}
    assert after == before
    outcome = hem_command("test", "--run", run.path, "--trainer.limit_test_batches", 1, "--data.batch_size", 50, *QUICK)
    assert outcome.code == 0, outcome.err
    for path in (run.rejector, run.calibration, run.path / "reliability.png"):
        assert path.read_bytes() == before[path], "a part of the images finds no other threshold and temperature"
    assert results(run)["partial"] == "1 of 8 batches"
    assert json.loads((run.path / f"results@{whole['weights'][:8]}.json").read_text()) == whole
    assert hem_command("test", "--run", run.path, *QUICK).code == 0
    assert "partial" not in results(run), "the whole takes the place of the part"


@pytest.mark.filterwarnings("ignore:The config .* by now:FutureWarning")
def test_a_loose_checkpoint_keeps_the_files_of_another(hem_command, run, tmp_path):
    """Outside any run all that a test left is set aside together, and the record says that the loss is the config's."""
    changed_weights(run)
    loose = {name: shutil.copy(run.checkpoints / f"{name}.ckpt", tmp_path) for name in ("best", "last")}
    folder = RunFolder(tmp_path / "loose")
    config = ("--config", "configs/rejection/digits.yaml", *SMALL, "--model.net", "MLP", *QUICK)
    first = hem_command("test", *config, "--ckpt_path", loose["best"], "--run_dir", folder.path)
    assert first.code == 0, first.err
    assert "the checkpoint's own is not known" in first.out
    assert "the checkpoint's own is not known" in results(folder)["note"]
    left = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.suffix in (".csv", ".json", ".png")}
    left.pop("data.json", None)
    assert {"results.json", "rejection.csv", "rejection.json", "rejection_max_logit.png"} <= left.keys()
    assert hem_command("test", *config, "--ckpt_path", loose["last"], "--run_dir", folder.path).code == 0
    mark = f"@{identity_of(loose['best'])[:8]}"
    for name, content in left.items():
        path = folder.path / name
        assert path.with_stem(path.stem + mark).read_bytes() == content, f"{name} is of the first checkpoint"
        assert path.is_file()
    part = ("--trainer.limit_test_batches", 1, "--data.batch_size", 50)
    now = {name: (folder.path / name).read_bytes() for name in left if name != "results.json"}
    assert hem_command("test", *config, *part, "--ckpt_path", loose["last"], "--run_dir", folder.path).code == 0
    assert "partial" in results(folder)
    assert {name: (folder.path / name).read_bytes() for name in now} == now, "of the whole test"


@pytest.mark.parametrize("where", ["run", "rejection"])
def test_results_of_other_options_are_kept(hem_command, run, where):
    """With the config that they were made with; the machine's options, such as workers, make no other results."""
    rejection = ("--config", "configs/evaluate/rejection.yaml", *SMALL)
    named, folder = {"run": ((), run), "rejection": (rejection, run.evaluation("rejection"))}[where]
    first, other = {"run": (64, 50), "rejection": (0.95, 0.8)}[where]
    option = {"run": "--data.batch_size", "rejection": "--model.keep"}[where]
    outcomes = [
        hem_command("test", "--run", run.path, *named, option, value, *more, *QUICK)
        for value, more in ((first, ()), (first, ("--data.num_workers", 1)), (other, ()), (first, ()), (other, ()))
    ]
    assert [outcome.code for outcome in outcomes] == [0] * 5, outcomes[-1].err
    assert ["are kept in" in outcome.out for outcome in outcomes] == [False, False, True, True, True]
    mark = f"@{results(folder)['weights'][:8]}"
    kept = {
        "run": [run.path / f"{{}}{mark}{number}" for number in ("", "-2")],
        "rejection": [folder.path.with_name(f"rejection{mark}{number}") / "{}" for number in ("", "-2")],
    }[where]
    options = set()
    for path, value in zip(kept, (first, other), strict=True):
        config = yaml.safe_load(path.with_name(path.name.format("config_test") + ".yaml").read_text())
        given = config["data" if where == "run" else "model"]["init_args"]
        assert given[option.rpartition(".")[2]] == value
        assert path.with_name(path.name.format("rejector" if where == "run" else "rejection") + ".json").is_file()
        options.add(json.loads(path.with_name(path.name.format("results") + ".json").read_text())["options"])
    assert len(options) == 2
    assert results(folder)["options"] in options


def test_predictions_of_another_folder_are_kept(hem_command, run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / f"{name}.png")
        outcome = hem_command("predict", "--run", run.path, "--data.predict_folder", tmp_path / name, *QUICK)
        assert outcome.code == 0, outcome.err
    assert "are kept in" in outcome.out
    (kept,) = run.path.glob("predictions@*.csv")
    assert ("a.png" in kept.read_text(), "b.png" in run.predictions.read_text()) == (True, True)


def test_a_part_replaces_no_whole_that_was_set_aside(tmp_path):
    folder = RunFolder(tmp_path)
    write_atomically(folder.results, '{"weights": "a", "metrics": {"whole": 1}}')
    for name in ("longtail.csv", "own.csv", "metrics.csv"):
        write_atomically(tmp_path / name, name)
    assert folder.make_room(folder.results, "a", partial=True) == tmp_path / "results@a.json"
    assert (tmp_path / "longtail.csv").is_file(), "a part of the images writes none"
    write_atomically(folder.results, '{"weights": "a", "partial": "1 of 2 batches"}')
    assert folder.make_room(folder.results, "b") == tmp_path / "results@a-partial.json"
    assert "whole" in (tmp_path / "results@a.json").read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results@a.json", "results@a-partial.json", "longtail@a.csv", "own.csv", "metrics.csv"}


def test_all_that_tests_leave_is_known():
    """A new table or picture of a test is to be among those that are set aside."""
    kinds = {"table": "csv", "record": "json", "figure": "png"}
    written = [
        f"{re.sub('{.*}', 'x', name)}.{kinds[kind]}"
        for path in (ROOT / "hem" / "modules").glob("*.py")
        for kind, name in re.findall(r'write_(table|record|figure)\([\w.]+, f?"([^"]+)"', path.read_text())
    ]
    assert len(written) >= 12
    unknown = [name for name in written if not any(fnmatch(name, pattern) for pattern in RunFolder.OF_TEST)]
    assert not unknown


def test_a_trial_of_training_leaves_no_run(hem_command, tmp_path):
    for _ in range(2):  # the second is not refused
        outcome = hem_command("fit", *DIGITS, *QUICK, "--trainer.fast_dev_run", "true", "--run_dir", tmp_path / "run")
        assert outcome.code == 0, outcome.err
    assert not (tmp_path / "run").exists()


def test_predictions_of_other_weights_are_kept(hem_command, run):
    """Of the best and the last checkpoint, of all images and of a part; a table of old, whose weights nobody knows."""
    changed_weights(run)
    best = identity_of(run.checkpoints / "best.ckpt")
    run.predictions.write_text("of old")
    for options in ((), ("--ckpt_path", "last"), ("--ckpt_path", "last", "--trainer.limit_predict_batches", 1)):
        outcome = hem_command("predict", "--run", run.path, *options, *QUICK)
        assert outcome.code == 0, outcome.err
        assert "are kept in" in outcome.out
    count = {path.name: len(path.read_text().splitlines()) for path in run.path.glob("predictions*.csv")}
    last = identity_of(run.last)
    whole = 1 + 359
    assert count == {
        "predictions.csv": 1 + 60,
        "predictions@earlier.csv": 1,
        f"predictions@{best[:8]}.csv": whole,
        f"predictions@{last[:8]}.csv": whole,
    }
    assert json.loads(run.predicted.read_text())["weights"] == last


def test_each_checkpoint_has_its_own_threshold_and_temperature(hem_command, run):
    """Whatever was tested since, in part or as a whole: ``hem.load`` finds those that were set aside."""
    changed_weights(run)
    assert hem_command("test", "--run", run.path, *QUICK).code == 0
    best = hem.load(run.path)
    for options in (("--trainer.limit_test_batches", 1), ()):
        outcome = hem_command("test", "--run", run.path, "--ckpt_path", "last", *options, *QUICK)
        assert outcome.code == 0, outcome.err
        again, last = hem.load(run.path), hem.load(run.path, "last")
        assert again.rejector == best.rejector is not None
        assert again.calibration.weights == best.calibration.weights
        assert (last.rejector is None) == bool(options)


def test_the_checkpoint_of_a_study_is_meant_where_none_is_named(hem_command, run):
    """Its results, threshold and temperature are those in the folder."""
    changed_weights(run)
    assert usual_checkpoint(run, run.read_config()) == "best"
    checkpoint = run.checkpoints / "last.ckpt"
    run.study.write_text(json.dumps({"fit": {}, "test": {"arguments": ["test", "--ckpt_path", str(checkpoint)]}}))
    assert hem_command("test", "--run", run.path, *QUICK).code == 0
    assert results(run)["weights"] == identity_of(checkpoint)
    loaded = hem.load(run.path)
    assert loaded.rejector is not None
    assert torch.equal(loaded.net.backbone.head.bias, hem.load(run.path, "last").net.backbone.head.bias)
    assert not torch.equal(loaded.net.backbone.head.bias, hem.load(run.path, "best").net.backbone.head.bias)
    run.study.unlink()
    assert usual_checkpoint(run, {"model": {"class_path": "hem.modules.ContinualTask"}}) == "last"


def test_results_say_what_margin_auto_became(hem_command, run):
    assert hem_command("test", "--run", run.path, *QUICK).code == 0
    assert "margin=0.2" in results(run)["loss_as_built"]
    assert re.search(r"margin=\d\.\d+", str(HEMLoss(margin="auto", class_counts=[100] * 10)))
