"""Runs that survive: killed, told to stop, on a full disk, behind a damaged file, at a loss that is NaN."""

import csv
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tarfile
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn
from torchvision.datasets.utils import extract_archive

from hem.cli import main
from hem.runs.checkpoints import AtomicCheckpointIO
from hem.runs.newest import last_checkpoint
from hem.runs.watch import AGAIN
from tests import processes

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "configs/classification/digits.yaml"
EPOCHS, STEPS = 2, 20  # of 64 images, of the digits' 1293
COMMON = ("fit", "--config", DIGITS, "--config", "configs/loss/hem.yaml", "--trainer.max_epochs", EPOCHS,
          "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
          "--trainer.enable_model_summary", "false")  # fmt: skip


class Dead(BaseException):
    """No mistake of a user: nothing catches it."""


class Happening(Callback):
    """Something happens before a step.

    Args:
        what: ``die`` (an exception that nothing expects), ``kill`` (SIGKILL), ``term`` (SIGTERM), ``nan`` (a pixel of
            the fourth image), ``workers`` (SIGKILL for the processes that read images), or ``gone`` (the data).
        step: The number of the step, from 0.
        rank: The process to which it happens.
        folder: The data.
    """

    observes = True  # a run goes on without it

    def __init__(self, what: str, step: int, rank: int = 0, folder: str = "") -> None:
        self.what = what
        self.step = step
        self.rank = rank
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.global_step, trainer.global_rank) != (self.step, self.rank):
            return
        if self.what == "die":
            raise Dead
        if self.what == "nan":
            batch.input[3, 0, 0, 0] = torch.nan
        elif self.what == "gone":
            os.rename(self.folder, self.folder + "-away")
        elif self.what == "workers":
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()
        else:
            os.kill(os.getpid(), signal.SIGKILL if self.what == "kill" else signal.SIGTERM)


class Dropping(nn.Module):
    """A network that draws at random in every step."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, num_classes))

    def forward(self, input):
        return self.layers(input)


def happening(what: str, step: int, **more: object) -> tuple[str, ...]:
    given = {"what": what, "step": step, **more}
    options = (part for name, value in given.items() for part in (f"--trainer.callbacks.{name}", str(value)))
    return ("--trainer.callbacks+", "tests.test_survival.Happening", *options)


NET = ("--model.net", "tests.test_survival.Dropping")


def process(folder: Path, *options: str, ranks: int = 1) -> processes.Outcome:
    return processes.hem(*COMMON, *NET, "--run_dir", folder, *options, ranks=ranks).wait()


def state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(folder: Path, other: Path) -> None:
    """The weights, the optimiser, the best checkpoint and the curves of two runs are the same, bit for bit."""
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, other))
        assert first["global_step"] == second["global_step"]
        assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in second["state_dict"])
        momenta = [
            [entry["momentum_buffer"] for entry in each["optimizer_states"][0]["state"].values()]
            for each in (first, second)
        ]
        assert momenta[1]
        assert all(map(torch.equal, *momenta))
    assert rows(folder) == rows(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([*map(str, COMMON), *NET, "--run_dir", str(folder)]) == 0
    assert state(folder)["global_step"] == EPOCHS * STEPS
    return folder


# -- a killed run goes on --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(undisturbed, hem_command, tmp_path):
    """SIGKILL, then the very same command with ``--ckpt_path auto``, which also began the run."""
    options = ("--watch.save_steps", "3", "--ckpt_path", "auto")
    folder = tmp_path / "run"
    done = process(folder, *options, *happening("kill", STEPS + 13))
    assert done.code == -signal.SIGKILL, done.err
    reached = state(folder)
    assert STEPS < reached["global_step"] <= STEPS + 13
    loader = reached["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == [{"epoch": 1, "position": reached["global_step"] - STEPS}]
    assert hem_command(*COMMON, *NET, "--run_dir", folder, *options).code == 0
    same(folder, undisturbed)


@pytest.mark.parametrize(("what", "step", "code"), [
    ("die", STEPS - 1, None), ("die", 2, None),
    ("term", STEPS + 5, AGAIN), ("term", STEPS - 1, AGAIN), ("term", EPOCHS * STEPS - 1, 0),
])  # fmt: skip
def test_resumed_is_undisturbed(what, step, code, undisturbed, hem_command, tmp_path):
    """Whether it ends without a word or is told to stop: at the first step, at either side of an epoch's end."""
    arguments = (*COMMON, *NET, "--run_dir", tmp_path, "--watch.save_steps", 5, "--ckpt_path", "auto")
    if code is None:
        with pytest.raises(Dead):
            hem_command(*arguments, *happening(what, step))
    else:
        outcome = hem_command(*arguments, *happening(what, step))
        assert outcome.code == code, outcome.err
    if code == AGAIN:
        assert f"`--ckpt_path auto` from {tmp_path}/checkpoints/last.ckpt." in outcome.err
        assert len(outcome.err.splitlines()) == 1
        # after the step that follows; but not at the end of an epoch, which has its checkpoint behind the validation
        assert state(tmp_path)["global_step"] in (step + 1, step + 2)
    if code != 0:
        assert hem_command(*arguments).code == 0
    same(tmp_path, undisturbed)
    # a finished run has nothing left to do
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    assert hem_command(*arguments).code == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


