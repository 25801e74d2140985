"""How much of a real training step the loss takes: HEM beside cross-entropy.

    python benchmarks/training_step.py [--quick] [--busy]

A ResNet-18 on a batch of 32x32 images, and a feature pyramid on MobileNetV2 on images of 360x480 (padded to 384 rows,
as its strides ask for, the logits cropped again). Both losses take turns. The share is the time of the loss alone,
forward and backward on logits of that network, over the time of the whole step with SGD.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from rows import save
from torch import Tensor, nn

from hem.losses import HEMLoss
from hem.networks import ResNet18

LOSSES: dict[str, nn.Module] = {"ce": nn.CrossEntropyLoss(), "hem": HEMLoss(margin=0.5)}


class FPN(nn.Module):
    """smp's FPN for images whose height no stride divides."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smp.FPN("mobilenet_v2", encoder_weights=None, classes=12)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(N, 12, H, W)``."""
        missing = -image.shape[2] % 32
        logits: Tensor = self.net(F.pad(image, (0, 0, 0, missing)))
        return logits[:, :, : image.shape[2]]


def seconds(run: Callable[[], object], busy: bool) -> float:
    clock = time.process_time if busy else time.perf_counter
    start = clock()
    run()
    return clock() - start


def measure(name: str, net: nn.Module, input: Tensor, target: Tensor, args: argparse.Namespace) -> list[dict[str, str]]:
    """One row per loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    logits = net(input).detach().requires_grad_()

    def step(loss: nn.Module) -> None:
        optimizer.zero_grad()
        loss(net(input), target).backward()
        optimizer.step()

    def alone(loss: nn.Module) -> None:
        logits.grad = None
        loss(logits, target).backward()

    times: dict[tuple[str, str], list[float]] = {}
    for i in range(4 if args.quick else 12):
        for key, loss in LOSSES.items():
            for what, run in (("step", step), ("loss", alone)):
                elapsed = seconds(lambda run=run, loss=loss: run(loss), args.busy)  # type: ignore[misc]
                if i:  # the first round warms up
                    times.setdefault((key, what), []).append(elapsed)
    rows = []
    for key in LOSSES:
        whole, part = (statistics.median(times[key, what]) * 1e3 for what in ("step", "loss"))
        ratio = statistics.median(a / b for a, b in zip(times[key, "step"], times["ce", "step"], strict=True))
        row = {"network": name, "loss": key, "step ms": f"{whole:.1f}", "loss ms": f"{part:.3f}"}
        rows.append(row | {"share": f"{part / whole:.2%}", "step / step with ce": f"{ratio:.3f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--busy", action="store_true", help="one thread and its own time, on a machine in use")
    args = parser.parse_args()
    if args.busy:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    images, scenes = torch.rand(128, 3, 32, 32), torch.rand(4, 3, 360, 480)
    labels, maps = torch.randint(10, (128,)), torch.randint(12, (4, 360, 480))
    rows = measure("ResNet-18, 128 x 32x32", ResNet18(num_classes=10, in_channels=3), images, labels, args)
    rows += measure("MobileNetV2 FPN, 4 x 360x480", FPN(), scenes, maps, args)
    for row in (dict(zip(rows[0], rows[0], strict=True)), *rows):
        print("{:30} {:>5} {:>10} {:>10} {:>10} {:>22}".format(*row.values()))
    save(f"training_step_cpu{'_busy' if args.busy else ''}{'_quick' if args.quick else ''}", rows)


if __name__ == "__main__":
    main()
