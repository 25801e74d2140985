"""Studies: the grid, its commands, what is skipped, resumed, reported as failed, and what a kill leaves."""

import io
import json
import multiprocessing.forkserver
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import submitit
import torch
import yaml

from hem import cli
from hem.metrics.catalog import describe
from hem.report import Runs, findings, statistics
from hem.runs.lock import lock
from hem.runs.newest import BEFORE
from hem.study import command, forkserver, grid, local, slurm
from hem.study.local import Jobs, clear
from hem.study.progress import Console, Progress
from hem.study.run import Run
from hem.study.slurm import Chain
from tests.datamodules import test_datasets, test_longtail

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("configs/study/*.yaml"))
DIGITS = "configs/classification/digits.yaml"
REJECTION = "configs/evaluate/rejection.yaml"
EXAMINATION = "/evaluate/rejection"
CELL = "classification_digits"
SMALL = {
    "name": "small",
    "losses": ["ce", {"hem_0.2": ["--config configs/loss/hem.yaml", "--model.loss.margin 0.2"]}],
    "seeds": [0, 1],
    "tasks": [{"train": DIGITS, "examine": [REJECTION]}],
}


def written(folder, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(path)


def run(folder, path, *options):
    return command.main([path, "--root", str(folder / "runs"), "--jobs", "2", *options])


def done(folder):
    """What was run, in the order of its beginning."""
    return [line.replace(f"{folder}/runs/small/", "") for line in (folder / "log").read_text().splitlines()]


def results(folder):
    """The figures of all runs."""
    found = {}
    for path in (folder / "runs").glob("**/results.json"):
        found[path.parent.relative_to(folder / "runs").as_posix()] = json.loads(path.read_text())["metrics"]
    return found


def test_grid(folder):
    """Seed by seed, cell by cell, loss by loss; each examination behind its training and with its checkpoint."""
    runs = grid.load(written(folder, overrides=["--trainer.max_epochs 2"]), ["--x", "y z"], folder / "runs").runs()
    expected = [
        f"classification_digits/{loss}/seed{seed}{examination}"
        for seed in (0, 1)
        for loss in ("ce", "hem_0.2")
        for examination in ("", "/evaluate/rejection")
    ]
    assert [r.name for r in runs] == expected
    by_name = {r.name: r for r in runs}
    training = by_name["classification_digits/hem_0.2/seed1"]
    rejection = by_name["classification_digits/hem_0.2/seed1/evaluate/rejection"]
    base = f"{folder}/runs/small"
    checkpoint = f"--ckpt_path {base}/classification_digits/hem_0.2/seed1/checkpoints/last.ckpt"
    common = (
        "--config configs/loss/hem.yaml --model.loss.margin 0.2 --seed_everything 1 --run_dir "
        f"{base}/classification_digits/hem_0.2/seed1 --trainer.max_epochs 2 --x 'y z'"
    )
    assert list(training.steps) == ["fit", "test"]
    assert training.after is None
    assert shlex.join(training.steps["fit"]) == f"fit --config {DIGITS} {common}"
    assert shlex.join(training.steps["test"]) == (f"test --config {DIGITS} {common} {checkpoint}")
    assert rejection.after is training
    assert shlex.join(rejection.steps["test"]) == (
        f"test --run {base}/classification_digits/hem_0.2/seed1 --name rejection --config {REJECTION} "
        f"--trainer.max_epochs 2 --x 'y z' {checkpoint}"
    ), "what was trained is the run's, and need not be said again"
    assert rejection.cell == "classification_digits_rejection"


def test_the_command_line_has_the_last_word(folder):
    """Its options stand behind those of the file, of the task and of its parts, in trainings and examinations."""
    part = {"config": REJECTION, "overrides": ["--model.keep 0.9"]}
    task = {"train": {"config": DIGITS, "overrides": ["--b 1"]}, "overrides": ["--a 1"], "examine": [part]}
    training, rejection, *_ = grid.load(written(folder, overrides=["--c 1"], tasks=[task]), ["--a", "2"]).runs()
    assert shlex.join(training.steps["fit"]).endswith("--c 1 --a 1 --b 1 --a 2")
    assert "--c 1 --a 1 --model.keep 0.9 --a 2 --ckpt_path" in shlex.join(rejection.steps["test"])


def test_a_task_has_its_own(folder):
    """Losses, seeds, options, names and checkpoint of one task; a training that is not tested."""
    cell = {
        "train": {"config": DIGITS, "overrides": ["--trainer.max_epochs 3"]},
        "name": "wide",
        "losses": ["focal"],
        "seeds": [7],
        "overrides": ["--model.net ResNet8"],
        "checkpoint": "best",
        "test": False,
        "examine": [{"config": REJECTION, "name": "rejection_wide", "overrides": ["--model.keep 0.9"]}],
    }
    training, rejection = grid.load(written(folder, tasks=[cell]), root=folder / "runs").runs()
    assert (training.name, list(training.steps)) == ("wide/focal/seed7", ["fit"])
    assert rejection.name == "wide/focal/seed7/evaluate/rejection_wide"
    assert shlex.join(training.steps["fit"]).endswith("--model.net ResNet8 --trainer.max_epochs 3")
    words = shlex.join(rejection.steps["test"])
    assert "--model.net ResNet8 --model.keep 0.9" in words
    assert words.endswith("wide/focal/seed7/checkpoints/best.ckpt")
    assert run(folder, written(folder, tasks=[cell])) == 1  # the imitation has no best.ckpt
    assert training.done
    assert not rejection.done


def test_only(folder):
    """Chosen runs bring the trainings that they need."""
    found = grid.load(written(folder), root=folder).runs("rejection/ce/seed1")
    assert [r.name for r in found] == [f"classification_digits/ce/seed1{part}" for part in ("", EXAMINATION)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": ["ce"]}, r"got 'loss'; did you mean 'losses'"),
        ({"tasks": [{"trian": DIGITS}]}, r"got 'trian'; did you mean 'train' or 'trials'\?"),
        ({"tasks": [{"train": {"config": DIGITS, "override": []}}]}, "did you mean 'overrides'"),
        ({"losses": []}, "Expected the key 'losses'"),
        (
            {"losses": ["hem2"]},
            r"loss hem2 of .*: Expected a config, got 'configs/loss/hem2.yaml', .*; did you mean",
        ),
        ({"losses": ["ce", "ce"]}, "different names"),
        ({"losses": [{"a/b": []}]}, "names of folders"),
        ({"losses": ["hem", {"own": ["--config configs/loss/hem.yaml"]}]}, "the same options for hem and own"),
        ({"overrides": ["--seed_everything 5"]}, "got --seed_everything, which the study sets itself"),
        ({"tasks": [{"train": "configs/classification/digit.yaml"}]}, r"did you mean 'configs/classification/digits"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"seeds": [True]}, "different whole numbers"),
        ({"seeds": 3}, "seeds of .* to be a list, got 3"),
        ({"overrides": ["trainer.max_epochs 2"]}, "list of options such as"),
        ({"tasks": [{"train": DIGITS, "checkpoint": "first"}]}, "to be last or best, got 'first'"),
        ({"tasks": [{"train": DIGITS, "test": 1}]}, "to be true or false"),
        ({"tasks": [{"train": DIGITS}, {"train": DIGITS}]}, "got classification_digits for two"),
        ({"name": "a/b"}, "name of a folder"),
        ({"slurm": [1]}, "mapping of submitit's parameters"),
        ({"tasks": "all"}, "to be a list, got 'all'"),
        ({"tasks": [3]}, "to be a mapping with the keys train"),
    ],
)
def test_mistakes(folder, changes, sentence, capsys):
    path = written(folder, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        grid.load(path)
    assert run(folder, path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mistakes_of_the_command_line(folder, capsys):
    (folder / "bad.yaml").write_text("a: [")
    path = written(folder)
    for words, sentence in (
        ([str(folder / "none.yaml")], "Expected a study at"),
        ([str(folder / "bad.yaml")], "Expected valid YAML in"),
        ([path, "--only", "nothing"], "a part of a run's name, got 'nothing': the tasks are classification_digits"),
        ([path, "--jobs", "0"], "1 or more, got 0"),
        ([path, "--job", "2"], "no option --job; did you mean 'jobs'?"),
        ([path, "--dry_run"], "no option --dry_run; did you mean 'dry-run'?"),
        (
            [path, "--seed_everything", "3"],
            "options of runs in the command line, got --seed_everything, which the study",
        ),
        ([path, "--run_dir=x"], "options of runs in the command line, got --run_dir=x, which the study sets itself"),
        ([path, "more"], "Expected options of runs, such as --trainer.max_epochs 2, got 'more'"),
        ([path, "--root", str(folder), "--slurm", "timeout"], "KEY=VALUE"),
        ([path, "--root", str(folder), "--slurm", "cluster=debug", "timeout=3"], "submitit refuses"),
    ):
        assert command.main(words) == 2
        assert sentence in capsys.readouterr().err


def test_dry_run(folder, capsys):
    """The exact commands, and nothing is run; what is done is a comment."""
    path = written(folder, cost="a second")
    assert run(folder, path, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8 runs, 0 done, 2 at once" in lines[0]
    assert lines[1] == "# cost: a second"
    runs = grid.load(path, root=folder / "runs").runs()
    commands = [words for r in runs for words in r.steps.values()]
    assert lines[2:] == [shlex.join([sys.executable, "cli.py", *words]) for words in commands]
    assert not (folder / "runs").exists()
    run(folder, path, "--only", "classification_digits/ce/seed0")
    capsys.readouterr()
    run(folder, path, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "# done: classification_digits/ce/seed0"
    assert len(lines) == 2 + 1 + len(commands) - 2


def test_command(monkeypatch):
    """In the repository the command is what a user would type."""
    monkeypatch.chdir(ROOT)
    assert local.command(["fit"]) == [sys.executable, "cli.py", "fit"]
    monkeypatch.chdir("/")
    assert local.command(["fit"]) == [sys.executable, str(ROOT / "cli.py"), "fit"]
    monkeypatch.setattr(local, "CLI", ROOT / "nowhere" / "cli.py")  # as in an installed package
    assert local.command(["fit"]) == [sys.executable, "-m", "hem", "fit"]


def test_former_names():
    """What stood in one file is handed on by the package, with a warning that names the new place."""
    import hem.study

    with pytest.warns(DeprecationWarning, match=r"hem\.study\.duration is now hem\.study\.progress\.duration"):
        assert hem.study.duration(42) == "42 s"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hem.study.nothing


def test_dry_run_of_slurm(folder, capsys):
    """Jobs and parameters are shown as they would be sent; wrong ones are refused, and none needs a cluster."""
    path = written(folder, slurm={"timeout_min": 60})
    assert run(folder, path, "--dry-run", "--slurm", "slurm_partition=gpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8 runs, 0 done, by SLURM" in lines[0]
    assert "an array of 4 jobs" in lines[1]
    assert lines[1].endswith("timeout_min=60 slurm_partition=gpu")
    assert lines[2] == "# job 1: classification_digits/ce/seed0"
    assert len(lines) == 2 + 4 + 4 * 3  # a job: its name, then fit, test and the examination's test
    for wrong, said in (("slurm_partitio=gpu", "partitio"), ("timeout_min=hour", "timeout_min")):
        assert run(folder, path, "--dry-run", "--slurm", wrong) == 2
        err = capsys.readouterr().err
        assert "submitit refuses the parameters" in err
        assert said in err
    assert run(folder, written(folder), "--dry-run", "--slurm") == 0
    assert "submitit asks for 5 minutes a job" in capsys.readouterr().out
    assert not (folder / "runs").exists()


def test_finished_runs_are_skipped(folder, capsys):
    path = written(folder)
    assert run(folder, path) == 0
    out = capsys.readouterr().out
    assert "[8/8]" in out
    assert "8 of 8 runs are done" in out
    before = done(folder)
    assert len(before) == 12
    first = "classification_digits/ce/seed0"
    assert before.index(f"fit {first}") < before.index(f"test {first}{EXAMINATION}")
    assert run(folder, path) == 0
    assert done(folder) == before
    plan = json.loads((folder / "runs" / "small" / "plan.json").read_text())
    assert len(plan["runs"]) == 8
    assert plan["runs"][f"{first}{EXAMINATION}"]["after"] == first


def test_a_training_made_anew_is_examined_anew(folder):
    """And a test whose results are gone is done again, the training not."""
    path = written(folder)
    assert run(folder, path, "--only", "ce/seed0") == 0
    runs = folder / "runs/small"
    shutil.rmtree(runs / "classification_digits/ce/seed0")
    before = len(done(folder))
    assert run(folder, path, "--only", "ce/seed0") == 0
    steps = [
        "fit classification_digits/ce/seed0",
        "test classification_digits/ce/seed0",
        "test classification_digits/ce/seed0/evaluate/rejection",
    ]
    assert done(folder)[before:] == steps
    (runs / "classification_digits/ce/seed0/results.json").unlink()
    assert run(folder, path, "--only", "ce/seed0") == 0
    assert done(folder)[before + 3 :] == ["test classification_digits/ce/seed0"]


def test_other_options_are_noticed(folder, capsys):
    """A finished run is kept and named; an unfinished one is not gone on with by another command."""
    path = written(folder)
    assert run(folder, path, "--only", "classification_digits/ce/seed0") == 0
    begun = folder / "runs/small/classification_digits/ce/seed1"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "checkpoints" / "last.ckpt").touch()
    (begun / "study.json").write_text(json.dumps({"fit": {"arguments": ["fit", "--other"]}}))
    capsys.readouterr()
    assert run(folder, path, "--only", "classification_digits/ce", "--trainer.max_epochs", "2") == 1
    out = capsys.readouterr().out
    assert "note: classification_digits/ce/seed0 was made by another command" in out
    assert "seed1 was begun by another command" in out
    (begun / "checkpoints" / "last.ckpt").unlink()
    assert run(folder, path, "--only", "classification_digits/ce") == 0, "nothing was made yet: begun anew"


def test_a_colon_too_many(folder):
    """`- hem:` is the shipped loss, not the config's own under another name."""
    study_ = grid.load(written(folder, losses=["ce", {"hem": None}]))
    assert study_.losses["hem"] == ("--config", "configs/loss/hem.yaml")


def test_a_failed_run_stops_no_other(folder, monkeypatch, capsys):
    """Its last lines are shown, its examination is not run, and a later start tries it again."""
    monkeypatch.setenv("HEM_TEST_FAIL", "classification_digits/ce/seed1")
    path = written(folder)
    assert run(folder, path) == 1
    out = capsys.readouterr().out
    assert "failed: classification_digits/ce/seed1: fit ended with code 1" in out
    assert "first line\nerror: Expected something else, got this.\n" in out
    failed = "classification_digits/ce/seed1"
    assert f"not done: {failed}{EXAMINATION}: not run: {failed} failed" in out
    assert "6 of 8 runs are done" in out
    assert len(results(folder)) == 6
    monkeypatch.setenv("HEM_TEST_FAIL", "nothing")
    assert run(folder, path) == 0
    assert len(results(folder)) == 8


def test_a_folder_or_file_that_stops_a_run_stops_no_other(folder, capsys):
    """A file where the folder would be, a record that was cut off: each named, the other runs are done."""
    runs = folder / "runs" / "small" / "classification_digits"
    (runs / "ce").mkdir(parents=True)
    (runs / "ce" / "seed0").write_text("no folder")
    (runs / "hem_0.2" / "seed0").mkdir(parents=True)
    (runs / "hem_0.2" / "seed0" / "study.json").write_text("")
    done_before = runs / "ce" / "seed1"
    done_before.mkdir()
    (done_before / "results.json").write_text('{"metrics": {}}')
    (done_before / "study.json").write_text('{"fit": 3}')
    assert run(folder, written(folder), "--only", "classification_digits/") == 1
    out = capsys.readouterr().out
    assert f"note: {done_before / 'study.json'} holds no steps" in out
    assert f"{runs / 'ce' / 'seed0'}: [Errno 17] File exists" in out
    assert f"{runs / 'hem_0.2' / 'seed0' / 'study.json'} is empty or damaged" in out
    assert (runs / "hem_0.2" / "seed1" / "results.json").is_file()
    assert "2 of 4 runs are done" in out


def test_a_damaged_record_of_a_training_that_is_not_tested(folder, capsys):
    path = written(folder, tasks=[{"train": DIGITS, "test": False}])
    record = folder / "runs/small/classification_digits/ce/seed0/study.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    assert run(folder, path) == 1
    out = capsys.readouterr().out
    assert f"{record} is empty or damaged" in out
    assert "3 of 4 runs are done, trained and not tested; the page of them: " in out


def test_resume(folder):
    """A training goes on from its last checkpoint; one without a checkpoint begins again; leftovers are removed."""
    path = written(folder, losses=["ce"], seeds=[0])
    assert run(folder, path) == 0
    expected = results(folder)
    (training, _) = grid.load(path, root=folder / "runs").runs()
    last = training.folder / "checkpoints" / "last.ckpt"
    for state in ({"epoch": 5, "value": 77}, None):
        (training.folder / "results.json").unlink()
        (training.folder / "study.json").write_text(json.dumps({"fit": {"arguments": list(training.steps["fit"])}}))
        half = last.with_name(".last.ckpt.123")
        half.write_text("ha")
        last.unlink()
        if state:
            last.write_text(json.dumps(state))
            assert training.left()["fit"][-2:] == ("--ckpt_path", "last")
        assert run(folder, path) == 0
        assert not half.exists()
        resumed = results(folder)
        assert (resumed != expected) == bool(state)  # the number gone on from is another one
        expected = resumed if state is None else expected


def test_a_checkpoint_that_was_deleted_before_its_test(folder, capsys):
    """The study says which it needs, and how to begin anew; what else lies there stays."""
    path = written(folder, losses=["ce"], seeds=[0])
    assert run(folder, path) == 0
    (training, _) = grid.load(path, root=folder / "runs").runs()
    last, best = (training.folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    (training.folder / "results.json").unlink()
    last.unlink()
    best.write_text("{}")
    capsys.readouterr()
    assert run(folder, path) == 1
    assert f"Expected the checkpoint that is tested at {last}, but there is no such file" in capsys.readouterr().out
    assert best.is_file()
    shutil.rmtree(training.folder)
    assert run(folder, path) == 0


def test_lock(folder):
    """A held folder is left alone, also while only the process that trains holds it; a dead owner's lock is free."""
    (training, *_) = grid.load(written(folder), root=folder / "runs").runs()
    with lock(training.folder) as held:
        assert held is not None
        assert Jobs({}).do(training) == "elsewhere"
        child = subprocess.Popen(["sleep", "60"], pass_fds=(held,))
    assert Jobs({}).do(training) == "elsewhere"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert "process" in (training.folder / "lock").read_text()
    assert Jobs(dict(os.environ)).do(training) == "done"


def test_a_job_waits_for_another_process_and_does_not_pass_for_done(folder, monkeypatch):
    """As behind a killed job whose process lives on somewhere; a job that did nothing is no success."""
    runs = grid.load(written(folder), root=folder / "runs").runs()
    monkeypatch.setattr(slurm, "ELSEWHERE", 0.1)
    monkeypatch.setattr(slurm, "PAUSE", 0.05)
    with lock(runs[0].folder), pytest.raises(RuntimeError, match=r"another process works on it(.|\n)*is not done"):
        Chain(runs[:2])()
    assert set(Chain(runs[:2])().values()) == {"done"}


def test_a_training_goes_on_from_the_checkpoint_before_the_last(folder):
    """The last one was damaged and set aside, and the process killed before it had saved again."""
    (training, *_) = grid.load(written(folder), root=folder / "runs").runs()
    checkpoints = training.folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in (BEFORE, "best.ckpt"):
        (checkpoints / name).write_text("{}")
    clear(training.folder, unfinished=True)
    assert {path.name for path in checkpoints.iterdir()} == {BEFORE, "best.ckpt"}
    assert training.left()["fit"][-2:] == ("--ckpt_path", "last")
    (checkpoints / BEFORE).unlink()
    clear(training.folder, unfinished=True)
    assert not any(checkpoints.iterdir()), "best alone is nothing to go on from"


def test_two_studies_at_once(folder, monkeypatch):
    """Both end well, and no run is done twice."""
    monkeypatch.setenv("HEM_TEST_EPOCH", "0.02")
    runs = grid.load(written(folder), root=folder / "runs").runs()
    watchers = [Progress(runs, 2, Console(quiet=True)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda watcher: local.run_here(runs, 2, [], watcher), watchers))
    assert both == [dict.fromkeys([r.name for r in runs], "done")] * 2
    assert sorted(set(done(folder))) == sorted(done(folder))
    assert len(results(folder)) == 8


# a copy of this process is quicker than a new one, which imports torch; Python 3.12 warns of forks beside threads
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed(folder, monkeypatch):
    """Killed with -9 at random moments, with or without what it started, a study ends with the same figures."""
    path = written(folder)
    assert run(folder, path) == 0
    undisturbed = results(folder)
    (folder / "runs").rename(folder / "before")
    monkeypatch.setenv("HEM_TEST_EPOCH", "0.3")  # long enough that the kill comes before the end
    draw = random.Random(0)
    for kill in (os.kill, os.killpg, os.kill):
        before = len(done(folder))
        process = os.fork()
        if process == 0:
            os.setsid()
            multiprocessing.forkserver._forkserver.__init__()  # a prepared parent of its own, as a new process has,
            forkserver.PRELOAD = []  # that prepares nothing
            os._exit(run(folder, path))
        while len(done(folder)) == before:
            time.sleep(0.02)
        time.sleep(draw.uniform(0.1, 0.5))
        kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(results(folder)) < 8
    assert run(folder, path) == 0
    assert results(folder) == undisturbed


def test_asked_to_end(folder, monkeypatch, capsys):
    """A request to end stops what was started, and everything can be gone on with."""
    monkeypatch.setenv("HEM_TEST_EPOCH", "30")
    path = written(folder, losses=["ce"], seeds=[0])

    def ask():
        while not done(folder):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    asking = threading.Thread(target=ask)
    asking.start()
    assert run(folder, path) == 130
    asking.join()
    assert "the same command goes on from here" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    with lock(folder / "runs/small/classification_digits/ce/seed0") as held:
        assert held is not None
    monkeypatch.setenv("HEM_TEST_EPOCH", "0")
    assert run(folder, path) == 0


# submitit's executor for trials leaves its log open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_chains(folder, monkeypatch, capsys):
    """A cluster gets one job for each training, with its examinations; what failed fails the job."""
    path = written(folder)
    assert run(folder, path, "--only", "classification_digits/ce/seed0") == 0
    runs = grid.load(path, root=folder / "runs").runs()
    jobs = slurm.submit(runs, folder / "slurm", {"cluster": "debug"})
    assert len(jobs) == 4
    assert jobs[0].result() == dict.fromkeys(
        ["classification_digits/ce/seed0", "classification_digits/ce/seed0/evaluate/rejection"], "done"
    )
    assert done(folder).count("fit classification_digits/ce/seed0") == 1
    monkeypatch.setenv("HEM_TEST_FAIL", "classification_digits/ce/seed1")
    with pytest.raises(RuntimeError, match=r"seed1: fit ended with code 1(.|\n)*not run: its training is not done"):
        Chain(runs[4:6])()
    assert len(slurm.chains(runs)) == 3
    assert Chain(runs[4:6]).checkpoint().function.runs == runs[4:6]


def test_how_often_a_job_is_sent_again_is_for_slurm_to_know(folder, monkeypatch):
    """It belongs to submitit's executor, not to the parameters of the jobs."""
    built = {}
    executor = submitit.AutoExecutor

    def kept(**arguments):
        built.update(arguments)
        return executor(**arguments)

    monkeypatch.setattr(submitit, "AutoExecutor", kept)
    parameters = {"cluster": "debug", "timeout_min": 5, "slurm_max_num_timeout": 30}
    assert slurm.submit([], folder / "slurm", parameters) == []
    assert built["slurm_max_num_timeout"] == 30
    assert parameters["cluster"] == "debug"


def test_slurm_without_submitit(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run(folder, written(folder), "--slurm") == 2
    assert "pip install 'hem-loss[cluster]'" in capsys.readouterr().err


def test_a_gpu_for_each_run(folder, monkeypatch):
    """Runs that are done at once get different GPUs, the last of a study one as well; with --jobs 1 a run gets all."""
    seen = []
    monkeypatch.setattr(Jobs, "do", lambda self, run, extra=None: (seen.append(extra), time.sleep(0.05), "done")[2])
    runs = grid.load(written(folder), root=folder / "runs").runs()
    progress = Progress(runs, 2, Console(quiet=True))
    local.run_here(runs, 2, ["3", "5"], progress)
    assert {each["CUDA_VISIBLE_DEVICES"] for each in seen} == {"3", "5"}
    seen.clear()
    monkeypatch.setattr(command, "gpus", lambda: ["3", "5"])
    one = ("--only", "classification_digits/ce/seed0")
    for words, expected in (((), {"CUDA_VISIBLE_DEVICES": "3"}), (("--jobs", "1"), {})):
        seen.clear()
        run(folder, written(folder), *one, *words)
        assert seen == [expected]


def test_several_runs_share_a_gpu(folder, monkeypatch, capsys):
    """As many as are asked for on each, and no more."""
    seen = []
    monkeypatch.setattr(Jobs, "do", lambda self, run, extra=None: (seen.append(extra), time.sleep(0.1), "done")[2])
    monkeypatch.setattr(command, "gpus", lambda: ["3", "5"])
    path = written(folder)
    assert command.main([path, "--root", str(folder / "runs"), "--per-gpu", "2", "--dry-run"]) == 0
    assert "8 runs, 0 done, 4 at once" in capsys.readouterr().out
    assert command.main([path, "--root", str(folder / "runs"), "--per-gpu", "2"]) == 0
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in seen[:4]) == ["3", "3", "5", "5"]
    monkeypatch.setattr(command, "gpus", lambda: [])
    for words, sentence in (
        (["--per-gpu", "2"], "Expected GPUs for --per-gpu, got a machine with none"),
        (["--per-gpu", "0"], "--per-gpu to be a number of runs, 1 or more"),
        (["--per-gpu", "2", "--jobs", "3"], "without --jobs, got 2"),
    ):
        assert command.main([path, "--root", str(folder / "runs"), *words]) == 2
        assert sentence in capsys.readouterr().err


def test_plan(folder, capsys):
    """What the runs that are done say of the seeds that are needed, by each task's primary metric, as in the report."""

    def planned(path, *options):
        assert command.main([path, "--root", str(folder / "runs"), "--plan", *options], lambda: statistics) == 0

    tasks = [{"train": DIGITS, "primary": "test/accuracy"}, {"train": DIGITS, "name": "other"}]
    path = written(folder, tasks=tasks)
    planned(path)
    assert "hem_0.2 against ce: 0 pairs of runs are done, and a spread needs two" in capsys.readouterr().out
    for loss, values in (("ce", (0.5, 0.6)), ("hem_0.2", (0.52, 0.64))):
        for seed, value in enumerate(values):
            results_of = folder / f"runs/small/classification_digits/{loss}/seed{seed}/results.json"
            results_of.parent.mkdir(parents=True)
            results_of.write_text(json.dumps({"metrics": {"test/accuracy": value}}))
    planned(path)
    lines = capsys.readouterr().out.splitlines()
    needed = statistics.seeds_needed([0.52 - 0.5, 0.64 - 0.6], level=statistics.LEVEL / 2)  # of two tasks
    assert lines[0] == "classification_digits: accuracy in % ↑"
    assert lines[1] == f"  hem_0.2 against ce: +3 ± 1.41 (2 seeds): {needed} seeds would show it, in four cases of five"
    assert lines[2] == "other: no `primary` metric is declared."
    planned(written(folder, tasks=tasks, losses=list(reversed(SMALL["losses"]))), "--only", CELL)
    assert capsys.readouterr().out.splitlines() == lines[:2]
    alone = {"train": DIGITS, "name": "alone", "primary": "test/accuracy", "losses": ["hem"]}
    planned(written(folder, tasks=[*tasks, alone]))
    assert capsys.readouterr().out.splitlines() == [*lines, "alone: nothing to compare with ce."]


def test_the_plan_asks_for_as_many_seeds_as_the_report(folder, capsys):
    """One level over all tasks, the baseline of the report, and Holm's number of losses."""
    names = ("one", "two", "three")
    tasks = [{"train": DIGITS, "name": name, "primary": "test/accuracy"} for name in names]
    path = written(folder, tasks=tasks, losses=["hem", "multi_margin", "ce"], seeds=[0, 1, 2])
    for name in names:
        for i, loss in enumerate(("hem", "multi_margin", "ce")):
            for seed in range(3):
                value = 0.5 + 0.01 * i + (0.1 * seed if i < 2 else 0.11 * seed) + 0.001 * (seed * (i + 2) % 3)
                run = folder / f"runs/small/{name}/{loss}/seed{seed}"
                run.mkdir(parents=True)
                (run / "results.json").write_text(json.dumps({"metrics": {"test/accuracy": value}}))
    assert command.main([path, "--root", str(folder / "runs"), "--plan"], lambda: statistics) == 0
    planned = re.findall(r"  (\w+) against (\w+): .* seeds\): (\d+) seeds", capsys.readouterr().out)
    found = Runs(folder / "runs/small")
    reported = findings.tested(found, {name: describe("test/accuracy") for name in found.cells}, "ce")
    assert sorted(planned) == sorted(
        (each.loss, "ce", str(each.seeds_needed)) for one in reported.values() for each in one
    )


def test_table(folder):
    """The table of a terminal: states by task, failures, the time left."""
    runs = grid.load(written(folder), root=folder / "runs").runs()
    console = Console(record=True, width=100, force_terminal=True, file=io.StringIO())
    progress = Progress(runs, 2, console)
    progress.seconds = {runs[0].name: 60.0}
    progress.states.update({runs[0].name: "done", runs[1].name: "running", runs[2].name: "fit ended with code 1"})
    assert progress.left() == 6 * 60 / 2
    console.print(progress.table())
    text = console.export_text()
    row, _ = [re.findall(r"\w+", line) for line in text.splitlines() if "classification" in line]
    assert row == ["classification_digits", "4", "1", "0", "1", "60"]
    assert "about 3 min left" in text


def test_a_mistake_of_many_runs_is_printed_once(folder):
    """In full for the first of them, also where the error is not the last line of the log."""
    runs = grid.load(written(folder), root=folder / "runs").runs()
    console = Console(file=io.StringIO())
    progress = Progress(runs, 2, console)
    said = "fit ended with code 1, see {}:\nerror: Expected images, got none.\nits last line {}"
    states = {each.name: said.format(each.folder, i) for i, each in enumerate(runs[:3])}
    for each in runs[:3]:
        progress.change(each, states[each.name])
    out = console.file.getvalue()
    assert out.count("Expected images, got none") == 1
    assert f"failed: {runs[2].name}: as {runs[0].name}" in out
    [line] = command.unfinished(states)
    assert f"not done: {', '.join(states)}: error: Expected images, got none. (" in line


def test_what_is_registered_before_it_runs(folder, capsys):
    """The study of published weights says what it costs, and every command of it, without weights or data."""
    path = str(ROOT / "configs/study/evidence.yaml")
    assert command.main([path, "--root", str(folder), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    study = grid.load(path)
    assert all(task.cost and task.primary for task in study.tasks)
    assert [line for line in lines if line.startswith("# cost")][1:] == [
        f"# cost of {task.name}: {task.cost}" for task in study.tasks
    ]
    seeds = {seed for task in study.tasks for seed in task.seeds}
    assert study.search.seed not in seeds
    assert len(seeds) >= 5


TRIED: set[str] = set()  # by all studies: configs with their own options, and losses


# the configs of large data sets load with more processes than this machine may have cores
@pytest.mark.filterwarnings("ignore:num_workers is .* processor cores:UserWarning")
@pytest.mark.parametrize("path", STUDIES)
def test_shipped_studies(path, monkeypatch, tmp_path):
    """Every study names files that are there, says what it costs, and has command lines that the parser takes.

    Each config is tried with one loss, and each loss with one config.
    """
    monkeypatch.chdir(ROOT)
    if "longtail/i" in Path(path).read_text():  # data sets whose class counts are read from lists
        monkeypatch.setenv("HEM_DATA", str(tmp_path))
        test_longtail.imagenet_lt_tree(tmp_path)
        test_longtail.inaturalist_tree(tmp_path)
    if "HEM_WEIGHTS" in Path(path).read_text() and not os.environ.get("HEM_WEIGHTS"):
        pytest.skip("HEM_WEIGHTS names no folder of published weights, from which these networks start")
    own = Path(path).stem == "folder"
    if own:
        test_datasets.folder_tree(tmp_path)
    found = grid.load(path, ["--data.root", str(tmp_path)] if own else [])
    assert found.name == Path(path).stem
    assert found.cost
    assert all(about["primary"] for about in found.cells().values()), "declared before anything runs"
    assert re.search(rf"hem.study ({path}|{found.name})\b", Path(path).read_text().splitlines()[0])
    cli.quiet()
    for name in ("normal_", "uniform_"):  # networks of up to 70 million weights are built, and not used
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, **__: self)
    for each in (each for each in found.runs() if isinstance(each, Run)):
        words = list(each.steps.get("fit") or each.after.steps["fit"])
        if each.after:  # what the run has, and what is said behind it
            test = each.steps["test"]
            words += test[test.index("--config") : test.index("--ckpt_path")]
        if each.setting or (each.training and each.training.setting):  # what a search finds is not there yet
            continue
        config = " ".join([words[2], *words[words.index("--run_dir") + 2 :]])
        if config in TRIED and each.loss in TRIED:
            continue
        TRIED.update((config, each.loss))
        cli.build(words[1:], run=False)
