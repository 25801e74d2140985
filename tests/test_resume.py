"""A run that goes on is the run that began: the same weights, schedules and curves, the same config, one process."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import hem
from hem.cli import main
from hem.runs import RunFolder
from hem.runs.lock import HELD, lock
from hem.runs.watch import Watch
from hem.study.storage import waited
from tests.test_survival import Dead, happening, rows, state

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "configs/classification/digits.yaml"
STEPS = 4  # of an epoch
COMMON = ("fit", "--config", DIGITS, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
          "--trainer.enable_model_summary", "false", "--trainer.limit_train_batches", STEPS, "--trainer.max_epochs", 4,
          "--trainer.log_every_n_steps", 1, "--model.net", "MLP")  # fmt: skip


def same(folder: Path, other: Path) -> None:
    """Weights, optimiser, schedule and curves of two runs are the same, bit for bit."""
    first, second = state(folder), state(other)
    assert first["global_step"] == second["global_step"]
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in second["state_dict"])
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["optimizer_states"][0]["param_groups"] == second["optimizer_states"][0]["param_groups"]
    assert rows(folder) == rows(other)


# -- what reads metrics at the end of an epoch ---------------------------------------------------------------------

STOPPING = ("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.patience", 2, "--trainer.callbacks.monitor")
PLATEAU = ("--model.lr_scheduler", "ReduceLROnPlateau", "--model.lr_scheduler.patience", 0,
           "--model.lr_scheduler.mode", "min", "--model.lr_scheduler.monitor")  # fmt: skip
READERS = {  # the largest logit grows, and every sample carries cross-entropy's error: neither gets less
    "early stopping": (*STOPPING, "val/max_logit"),
    "early stopping without validation": (*STOPPING, "train/active", "--data.val_fraction", 0),
    "plateau": (*PLATEAU, "val/max_logit"),
    "plateau, every other epoch": (*PLATEAU, "val/max_logit", "--trainer.check_val_every_n_epoch", 2),
    "plateau without validation": (*PLATEAU, "train/active", "--data.val_fraction", 0),
    "both": (*PLATEAU, "val/max_logit", *STOPPING, "train/loss"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_killed_between_two_epochs(reader, hem_command, tmp_path):
    """The metrics that were known at the end of the epoch are known to the run that goes on."""
    options = (*COMMON, *READERS[reader])
    assert hem_command(*options, "--run_dir", tmp_path / "whole").code == 0
    arguments = (*options, "--run_dir", tmp_path / "parts", "--ckpt_path", "auto")
    for epoch in (1, 2):
        with pytest.raises(Dead):
            hem_command(*arguments, *happening("die", STEPS * epoch))
    outcome = hem_command(*arguments)
    assert outcome.code == 0, outcome.err
    same(tmp_path / "parts", tmp_path / "whole")
    before = state(tmp_path / "whole")["global_step"]
    if "stopping" in reader:
        assert before == 3 * STEPS, "stopped early, so that there is something to be told"
    # what has ended, early or not, has nothing left to do
    assert hem_command(*options, "--run_dir", tmp_path / "whole", "--ckpt_path", "auto").code == 0
    same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("validation", [("check_val_every_n_epoch", 2), ("val_check_interval", 2)])
def test_stopped_early_by_a_validation_is_stopped(validation, hem_command, tmp_path):
    """The same command once more trains nothing, also where the epochs' ends have no validation."""
    arguments = (*COMMON, *STOPPING, "val/max_logit", "--trainer.callbacks.patience", 0, "--trainer.max_epochs", 8,
                 f"--trainer.{validation[0]}", validation[1], "--run_dir", tmp_path, "--ckpt_path", "auto")  # fmt: skip
    assert hem_command(*arguments).code == 0
    before = state(tmp_path)["global_step"]
    assert before < 8 * STEPS
    outcome = hem_command(*arguments)
    assert outcome.code == 0, outcome.err
    assert "nothing left to train" in outcome.err
    assert state(tmp_path)["global_step"] == before


