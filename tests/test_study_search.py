"""The search of a study: what it finds, what it may not see, what a kill and other processes leave of it."""

import json
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from hem.runs.lock import lock
from hem.study import command, grid, search, slurm, storage
from hem.study.parsing import Parameter
from tests import imitation
from tests.datamodules.test_datasets import mnist_tree
from tests.processes import Processes

pytest.importorskip("optuna", reason="searches need the extra `search`")

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "configs/classification/digits.yaml"
CELL = "classification_digits"
RATE = {"options": [imitation.RATE], "low": 0.001, "high": 1.0, "log": True}
MARGIN = {"options": [imitation.MARGIN], "low": 0.25, "high": 4.0, "log": True}
SEARCH = {"trials": 8, "seed": 1000, "space": {"lr": RATE}, "losses": {"hem": {"margin": MARGIN}}}
STUDY = {
    "name": "small",
    "losses": ["ce", "hem"],
    "seeds": [0, 1],
    "tasks": [{"train": DIGITS, "primary": "test/accuracy"}],
    "search": SEARCH,
}


def written(folder, *, of_search=None, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "search": {**SEARCH, **(of_search or {})}, **changes}))
    return str(path)


def words(folder, path, *options):
    return [path, "--root", str(folder / "runs"), "--jobs", "2", *options]


def run(folder, path, *options):
    return command.main(words(folder, path, *options))


def log(folder):
    return [line.replace(f"{folder}/runs/small/", "") for line in (folder / "log").read_text().splitlines()]


def trials(folder, loss, kept="sqlite"):
    """Every trial of a loss as the storage has it."""
    where = folder / "runs/small"
    kept_at = f"sqlite:///{where / 'search.db'}" if kept == "sqlite" else str(where / "search.journal")
    record = json.loads((where / f"search/{CELL}/{loss}/search.json").read_text())
    title = record.get("title", f"{CELL}/{loss}")
    study = storage.library().load_study(study_name=title, storage=storage.open_storage(kept_at))
    return [(t.number, t.state.name, t.params, t.value, t.intermediate_values) for t in study.trials]


def test_what_is_found_is_written_down_and_trained_with(folder, capsys):
    """The same number of trials for every loss, by validation alone; then tuned runs beside the others."""
    path = written(folder)
    assert run(folder, path) == 0
    there = log(folder)
    of_search = [line for line in there if "search/" in line]
    assert len(of_search) == 2 * 8
    assert all(line.startswith("fit ") for line in of_search), "a trial is never tested"
    for loss in ("ce", "hem"):
        of_loss = trials(folder, loss)
        assert [number for number, *_ in of_loss] == list(range(8))
        assert {state for _, state, *_ in of_loss} == {"COMPLETE"}
        assert set(of_loss[0][2]) == ({"lr", "margin"} if loss == "hem" else {"lr"})
        number, _, params, value, curve = max(of_loss, key=lambda t: (t[3], -t[0]))
        assert value == curve[8], "the last epoch is what is tested here"
        text = (folder / f"runs/small/search/{CELL}/{loss}.yaml").read_text()
        assert f"by 8 trials (tpe, seed 1000): val/accuracy {value:.6g} in trial {number}" in text
        found = yaml.safe_load(text)["model"]["init_args"]
        assert found["optimizer"] == {"init_args": {"lr": params["lr"]}}
        assert found.get("loss") == ({"init_args": {"margin": params["margin"]}} if loss == "hem" else None)
        record = json.loads((folder / f"runs/small/search/{CELL}/{loss}/search.json").read_text())
        assert record["best"] == {"trial": number, "value": value, "params": params}
    tuned = [run for run in grid.load(path, root=folder / "runs").runs() if run.cell == f"{CELL}_tuned"]
    assert [run.name for run in tuned] == [
        f"{CELL}_tuned/{loss}/seed{seed}" for seed in (0, 1) for loss in ("ce", "hem")
    ]
    assert tuned[0].steps["fit"][-2:] == ("--config", f"{folder}/runs/small/search/{CELL}/ce.yaml")
    assert all(run.done and (run.folder / "results.json").is_file() for run in tuned)
    plan = json.loads((folder / "runs/small/plan.json").read_text())
    assert plan["cells"] == {
        CELL: {"primary": "test/accuracy", "untuned": None},
        f"{CELL}_tuned": {"primary": "test/accuracy", "untuned": CELL},
    }
    assert plan["search"]["searches"] == [f"{CELL}/ce", f"{CELL}/hem"]
    assert plan["runs"][f"{CELL}_tuned/hem/seed0"]["after"] == f"search/{CELL}/hem"
    assert run(folder, path) == 0
    assert log(folder) == there, "nothing is done twice"


