"""Images per second of training, beside a bare loop and the usual recipes, with the same network and batch.

    HEM_DATA=<folder> python benchmarks/train.py [--data mnist cifar10] [--busy] [--peer <python>]

Each way of training is a process of its own; the processes take turns, a block of steps each, so all of them meet the
same machine. Start-up, validation and the first block are left out. Ratios are taken block by block:

* `hem`: `cli.py fit` with the data set's config: augmentation, schedule, logging, progress bar and all; the second
  time with `configs/trainer/fast.yaml` (bfloat16);
* `bare`: a torch loop over normalised float tensors in memory, with the same optimiser and schedule, and nothing else
  (no augmentation); the second time on one batch over and over, channels last and with freed memory kept, as `hem` has
  them: what the network itself costs, and what no way of loading can beat;
* `recipe`: the same loop over torchvision's data set and transforms and a DataLoader, without and with workers;
* `uncertainty`: torch-uncertainty's routine and data module under Lightning's Trainer with its defaults; `--peer` is an
  interpreter that has both (in an environment of its own, lest it changes versions here).

The table goes to the terminal as Markdown, every block to benchmarks/results/train_<data>_cpu.csv (.._cpu_busy.csv).
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from rows import save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # torch-uncertainty's interpreter has no hem
BATCH = 128
NETS = {"mnist": "LeNet", "cifar10": "ResNet8"}
WAYS = ("hem", "hem with fast.yaml", "bare", "network alone", "recipe", "recipe with 2 workers", "uncertainty")


class Blocks(Callback):
    """Counts steps; behind each block it reports the time, and waits to be asked for the next one."""

    def __init__(self, steps: int, out: TextIO) -> None:
        self.steps, self.out, self.count = steps, out, 0

    def wait(self) -> None:
        self.out.write("\n")
        self.out.flush()
        if not sys.stdin.readline():
            os._exit(0)
        self.start = time.perf_counter(), time.process_time()

    def step(self) -> None:
        self.count += 1
        if self.count % self.steps == 0:
            self.out.write(f"{time.perf_counter() - self.start[0]} {time.process_time() - self.start[1]}")
            self.wait()

    def on_train_start(self, *args: Any) -> None:
        self.wait()

    def on_train_batch_end(self, *args: Any) -> None:
        self.step()


def facts(data: str) -> Any:
    """The data module of a data set, without augmentation."""
    from hem import datamodules

    return {"mnist": datamodules.MNISTDataModule, "cifar10": datamodules.CIFAR10DataModule}[data]


def network(data: str) -> nn.Module:
    from hem import networks

    return getattr(networks, NETS[data])(num_classes=10, in_channels=1 if data == "mnist" else 3)


def optimisation(net: nn.Module) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=10**6)


def loop(
    data: str,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    blocks: Blocks,
    layout: Any = torch.contiguous_format,
) -> None:
    net = network(data).to(memory_format=layout)
    optimizer, scheduler = optimisation(net)
    blocks.wait()
    while True:
        for input, target in batches():
            optimizer.zero_grad()
            F.cross_entropy(net(input), target).backward()
            optimizer.step()
            scheduler.step()
            blocks.step()


def bare(data: str, blocks: Blocks, alone: bool) -> None:
    module = facts(data)(augment=[])
    images, index = module.part("train")
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (module.mean, module.std))
    input, target = (images.images[index] / 255 - mean) / std, images.targets[index]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(input)).split(BATCH)[:-1]:
            yield input[chosen], target[chosen]

    if alone:
        from hem.cli.allocator import keep_freed

        keep_freed()
        batch = input[:BATCH].to(memory_format=torch.channels_last), target[:BATCH]
        loop(data, lambda: itertools.repeat(batch), blocks, torch.channels_last)
    else:
        loop(data, batches, blocks)


def recipe(data: str, blocks: Blocks, workers: int) -> None:
    module = facts(data)
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if data == "cifar10" else []
    steps = transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(module.mean, module.std)])
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[data]
    images = kind(os.environ["HEM_DATA"], train=True, transform=steps)
    keep = workers > 0
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=keep)
    loop(data, lambda: iter(loader), blocks)


def hem_fit(data: str, blocks: Blocks, fast: bool) -> None:
    from hem.cli import build, quiet
    from hem.cli.allocator import keep_freed

    quiet()
    keep_freed()
    with tempfile.TemporaryDirectory() as folder:
        config = ["--config", str(ROOT / f"configs/classification/{data}.yaml"), "--run_dir", folder]
        config += ["--config", str(ROOT / "configs/trainer/fast.yaml")] if fast else []
        net = ["--model.net", NETS[data], "--data.batch_size", str(BATCH), "--trainer.max_epochs", "1000"]
        cli = build([*config, *net, "--trainer.accelerator", "cpu"], run=False)
        cli.trainer.callbacks.append(blocks)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)


def uncertainty(data: str, blocks: Blocks, workers: int) -> None:
    import logging
    import warnings

    from torch_uncertainty.datamodules import CIFAR10DataModule, MNISTDataModule
    from torch_uncertainty.routines import ClassificationRoutine

    warnings.simplefilter("ignore")
    logging.disable()
    options = {"num_workers": workers, "persistent_workers": workers > 0, "val_split": 0.1, "pin_memory": False}
    kind, more = (MNISTDataModule, {"basic_augment": False}) if data == "mnist" else (CIFAR10DataModule, {})
    module = kind(os.environ["HEM_DATA"], BATCH, **options, **more)
    module.prepare_data = lambda: None  # the data is there
    net = network(data)
    optimizer, scheduler = optimisation(net)
    settings = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    routine = ClassificationRoutine(net, 10, nn.CrossEntropyLoss(), optim_recipe=settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1000, accelerator="cpu", callbacks=[blocks], default_root_dir=folder, num_sanity_val_steps=0
        )
        trainer.fit(routine, module)


def work(way: str, data: str, steps: int, threads: int) -> None:
    """One process: answers each line on its standard input with the time of a block."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    blocks = Blocks(steps, os.fdopen(os.dup(1), "w"))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    match way:
        case "hem" | "hem with fast.yaml":
            hem_fit(data, blocks, fast=way != "hem")
        case "bare" | "network alone":
            bare(data, blocks, alone=way != "bare")
        case "uncertainty":
            uncertainty(data, blocks, workers=0 if threads == 1 else 1)
        case _:
            recipe(data, blocks, workers=2 if "workers" in way else 0)


