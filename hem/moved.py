"""Former places of modules, which go on for one release with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

DATA_SETS = (
    *("camvid", "cifar", "cityscapes", "digits", "folder", "imagenet", "imagenet_lt", "inaturalist", "mask_folder"),
    *("mnist", "svhn", "tiny_imagenet", "voc"),
)
# Each former module, and the modules in which its names are now, in the order in which they are asked.
MOVED: dict[str, tuple[str, ...]] = {
    "hem.losses.arguments": ("hem.losses.samples",),
    "hem.losses.pixels": ("hem.losses.criteria", "hem.losses.functional"),
    "hem.forkserver": ("hem.study.forkserver",),
    "hem.grid": ("hem.study.grid", "hem.study.run"),
    "hem.jobs": ("hem.study.local", "hem.study.slurm"),
    "hem.run": ("hem.runs.files", "hem.runs.checkpoints", "hem.runs.csv_logger", "hem.runs.callbacks"),
    "hem.scores": (
        "hem.rejection.logits",
        "hem.rejection.features",
        "hem.rejection.inputs",
        "hem.rejection.curves",
        "hem.rejection.rejector",
        "hem.rejection.named",
    ),
    "hem.statistics": ("hem.report.statistics",),
    "hem.modules.masking": ("hem.attacks.masking",),
    "hem.modules.robustness": ("hem.attacks.evaluation",),
    "hem.figures": ("hem.plots.comparison", "hem.plots.style"),
    "hem.pictures": ("hem.plots.masks", "hem.plots.matrices"),
    "hem.trained": ("hem.inference.predictor",),
    "hem.export": ("hem.inference.onnx",),
    "hem.examine": ("hem.inference.examine",),
    "hem.headlines": ("hem.metrics.catalog", "hem.metrics.template"),
    "hem.progress": ("hem.runs.progress",),
    "hem.views": ("hem.networks.views",),
    "hem.networks.named": ("hem.networks.library",),
    "hem.networks.published": ("hem.networks.library",),
    "hem.networks.inspect": ("hem.networks.base",),
    "hem.datamodules.decoder": ("hem.decoder",),
    "hem.datamodules.counter": ("hem.rng",),
    **{f"hem.datamodules.{name}": (f"hem.datamodules.datasets.{name}",) for name in DATA_SETS},
    "hem.memory": ("hem.cli.allocator",),
    "hem.watch": ("hem.runs.watch",),
    "hem.schedules": ("hem.schedulers",),
    "hem.histogram": ("hem.metrics.histogram",),
    "hem.strategies.memory": ("hem.strategies.buffer",),
}


class MovedFinder(MetaPathFinder, Loader):
    """Import a former module as one that asks the new ones for its names."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Answer for the modules of :data:`MOVED` alone."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def get_code(self, fullname: str) -> CodeType:
        """Let ``python -m`` run the new module in the place of the former one."""
        told = f"python -m {fullname} is now python -m {MOVED[fullname][0]}."
        run = f"runpy.run_module({MOVED[fullname][0]!r}, run_name='__main__', alter_sys=True)"
        return compile(f"import runpy, sys; print({told!r}, file=sys.stderr); {run}", fullname, "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Give the module a ``__getattr__`` that warns and hands on."""
        former = module.__name__
        module.__dict__["__getattr__"] = lambda name: handed_on(former, MOVED[former], name)


def handed_on(former: str, places: Sequence[str], name: str) -> Any:
    """Return a name that a module had from where it is now, with a warning.

    Raises:
        AttributeError: None of the places has it.
    """
    for place in places if not name.startswith("__") else ():
        room = importlib.import_module(place)
        if hasattr(room, name):
            warnings.warn(f"{former}.{name} is now {place}.{name}.", DeprecationWarning, stacklevel=3)
            return getattr(room, name)
    raise AttributeError(f"module '{former}' has no attribute '{name}'")


def install() -> None:
    """Let former paths be imported; without effect the second time."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())  # before those that would find a module of an older copy