OWN = {"ce": {"lr": 0.01}, "hem": {"lr": 0.01, "margin": 0.5}}


def own(folder, loss):
    """The record's word on the config's own setting, and the trials that are marked as such."""
    record = json.loads((folder / f"runs/small/search/{CELL}/{loss}/search.json").read_text())
    kept = storage.open_storage(f"sqlite:///{folder}/runs/small/search.db")
    study = storage.library().load_study(study_name=f"{CELL}/{loss}", storage=kept)
    return record["own"], record.get("why"), [t.number for t in study.trials if t.user_attrs["own"]]


def test_the_first_trial_is_the_configs_own_setting(folder):
    """For each loss one of the budget, also where the search is gone on with; what is found is never worse."""
    path = written(folder, of_search={"trials": 1})
    assert run(folder, path, "--only", "search/") == 0
    for loss, setting in OWN.items():
        assert [params for _, _, params, *_ in trials(folder, loss)] == [setting]
    assert run(folder, written(folder), "--only", "search/") == 0
    for loss, setting in OWN.items():
        assert own(folder, loss) == (setting, None, [0])
        of_loss = trials(folder, loss)
        assert (len(of_loss), of_loss[0][2]) == (8, setting)
        assert setting not in [params for _, _, params, *_ in of_loss[1:]]


def test_a_setting_outside_the_space_is_no_trial(folder):
    """As many trials as for the other loss, and the record says why; so where one value stands for two that differ."""
    narrow = {"losses": {"hem": {"margin": {**MARGIN, "low": 1.0}}}, "trials": 2}
    assert run(folder, written(folder, of_search=narrow), "--only", "search/") == 0
    assert own(folder, "ce") == (OWN["ce"], None, [0])
    why = "margin is 0.5 there, and is searched in 1.0 to 4.0 on a log scale"
    assert own(folder, "hem") == (None, why, [])
    assert [len(trials(folder, loss)) for loss in OWN] == [2, 2]
    both = {"space": {"lr": {**RATE, "options": [imitation.RATE, imitation.MARGIN]}}, "losses": {}, "trials": 1}
    assert run(folder, written(folder, of_search=both, name="both", losses=["ce"]), "--only", "search/") == 0
    record = json.loads((folder / f"runs/both/search/{CELL}/ce/search.json").read_text())
    assert record["why"] == "lr is 0.01, 0.5 there, and is searched in 0.001 to 1.0 on a log scale"


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Parameter(("--x",), low=1, high=8), [1, 8, 3.0], [0, 2.5, True, None, "3"]),
        (Parameter(("--x",), low=0.1, high=8, log=True), [0.1, 2.5, 8], [0.09, None, "1"]),
        (Parameter(("--x",), choices=(1.0, "wide", None)), [1, "wide", None], [2.0, "narrow"]),
    ],
)
def test_what_lies_in_a_space(parameter, inside, outside):
    assert all(value in parameter for value in inside)
    assert not any(value in parameter for value in outside)


