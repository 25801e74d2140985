"""Former paths of modules and names, which go on for one release with a warning that says the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
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
    "hem.run": (
        "hem.runs.files",
        "hem.runs.checkpoints",
        "hem.runs.newest",
        "hem.runs.csv_logger",
        "hem.runs.callbacks",
    ),
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

# Modules that stayed, and those in which names that left them are now.
LEFT: dict[str, tuple[str, ...]] = {
    "hem.cli": ("hem.cli.parser", "hem.cli.registries", "hem.cli.errors", "hem.names"),
    "hem.corruptions": ("hem.corruptions.blur", "hem.corruptions.weather"),
    "hem.datamodules.base": ("hem.runs.data", "hem.datamodules.splits"),
    "hem.datamodules.corruption": ("hem.datamodules.corruption_files",),
    "hem.datamodules.masks": ("hem.datamodules.pairs",),
    "hem.modules.adversarial": ("hem.modules.adversarial_training", "hem.attacks.masking", "hem.rng"),
    "hem.modules.longtail": ("hem.metrics.longtail",),
    "hem.modules.rejection": (
        "hem.modules.rejector",
        "hem.rejection.rejector",
        "hem.rejection.evaluation",
        "hem.runs.trainer",
    ),
    "hem.modules.rejector": ("hem.runs.trainer",),
    "hem.modules.segmentation": ("hem.metrics.masks", "hem.schedulers"),
    "hem.report": ("hem.report.records", "hem.report.tables", "hem.report.statistics", "hem.report.drawings"),
    "hem.runs.checkpoints": ("hem.runs.newest",),
    "hem.study": ("hem.study.command", "hem.study.progress", "hem.study.grid"),
}
# Names that are others now.
RENAMED = {
    "hem.headlines.METRICS": "hem.metrics.catalog.HEADLINES",
    "hem.modules.calibrator.Probabilities": "hem.modules.calibrator.probability_metrics",
    "hem.modules.classification.log_batch": "hem.modules.base.Task.log_training",
    "hem.modules.continual.evaluation": "hem.modes.evaluating",
    "hem.modules.continual.heat_map": "hem.plots.matrices.accuracy_matrix",
    "hem.modules.continual.transfer_figures": "hem.metrics.transfer.transfer",
    "hem.modules.robustness.plain_ce": "hem.attacks.objectives.plain_ce",
    "hem.scores.FEATURE_SCORES": "hem.rejection.named.FORMER",
    "hem.scores.near": "hem.names.near",
    "hem.strategies.Memory": "hem.strategies.buffer.ReplayBuffer",
    "hem.strategies.memory.Memory": "hem.strategies.buffer.ReplayBuffer",
}
OTHERS = {former.rpartition(".")[0] for former in RENAMED}  # modules of such names


class MovedFinder(MetaPathFinder, Loader):
    """Import a former module as one that asks the new ones for its names; let one that names have left ask as well."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Answer for former modules, and for those that names have left."""
        if fullname in MOVED:
            return ModuleSpec(fullname, self)
        spec = PathFinder.find_spec(fullname, path) if fullname in LEFT or fullname in OTHERS else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                vars(module)["__getattr__"] = handing_on(fullname, vars(module).get("__getattr__"))

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def get_code(self, fullname: str) -> CodeType:
        """Let ``python -m`` run the new module in the place of the former one."""
        told = f"python -m {fullname} is now python -m {MOVED[fullname][0]}."
        run = f"runpy.run_module({MOVED[fullname][0]!r}, run_name='__main__', alter_sys=True)"
        return compile(f"import runpy, sys; print({told!r}, file=sys.stderr); {run}", fullname, "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Give a former module a ``__getattr__`` that warns and hands on."""
        vars(module)["__getattr__"] = handing_on(module.__name__)


def handing_on(module: str, own: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """Return a ``__getattr__`` that hands names on from where they are now, with a warning.

    Args:
        module: The module that they have left.
        own: The module's own ``__getattr__``, which is asked first.
    """

    def handed_on(name: str) -> Any:
        with suppress(AttributeError):
            if own is not None:
                return own(name)
        former = f"{module}.{name}"
        # a file of a package, which is just being imported, has left nothing
        asked = not name.startswith("__") and not (hasattr(sys.modules[module], "__path__") and find_spec(former))
        places = MOVED.get(module) or LEFT.get(module, ()) if asked else ()
        for now in [RENAMED[former]] if former in RENAMED else [f"{place}.{name}" for place in places]:
            if (found := _found(now)) is not None:
                warnings.warn(f"{former} is now {now}.", DeprecationWarning, stacklevel=2)
                return found
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return handed_on


def _found(path: str) -> Any:
    """Return what a path names, in a module or in a class (``module.Class.method``); None: nothing has that name."""
    holder, _, name = path.rpartition(".")
    module, _, kind = holder.rpartition(".") if holder.rpartition(".")[2][0].isupper() else (holder, "", "")
    found: Any = importlib.import_module(module)
    return vars(vars(found)[kind] if kind else found).get(name)


def install() -> None:
    """Let former paths be imported; without effect the second time."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())  # before those that would find a module of an older copy