def test_a_plateau_is_told_of_an_epoch_once(hem_command, tmp_path):
    """Also where a run was killed within the epoch, and again behind its end."""
    options = (*COMMON, *READERS["plateau without validation"], "--model.lr_scheduler.patience", 1)
    assert hem_command(*options, "--run_dir", tmp_path / "whole").code == 0
    arguments = (*options, "--run_dir", tmp_path / "parts", "--ckpt_path", "auto", "--watch.save_steps", 2)
    for step in (STEPS + 3, 2 * STEPS):
        with pytest.raises(Dead):
            hem_command(*arguments, *happening("die", step))
    assert hem_command(*arguments).code == 0
    same(tmp_path / "parts", tmp_path / "whole")


class Stopper(Callback):
    """Stops the training behind a step, as ``max_time`` does."""

    observes = True

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


STOPPED = ("--trainer.callbacks+", "tests.test_resume.Stopper", "--trainer.callbacks.step", STEPS + 2)


@pytest.mark.parametrize("first", [("--trainer.max_steps", STEPS + 2), (*STOPPED, "--data.val_fraction", 0), STOPPED],
                         ids=["max_steps", "stopped without validation", "stopped with one"])  # fmt: skip
def test_a_training_that_ended_within_an_epoch_goes_on_there(first, hem_command, tmp_path):
    """The rest of the epoch is trained, and its curves have the right steps."""
    step_lr = ("--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", 1, "--model.lr_interval", "epoch")
    options = (*COMMON, *step_lr, *(first[-2:] if "--data.val_fraction" in first else ()))
    assert hem_command(*options, "--run_dir", tmp_path / "whole").code == 0
    assert hem_command(*options, *first[:4], "--run_dir", tmp_path / "parts").code == 0
    assert state(tmp_path / "parts")["global_step"] == STEPS + 2
    longer = ("--trainer.max_steps", 4 * STEPS) if "--trainer.max_steps" in first else ()
    outcome = hem_command(*options, *longer, "--run_dir", tmp_path / "parts", "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    added = [row for row in rows(tmp_path / "parts") if row["step"] == str(STEPS + 1) and row.get("val/accuracy")]
    assert len(added) == (first == STOPPED), "the validation of the end that was none, which took place"
    first_state, second = state(tmp_path / "parts"), state(tmp_path / "whole")
    assert all(torch.equal(first_state["state_dict"][key], second["state_dict"][key]) for key in second["state_dict"])
    assert [row for row in rows(tmp_path / "parts") if row not in added] == rows(tmp_path / "whole")


@pytest.mark.parametrize(("factors", "steps"), [("{0: 1, 1: 4}", STEPS + 3), ("{0: 4, 1: 1}", 1 + 3 * STEPS)])
def test_a_schedule_knows_of_accumulation_by_epoch(factors, steps, hem_command, tmp_path):
    """A one-cycle schedule ends where the training does."""
    scheduled = ("--trainer.callbacks+", "GradientAccumulationScheduler", "--trainer.callbacks.scheduling", factors)
    assert hem_command(*COMMON, *scheduled, "--run_dir", tmp_path).code == 0
    assert state(tmp_path)["global_step"] == steps
    assert state(tmp_path)["lr_schedulers"][0]["total_steps"] == steps


def test_more_patience_is_a_length(hem_command, tmp_path):
    """Early stopping ends a training, and leaves what it does as it is: another patience goes on with the run."""
    options = (*COMMON, *STOPPING, "val/max_logit", "--run_dir", tmp_path)
    assert hem_command(*options).code == 0
    assert state(tmp_path)["global_step"] == 3 * STEPS
    outcome = hem_command(*options, "--trainer.callbacks.patience", 5, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    assert state(tmp_path)["global_step"] == 4 * STEPS


def test_a_process_that_ends_behind_a_checkpoint_leaves_the_row_of_its_step(hem_command, tmp_path):
    """Lightning writes it behind the hook in which the checkpoint is written: the run would go on without the row."""
    options = (*COMMON, "--trainer.max_epochs", 1, "--watch.save_steps", 2)
    assert hem_command(*options, "--run_dir", tmp_path / "whole").code == 0
    save = Watch._save

    def save_and_die(self, trainer):
        save(self, trainer)
        raise Dead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "_save", save_and_die)
        with pytest.raises(Dead):
            hem_command(*options, "--run_dir", tmp_path / "parts")
    assert hem_command(*options, "--run_dir", tmp_path / "parts", "--ckpt_path", "last").code == 0
    steps = [row["step"] for row in rows(tmp_path / "parts") if row["train/loss"]]
    assert steps == [str(step) for step in range(STEPS)]
    same(tmp_path / "parts", tmp_path / "whole")


def test_plateau_lowers_the_rate(hem_command, tmp_path):
    """After each validation whose metric is no better: here the largest logit, which grows, and is to get less."""
    assert hem_command(*COMMON, *PLATEAU, "val/max_logit", "--run_dir", tmp_path).code == 0
    rates = [float(row["lr-SGD"]) for row in rows(tmp_path) if row.get("lr-SGD")]
    logits = [float(row["val/max_logit"]) for row in rows(tmp_path) if row.get("val/max_logit")]
    assert logits == sorted(logits)
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    # torch's own class, which knows no monitor, reads the loss
    own = ("--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau", "--trainer.max_epochs", 1)
    outcome = hem_command(*COMMON, *own, "--run_dir", tmp_path / "torch")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("who", "options"),
    [
        ("EarlyStopping", (*STOPPING, "val/los")),
        ("ReduceLROnPlateau", (*PLATEAU, "val/los")),
        ("ModelCheckpoint", ("--checkpoint.mode", "min", "--checkpoint.monitor", "val/los")),
    ],
)
def test_misspelt_monitor(who, options, hem_command, tmp_path):
    outcome = hem_command(*COMMON, *options, "--run_dir", tmp_path)
    assert outcome.code == 1
    start = f"error: Expected the name of a metric of this run as the monitor of {who}, got 'val/los'; did you mean "
    assert outcome.err.startswith(start), outcome.err
    for word in ("'val/loss'", "train/loss, ", "val/accuracy, "):
        assert word in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.glob("checkpoints/*.ckpt")), "no run is left that the right command would have to continue"
    outcome = hem_command(*COMMON, *options[:-1], "val/loss", "--run_dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "val/los\n" not in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("who", "options"),
    [
        ("EarlyStopping", (*STOPPING, "val/accuracy")),
        ("ReduceLROnPlateau", (*PLATEAU, "val/accuracy")),
        ("ModelCheckpoint", ("--checkpoint.monitor", "val/loss")),  # the base config has mode max, for an accuracy
    ],
)
def test_a_metric_is_not_read_the_wrong_way_round(who, options, hem_command, tmp_path):
    """What would keep, or wait for, the worst epoch is refused, and leaves no run behind."""
    outcome = hem_command(*COMMON, *options, "--run_dir", tmp_path)
    assert outcome.code == 1
    assert outcome.err.startswith("error: Expected mode m"), outcome.err
    assert f" of {who}, since " in outcome.err
    assert not (tmp_path / "checkpoints").exists()


