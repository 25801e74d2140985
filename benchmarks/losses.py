"""What every loss costs, forward and backward, beside F.cross_entropy: time and extra memory.

    python benchmarks/losses.py [--losses hem] [--quick] [--busy] [--smoothed]
                                [--device cuda] [--dtype bfloat16] [--channels-last]

All candidates take turns in one process, so that whatever else the machine does meets all of them. The time
ratio is the median over the rounds of (this loss / cross-entropy in the same round), with its quartiles; the best
ratio, (fastest round of this loss / fastest of cross-entropy), is what a machine shows that does nothing else.
Beside the losses stand the published form of HEM (one-hot targets, dense masks, plain autograd) and, as the floor
that physics sets, a copy of the logits. Extra memory is the peak of what is allocated, less the gradient.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rows import save
from torch import Tensor

from hem.losses import LOSSES, kernels

SHAPES = [(128, 10), (256, 1000), (4096, 32000), (4, 12, 360, 480), (2, 19, 512, 1024)]
PEER = "F.cross_entropy"


def published_hem(input: Tensor, target: Tensor, margin: float = 0.5) -> Tensor:
    """HEM as it is published: one-hot targets, a dense mask for each decision, pixels moved to the front."""
    y = input.movedim(1, -1).reshape(-1, input.shape[1])
    t = F.one_hot(target.flatten(), input.shape[1]).to(y.dtype)
    e = (1 - t) * (y - (y * t).sum(1, keepdim=True) + margin).relu()
    e = e * (e >= e.mean(1, keepdim=True).detach())
    loss = e.sum(1) / (1e-6 + (e > 0).sum(1))
    return loss.sum() / (1e-6 + (loss > 0).sum())


def candidates(num_classes: int, device: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """All of LOSSES, cross-entropy as torch has it first, the published form last."""
    counts = [1000 // (1 + i % 10) for i in range(num_classes)]
    built: dict[str, Callable[[Tensor, Tensor], Tensor]] = {PEER: F.cross_entropy}
    for name, cls in LOSSES.items():
        if name != "ce":
            try:
                built[name] = cls().to(device)
            except (TypeError, ValueError):  # those that need to know the classes
                built[name] = cls(class_counts=counts).to(device)
    return built | {"published HEM": published_hem}


def milliseconds(run: Callable[[], object], repeats: int, args: argparse.Namespace) -> float:
    """Mean time of a run."""
    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    clock = time.process_time if args.busy else time.perf_counter
    synchronize()
    start = clock()
    for _ in range(repeats):
        run()
    synchronize()
    return (clock() - start) / repeats * 1e3


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most memory that a run holds at one time beyond what was held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # read when the profiler starts for the first time
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(shape: tuple[int, ...], args: argparse.Namespace) -> list[dict[str, object]]:
    """One row per candidate."""
    device, dtype = args.device, getattr(torch, args.dtype)
    torch.manual_seed(0)
    logits = torch.randn(shape, device=device).to(dtype)
    if args.channels_last and len(shape) == 4:
        logits = logits.contiguous(memory_format=torch.channels_last)
    logits.requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            loss(logits, target).backward()
            logits.grad = None  # here, because freeing memory takes time that is each loss's own

        return run

    wanted = {PEER, *(args.losses or LOSSES), "published HEM"}
    steps = {name: step(loss) for name, loss in candidates(shape[1], device).items() if name in wanted}
    if args.losses:
        del steps["published HEM"]
    if args.smoothed:  # a tenth of each label spread over all classes; the published form knows labels only
        target = F.one_hot(target, shape[1]).movedim(-1, 1).to(dtype).mul_(0.9).add_(0.1 / shape[1])
        steps.pop("published HEM", None)
    copy = torch.empty_like(logits, requires_grad=False)
    steps["copy of the logits"] = lambda: copy.copy_(logits.detach())
    rounds, repeats = (60, 20) if logits.numel() < 1_000_000 else (15 if logits.numel() < 100_000_000 else 3, 1)
    rounds = rounds // 3 if args.quick else rounds
    times: dict[str, list[float]] = {name: [] for name in steps}
    extra: dict[str, int] = {}
    for name, run in steps.items():
        run()
        extra[name] = max(peak_bytes(run, device) - logits.nbytes, 0)
    for _ in range(rounds):
        for name, run in steps.items():
            if repeats > 1:
                run()  # leaves the caches as this candidate leaves them
            times[name].append(milliseconds(run, repeats, args))
    rows = []
    for name in steps:
        ratios = [a / b for a, b in zip(times[name], times[PEER], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        is_copy = name == "copy of the logits"
        rows.append(
            {
                "shape": "x".join(map(str, shape)),
                "loss": name,
                "ms": f"{statistics.median(times[name]):.4g}",
                "time ratio": f"{statistics.median(ratios):.3f}",
                "quartiles": f"{low:.3f}-{high:.3f}",
                "best ratio": f"{min(times[name]) / min(times[PEER]):.3f}",
                "extra MB": "" if is_copy else f"{extra[name] / 1e6:.4g}",
                "memory ratio": "" if is_copy else f"{extra[name] / max(extra[PEER], 1):.3f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, and without the largest shape")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--channels-last", action="store_true", help="images with the classes innermost")
    parser.add_argument("--smoothed", action="store_true", help="class probabilities instead of labels")
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES], help="some of the losses, the peer and a copy alone")
    parser.add_argument("--busy", action="store_true", help="one thread and its own time, on a machine in use")
    args = parser.parse_args()
    if args.busy:
        torch.set_num_threads(1)
    backend = kernels.backend(torch.zeros(1, 2, device=args.device, dtype=getattr(torch, args.dtype)))
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {where}, {args.dtype}, kernel: {backend}")
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        if (args.quick and shape == (4096, 32000)) or (args.smoothed and math.prod(shape) > 10_000_000):
            continue
        new = measure(shape, args)
        if not rows:
            print(("{:>16} {:>20}" + "{:>14}" * 6).format(*new[0]))
        for row in new:
            print(("{:>16} {:>20}" + "{:>14}" * 6).format(*row.values()), flush=True)
        rows += new
    words = [args.device, args.dtype]
    words += [word for word in ("channels_last", "smoothed", "busy", "quick") if getattr(args, word)]
    words += args.losses or []
    save(f"losses_{'_'.join(words)}", rows)


if __name__ == "__main__":
    main()