class Term(Callback):
    """Sends SIGTERM before the first batch of a stage."""

    def __init__(self, when: str) -> None:
        self.when = when

    def _send(self, when: str) -> None:
        if self.when == when:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # where Python hears it

    def on_test_epoch_start(self, trainer, pl_module):
        self._send("test")

    def on_validation_epoch_start(self, trainer, pl_module):
        self._send("validate")

    def on_predict_epoch_start(self, trainer, pl_module):
        self._send("predict")


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_told_to_stop_while_it_examines(command, undisturbed, hem_command, tmp_path):
    """No results, and a code that says so; the same command does it, and the training has its own handlers back."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    arguments = (command, *COMMON[1:], *NET, "--run_dir", folder, "--ckpt_path", "last")
    term = ("--trainer.callbacks+", "tests.test_survival.Term", "--trainer.callbacks.when", command)
    outcome = hem_command(*arguments, *term)
    assert outcome.code == AGAIN
    assert outcome.err.endswith("stopped by a signal before there was a result: the same command does it.\n")
    left = {"test": "results.json", "validate": "results_validate.json", "predict": "predictions.csv"}[command]
    assert not (folder / left).exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert hem_command(*arguments).code == 0
    assert (folder / left).is_file()


def test_told_to_stop_before_training(hem_command, tmp_path):
    """In Lightning's sanity check, which ends with a code of 0."""
    options = ("--trainer.num_sanity_val_steps", 2, "--data.batch_size", 16, "--run_dir", tmp_path)
    term = ("--trainer.callbacks+", "tests.test_survival.Term", "--trainer.callbacks.when", "validate")
    outcome = hem_command(*COMMON, *options, *term)
    assert outcome.code == AGAIN
    assert "stopped by a signal before there was a result" in outcome.err


@pytest.mark.parametrize(("options", "what", "step"), [
    (("--trainer.val_check_interval", 7), "term", STEPS + 6),
    (("--trainer.val_check_interval", 0.5, "--trainer.accumulate_grad_batches", 3), "die", 5),
], ids=["told to stop before a validation", "behind one within an accumulated step"])  # fmt: skip
def test_validations_within_epochs(options, what, step, hem_command, tmp_path):
    """A resumed run validates where the undisturbed one does, and has the gradients of every batch."""
    arguments = (*COMMON, *NET, *options, "--watch.save_steps", 3, "--ckpt_path", "auto")
    assert hem_command(*arguments, "--run_dir", tmp_path / "whole").code == 0
    with pytest.raises(Dead) if what == "die" else nullcontext():
        assert hem_command(*arguments, "--run_dir", tmp_path / "run", *happening(what, step)).code == AGAIN
    assert hem_command(*arguments, "--run_dir", tmp_path / "run").code == 0
    same(tmp_path / "run", tmp_path / "whole")