def measure(data: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of every way, block by block; a way that cannot start is left out."""
    steps = args.steps or (40 if data == "mnist" else 15)
    threads = 1 if args.busy else args.threads
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes: dict[str, subprocess.Popen[str]] = {}
    for way in WAYS:
        if args.busy and "workers" in way:
            continue  # their time is not the process's own
        python = args.peer if way == "uncertainty" else sys.executable
        command = [python, __file__, "--work", way, "--data", data, "--steps", str(steps), "--threads", str(threads)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if process.stdout is not None and process.stdout.readline():
            processes[way] = process
        else:
            print(f"{way} could not be started with {python} and is left out", file=sys.stderr)
    found: dict[str, list[float]] = {way: [] for way in processes}
    for number in range(args.rounds + 1):
        for way, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            wall, own = map(float, process.stdout.readline().split())
            if number:  # the first round warms up
                found[way].append(BATCH * steps / (own if args.busy else wall))
    for process in processes.values():
        process.kill()
        process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(NETS), default=["mnist"])
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each way")
    parser.add_argument("--steps", type=int, help="steps of a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", action="store_true", help="one thread and its own time, on a machine in use")
    parser.add_argument("--peer", default=sys.executable, help="an interpreter that has torch-uncertainty")
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.data[0], args.steps, args.threads)
        return
    if "HEM_DATA" not in os.environ:
        parser.error(
            "HEM_DATA should say where the data sets lie, but it is not set: run HEM_DATA=<folder> make bench-train"
        )
    if shutil.which(args.peer) is None:
        parser.error(f"--peer is a Python interpreter that has torch-uncertainty, but there is no program {args.peer}")
    if args.busy:
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(args.threads)
    print("| data, network | way | images/s (quartiles) | hem / way (quartiles) |\n|---|---|---|---|")
    for data in args.data:
        found, rows = measure(data, args), []
        for way, speeds in found.items():
            ratios = [ours / theirs for ours, theirs in zip(found["hem"], speeds, strict=True)]
            (low, speed, high), (worst, ratio, best) = (statistics.quantiles(values) for values in (speeds, ratios))
            name = f"{data}, {NETS[data]}"
            print(
                f"| {name} | {way} | {speed:.0f} ({low:.0f} to {high:.0f}) | {ratio:.2f} ({worst:.2f} to {best:.2f}) |"
            )
            rows += [
                {"data": data, "network": NETS[data], "batch": BATCH, "way": way, "block": block,
                 "images/s": f"{each:.1f}",
                 "clock": "process" if args.busy else "wall", "load": f"{os.getloadavg()[0]:.1f}"}
                for block, each in enumerate(speeds)
            ]  # fmt: skip
        save(f"train_{data}_cpu{'_busy' if args.busy else ''}", rows)


if __name__ == "__main__":
    main()
