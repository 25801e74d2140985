"""The rooms of the package: no circle of imports, arrows downward only, small files, pure rooms without Lightning."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "hem").rglob("*.py"))
}
# from the ground up: a room imports those of the floors below it alone
FLOORS = (
    ("moved", "names", "decoder", "modes"),
    ("losses", "rng", "schedulers"),
    ("checks",),
    ("rejection",),
    ("attacks", "corruptions", "metrics"),
    ("calibration", "strategies", "networks", "plots"),
    ("runs",),
    ("datamodules",),
    ("modules",),
    ("cli",),
    ("inference", "quickstart"),
    ("study",),
    ("report",),
    ("__main__",),
)
# above 400 lines: losses are a table of formulas and of modules; a stream has training and testing that need each other
LONG = {"hem.losses.criteria", "hem.losses.functional", "hem.modules.continual"}


def imported(name: str) -> Iterator[str]:
    """The modules of the package that one imports, also late or for types alone; the package itself left out."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{each.name}" for each in node.names]
            found = [each if each in FILES else node.module for each in found]
        else:
            continue
        yield from (each for each in found if each in FILES and each not in ("hem", name))


IMPORTS = {name: set(imported(name)) for name in FILES if name != "hem"}


def room(name: str) -> str:
    """The folder or file of ``hem`` that a module lies in; a program stands above all rooms, wherever it lies."""
    return "__main__" if name.endswith(".__main__") else name.split(".")[1]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Those that import one another, in a row; empty: there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_imports():
    """Late imports and those for types count: who needs one knows too much."""
    inside_the_command = {"hem.cli", "hem.cli.main", "hem.cli.parser"}  # parsed late, so that --help comes at once
    assert circle({name: found for name, found in IMPORTS.items() if name not in inside_the_command}) == []


def test_arrows_point_downward():
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    assert not {room(name) for name in IMPORTS} - floor.keys(), "a new room needs a floor"
    upward = {
        f"{room(name)} -> {room(other)}"
        for name, found in IMPORTS.items()
        for other in found
        if room(other) != room(name) and floor[room(other)] >= floor[room(name)]
    }
    assert not upward


def test_the_map_names_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    inside = {path for path in (ROOT / "hem").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    rooms = {f"{path.name}/" if path.is_dir() else path.name for path in inside if not path.name.startswith("__")}
    table = text.partition("| room | what |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall("`(.*?)`", row.split("|")[1] if row else "")]
    assert sorted(named) == sorted(rooms)


def test_no_file_holds_too_much():
    found = {name for name, path in FILES.items() if len(path.read_text().splitlines()) > 400}
    assert found <= LONG


def test_studies_and_reports_begin_without_torch():
    """They read records and start processes: seconds of imports would come before the first line of each."""
    code = (
        "import sys, hem.study.__main__, hem.report.page; "
        "sys.exit(str({'torch', 'lightning', 'torchmetrics', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "set()\n"


def test_pure_rooms_do_without_lightning():
    """In one process, without the modules that this one has loaded."""
    rooms = ["losses", "scores", "attacks", "corruptions", "metrics", "calibration", "strategies"]
    rooms += ["rng", "checks", "names", "modes"]
    code = (
        f"import sys; import {', '.join(f'hem.{room}' for room in rooms)}; hem.calibrate; "
        "sys.exit(str({'lightning', 'timm', 'hem.datamodules', 'hem.networks'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "set()\n"
