"""What `skip_separated` saves: training time and accuracy of cross-entropy, HEM, and HEM without the learnt samples.

    python benchmarks/skipping.py [--epochs 40] [--seeds 0 1 2]
    python benchmarks/skipping.py --step

Digits (no download), ResNet8 with group normalisation (samples must not mix), one-cycle SGD: the same network,
batches, schedule and number of epochs for all three; each seed runs them in turn. Reported are ratios to
cross-entropy of the same seed: time of the whole training, and time until the validation accuracy is at least
the level that all of them reach. The table goes to the terminal, the runs to benchmarks/results/skipping.csv.
`--step` compares one step of a larger network instead, where a tenth of the samples carries error.
"""

import argparse
import statistics
import time
import warnings
from functools import partial

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rows import save

from hem.cli import quiet
from hem.datamodules import DigitsDataModule
from hem.losses import HEMLoss
from hem.modules import ClassificationTask
from hem.networks import ResNet8, ResNet20

VARIANTS = {"ce": {}, "hem": {}, "hem, skipping": {"skip_separated": True}}


class Clock(Callback):
    """Notes training seconds (validation left out) and validation accuracy after each epoch."""

    def __init__(self) -> None:
        self.seconds, self.curve, self.active = 0.0, [], []

    def on_train_epoch_start(self, trainer, task) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        if "train/active" in trainer.callback_metrics:
            self.active.append(float(trainer.callback_metrics["train/active"]))

    def on_validation_start(self, trainer, task) -> None:
        self.seconds += time.perf_counter() - self.begun

    def on_validation_end(self, trainer, task) -> None:
        self.curve.append((self.seconds, float(trainer.callback_metrics["val/accuracy"])))


def run(variant: str, seed: int, epochs: int) -> dict:
    """Train one network and return its times and accuracies."""
    lightning.seed_everything(seed)
    data = DigitsDataModule(batch_size=64, seed=seed)
    loss = torch.nn.CrossEntropyLoss() if variant == "ce" else HEMLoss(margin=0.5)
    task = ClassificationTask(
        ResNet8(num_classes=10, in_channels=1, norm="group"),
        loss,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
        lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=None),
        lr_interval="step",
        mean=data.mean,
        std=data.std,
        **VARIANTS[variant],
    )
    clock = Clock()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock], log_every_n_steps=20, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, data)
    test = trainer.test(task, data, verbose=False)[0]
    return {
        "variant": variant, "seed": seed, "epochs": epochs, "seconds": clock.seconds,
        "test_accuracy": test["test/accuracy"], "mean_active": statistics.mean(clock.active), "curve": clock.curve,
    }  # fmt: skip


def step_times() -> tuple[float, float]:
    """Return the processor seconds of a step of ResNet20 on 128 images of 32x32: whole, and skipping nine tenths."""
    torch.manual_seed(0)
    task = ClassificationTask(ResNet20(num_classes=10, in_channels=3, norm="group"), HEMLoss(margin=1e-6)).train()
    images = torch.rand(128, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        target = task(images).argmax(1)  # right but for a tenth
    target[:13] = (target[:13] + 1) % 10
    times = {task: [], task._logits_of_active: []}
    for _ in range(6):
        for logits in times:
            begun = time.process_time()
            task.loss(logits(images) if logits is task else logits(images, target), target).backward()
            times[logits].append(time.process_time() - begun)
    whole, skipping = (min(each[1:]) for each in times.values())
    return whole, skipping


def main() -> None:
    """Run all variants and seeds in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step", action="store_true", help="compare one step of a larger network")
    options = parser.parse_args()
    quiet()
    if options.step:
        whole, skipping = step_times()
        print(f"step {whole:.3f} s, skipping {skipping:.3f} s: {skipping / whole:.2f}")
        return
    warnings.filterwarnings("ignore", message="`isinstance")  # Lightning 2.6's own use of torch
    runs = []
    for seed in options.seeds:
        for variant in VARIANTS:
            runs.append(run(variant, seed, options.epochs))
            print({k: v for k, v in runs[-1].items() if k != "curve"}, flush=True)
    level = min(max(accuracy for _, accuracy in each["curve"]) for each in runs)
    for each in runs:
        each["seconds_to_level"] = next(seconds for seconds, accuracy in each["curve"] if accuracy >= level)
        each["level"] = level
    save("skipping", [{name: value for name, value in each.items() if name != "curve"} for each in runs])
    base = {each["seed"]: each for each in runs if each["variant"] == "ce"}
    print(f"\n| | time / CE | time to {100 * level:.1f} % validation / CE | test accuracy % | batch still active % |")
    print("|---|---|---|---|---|")
    for variant in VARIANTS:
        mine = [each for each in runs if each["variant"] == variant]
        cells = [
            [each["seconds"] / base[each["seed"]]["seconds"] for each in mine],
            [each["seconds_to_level"] / base[each["seed"]]["seconds_to_level"] for each in mine],
            [100 * each["test_accuracy"] for each in mine],
            [100 * each["mean_active"] for each in mine],
        ]
        spread = [f"{statistics.mean(c):.2f} ± {statistics.stdev(c) if len(c) > 1 else 0:.2f}" for c in cells]
        print(f"| {variant} | {' | '.join(spread)} |")


if __name__ == "__main__":
    main()