# -- a run that was moved ------------------------------------------------------------------------------------------


def test_moved_run_keeps_its_best(hem_command, tmp_path):
    """Lightning forgets the best score where the folder has another path; the next epoch would become the best."""
    # the largest logit grows: the first epoch is the best
    options = (*COMMON, "--checkpoint.mode", "min", "--checkpoint.monitor", "val/max_logit")
    with pytest.raises(Dead):
        hem_command(*options, "--run_dir", tmp_path / "here", *happening("die", 2 * STEPS))
    best = torch.load(tmp_path / "here" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == STEPS
    os.rename(tmp_path / "here", tmp_path / "there")
    assert hem_command(*options, "--run_dir", tmp_path / "there", "--ckpt_path", "last").code == 0
    best = torch.load(tmp_path / "there" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == STEPS


# -- the config of a run is the one that it began with -------------------------------------------------------------

SHORT = (*COMMON, "--trainer.max_epochs", 2, "--model.lr_scheduler", "MultiStepLR", "--model.lr_scheduler.milestones",
         "[1]", "--model.lr_interval", "epoch")  # fmt: skip


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """A run of two epochs that died in its second; whoever goes on with it does so in a copy."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with pytest.raises(Dead):
            main([*map(str, SHORT), "--run_dir", str(folder), *happening("die", STEPS + 1)])
    return folder


@pytest.fixture
def run(half, tmp_path) -> Path:
    shutil.copytree(half, tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "lock"}  # fmt: skip


REFUSED = {
    "rate": ("--model.optimizer.lr", 0.001, "model.optimizer.lr 0.001 (it was 0.05)"),
    "loss": ("--model.loss", "HEMLoss", "model.loss HEMLoss (it was CrossEntropyLoss)"),
    "optimiser": ("--model.optimizer", "Adam", "model.optimizer Adam (it was SGD)"),
    "schedule": ("--model.lr_scheduler", "null", "model.lr_scheduler null (it was MultiStepLR)"),
    "network": ("--model.net", "LeNet", "model.net LeNet (it was MLP)"),
    "batch size": ("--data.batch_size", 32, "data.batch_size 32 (it was 64)"),
    "split": ("--data.split_seed", 7, "data.split_seed 7 (it was 0)"),
    "seed": ("--seed_everything", 3, "seed_everything 3 (it was 0)"),
    "precision": ("--trainer.precision", "64-true", "trainer.precision 64-true (it was null)"),
    "clipping": ("--trainer.gradient_clip_val", 1, "trainer.gradient_clip_val 1 (it was null)"),
    "batches": ("--trainer.limit_train_batches", 3, "trainer.limit_train_batches 3 (it was 4)"),
    "best": ("--checkpoint.monitor", "val/loss", "checkpoint.monitor val/loss (it was val/accuracy)"),
    "augmentation": (
        "--data.augment", "[{class_path: hem.datamodules.augment.RandomCrop, init_args: {padding: 1}}]", "data.augment "
    ),
    "averaging": ("--trainer.callbacks+", "EMAWeightAveraging", "trainer.callbacks "),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_another_config_is_refused(kind, run, hem_command):
    """By name, with the option that starts another run from these weights; nothing is changed."""
    option, value, words = REFUSED[kind]
    before = content(run)
    for which in ("last", "auto", run / "checkpoints" / "last.ckpt") if kind == "rate" else ("last",):
        outcome = hem_command(*SHORT, "--run_dir", run, "--ckpt_path", which, option, value)
        assert outcome.code == 1
        assert words in outcome.err
        assert f"--model.net.weights {run} --run_dir <new folder>" in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert content(run) == before


def test_length_and_machine_may_change(run, hem_command):
    """And are recorded: what differs from the config that the run began with, beside the date."""
    before = (run / "config.yaml").read_bytes()
    machine = ("--data.num_workers", 1, "--trainer.devices", 1, "--trainer.logger", "false", "--data.root", run,
               "--trainer.callbacks", "[]", "--model.channels_last", "false")  # fmt: skip
    outcome = hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "auto", "--trainer.max_epochs", 3, *machine)
    assert outcome.code == 0, outcome.err
    assert state(run)["global_step"] == 3 * STEPS
    assert (run / "config.yaml").read_bytes() == before
    (resume,) = RunFolder(run).read_resumes()
    assert resume["checkpoint"] == str(run / "checkpoints" / "last.ckpt")
    assert resume["changed"]["trainer.max_epochs"] == [2, 3]
    assert resume["changed"]["data.num_workers"] == [0, 1]
    assert resume["date"].startswith("20")


def test_more_epochs_are_those_of_a_longer_run(half, run, hem_command, tmp_path):
    """Where the schedule does not span the training."""
    longer = (*SHORT, "--trainer.max_epochs", 3)
    assert hem_command(*longer, "--run_dir", tmp_path / "whole").code == 0
    assert hem_command(*longer, "--run_dir", run, "--ckpt_path", "last").code == 0
    same(run, tmp_path / "whole")


@pytest.mark.parametrize("schedule", ["OneCycleLR", "PolyLR"])
def test_a_schedule_over_the_whole_training_keeps_its_length(schedule, hem_command, tmp_path):
    options = (*COMMON, "--model.lr_scheduler", schedule, "--trainer.max_epochs", 1, "--run_dir", tmp_path)
    options += ("--model.lr_scheduler.max_lr", 0.1) if schedule == "OneCycleLR" else ()
    assert hem_command(*options).code == 0
    before = content(tmp_path)
    outcome = hem_command(*options, "--ckpt_path", "auto", "--trainer.max_epochs", 2)
    assert outcome.code == 1
    assert f"trainer.max_epochs 1, got 2: its schedule, {schedule}, goes over the whole training" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--data.tasks 2", "data.tasks 2 (it was 5)"),
        ("--trainer.max_epochs 10", "trainer.max_epochs 5, got 10: the epochs of a stream"),
        ("--model.strategy EWC", "model.strategy EWC (it was null)"),
    ],
)
def test_stream(option, words, hem_command, stream):
    outcome = hem_command(*STREAM, "--run_dir", stream, "--ckpt_path", "last", *option.split())
    assert outcome.code == 1
    assert words in outcome.err


STREAM = ("fit", "--config", "configs/continual/digits.yaml", "--config", "configs/trainer/debug.yaml",
          "--trainer.max_epochs", 5, "--model.lr_scheduler", "null", "--trainer.enable_progress_bar", "false",
          "--trainer.enable_model_summary", "false", "--model.strategy", "null")  # fmt: skip


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([*map(str, STREAM), "--run_dir", str(folder)]) == 0
    return folder


def test_old_records(run, hem_command):
    """A record of before an option was there is read as today's, one that cannot be read gets a sentence."""
    record = run / "config.yaml"
    text = record.read_text()
    assert "    channels_last: true\n" in text
    record.write_text(text.replace("    channels_last: true\n", ""))
    assert hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "last").code == 0
    for damaged in (text.replace("hem.networks.MLP", "gone.Network"), text[:-300] + "\n{", ""):
        record.write_text(damaged)
        outcome = hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "last")
        assert outcome.code == 1
        assert f"{record}, the config that the run was begun with, cannot be read" in outcome.err
        assert len(outcome.err.splitlines()) == 1