def test_a_search_of_before_goes_on_as_it_was(folder):
    """Its record says nothing of the config's own setting: that is not put before trials of another kind."""
    record = folder / f"runs/small/search/{CELL}/ce/search.json"
    path = written(folder, of_search={"trials": 2, "losses": {}}, losses=["ce"])
    [ce] = [each for each in grid.load(path, root=folder / "runs").runs("search/") if each.loss == "ce"]
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(ce.definition))
    assert run(folder, path, "--only", "search/") == 0
    assert len(trials(folder, "ce")) == 2
    assert OWN["ce"] not in [params for _, _, params, *_ in trials(folder, "ce")]


def test_a_search_that_is_deleted_begins_anew(folder, capsys):
    """Its trials in the storage are of another command: they are none of the new one's."""
    assert run(folder, written(folder, of_search={"trials": 3, "losses": {}}, losses=["ce"]), "--only", "search/") == 0
    former = trials(folder, "ce")
    searched = folder / f"runs/small/search/{CELL}"
    shutil.rmtree(searched / "ce")
    (searched / "ce.yaml").unlink()
    path = written(folder, of_search={"trials": 4, "losses": {}, "seed": 1001}, losses=["ce"])
    assert run(folder, path, "--only", "search/") == 0, capsys.readouterr().out
    found = trials(folder, "ce")
    assert [number for number, *_ in found] == [0, 1, 2, 3]
    assert found[0][2] == OWN["ce"]
    assert [params for _, _, params, *_ in found[1:]] != [params for _, _, params, *_ in former[1:]]
    assert "by 4 trials" in (searched / "ce.yaml").read_text()


def test_studies_that_share_a_database(folder):
    """A search of another study, of the same task and loss, keeps its trials."""
    shared = {"trials": 2, "losses": {}, "storage": f"sqlite:///{folder}/shared.db"}
    for number, name in enumerate(("small", "other"), 1):
        path = written(folder, of_search=shared, losses=["ce"], name=name)
        assert run(folder, path, "--only", "search/") == 0
        kept = storage.open_storage(shared["storage"]).get_all_studies()
        assert len({each.study_name for each in kept}) == number
        record = json.loads((folder / f"runs/{name}/search/{CELL}/ce/search.json").read_text())
        study = storage.library().load_study(study_name=record["title"], storage=shared["storage"])
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


def test_a_trial_of_other_parameters_is_not_taken(folder, capsys):
    """The storage and the record are gone, the folders of the trials are there."""
    assert run(folder, written(folder, of_search={"trials": 2, "losses": {}}, losses=["ce"]), "--only", "search/") == 0
    for name in ("search.db", f"search/{CELL}/ce/search.json", f"search/{CELL}/ce.yaml"):
        (folder / "runs/small" / name).unlink()
    path = written(folder, of_search={"trials": 2, "losses": {}, "space": {"lr": {**RATE, "low": 0.5}}}, losses=["ce"])
    assert run(folder, path, "--only", "search/") == 1
    assert "trial0 holds a trial of other parameters, of a search whose record is gone" in capsys.readouterr().out


def test_more_trials_go_on_and_what_was_trained_by_less_is_named(folder, capsys):
    path = written(folder, of_search={"trials": 2}, losses=["hem"], seeds=[0])
    assert run(folder, path) == 0
    before = trials(folder, "hem")
    assert run(folder, written(folder, losses=["hem"], seeds=[0])) == 0
    after = trials(folder, "hem")
    assert len(after) == 8
    assert after[:2] == before
    assert f"note: {CELL}_tuned/hem/seed0 was made by another command" in capsys.readouterr().out
    assert run(folder, written(folder, of_search={"seed": 1001}, losses=["hem"], seeds=[0])) == 1
    assert "was begun with another space or command" in capsys.readouterr().out