def test_accumulation_by_epoch(hem_command, tmp_path):
    """Lightning sets it when an epoch starts, which one that goes on does not."""
    schedule = (
        "--trainer.callbacks+",
        "GradientAccumulationScheduler",
        "--trainer.callbacks.scheduling",
        "{0: 1, 1: 3}",
    )
    arguments = (*COMMON, *NET, *schedule, "--watch.save_steps", 2, "--ckpt_path", "auto")
    assert hem_command(*arguments, "--run_dir", tmp_path / "whole").code == 0
    with pytest.raises(Dead):
        hem_command(*arguments, "--run_dir", tmp_path / "run", *happening("die", STEPS + 3))
    assert hem_command(*arguments, "--run_dir", tmp_path / "run").code == 0
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.filterwarnings(r"ignore:\s*Unable to serialize instance cpu")  # its device, by jsonargparse
def test_weights_that_are_averaged_anew_are_refused(hem_command, tmp_path):
    averaging = ("--trainer.callbacks+", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", 0.01)
    arguments = (*COMMON, *NET, *averaging, "--run_dir", tmp_path, "--watch.save_steps", 2, "--ckpt_path", "auto")
    with pytest.raises(Dead):
        hem_command(*arguments, *happening("die", 5))
    outcome = hem_command(*arguments)
    assert outcome.code == 1
    assert "got StochasticWeightAveraging, which would begin anew" in outcome.err


def test_checkpoints_by_the_clock(hem_command, tmp_path):
    """Every so many minutes of rank 0's clock; nothing after the last batch of an epoch."""
    saved = []

    class Recorder(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            saved.append(checkpoint["global_step"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", Recorder.save_checkpoint)
        arguments = (*COMMON, *NET, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 6)
        assert hem_command(*arguments, "--run_dir", tmp_path / "a", "--watch.save_minutes", 1e-9).code == 0
        assert sorted(set(saved)) == [2, 4, 6]
        assert saved.count(6) == 2, "best and last, behind the validation, and no third"
        saved.clear()
        assert hem_command(*arguments, "--run_dir", tmp_path / "b").code == 0
        assert set(saved) == {6}
    for options in (("--watch.save_minutes", 0), ("--watch.save_steps", -3)):
        outcome = hem_command(*arguments, "--run_dir", tmp_path / "c", *options)
        assert outcome.code == 1
        assert "to be above 0" in outcome.err


@pytest.mark.parametrize("validation", [0.1, 0])
def test_last_is_the_last(validation, hem_command, tmp_path):
    """Also where the last epoch is not the best; Lightning's ``save_last`` leaves such an epoch out."""
    first_is_best = ("--checkpoint.mode", "min", "--checkpoint.monitor", "val/max_logit")  # which grows
    arguments = (*COMMON, *NET, "--run_dir", tmp_path, "--data.val_fraction", validation, *first_is_best)
    assert hem_command(*arguments).code == 0
    epoch = STEPS if validation else 22
    assert state(tmp_path)["global_step"] == EPOCHS * epoch
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == (epoch if validation else EPOCHS * epoch)
    assert torch.load(tmp_path / "checkpoints" / "last-1.ckpt", weights_only=True)["global_step"] == epoch


# -- damaged checkpoints -----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_the_checkpoint_before(damage, tmp_path, capsys):
    """A damaged newest checkpoint gives way to the one before it, with a sentence, and never takes its place."""
    folder = tmp_path / "checkpoints"
    io = AtomicCheckpointIO()
    assert last_checkpoint(folder) is None
    for step in range(3):
        io.save_checkpoint({"state_dict": {"net.w": torch.full((100,), float(step))}}, folder / "last.ckpt")
    assert sorted(path.name for path in folder.iterdir()) == ["last-1.ckpt", "last.ckpt"]
    assert last_checkpoint(folder) == folder / "last.ckpt"
    assert capsys.readouterr() == ("", "")
    damage(folder / "last.ckpt")
    assert last_checkpoint(folder) == folder / "last-1.ckpt"
    told = capsys.readouterr().err
    expected = f"{folder}/last.ckpt is damaged: {folder}/last-1.ckpt, the checkpoint before it, is taken.\n"
    assert told == ("" if damage is Path.unlink else expected)
    assert io.load_checkpoint(folder / "last-1.ckpt")["state_dict"]["net.w"][0] == 1
    cut(folder / "last-1.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        io.load_checkpoint(last_checkpoint(folder))


def test_without_links(tmp_path, monkeypatch):
    """On a file system without hard links there is a moment without `last`, and `last-1` is found in it."""

    def refuse(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for step in range(3):
        AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / "checkpoints" / "last.ckpt")
    found = {path.name: torch.load(path)["step"] for path in (tmp_path / "checkpoints").iterdir()}
    assert found == {"last.ckpt": 2, "last-1.ckpt": 1}


def test_resumed_behind_a_damaged_checkpoint(undisturbed, hem_command, tmp_path):
    """The run goes on from the one before and ends with the weights of an undisturbed one."""
    arguments = (*COMMON, *NET, "--run_dir", tmp_path, "--watch.save_steps", 5)
    with pytest.raises(Dead):
        hem_command(*arguments, *happening("die", STEPS + 13))
    last = tmp_path / "checkpoints" / "last.ckpt"
    flip(last)
    outcome = hem_command("test", *COMMON[1:], *NET, "--run_dir", tmp_path, "--ckpt_path", "last")
    assert outcome.code == 0
    assert "last.ckpt is damaged" in outcome.err
    # the record names the weights that were tested
    assert json.loads((tmp_path / "results.json").read_text())["checkpoint"] == str(last.with_name("last-1.ckpt"))
    outcome = hem_command(*arguments, "--ckpt_path", "last")
    assert outcome.code == 0
    assert outcome.err.count("last.ckpt is damaged") == 1
    assert last.with_suffix(".damaged").is_file()
    same(tmp_path, undisturbed)
    for path in last.parent.glob("*.ckpt"):
        torch.load(path, weights_only=True)


def test_programs_in_checkpoints_are_refused_before_any_strategy_reads_them(hem_command, tmp_path):
    """FSDP of Lightning 2.6 unpickles whatever a checkpoint calls for."""

    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "harmful.ckpt"
    torch.save({"state_dict": {}, "harm": Harmful()}, path)
    for command in ("fit", "test"):
        outcome = hem_command(command, *COMMON[1:], "--run_dir", tmp_path / "run", "--ckpt_path", path)
        assert outcome.code == 1
        assert f"{path} cannot be read as a checkpoint: it calls for" in outcome.err
    assert not (tmp_path / "executed").exists()


# -- a loss that is no number ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [STEPS + 3, EPOCHS * STEPS - 1])
def test_nan(step, hem_command, tmp_path):
    """The run stops with a sentence and code 1; the batch is kept, and no checkpoint has what came of it."""
    arguments = (*COMMON, *NET, "--run_dir", tmp_path, "--watch.save_steps", 2)
    outcome = hem_command(*arguments, *happening("nan", step))
    assert outcome.code == 1
    path = tmp_path / f"nonfinite_step{step + 1}_rank0.pt"
    for word in ("finite loss", f"step {step + 1} ", "nan", str(path), str(tmp_path / "checkpoints" / "last.ckpt")):
        assert word in outcome.err
    assert len(outcome.err.splitlines()) == 1
    record = torch.load(path, weights_only=True)
    assert set(record) == {"input", "target", "index", "logits", "loss", "step", "epoch"}
    assert record["input"].shape == (64, 1, 8, 8)
    assert record["input"].isnan().nonzero().tolist() == [[3, 0, 0, 0]]
    assert record["logits"].isnan().any(1).nonzero().tolist() == [[3]]
    assert record["target"].shape == record["index"].shape == (64,)
    assert (record["step"], record["epoch"]) == (step + 1, step // STEPS)
    for checkpoint in (tmp_path / "checkpoints").glob("*.ckpt"):
        kept = torch.load(checkpoint, weights_only=True)
        assert kept["global_step"] <= step
        assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert hem_command(*arguments, "--ckpt_path", "auto").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("what", "code"), [("nan", 1), ("term", AGAIN)])
def test_two_processes_end_together(what, code, tmp_path):
    """What happens to the second of two processes ends both after the same step, and neither waits for the other."""
    folder = tmp_path / "run"
    done = process(folder, "--watch.save_steps", "4", *happening(what, STEPS + 7, rank=1), ranks=2)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    if what == "nan":
        assert done.err.count("Expected a finite loss") == 1
        assert [path.name for path in folder.glob("*.pt")] == [f"nonfinite_step{STEPS + 8}_rank1.pt"]
        assert state(folder)["global_step"] <= STEPS + 7
    else:
        assert done.err.count("stopped by a signal") == 1
        assert state(folder)["global_step"] == STEPS + 9
    assert all(value.isfinite().all() for value in state(folder)["state_dict"].values())


# -- disks, volumes, workers -------------------------------------------------------------------------------------


def stopped(outcome, *words: str) -> None:
    """One sentence, no traceback, exit code 1."""
    assert outcome.code == 1
    assert outcome.err.count("error: ") == len(outcome.err.splitlines()) == 1, outcome.err
    for word in words:
        assert word in outcome.err


def test_disk_full(hem_command, tmp_path, monkeypatch):
    """The sentence, and the checkpoint that was there stays; half a file is not left."""
    arguments = (*COMMON, *NET, "--run_dir", tmp_path, "--watch.save_steps", 5)
    with pytest.raises(Dead):
        hem_command(*arguments, *happening("die", STEPS + 13))
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}

    def full(content, file):
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        outcome = hem_command(*arguments, "--ckpt_path", "auto")
    stopped(outcome, str(tmp_path / "checkpoints" / "last.ckpt"), "the disk is full", "--ckpt_path auto")
    after = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    assert after["last.ckpt"] == before["last.ckpt"]
    assert set(after) == {"best.ckpt", "last.ckpt", "last-1.ckpt"}
    assert hem_command(*arguments, "--ckpt_path", "auto").code == 0


@pytest.fixture
def volume(tmp_path):
    """A small file system of its own, which root can mount; its function mounts it again with other options."""
    folder = tmp_path / "volume"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("a file system can be mounted by root alone")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.slow
def test_disk_really_full(volume):
    """From the first byte that does not fit, wherever it is written: also by TensorBoard's thread."""
    folder = volume("size=200k")
    done = process(folder / "run", "--watch.save_steps", "5", "--model.net", "MLP")
    assert done.code == 1
    assert "the disk is full" in done.err
    assert "Traceback" not in done.err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs a POSIX system")
def test_run_folder_not_writable(hem_command, tmp_path, volume):
    folder = tmp_path
    if os.geteuid() == 0:  # who may write everywhere, but not on what is mounted read-only
        folder = volume("size=1m,ro")
    else:
        folder.chmod(0o500)
    outcome = hem_command(*COMMON, "--run_dir", folder / "run")
    stopped(outcome, str(folder / "run"), "--run_dir")


def image_folder(folder: Path) -> tuple[str, ...]:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(24):
            Image.new("RGB", (8, 8), (10 * index, 100 * number, 0)).save(folder / name / f"{index}.png")
    return ("--data", "FolderDataModule", "--data.root", str(folder), "--data.batch_size", "4",
            "--data.image_size", "[8, 8]", "--model.net", "ResNet8", "--trainer.log_every_n_steps", "1")  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_data_volume_disappears(workers, hem_command, tmp_path):
    data = tmp_path / "data"
    arguments = (*COMMON, *image_folder(data), "--run_dir", tmp_path / "run", "--data.num_workers", workers)
    outcome = hem_command(*arguments, "--watch.save_steps", 2, *happening("gone", 5, folder=data))
    stopped(outcome, str(data), "is gone")
    reached = state(tmp_path / "run")["global_step"]
    assert 2 <= reached < 20
    os.rename(f"{data}-away", data)
    assert hem_command(*arguments, "--ckpt_path", "auto").code == 0


def test_worker_killed(hem_command, tmp_path):
    """As the system does where memory is short."""
    arguments = (*COMMON, *image_folder(tmp_path / "data"), "--run_dir", tmp_path / "run", "--data.num_workers", 1)
    outcome = hem_command(*arguments, "--watch.save_steps", 2, *happening("workers", 5))
    # a thread of torch may be handing a batch's memory to the process just then: it prints its own traceback
    outcome = outcome._replace(err=outcome.err.splitlines(keepends=True)[-1])
    stopped(outcome, "memory", "--data.num_workers", "--ckpt_path auto")
    assert state(tmp_path / "run")["global_step"] >= 2
    assert hem_command(*arguments, "--ckpt_path", "auto").code == 0


# -- archives ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"),
    reason="Python before 3.11.4 has no filter for archives; those that are downloaded have checksums",
)
@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped-from-an-archive"])
def test_archives_stay_in_their_folder(name, tmp_path):
    """torchvision unpacks what the data modules download: a path out of the folder is refused, or kept within."""
    archive = tmp_path / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with suppress(tarfile.FilterError):
        extract_archive(str(archive), str(tmp_path / "inside"))
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/escaped-from-an-archive").exists()