# -- a folder without a checkpoint holds no run --------------------------------------------------------------------


@pytest.mark.parametrize("given", [(), ("--ckpt_path", "auto")])
def test_a_first_try_that_failed(given, hem_command, tmp_path):
    """It leaves neither a config nor curves to the corrected command, and does not block it."""
    with pytest.raises(Dead):
        hem_command(*SHORT, "--run_dir", tmp_path, "--model.net", "LeNet", *happening("die", 2))
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in tmp_path.iterdir()}
    outcome = hem_command(*SHORT, "--run_dir", tmp_path, *given)
    assert outcome.code == 0, outcome.err
    assert "hem.networks.MLP" in (tmp_path / "config.yaml").read_text()
    assert len(list(tmp_path.glob("events.*"))) == 1
    assert [row["step"] for row in rows(tmp_path) if row["train/loss"]] == [str(step) for step in range(2 * STEPS)]
    assert len(hem.load(tmp_path, "last").predict(torch.rand(1, 1, 8, 8))) == 1


def test_results_alone_are_a_run(hem_command, tmp_path):
    """Whose checkpoints were deleted: its results are not trained over."""
    (tmp_path / "results.json").write_text("{}")
    for given in ((), ("--ckpt_path", "auto")):
        outcome = hem_command(*SHORT, "--run_dir", tmp_path, *given)
        assert outcome.code == 1
        assert "already holds a run: it has no last checkpoint, but its results alone" in outcome.err