def test_trials_that_are_pruned_or_diverge_say_so(folder, monkeypatch):
    monkeypatch.setenv("HEM_TEST_NAN", "4.0")
    space = {**MARGIN, "low": None, "high": None, "log": False, "choices": [1.0, 4.0]}
    pruner = {"median": {"n_startup_trials": 2}}
    changes = {"pruner": pruner, "losses": {"hem": {"margin": space}}, "untuned": False}
    assert run(folder, written(folder, of_search=changes, losses=["hem"])) == 0
    of_loss = trials(folder, "hem")
    assert {state for _, state, *_ in of_loss} == {"COMPLETE", "PRUNED", "FAIL"}
    study = storage.library().load_study(
        study_name=f"{CELL}/hem", storage=storage.open_storage(f"sqlite:///{folder}/runs/small/search.db")
    )
    why = {t.state.name: t.user_attrs.get("why") for t in study.trials}
    assert why["FAIL"] == "the loss or the metric is not finite"
    assert why["PRUNED"].startswith("pruned by median after epoch ")
    assert {params["margin"] for _, state, params, *_ in of_loss if state == "FAIL"} == {4.0}
    assert not (folder / f"runs/small/{CELL}").exists(), "untuned: false"


def test_a_trial_that_fails_otherwise_is_tried_again(folder, monkeypatch, capsys):
    """A missing data set is no property of a setting: the search stops, and goes on once it is there."""
    path = written(folder, losses=["hem"], seeds=[0])
    monkeypatch.setenv("HEM_TEST_FAIL", "trial3")
    assert run(folder, path) == 1
    out = capsys.readouterr().out
    assert f"failed: search/{CELL}/hem: fit ended with code 1" in out
    assert f"not done: {CELL}_tuned/hem/seed0: not run: search/{CELL}/hem failed" in out
    assert [state for _, state, *_ in trials(folder, "hem")] == ["COMPLETE"] * 3 + ["RUNNING"]
    monkeypatch.setenv("HEM_TEST_FAIL", "nothing")
    assert run(folder, path) == 0
    assert [state for _, state, *_ in trials(folder, "hem")] == ["COMPLETE"] * 8


def test_seconds_are_a_budget(folder):
    path = written(folder, of_search={"trials": None, "seconds": 0.001, "losses": {}}, losses=["ce"], seeds=[0])
    assert run(folder, path, "--only", "search/") == 0
    assert len(trials(folder, "ce")) == 1


