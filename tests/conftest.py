"""What the tests of all rooms share: the command line, called in this process."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.processes import ROOT, Outcome

# the tests' tensors are small: a second thread waits more than it works, above all beside other work
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


# the files that take longest, by their processor time: they begin first, so that two workers end together
DEAR = ("test_configs.py", "test_docs.py", "test_resume.py", "test_study.py", "test_cuda_code.py", "test_kernels.py",
        "test_properties.py", "test_survival.py", "test_continual.py", "test_drawings.py", "test_wheel.py",
        "test_examine.py", "test_rejection.py", "test_distributed.py", "test_reproducibility.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the dear files first, and leave all else in its order."""
    places = {name: place for place, name in enumerate(DEAR)}
    items.sort(key=lambda item: places.get(item.path.name, len(DEAR)))


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Leave the environment as it was: Lightning writes ranks and ports into it, and later runs would obey them."""
    before = dict(os.environ)
    os.environ.pop("PL_GLOBAL_SEED", None)  # of a training that tests of a module share
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for studies, which are run from the root of the repository, of imitations of the command line."""
    from hem.study import forkserver
    from tests import imitation

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(forkserver, "command", imitation.command)
    monkeypatch.setenv("HEM_TEST_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path
