"""What the tests of all rooms share: the command line, called in this process."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.processes import ROOT, Outcome

# the tests' tensors are small: a second thread waits more than it works, above all beside other work
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Leave the environment as it was: Lightning writes ranks and ports into it, and later runs would obey them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def hem_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs ``python cli.py ...`` in this process, from the root of the repository."""
    from hem.cli import main

    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("HEM_TRACEBACK", raising=False)

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