@pytest.mark.parametrize("kept", ["sqlite", "journal"])
def test_killed(folder, kept, monkeypatch):
    """Killed with -9 at random moments, with or without what it started, it ends as an undisturbed one."""
    changes = {"storage": kept, "pruner": {"median": {"n_startup_trials": 2}}}
    path = written(folder, of_search=changes)
    only = ("--only", "search/")
    assert run(folder, path, *only) == 0
    undisturbed = [trials(folder, loss, kept) for loss in ("ce", "hem")]
    (folder / "runs").rename(folder / "before")
    (folder / "log").write_text("")
    monkeypatch.setenv("HEM_TEST_EPOCH", "0.03")
    draw = random.Random(0)
    for kill in (os.kill, os.killpg, os.kill, os.killpg):
        before = len(log(folder))
        process = Processes(imitation.study, words(folder, path, *only))
        while len(log(folder)) == before and process.running():
            time.sleep(0.02)
        time.sleep(draw.uniform(0.05, 0.6))
        kill(process.processes[0].pid, signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    monkeypatch.delenv("HEM_TEST_EPOCH")
    assert run(folder, path, *only) == 0
    assert [trials(folder, loss, kept) for loss in ("ce", "hem")] == undisturbed


def test_a_trial_that_outlives_its_study_is_waited_for(folder, monkeypatch):
    """The next one is drawn from what became of it, as where nothing was killed."""
    sampler = {"tpe": {"n_startup_trials": 1}}
    path = written(folder, of_search={"sampler": sampler, "trials": 5}, losses=["hem"], seeds=[0])
    only = ("--only", "search/")
    assert run(folder, path, *only) == 0
    undisturbed = trials(folder, "hem")
    (folder / "runs").rename(folder / "before")
    (folder / "log").write_text("")
    monkeypatch.setenv("HEM_TEST_EPOCH", "0.4")
    process = Processes(imitation.study, words(folder, path, *only))
    while not any("trial1" in line for line in log(folder)) and process.running():
        time.sleep(0.02)
    os.kill(process.processes[0].pid, signal.SIGKILL)
    process.wait()
    monkeypatch.delenv("HEM_TEST_EPOCH")
    with lock(folder / f"runs/small/search/{CELL}/hem/trial1") as held:
        assert held is None, "the training goes on"
    assert run(folder, path, *only) == 0
    assert trials(folder, "hem") == undisturbed


@pytest.mark.parametrize("kept", ["sqlite", "journal"])
def test_two_processes_share_a_search(folder, kept, monkeypatch):
    """None is lost, and none is done twice."""
    monkeypatch.setenv("HEM_TEST_EPOCH", "0.02")
    path = written(folder, of_search={"storage": kept, "sampler": "random"})
    both = [Processes(imitation.study, words(folder, path)) for _ in range(2)]
    outcomes = [process.wait() for process in both]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    for loss in ("ce", "hem"):
        of_loss = trials(folder, loss, kept)
        assert [number for number, *_ in of_loss] == list(range(8))
        assert {state for _, state, *_ in of_loss} == {"COMPLETE"}
    assert sorted(set(log(folder))) == sorted(log(folder))


def test_dry_run(folder, capsys):
    """The budget, the space and the command of a trial; on SLURM each training brings its search along."""
    path = written(folder, tasks=[{**STUDY["tasks"][0], "space": {"decay": {"options": ["--x"], "choices": [0, 1]}}}])
    assert run(folder, path, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "10 runs, 0 done" in lines[0]
    at = f"# search/{CELL}/hem: 8 trials by tpe, seed 1000, judged by val/accuracy: "
    space = "lr 0.001 to 1.0 on a log scale, decay 0 | 1, margin 0.25 to 4.0 on a log scale"
    assert lines[lines.index(at + space) + 1].endswith(
        "--model.optimizer.lr <lr> --x <decay> --model.loss.margin <margin>"
    )
    assert run(folder, path, "--dry-run", "--slurm", "timeout_min=60") == 0
    out = capsys.readouterr().out
    assert "an array of 8 jobs" in out, "two losses, two seeds, tuned and not"
    assert out.count(at) == 2, "each tuned training of the loss does its share of the search"
    assert "SQLite is for one machine" in out
    assert not (folder / "runs").exists()


# submitit's executor for trials leaves its log open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_of_a_cluster_share_a_search(folder):
    path = written(folder, of_search={"storage": "journal", "untuned": False}, losses=["hem"])
    runs = grid.load(path, root=folder / "runs").runs()
    jobs = slurm.submit(runs, folder / "slurm", {"cluster": "debug"})
    assert [set(job.result().values()) for job in jobs] == [{"done"}] * 2
    assert log(folder).count(f"fit search/{CELL}/hem/trial0") == 1
    assert len(trials(folder, "hem", "journal")) == 8
    assert slurm.chains(runs) == []
    assert len(slurm.chains(grid.load(written(folder, name="other"), root=folder / "runs").runs("search/"))) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampler": "tep"}, "Unknown sampler 'tep'; did you mean 'tpe'"),
        ({"pruner": "hyperband"}, "Unknown pruner 'hyperband'"),
        ({"seed": None}, "Expected the key 'seed' in search of"),
        ({"seed": 1}, "none of the study's seeds, got 1"),
        ({"trials": 0}, "either trials or seconds, a number above 0, in search of"),
        ({"seconds": 3}, "either trials or seconds"),
        ({"trials": "many"}, "trials of .* to be a number of trials, 1 or more, got 'many'"),
        ({"storage": "file"}, "storage of .* to be sqlite, journal, or the URL of a database, got 'file'"),
        ({"losses": {"hemm": {}}}, "Unknown loss of the search 'hemm'; did you mean 'hem'"),
        ({"space": {}}, "a `space` for ce of classification_digits, which is searched"),
        ({"space": {"lr": {**RATE, "low": 2}}}, "Expected low below high"),
        ({"space": {"lr": {**RATE, "low": 0}}}, "above 0 on a log scale"),
        ({"space": {"lr": {**RATE, "choices": [1]}}}, "either low and high or choices"),
        ({"space": {"lr": {"low": 1, "high": 2}}}, "Expected the key 'options' in lr of the space of"),
        ({"space": {"s": {**RATE, "options": ["--seed_everything"]}}}, "which the study sets itself"),
    ],
)
def test_mistakes(folder, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid.load(written(folder, of_search=changes))


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"primary": "test/average_accuracy"}, "a metric of validation for .* got val/average_accuracy: give a `monit"),
        ({"primary": "test/calibrated/nll"}, "got val/calibrated/nll"),
        ({"primary": "stream/accuracy/1"}, "got val/stream/accuracy/1"),
        ({"primary": "test/accuracy", "monitor": "train/accuracy"}, "got train/accuracy"),
        ({"monitor": "val/mine"}, "mode of classification_digits, the better end of val/mine, to be max or min, got n"),
        ({"monitor": "val/logit_margin"}, "to be max or min, got none"),
        ({"monitor": "val/accuracy", "mode": "min"}, "the better end of val/accuracy, to be max, got min"),
        ({"monitor": "val/mine/nll", "mode": "max"}, "the better end of val/mine/nll, to be min, got max"),
        ({"monitor": "val/mine", "mode": "more"}, "mode of task 1 of .* to be max or min, got 'more'"),
    ],
)
def test_a_search_knows_what_it_is_judged_by(folder, task, sentence):
    """Before the first trial is trained."""
    with pytest.raises(ValueError, match=sentence):
        grid.load(written(folder, tasks=[{"train": DIGITS, **task}])).runs()