def test_a_trial_leaves_nothing(run, hem_command, tmp_path):
    before = content(run)
    for options in (("--run_dir", run, "--ckpt_path", "last"), ("--run_dir", tmp_path / "new")):
        assert hem_command(*SHORT, *options, "--trainer.fast_dev_run", "true").code == 0
    assert content(run) == before
    assert not (tmp_path / "new").exists() or not content(tmp_path / "new")


# -- the checkpoint of one run, the folder of another --------------------------------------------------------------


def test_into_another_folder(run, hem_command, tmp_path):
    """A checkpoint goes on in a new folder, not in one that holds another run; the end of a training does not."""
    last = run / "checkpoints" / "last.ckpt"
    new = (*SHORT, "--run_dir", tmp_path / "new", "--ckpt_path")
    outcome = hem_command(*new, last, "--model.optimizer.lr", 0.1)
    assert outcome.code == 1
    assert "model.optimizer.lr 0.1 (it was 0.05)" in outcome.err
    assert hem_command(*new, last).code == 0
    assert (tmp_path / "new" / "config.yaml").is_file()
    before = content(tmp_path / "new")
    outcome = hem_command(*new, last)
    assert outcome.code == 1
    assert "already holds a run" in outcome.err
    assert content(tmp_path / "new") == before

    ended = tmp_path / "new" / "checkpoints" / "last.ckpt"
    empty = (*SHORT, "--run_dir", tmp_path / "empty")
    outcome = hem_command(*empty, "--ckpt_path", ended)
    assert outcome.code == 1
    assert f"Expected the checkpoint of a training that goes on, got {ended}, of the end of one (step 8)" in outcome.err
    assert hem_command(*empty).code == 0, "what came to nothing holds no run"


