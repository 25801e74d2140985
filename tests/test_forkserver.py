"""Processes from a prepared parent are what new ones would be: environment, folder, outputs, locks, codes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from hem.runs.lock import lock
from hem.study import forkserver
from tests.processes import Processes


def told(code: int) -> None:
    """Say what there is, and end with a code."""
    assert not torch.cuda.is_initialized()
    print(os.environ.get("TOLD"), "HOME" in os.environ, Path.cwd(), torch.get_num_threads(), rank_zero_only.rank)
    print("trouble", file=sys.stderr)
    sys.exit(code)


@pytest.mark.parametrize("code", [0, 3])
def test_environment_folder_and_outputs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {"TOLD": "this", "OMP_NUM_THREADS": "2", "LOCAL_RANK": "1"}
    with open("out", "w") as out, open("err", "w") as err:
        process = forkserver.start(told, code, environment=environment, stdout=out, stderr=err)
        assert forkserver.wait(process) == code
    assert Path("out").read_text() == f"this False {tmp_path} 2 1\n"
    assert Path("err").read_text() == "trouble\n"


def test_commands_are_in_the_words_of_the_command_line(tmp_path):
    with open(tmp_path / "err", "w") as err:
        assert forkserver.wait(forkserver.start(forkserver.command, ["fti"], stderr=err)) == 2
    assert (tmp_path / "err").read_text().startswith("error: ")


def test_a_script_without_a_guard_runs_once(tmp_path):
    (tmp_path / "script.py").write_text(
        "from hem.study import forkserver\n"
        "print('once', flush=True)\n"
        "raise SystemExit(forkserver.wait(forkserver.start(forkserver.command, ['fti'])))\n"
    )
    ended = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "once\n")
    assert ended.stderr.startswith("error: ")


def waiting(pipe: str) -> None:
    """Wait until the other side closes."""
    Path(pipe).read_text()


def test_a_lock_goes_along(tmp_path):
    """Held until the process has ended, whatever becomes of it."""
    os.mkfifo(tmp_path / "pipe")
    with lock(tmp_path) as held:
        process = forkserver.start(waiting, str(tmp_path / "pipe"), keep={"HELD": held})
    with lock(tmp_path) as held:
        assert held is None
    assert forkserver.wait(process, 0) is None
    process.kill()
    assert forkserver.wait(process) == -signal.SIGKILL
    with lock(tmp_path) as held:
        assert held is not None


def test_each_of_many_threads_learns_its_own_code():
    codes = {}

    def ask(code: int) -> None:
        codes[code] = forkserver.wait(forkserver.start(sys.exit, code))

    threads = [threading.Thread(target=ask, args=(code,)) for code in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {code: code for code in range(12)}


def test_ranks_end_alike_or_the_test_fails():
    assert Processes(sys.exit, 5, ranks=2).wait().code == 5