@pytest.mark.parametrize(
    ("task", "mode"),
    [
        ({"primary": "test/accuracy"}, "max"),
        ({"primary": "test/calibration_error"}, "min"),
        ({"primary": "test/average_accuracy", "monitor": "val/accuracy"}, "max"),
        ({"monitor": "val/mine/nll"}, "min"),
        ({"monitor": "val/mine/top3_accuracy", "mode": "max"}, "max"),
        ({"monitor": "val/mine", "mode": "min"}, "min"),
    ],
)
def test_a_search_takes_the_better_end_that_the_report_names(folder, task, mode):
    runs = grid.load(written(folder, tasks=[{"train": DIGITS, **task}])).runs("search/")
    assert {each.mode for each in runs} == {mode}


class Validations:
    """A worker whose trainings validate twice in an epoch, and which looks at them after every row or at the end."""

    def __init__(self, often):
        self.often, self.stopped = often, threading.Event()

    def config(self, arguments, log, extra):
        return json.loads(OWN_CONFIG)

    def do_held(self, run, held, extra, ends):
        config = {**json.loads(OWN_CONFIG), "checkpoint": {"monitor": "val/accuracy", "mode": "max"}}
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.yaml").write_text(json.dumps(config))
        text = "epoch,step,val/accuracy\n"
        for row in ("0,10,0.9", "0,20,0.5", "1,30,0.6", "1,40,0.65"):
            text += f"{row}\n"
            (run.folder / "metrics.csv").write_text(f"{text}2,5")  # a row that is being written
            if self.often and ends():
                return "pruned"
        (run.folder / "metrics.csv").write_text(text)
        return "done"