def test_nothing_to_train(hem_command, tmp_path):
    outcome = hem_command(*SHORT, "--run_dir", tmp_path, "--trainer.max_epochs", 0)
    assert outcome.code == 1
    assert "Expected a training of one step at least, got none" in outcome.err


# -- one process at a time -----------------------------------------------------------------------------------------


def test_held_folder(run, hem_command):
    """The second command gets a sentence and changes nothing; a lock is free when its owner is dead."""
    code = """
import sys, time
from pathlib import Path
from hem.runs.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code, str(run)], cwd=ROOT, stdout=subprocess.PIPE)
    owner.stdout.readline()
    before = content(run)
    for given in (("--ckpt_path", "auto"), ()):
        outcome = hem_command(*SHORT, "--run_dir", run, *given)
        assert outcome.code == 1
        assert f"got {run}, where process {owner.pid} on " in outcome.err
    assert content(run) == before
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "auto").code == 0
    with lock(run) as held:
        assert held is not None, "a command that has ended holds nothing"


def test_lock_is_handed_on(run, hem_command, monkeypatch):
    """The process that a study starts works in the folder that the study holds; no other does, and no copy of it."""
    with lock(run) as held:
        assert hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "auto").code == 1
        monkeypatch.setenv(HELD, str(held))
        assert hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "auto").code == 0
        with lock(run.parent) as other:  # another folder has a lock of its own
            assert other is not None
        reader, writer = os.pipe()
        if (copy := os.fork()) == 0:  # as one that reads images
            os.write(writer, b"1")
            time.sleep(600)
        os.read(reader, 1)
    monkeypatch.delenv(HELD)
    with lock(run) as held:
        assert held is not None
    os.kill(copy, signal.SIGKILL)
    os.waitpid(copy, 0)
    os.close(writer)
    os.close(reader)


def test_without_locks(run, hem_command, monkeypatch, capsys):
    """A file system without locks is no reason not to train, but one to be told."""

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    outcome = hem_command(*SHORT, "--run_dir", run, "--ckpt_path", "auto")
    assert outcome.code == 0
    assert "a file system without locks" in outcome.err
    with lock(run) as held:
        assert held is not None, "for studies as well"
    assert capsys.readouterr().err == "", "it is said once, not for each run of a study"
    with pytest.raises(OSError, match=r"Expected locks for the trials of a search, .* on another"), waited(run):
        pass


# -- Ctrl-C --------------------------------------------------------------------------------------------------------


class Interrupts(Callback):
    """Presses Ctrl-C before a step, so many times."""

    observes = True

    def __init__(self, step: int, times: int = 1) -> None:
        self.step = step
        self.times = times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)  # where Python hears it


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(times, hem_command, tmp_path):
    """Once: a checkpoint after the step, and the code of shells; twice: at once. Both in a sentence."""
    interrupts = ("--trainer.callbacks+", "tests.test_resume.Interrupts", "--trainer.callbacks.step", STEPS + 1,
                  "--trainer.callbacks.times", times)  # fmt: skip
    before = signal.getsignal(signal.SIGINT)
    arguments = (*SHORT, "--run_dir", tmp_path / "run", "--ckpt_path", "auto")
    outcome = hem_command(*arguments, *interrupts)
    assert outcome.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    said = [line for line in outcome.err.splitlines() if line.startswith("stopped by Ctrl-C")]
    assert len(said) == 1
    assert "--ckpt_path auto" in said[0]
    assert state(tmp_path / "run")["global_step"] == (STEPS + 3 if times == 1 else STEPS)
    assert hem_command(*arguments).code == 0
    assert hem_command(*SHORT, "--run_dir", tmp_path / "whole").code == 0
    same(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_before_anything(hem_command, monkeypatch):
    """While libraries are imported, which takes seconds."""

    def press(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["hem.cli.main"], "run", press)
    outcome = hem_command(*SHORT)
    assert outcome.code == 130
    assert outcome.err.startswith("stopped by Ctrl-C")


# -- the record ----------------------------------------------------------------------------------------------------


def test_automatic_margin_is_recorded(hem_command, tmp_path):
    """With the number that it became, beside the word that the config has."""
    auto = (*SHORT, "--run_dir", tmp_path, "--model.loss", "HEMLoss", "--model.loss.margin", "auto")
    assert hem_command(*auto).code == 0
    text = (tmp_path / "config.yaml").read_text()
    assert f"margin={(2000 / 1293) ** 0.5:.4f}"[:12] in text.splitlines()[0]
    assert "margin: auto" in text
    assert hem_command(*auto, "--ckpt_path", "auto").code == 0


# -- schedules and the length of the training ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "OneCycleLR --model.lr_scheduler.max_lr 0.1 --model.lr_scheduler.total_steps 7",
            "16 steps, got OneCycleLR of 7",
        ),
        ("PolyLR --model.lr_scheduler.total_steps 7", "16 steps, got PolyLR of 7"),
        (
            "PolynomialLR --model.lr_scheduler.total_iters 3 --model.lr_interval epoch",
            "4 epochs, got PolynomialLR of 3",
        ),
        ("PolyLR --trainer.max_epochs -1", "got one without an end"),
    ],
)
def test_a_schedule_that_ends_too_early(options, words, hem_command, tmp_path):
    """What would train on at no rate, or end in the middle, is refused at the start."""
    outcome = hem_command(*COMMON, "--model.lr_scheduler", *options.split(), "--run_dir", tmp_path)
    assert outcome.code == 1
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
