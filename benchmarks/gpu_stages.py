"""The stages of `benchmarks/gpu.py`, one a process: each writes rows and ends before its time does.

python benchmarks/gpu_stages.py losses --device cuda --rows gpu.jsonl --until 1800000000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import gpu_rows
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
Shape = tuple[int, ...]


class TimeIsUp(BaseException):
    """Raised wherever the stage is when its time is over; no library that catches exceptions takes it for its own."""


class Enough(Exception):
    """Ends a training that has been measured."""


class Stage:
    """Where a stage runs, and what it writes to.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.name, self.device, self.quick = args.stage, args.device, args.quick
        self.part, self.parts, self.until, self.rows = args.part, args.parts, args.until, args.rows
        self.cuda = args.device == "cuda"

    def left(self) -> float:
        """Seconds."""
        return float(self.until - time.time())

    def write(self, **row: Any) -> None:
        gpu_rows.write(self.rows, stage=self.name, **row)
        print(row, flush=True)

    def error(self, what: str, error: BaseException) -> None:
        words = "".join(traceback.format_exception(error))[-3000:]
        gpu_rows.write(self.rows, stage="error", of=f"{self.name} {what}".strip(), error=words)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


# -- correctness -------------------------------------------------------------------------------------------------

SMALL: list[Shape] = [(7, 5), (33, 2), (3, 1), (3, 4, 1), (2, 3, 5), (2, 4, 2, 3, 2), (0, 5), (0, 5, 3), (2, 5, 0)]
MIDDLE: list[Shape] = [(300, 10), (4, 1000), (257, 1000), (2, 6, 37, 41), (1, 700, 3, 25)]
MIDDLE += [(2, 19, 64, 128), (32, 21, 7, 7), (2, 32, 65, 63), (2, 64, 128, 128), (2, 150, 64, 64), (2, 1000, 32, 32)]
LARGE: list[Shape] = [(64, 50257), (8, 131072), (3, 300_001), (4, 12, 360, 480), (4096, 32000)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# the norm of the difference over the norm; of half precisions the stored gradient rounds
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
LAYOUTS = ("contiguous", "channels last", "sliced", "unaligned")


def lay(z: Tensor, layout: str) -> Tensor:
    """The same logits, otherwise in memory."""
    if layout == "channels last" and z.dim() == 4:
        return z.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat([z, z], 1)[:, : z.shape[1]]
    if layout == "unaligned":  # contiguous, but not where a load of 128 bits may begin
        return torch.cat([z.new_zeros(1), z.flatten()])[1:].view(z.shape)
    return z


def reference(
    z: Tensor, target: Tensor, margin: float | Tensor, weight: Tensor | None, high: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, masses, slopes in float64, and which samples rounding may decide: an error as large as their mean.

    The errors themselves are what the kernels compute with: z in float32, or float64, less z_y, plus the margin.
    """
    real = torch.float64 if z.dtype == torch.float64 else torch.float32
    rows = z.detach().movedim(1, -1).reshape(-1, z.shape[1]).to(real)
    y = target.flatten()
    known = y != -100
    y = torch.where(known, y, 0)
    m = margin.to(real)[y].unsqueeze(1) if isinstance(margin, Tensor) else margin
    e = (rows - rows.gather(1, y.unsqueeze(1)) + m).double().clamp_(min=0)
    e.scatter_(1, y.unsqueeze(1), 0)[~known] = 0
    mean = e.mean(1, keepdim=True)
    kept = (e > 0) & (e >= mean) if high else e > 0
    undecided = ((e - mean).abs() <= 1e-6 * mean).logical_and_(e > 0).any(1) if high else torch.zeros_like(known)
    count = kept.sum(1)
    divisor = count.clamp(min=1) if high else torch.full_like(count, z.shape[1])
    w = known.double() if weight is None else torch.where(known, weight.double()[y], 0.0)
    loss = w * (e * kept).sum(1) / divisor
    slope = kept * (w / divisor).unsqueeze(1)
    slope.scatter_(1, y.unsqueeze(1), -(w * count / divisor).unsqueeze(1))
    mass = torch.where(loss != 0, w, 0.0) if high else known.double()
    shape = target.shape
    back = slope.reshape(*shape, z.shape[1]).movedim(-1, 1)
    return loss.view(shape), mass.view(shape), back, undecided.view(shape)


def distance(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖; 0 where nothing is."""
    b = b.double()
    norm = float(b.norm()) if b.numel() else 0.0
    return float((a.double() - b).norm()) / (norm or 1.0) if b.numel() else 0.0


def agree(
    stage: Stage, shape: Shape, dtype: torch.dtype, layout: str, reduction: Any, classwise: bool, high: bool
) -> None:
    """One row: the loss and its gradient of random logits, of which a fifth are ignored and many are separated."""
    from hem.losses import kernels

    device = stage.device
    z = torch.randn(shape, device=device)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
    if z.numel():
        z.scatter_add_(1, target.unsqueeze(1), 4 * torch.rand(target.shape, device=device).unsqueeze(1))
        target[torch.rand(target.shape, device=device) < 0.2] = -100
    z = lay(z.to(dtype), layout)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    weight, margin = (torch.rand(shape[1], device=device, dtype=real) + 0.1 if classwise else None for _ in range(2))
    loss, mass, slope, undecided = reference(z, target, 0.5 if margin is None else margin, weight, high)
    del_me = torch.full((2 * z.numel(),), math.nan, dtype=dtype, device=device)  # what is not written shows
    del del_me
    z.requires_grad_()
    value, total = kernels.margin_loss(
        z, target, weight, margin=0.5 if margin is None else margin, high=high, reduction=reduction
    )
    upstream = torch.rand(target.shape, device=device, dtype=real) + 0.5 if reduction == "none" else 1.0
    if reduction == "none":
        value.backward(upstream)
        expected, size = slope * upstream.unsqueeze(1).double(), float(distance(value[~undecided], loss[~undecided]))
    else:
        divisor = max(float(mass.sum()), 1e-30) if reduction == "mean" else 1.0
        scale = divisor if reduction == "mean" else 1.0  # lest half precisions underflow
        (value * scale).backward()
        expected, size = slope * scale / divisor, distance(value, loss.sum() / divisor)
    assert z.grad is not None
    decided = ~undecided.unsqueeze(1).expand(shape)
    grad, expected = z.grad[decided], expected[decided]
    gradient = distance(grad, expected)
    zeros = bool(((grad != 0) == (expected != 0)).all())
    masses = distance(total, mass.sum())
    tolerance = TOLERANCE[dtype]
    sums = max(TOLERANCE[real], 1e-5 if real == torch.float32 and reduction != "none" else 0)
    good = size <= sums and masses <= sums and gradient <= tolerance and zeros and z.grad.dtype == dtype
    kind = f"{'hem' if high else 'multi-margin'}, {reduction}{', by class' if classwise else ''}"
    stage.write(ok=good, shape="x".join(map(str, shape)), dtype=str(dtype)[6:], layout=layout, kind=kind,
                **{"loss error": float(f"{size:.2g}"), "gradient error": float(f"{gradient:.2g}"),
                   "zeros": zeros, "undecided": float(f"{float(undecided.double().mean()) if z.numel() else 0:.2g}")},
                kernel=kernels.backend(z.detach()))  # fmt: skip


def correctness(stage: Stage) -> None:
    """All shapes and dtypes; kinds, reductions and layouts in turn, so that every pair meets somewhere."""
    shapes = SMALL + (MIDDLE[:4] if stage.quick else MIDDLE + LARGE)
    cases = [(shape, dtype) for shape in shapes for dtype in DTYPES if not (len(shape) == 2 and shape[1] > 200_000
                                                                         and dtype == torch.float64)]  # fmt: skip
    for i, (shape, dtype) in enumerate(cases):
        if i % stage.parts != stage.part:
            continue
        torch.manual_seed(i)
        classwise, high, layout = i % 3 == 1, i % 7 != 3, LAYOUTS[(i // 4 + i) % 4]
        reduction = ("none", "sum" if dtype.itemsize == 2 else "mean", "sum")[(i // 4 + i // 16) % 3]
        try:
            agree(stage, shape, dtype, layout, reduction, classwise, high)
        except Exception as error:
            stage.write(ok=False, shape=str(shape), dtype=str(dtype)[6:], layout=layout, error=repr(error)[-500:])
            stage.error(f"{shape} {dtype} {layout}", error)


# -- what a loss costs -------------------------------------------------------------------------------------------


def clock(stage: Stage, runs: dict[str, Callable[[int], object]], inputs: int, rounds: int) -> dict[str, float]:
    """Median microseconds of each run, over rounds in which they take turns, each over all inputs, again and again.

    Work on a card goes into a queue: a round of one run would measure the way into it.
    """
    repeats = max(inputs, 20) if stage.cuda else inputs
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if stage.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for i in range(repeats):
                    run(i % inputs)
                end.record()
                torch.cuda.synchronize()
                took = begin.elapsed_time(end) * 1e3
            else:
                start = time.perf_counter()
                for i in range(repeats):
                    run(i % inputs)
                took = (time.perf_counter() - start) * 1e6
            if turn:
                times[name].append(took / repeats)
    return {name: statistics.median(found) for name, found in times.items()}


def copy_speed(stage: Stage) -> float:
    """Bytes per second of a copy within the device's memory, read and written: the ceiling of all that follows."""
    a = torch.rand(2**20 if not stage.cuda else 2**29, device=stage.device)
    b = torch.empty_like(a)
    microseconds = clock(stage, {"copy": lambda _: b.copy_(a)}, 1, 10)["copy"]
    return 2 * a.nbytes / microseconds * 1e6


def moved(logits: Tensor, samples: int) -> tuple[int, int]:
    """The fewest bytes that forward and backward of a margin loss move: logits, labels, two numbers per sample."""
    return logits.nbytes + 16 * samples, 2 * logits.nbytes + 16 * samples


def extra_bytes(stage: Stage, run: Callable[[int], object], gradient: int) -> int | None:
    """The most that a step holds at one time beyond its gradient."""
    if not stage.cuda:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - before - gradient, 0)


def graphed(stage: Stage, run: Callable[[int], object], inputs: int) -> float:
    """Microseconds of a run replayed as a CUDA graph of all inputs: what the card needs without Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(inputs):
            run(i)
    return clock(stage, {"graph": lambda _: graph.replay()}, 1, 10)["graph"] / inputs


def plain(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The formula, compiled by torch: what runs where no kernel does."""
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(loss, dynamic=False)
    return compiled


def losses(stage: Stage) -> None:
    """HEM, cross-entropy and both compiled, at the benchmark's shapes."""
    from hem.losses.functional import hem_loss

    speed = copy_speed(stage)
    cache = torch.cuda.get_device_properties(0).L2_cache_size if stage.cuda else 2**20
    shapes: list[Shape] = [(4, 12, 360, 480), (4096, 32000), (256, 1000), (128, 10), (2, 19, 512, 1024), (4096, 1000)]
    if stage.quick:
        shapes = [(128, 10), (2, 5, 16, 16)]
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            z = torch.randn(shape, device=stage.device).to(dtype)
            number = min(max(3 * cache // max(z.nbytes, 1), 1), 20)  # so that none is still in the cache
            inputs = [z.requires_grad_(), *(torch.randn_like(z).requires_grad_() for _ in range(number - 1))]
            target = torch.randint(shape[1], (shape[0], *shape[2:]), device=stage.device)
            learnt = [x.detach().scatter(1, target.unsqueeze(1), 9.0).requires_grad_() for x in inputs]
            ways: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[Tensor]]] = {
                "F.cross_entropy": (F.cross_entropy, inputs),
                "HEM": (hem_loss, inputs),
                "HEM, all samples separated": (hem_loss, learnt),
            }
            if dtype == torch.float32 and shape != (4096, 1000) and stage.left() > 60:
                ways |= {"cross-entropy compiled": (plain(F.cross_entropy), inputs)}
                ways |= {"HEM compiled": (plain(hem_loss), inputs)}
            rows: dict[str, dict[str, Any]] = {}
            steps, forwards = {}, {}
            for name, (loss, values) in ways.items():

                def step(i: int, loss: Any = loss, values: Any = values, target: Tensor = target) -> None:
                    torch.autograd.grad(loss(values[i], target), values[i])

                def forward(i: int, loss: Any = loss, values: Any = values, target: Tensor = target) -> None:
                    loss(values[i], target)

                try:
                    step(0)
                    stage.wait()
                    steps[name], forwards[name] = step, forward
                    rows[name] = {"what": name}
                except Exception as error:
                    stage.error(f"{name} {shape} {dtype}", error)
            copies = torch.empty_like(inputs[0])
            steps["copy"] = lambda i, to=copies, values=inputs: to.copy_(values[i].detach())  # type: ignore[misc]
            rounds = 3 if stage.quick else 15
            whole, ahead = clock(stage, steps, number, rounds), clock(stage, forwards, number, rounds)
            least = moved(z, target.numel())
            for name, row in rows.items():
                if stage.left() < 3:
                    return
                row |= {"step us": float(f"{whole[name]:.4g}"), "forward us": float(f"{ahead[name]:.4g}"),
                        "step / cross-entropy": round(whole[name] / whole["F.cross_entropy"], 3)}  # fmt: skip
                if "HEM" in name:
                    row["floor us"] = float(f"{sum(least) / speed * 1e6:.4g}")
                extra = extra_bytes(stage, steps[name], z.nbytes)
                row |= {} if extra is None else {"extra MB": float(f"{extra / 1e6:.4g}")}
                if stage.cuda and "compiled" not in name:
                    try:
                        row["graph us"] = float(f"{graphed(stage, steps[name], number):.4g}")
                    except Exception as error:
                        stage.error(f"graph of {name} {shape} {dtype}", error)
                if "floor us" in row:
                    took = row.get("graph us", row["step us"])
                    row |= {"TB/s": float(f"{sum(least) / took / 1e6:.3g}")}
                    row |= {"share of copy": round(sum(least) / took * 1e6 / speed, 3)}
                stage.write(shape="x".join(map(str, shape)), dtype=str(dtype)[6:], **row)
            copied = float(f"{whole['copy']:.4g}")
            stage.write(shape="x".join(map(str, shape)), dtype=str(dtype)[6:], what="copy of the logits",
                        **{"step us": copied})  # fmt: skip


# -- tiles -------------------------------------------------------------------------------------------------------


def tiles(stage: Stage) -> None:
    """Other sizes of the kernels' tiles, each direction by itself; the one that is chosen is among them."""
    from hem.losses.kernels import margin_loss
    from hem.losses.kernels.choice import available

    if not stage.cuda:
        stage.write(shape="", note="the kernels of a CPU have other tiles")
        return
    cuda: Any = available("cuda", torch.float32)
    chosen = cuda._tile
    rows = [(1, 4096, 8), (1, 8192, 16), (1, 8192, 8), (1, 32768, 32), (1, 32768, 16), (1, 2048, 4)]
    few = [(512, 16, 4), (256, 16, 2), (256, 16, 4), (1024, 16, 4), (1024, 16, 8), (128, 16, 1)]
    more = [(512, 32, 4), (256, 32, 2), (256, 32, 4), (512, 32, 8), (512, 8, 4), (512, 16, 4), (128, 32, 1)]
    thousand = [(1, 1024, 4), (1, 1024, 2), (2, 1024, 4), (4, 1024, 8), (1, 1024, 1)]
    ten = [(128, 16, 4), (64, 16, 4), (32, 16, 1), (256, 16, 8)]
    plans: list[tuple[Shape, torch.dtype, Any]] = [
        ((4096, 32000), torch.float32, rows), ((4, 12, 360, 480), torch.float32, few),
        ((2, 19, 512, 1024), torch.float32, more), ((8192, 1000), torch.float32, thousand),
        ((4, 12, 360, 480), torch.bfloat16, few), ((2, 19, 512, 1024), torch.bfloat16, more),
        ((4096, 32000), torch.bfloat16, rows), ((65536, 10), torch.float32, ten),
    ]  # fmt: skip
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    for shape, dtype, plan in plans:
        z = torch.randn(shape, device="cuda").to(dtype)
        number = min(max(3 * cache // z.nbytes, 1), 12)
        inputs = [z.requires_grad_(), *(torch.randn_like(z).requires_grad_() for _ in range(number - 1))]
        target = torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda")
        pixels = math.prod(shape[2:])
        usual = [chosen(shape[1], pixels if len(shape) > 2 else shape[0], len(shape) == 2, z.itemsize, b)
                 for b in (False, True)]  # fmt: skip
        least = moved(z, target.numel())
        for tile in dict.fromkeys([*usual, *plan]):
            try:
                cuda._tile = lambda *_, tile=tile: tile

                def forward(i: int, inputs: Any = inputs, target: Any = target) -> None:
                    margin_loss(inputs[i], target, margin=0.5)

                # a backward belongs to the stream of its forward, so that it cannot be captured alone
                def step(i: int, inputs: Any = inputs, target: Any = target) -> None:
                    torch.autograd.grad(margin_loss(inputs[i], target, margin=0.5)[0], inputs[i])

                ahead = graphed(stage, forward, number)
                times = {"forward": ahead, "backward": graphed(stage, step, number) - ahead}
                for j, name in enumerate(("forward", "backward")):
                    rate = {"TB/s": float(f"{least[j] / times[name] / 1e6:.3g}")}
                    sizes = dict(zip(("samples", "classes", "warps"), tile, strict=True))
                    stage.write(shape="x".join(map(str, shape)), dtype=str(dtype)[6:], kernel=name, **sizes,
                                us=float(f"{times[name]:.4g}"), **rate, chosen=tile == usual[j])  # fmt: skip
            except Exception as error:
                stage.error(f"{shape} {dtype} {tile}", error)
            finally:
                cuda._tile = chosen


# -- tests -------------------------------------------------------------------------------------------------------

# the tests of the kernels run on the card where there is one
TESTS = ["tests/test_cuda.py", "tests/losses/test_kernels.py", "tests/test_configs.py::test_overlay",
         "tests/datamodules/test_base.py::test_batches_on_the_accelerator_are_those_of_the_processor"]  # fmt: skip


def tests(stage: Stage) -> None:
    """What pytest says of the tests that need a card."""
    start = time.time()
    workers = ["-n", "8", "--dist", "load"] if stage.cuda else []
    # that another version of torch warns of something new is no fault of the card
    command = [sys.executable, "-m", "pytest", "-v", "-W", "default", "--tb=short", "--color=no"]
    command += ["--show-capture=no", *workers]
    what = ["tests/test_cuda.py", "tests/losses/test_kernels.py", "-k", "cuda or half"] if stage.quick else TESTS
    what += [] if stage.quick else ["-k", "not interpreter"]
    # line by line, so that tests that hang leave those that were done
    lines: list[str] = []
    with subprocess.Popen(
        [*command, *what], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdout is not None
        try:
            lines.extend(run.stdout)
        except TimeIsUp:
            run.kill()
            lines.extend(run.stdout)
            stage.error("", TimeoutError(f"the time was up after {len(lines)} lines"))
    passed, skipped = (
        sum(f" {word}" in line or f"{word} " in line for line in lines) for word in ("PASSED", "SKIPPED")
    )
    failed = sorted({found[1] for line in lines if (found := re.match(r"(?:FAILED|ERROR) (tests\S+\S*)", line))})
    summary = f"{passed} passed, {len(failed)} failed, {skipped} skipped"
    stage.write(what=" ".join(what), summary=summary, failed=failed, seconds=round(time.time() - start))
    if failed or run.returncode:
        gpu_rows.write(stage.rows, stage="error", of="tests", error="".join(lines)[-14000:])


# -- training ----------------------------------------------------------------------------------------------------


def stand_in(folder: Path, images: int) -> Path:
    """Random images in CIFAR-10's and MNIST's layouts: speed does not ask what is on them."""
    generator = np.random.default_rng(0)
    cifar, mnist = folder / "cifar-10-batches-py", folder / "MNIST" / "raw"
    if not mnist.exists():
        cifar.mkdir(parents=True)
        mnist.mkdir(parents=True)
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            data = generator.integers(0, 256, (images // 5, 3072), dtype=np.uint8)
            labels = [i % 10 for i in range(len(data))]
            (cifar / name).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=2))
        for prefix in ("train", "t10k"):
            pixels = generator.integers(0, 256, (images, 28, 28), dtype=np.uint8)
            head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
            (mnist / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
            labels = np.arange(images, dtype=np.uint8) % 10
            head = b"\0\0\x08\x01" + images.to_bytes(4, "big")
            (mnist / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


class Steps:
    """Times blocks of steps, and has enough after some.

    Args:
        stage: Where it runs.
        steps: Of a block.
        blocks: How many are measured; the first two, in which things are compiled and chosen, come before.
    """

    def __init__(self, stage: Stage, steps: int, blocks: int) -> None:
        self.stage, self.steps, self.blocks = stage, steps, blocks
        self.count, self.times = 0, [0.0]

    def step(self) -> None:
        self.count += 1
        if self.count % self.steps == 0:
            self.stage.wait()
            self.times.append(time.perf_counter())
            if len(self.times) == self.blocks + 3:
                raise Enough

    def speeds(self, batch: int) -> list[float]:
        """Images per second of each block."""
        return [batch * self.steps / (b - a) for a, b in zip(self.times[2:], self.times[3:], strict=False)]


def fit(stage: Stage, steps: Steps, words: Sequence[str]) -> None:
    """`python cli.py fit`, until it has been measured."""
    from lightning.pytorch import Callback

    from hem.cli import build, quiet

    class Counter(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            steps.step()

    quiet()
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, "--run_dir", folder, "--trainer.max_epochs", "1000"]
        if not stage.cuda:
            words += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
        cli = build(words, run=False)
        cli.trainer.callbacks.append(Counter())
        try:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        except Enough:
            return
        finally:
            signal.signal(signal.SIGALRM, ring)


def bare(stage: Stage, steps: Steps, net: nn.Module, shape: Shape, batch: int, compiled: bool) -> None:
    """A loop over normalised images on the device, bfloat16, channels last, fused SGD, and nothing else."""
    images = torch.randn((8 * batch, *shape), device=stage.device)
    labels = torch.randint(10, (8 * batch,), device=stage.device)
    net = net.to(stage.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    run = torch.compile(net) if compiled else net
    torch.backends.cudnn.benchmark = True
    try:
        while True:
            for chosen in torch.randperm(len(images), device=stage.device).split(batch):
                with torch.autocast(stage.device, torch.bfloat16, enabled=stage.cuda):
                    loss = F.cross_entropy(run(images[chosen].to(memory_format=torch.channels_last)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps.step()
    except Enough:
        return


def training(stage: Stage) -> None:
    """Images per second: `fit` with its augmentation, schedule and logging, beside a loop that has none of them."""
    from hem import networks

    os.environ["HEM_DATA"] = str(stand_in(Path(os.environ["GPU_SCRATCH"]), 2_000 if stage.quick else 50_000))
    fast = ["--config", "configs/trainer/gpu_fast.yaml", *([] if stage.cuda else ["--model.compile", "false"])]
    usual = ["--config", "configs/trainer/gpu.yaml", "--trainer.benchmark", "true"]
    cifar = ["--config", "configs/classification/cifar10_fast.yaml"]
    mnist = ["--config", "configs/classification/mnist.yaml"]
    hem = ["--config", "configs/loss/hem.yaml"]
    graphs = [*fast, *(["--model.compile", "reduce-overhead"] if stage.cuda else [])]
    batch = 8 if stage.quick else 512

    def by_fit(*words: str) -> Callable[[Steps], None]:
        return lambda steps: fit(stage, steps, [*words, "--data.batch_size", str(batch)])

    def by_loop(network: type[networks.Network], shape: Shape, compiled: bool = False) -> Callable[[Steps], None]:
        net = network(in_channels=shape[0])
        return lambda steps: bare(stage, steps, net, shape, batch, compiled and stage.cuda)

    colour, grey = (3, 32, 32), (1, 28, 28)
    ways: list[tuple[str, str, Callable[[Steps], None]]] = [
        ("ResNet18", "fit", by_fit(*cifar, *usual)),
        ("ResNet18", "fit with HEM", by_fit(*cifar, *usual, *hem)),
        ("ResNet18", "bare loop", by_loop(networks.ResNet18, colour)),
        ("LeNet", "fit", by_fit(*mnist, *usual)),
        ("LeNet", "bare loop", by_loop(networks.LeNet, grey)),
        ("ResNet18", "fit compiled", by_fit(*cifar, *fast)),
        ("ResNet18", "bare loop compiled", by_loop(networks.ResNet18, colour, True)),
        ("LeNet", "fit with CUDA graphs", by_fit(*mnist, *graphs)),
    ]
    for network, way, run in ways:
        steps = Steps(stage, 1 if stage.quick else 30, 2 if stage.quick else 12)
        began = time.time()
        try:
            run(steps)
            speeds = steps.speeds(batch)
            low, middle, high = statistics.quantiles(speeds) if len(speeds) > 1 else speeds * 3
            ends = len(speeds) * batch * steps.steps / (steps.times[-1] - steps.times[2])
            stage.write(network=network, way=way, batch=batch, **{"images/s": round(middle), "with ends": round(ends)},
                        quartiles=f"{low:.0f} to {high:.0f}", seconds=round(time.time() - began))  # fmt: skip
        except Exception as error:
            stage.error(f"{way} {network}", error)


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------


def trained(stage: Stage, loss: str, seed: int, epochs: int, data: Path) -> float:
    """Fit and test ResNet-18; one row. Returns the seconds."""
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "configs/classification/cifar10_fast.yaml", "--config", f"configs/loss/{loss}.yaml",
                 "--data.root", str(data), "--run_dir", folder, "--seed_everything", str(seed),
                 "--trainer.max_epochs", str(epochs)]  # fmt: skip
        if stage.cuda:
            words += ["--config", "configs/trainer/gpu.yaml", "--trainer.benchmark", "true"]
        if stage.quick:
            words += [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
            words += ["--data.batch_size", "8", "--data.eval_batch_size", "8", "--trainer.accelerator", "cpu"]
        took = []
        for command in ("fit", "test"):
            more = ["--ckpt_path", f"{folder}/checkpoints/last.ckpt"] if command == "test" else []
            start = time.time()
            done = subprocess.run(
                [sys.executable, "cli.py", command, *words, *more], cwd=ROOT, text=True, capture_output=True,
                timeout=max(stage.left() - 2, 5),
            )  # fmt: skip
            took.append(time.time() - start)
            if done.returncode:
                raise RuntimeError(
                    f"{command} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
                )
        metrics = json.loads((Path(folder) / "results.json").read_text())["metrics"]
        curves = (Path(folder) / "metrics.csv").read_text() if (Path(folder) / "metrics.csv").exists() else ""
    stage.write(loss=loss, seed=seed, epochs=epochs, data=str(data.name), seconds=round(took[0], 1),
                **{"test accuracy": metrics.get("test/accuracy")}, metrics=metrics, curves=curves[-4000:])  # fmt: skip
    return time.time() - began


def data_folder(stage: Stage) -> Path | None:
    """Where CIFAR-10 lies; random images to try the way there."""
    root = os.environ.get("HEM_DATA")
    if root and (Path(root) / "cifar-10-batches-py" / "test_batch").exists():
        return Path(root)
    return stand_in(Path(os.environ["GPU_SCRATCH"]), 100) if stage.quick else None


def epochs_within(seconds: float) -> int:
    """As many as fit, going by what an epoch takes; between 6 and 40. GPU_EPOCHS in the environment decides itself."""
    given = os.environ.get("GPU_EPOCHS")
    return int(given) if given else int(min(max(seconds / float(os.environ.get("GPU_EPOCH_SECONDS", "3")), 6), 40))


def cifar10(stage: Stage) -> None:
    """Cross-entropy and HEM, seed 0."""
    data = data_folder(stage)
    if data is None:
        stage.error("", FileNotFoundError("HEM_DATA names no folder with cifar-10-batches-py: left out"))
        return
    epochs = 1 if stage.quick else epochs_within((stage.left() - 90) / 2)
    for loss in ("hem", "ce"):
        trained(stage, loss, 0, epochs, data)


def seeds(stage: Stage) -> None:
    """The same with more seeds, while there is time."""
    data = data_folder(stage)
    before = [row for row in gpu_rows.read(stage.rows) if row["stage"] == "cifar10"]
    if data is None or not before:
        return
    for seed in range(1, 2 if stage.quick else 100):
        for row in before:
            if stage.left() < row["seconds"] + 25:
                return
            trained(stage, row["loss"], seed, row["epochs"], data)


# -- all ---------------------------------------------------------------------------------------------------------


def machine(stage: Stage) -> None:
    """One row on what everything runs on."""

    def found(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "none"

    row: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    row |= {
        name: found(name) for name in ("torch", "triton", "lightning", "torchvision", "torchmetrics", "jsonargparse")
    }
    if stage.cuda:
        facts = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        row |= {"card": facts.name, "memory GB": round(facts.total_memory / 1e9), "L2 MB": facts.L2_cache_size >> 20,
                "processors": facts.multi_processor_count, "cuda": torch.version.cuda,
                "capability": list(torch.cuda.get_device_capability())}  # fmt: skip
        if shutil.which("nvidia-smi"):
            row["driver"] = subprocess.run(query, text=True, capture_output=True, check=False).stdout.strip()
        row["copy TB/s"] = round(copy_speed(stage) / 1e12, 2)
    else:
        row["card"] = f"no card, {platform.machine()}"
    gpu_rows.write(stage.rows, stage="machine", **row)


def ring(_: int, frame: FrameType | None) -> Iterator[None] | None:
    raise TimeIsUp


STAGES = {"correctness": correctness, "tests": tests, "losses": losses, "tiles": tiles, "training": training,
          "cifar10": cifar10, "seeds": seeds}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="seconds since 1970")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    stage = Stage(parser.parse_args())
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(stage.left(), 1))
    try:
        if stage.part == 0 and not any(row["stage"] == "machine" for row in gpu_rows.read(stage.rows)):
            machine(stage)
        STAGES[stage.name](stage)
    except TimeIsUp:
        gpu_rows.write(stage.rows, stage="error", of=stage.name, error="the time was up")
    except Exception as error:
        stage.error("", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