OWN_CONFIG = json.dumps({"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.01}}}}, "data": {}})


@pytest.mark.parametrize("often", [True, False])
@pytest.mark.parametrize(("checkpoint", "value"), [("best", 0.9), ("last", 0.65)])
def test_a_trial_is_judged_by_one_of_several_validations_in_an_epoch(folder, often, checkpoint, value):
    """By that of its checkpoint; what the pruner sees does not depend on when it is asked."""
    tasks = [{**STUDY["tasks"][0], "checkpoint": checkpoint}]
    changes = {"trials": 1, "losses": {}, "pruner": "median"}
    path = written(folder, of_search=changes, losses=["ce"], tasks=tasks)
    [ce] = grid.load(path, root=folder / "runs").runs("search/")
    assert ce.do(Validations(often), {}) == "done"
    [(_, state, _, found, seen)] = trials(folder, "ce")
    assert (state, found, seen) == ("COMPLETE", value, {1: 0.9, 2: 0.6})


@pytest.mark.parametrize("primary", ["test/acuracy", "val/accuracy", "test/max_logit"])
def test_a_primary_metric_is_one_of_the_catalogue(folder, primary):
    with pytest.raises(
        ValueError, match="to be a metric of the test that losses can be compared by, such as test/accuracy"
    ):
        grid.load(written(folder, tasks=[{"train": DIGITS, "primary": primary}]))


def test_without_optuna(folder, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert run(folder, written(folder)) == 2
    assert "pip install 'hem-loss[search]'" in capsys.readouterr().err


@pytest.mark.slow
def test_no_search_reads_a_test_image(tmp_path, monkeypatch, capsys):
    """With test images that cannot be read it finds its settings all the same; only what follows needs them."""
    monkeypatch.chdir(ROOT)
    mnist_tree(tmp_path, n=60)
    test_part = sorted(tmp_path.rglob("t10k-*"))
    assert len(test_part) == 2
    whole = {path: path.read_bytes() for path in test_part}
    for path in test_part:
        path.write_bytes(b"no images")
    lr = {"options": ["--model.optimizer.lr", "--model.lr_scheduler.max_lr"], "low": 0.01, "high": 0.1, "log": True}
    margin = {"options": ["--model.loss.margin"], "low": 0.5, "high": 2.0}
    path = tmp_path / "small.yaml"
    content = {
        "losses": ["hem"],
        "seeds": [0],
        "overrides": [f"--data.root {tmp_path} --data.batch_size 8 --trainer.max_epochs 1 --trainer.accelerator cpu"],
        "tasks": [{"train": "configs/classification/mnist.yaml", "primary": "test/accuracy", "checkpoint": "best"}],
        "search": {
            "trials": 2,
            "seed": 7,
            "space": {"lr": lr},
            "losses": {"hem": {"margin": margin}},
            "untuned": False,
        },
    }
    path.write_text(yaml.safe_dump(content))
    assert run(tmp_path, str(path), "--only", "search/") == 0
    found = yaml.safe_load((tmp_path / "runs/small/search/classification_mnist/hem.yaml").read_text())
    assert run(tmp_path, str(path)) == 1
    assert "t10k-images-idx3-ubyte is damaged" in capsys.readouterr().out
    for path_, content_ in whole.items():
        path_.write_bytes(content_)
    assert run(tmp_path, str(path)) == 0
    tuned = yaml.safe_load((tmp_path / "runs/small/classification_mnist_tuned/hem/seed0/config.yaml").read_text())
    init = tuned["model"]["init_args"]
    assert init["loss"]["class_path"] == "hem.losses.HEMLoss"
    assert init["loss"]["init_args"]["margin"] == found["model"]["init_args"]["loss"]["init_args"]["margin"]
    assert init["optimizer"]["init_args"]["lr"] == found["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert init["optimizer"]["init_args"]["momentum"] == 0.9, "what was not searched is as it was"


def test_a_task_may_have_its_own_budget(folder):
    """Fewer trials, or none: its runs then are those of the configs alone."""
    tasks = [
        {"train": DIGITS, "primary": "test/accuracy", "trials": 2},
        {"train": DIGITS, "name": "plain", "primary": "test/accuracy", "trials": 0},
    ]
    study = grid.load(written(folder, tasks=tasks), root=folder / "runs")
    assert list(study.cells()) == [CELL, f"{CELL}_tuned", "plain"]
    searches = [each for each in study.runs() if isinstance(each, search.Search)]
    assert [(each.name, each.block.trials) for each in searches] == [
        (f"search/{CELL}/{loss}", 2) for loss in ("ce", "hem")
    ]
