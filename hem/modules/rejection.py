"""Rejection of the unknown: the test of a classifier against unknown sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hem import scores as metrics
from hem.calibration import Temperature, calibrate
from hem.datamodules.base import ImageDataModule
from hem.datamodules.loader import Batch
from hem.datamodules.unknown import UNKNOWN, check_unknown, kind_of, unknown_images
from hem.modules.base import Task
from hem.modules.calibrator import CHANGED, validation_logits
from hem.modules.examination import data_of, folder_of, write_figure, write_record, write_table, writes
from hem.modules.rejector import calibration_loader, gathered, passed
from hem.names import check_name
from hem.plots.rejection import rejection_curves
from hem.rng import key, permutation
from hem.scores import LOGIT_SCORES, check_score

DEFAULT_UNKNOWN = {"unrecognisable": [name for name, entry in UNKNOWN.items() if entry.kind == "unrecognisable"]}

RESERVED = {"clean", "corrupt", "adversarial", "overall"}  # names in tables that no group may have


def nonsense(net: Callable[[Tensor], Tensor], input: Tensor, steps: int = 20, size: float = 0.02) -> Tensor:
    """Climb from noise towards an image that a network takes for one of its classes.

    x <- clip(x + size * sign(grad_x g(x)), 0, 1) where g is the margin of the class that leads at the start
    over the best other one, z_k - max_{j != k} z_j. The margin asks for no particular loss; the image stays
    within steps * size of the noise, which nobody recognises.

    Args:
        net: Images to logits.
        input: Noise (N, C, H, W) in [0, 1].
        steps: Number of steps.
        size: Length of a step, in pixel units of [0, 1].

    Returns:
        Images (N, C, H, W) in [0, 1].

    Source: Nguyen et al., "Deep neural networks are easily fooled", CVPR 2015, section 3.3 (gradient ascent).
    """
    with torch.inference_mode(False), torch.enable_grad():
        image = input.clone()
        label: Tensor | None = None
        for _ in range(steps):
            image.requires_grad_()
            logits = net(image)
            label = logits.argmax(1, keepdim=True) if label is None else label
            rival = logits.scatter(1, label, -torch.inf).amax(1)
            (gradient,) = torch.autograd.grad((logits.gather(1, label).squeeze(1) - rival).sum(), image)
            image = (image.detach() + size * gradient.sign()).clamp(0, 1)
    return image


class RejectionTask(Task):
    """Test a classifier, trained with whatever loss, against unknown sets.

    Scores are unknownness (positive = unknown, higher = more unknown; see :mod:`hem.scores`). For each score s,
    each unknown set u and the means over each group of them ``results.json`` has ``test/<figure>/<s>/<u>``:

    * ``auroc``, ``aupr_in``, ``aupr_out``, ``fpr95_unknown_positive`` (OpenOOD's), ``fpr95_known_positive``;
    * ``oscr``, the area under the open-set classification rate curve;
    * ``dar`` and ``dar_strict``, the share of samples treated rightly at the threshold that accepts ``keep``
      of the rightly classified validation samples; for the known test images under ``clean``, ``corrupt`` and
      ``adversarial``; ``overall`` is the mean over the kinds of data (clean, corrupt, adversarial, novel,
      unrecognisable; ``rejection.json`` says which were there), each the mean over its sets.

    Scores whose order a temperature changes (softmax, entropy, energy) come twice: of the logits as they are, and as
    ``<score>_calibrated`` of the logits over the temperature that is fitted on the validation images. To the largest
    logit and the margin a temperature makes no difference.

    ``test/accuracy`` is of the known test images. A set that is not there is named and left out of the means:
    ``test/sets/<group>`` says how many sets a mean is over, ``rejection.json`` which. ``rejection.csv`` holds all
    figures, ``rejection_<s>.png`` the histograms and the curves.

    The task can train as well, and validates with ``val/accuracy``.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        unknown: Groups of unknown sets by name: keys of :data:`hem.datamodules.UNKNOWN`, or paths of folders of
            images (with a ``/`` in them). None: noise of every kind, as ``unrecognisable``.
        scores: Names of scores, of :data:`hem.scores.SCORES`. None: all that need logits alone.
        keep: Share of rightly classified validation samples that DAR's threshold accepts, in (0, 1].
        max_images: At most so many images of each unknown set, always the same ones.
        nonsense_images: At most so many of the set ``nonsense``, which takes gradients.
        corruptions: Corruptions of the known test images, of :data:`hem.corruptions.CORRUPTIONS`, all in the one
            set ``corrupt``. None: no such set.
        severity: Their severity, 1 to 5.
        attack_eps: Radius of PGD (L-inf, 20 steps, on the logit margin) on known test images, in pixel units of
            [0, 1], which make the set ``adversarial``. It attacks the label, not the rejection. None: no such set.
        known_images: At most so many known test images are corrupted and attacked, always the same ones.
        fit_images: At most so many training images that scores of features are fitted on.
        unknown_root: Folder of the unknown sets; None: that of the known data.
        noise_seed: Chooses the noise.
        **kwargs: See :class:`~hem.modules.base.Task`.

    Raises:
        ValueError: There is no such score or set, or ``keep`` is out of range.
    """

    def __init__(
        self,
        *args: Any,
        unknown: dict[str, list[str]] | None = None,
        scores: list[str] | None = None,
        keep: float = 0.95,
        max_images: int = 10_000,
        nonsense_images: int = 1000,
        corruptions: list[str] | None = None,
        severity: int = 3,
        attack_eps: float | None = None,
        known_images: int = 1000,
        fit_images: int = 10_000,
        unknown_root: str | None = None,
        noise_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups = {group: list(names) for group, names in (unknown or DEFAULT_UNKNOWN).items()}
        self.sets = list(dict.fromkeys(name for names in self.groups.values() for name in names))
        self.asked = list(scores) if scores is not None else list(LOGIT_SCORES)
        self.scores = self.asked  # and, in a test, what a temperature makes of them
        self.temperature: Temperature | None = None
        for name in self.sets:
            check_unknown(name)
        if len({short(name) for name in self.sets}) < len(self.sets):
            raise ValueError(f"Two unknown sets have the same name in tables: {', '.join(map(short, self.sets))}.")
        if both := self.groups.keys() & ({short(name) for name in self.sets} | RESERVED):
            raise ValueError(f"A group of unknown sets needs a name of its own, but '{min(both)}' is taken.")
        for name in self.scores:
            check_score(name)
        if corruptions:
            from hem.corruptions import CORRUPTIONS

            for name in corruptions:
                check_name(name, CORRUPTIONS, "corruption")
        if not 1 <= severity <= 5:
            raise ValueError(f"severity is 1 to 5, but it is {severity}.")
        if attack_eps is not None and not 0 <= attack_eps <= 1:
            raise ValueError(f"attack_eps is in pixel units of [0, 1], but it is {attack_eps}.")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is the share of samples to accept, in (0, 1], but it is {keep}.")
        sizes = {"max_images": max_images, "nonsense_images": nonsense_images, "known_images": known_images}
        for argument, number in (sizes | {"fit_images": fit_images}).items():
            if number < 1:
                raise ValueError(f"{argument} is a number of images, 1 or more, but it is {number}.")
        self.keep = keep
        self.max_images = max_images
        self.nonsense_images = nonsense_images
        self.corruptions = list(corruptions or ())
        self.severity = severity
        self.attack_eps = attack_eps
        self.known_images = known_images
        self.fit_images = fit_images
        self.unknown_root = Path(unknown_root).expanduser() if unknown_root is not None else None
        self.noise_seed = noise_seed
        self.fitted: dict[str, Callable[[Tensor], Tensor]] = {}
        self.clean = Seen(self)

    # -- one pass over a set -------------------------------------------------------------------------------

    def features(self, input: Tensor) -> Tensor:
        """What the last layer sees, (N, D).

        Raises:
            ValueError: The network does not tell its features and its last layer apart.
        """
        backbone: Any = self.net.backbone
        if not (hasattr(backbone, "forward_features") and hasattr(backbone, "head")):
            raise ValueError(
                f"The scores {', '.join(metrics.FEATURE_SCORES)} need a network with `forward_features` and "
                f"`head`, but {type(backbone).__name__} lacks them: take another network or other scores."
            )
        normalize: Any = self.net.normalize
        features: Tensor = backbone.forward_features(normalize(input))
        return features

    def score(self, input: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Every score of a batch, each (N,), and the predicted classes (N,); the logits are computed once."""
        found: dict[str, Tensor] = {}
        if self.fitted:
            features = self.features(input)
            logits = self.net.backbone.head(features)  # type: ignore[operator, union-attr]
            found |= {name: scorer(features) for name, scorer in self.fitted.items()}
        else:
            logits = self(input)
        found |= {name: LOGIT_SCORES[name](logits) for name in self.asked if name in LOGIT_SCORES}
        if self.temperature is not None:
            scaled = self.temperature.to(logits.device).scaled(logits)
            found |= {f"{name}_calibrated": LOGIT_SCORES[name](scaled) for name in self.asked if name in CHANGED}
        if "odin" in self.scores:
            found["odin"] = metrics.odin(self.net, input)
        return found, logits.argmax(1)

    def see(self, batches: Iterable[Batch]) -> Gathered:
        """Score all batches of a set, on all processes."""
        seen = Seen(self)
        for input, target, _ in batches:
            seen.add(input, target)
        return seen.gather()

    def corrupted(self) -> Iterator[Batch]:
        """Known test images, each under every corruption."""
        from hem.corruptions import corrupt

        for number, name in enumerate(self.corruptions):
            for input, target, index in self._known():
                words = key(self.noise_seed, 6, number, index)
                yield Batch(corrupt(input.float(), name, self.severity, words).to(input), target, index)

    def attacked(self, eps: float) -> Iterator[Batch]:
        """Known test images, each attacked."""
        from hem.attacks import pgd

        for input, target, index in self._known():
            words = key(self.noise_seed, 7, index)  # from where each begins is its own, however batches are cut
            images = pgd(self.net, input, target, eps, seed=words)
            yield Batch(images, target, index)

    def _known(self) -> Iterator[Batch]:
        """Some of the known test images, always the same ones."""
        data = data_of(self)
        images, index = data.part("test")
        chosen = index[permutation(len(index), 0)[: self.known_images]].sort().values
        return passed(self, data.loader(images, chosen))

    # -- Lightning's hooks ---------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Fit the temperature on validation images, and on training images the scores that read features."""
        data = data_of(self)
        self.fitted, self.temperature, self.scores = {}, None, self.asked
        if changed := [name for name in self.asked if name in CHANGED]:
            try:
                temperature = calibrate(*validation_logits(self))
                assert isinstance(temperature, Temperature)
                self.temperature = temperature
                self.scores = [*self.asked, *(f"{name}_calibrated" for name in changed)]
            except (LookupError, ValueError) as error:
                self._say(f"no calibrated scores: {error}")
        self.clean = Seen(self)
        wanted = [name for name in self.scores if name in metrics.FEATURE_SCORES]
        if not wanted:
            return
        images, index = data.part("train")
        index = index[permutation(len(index), 0)[: self.fit_images]].sort().values
        batches = passed(self, data.loader(images, index))
        found = [(self.features(input), target) for input, target, _ in batches]
        features = gathered(self, [features for features, _ in found])
        target = gathered(self, [target for _, target in found])
        head: Any = self.net.backbone.head  # type: ignore[union-attr]
        self.fitted = {name: metrics.fit(name, features, target, head) for name in wanted}

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch of the known test images."""
        input, target, *_ = batch
        self.clean.add(input, target)

    def on_test_epoch_end(self) -> None:
        """Go through the unknown sets, then log and write what was found."""
        data = data_of(self)
        clean = self.clean.gather()
        try:
            validation = self.see(passed(self, calibration_loader(self)))
            thresholds = {
                name: metrics.accept_threshold(scores[validation.correct], self.keep)
                for name, scores in validation.scores.items()
                if validation.correct.any()
            }
            reason = "no validation sample is classified rightly"
        except LookupError as error:
            thresholds, reason = {}, str(error)
        if not thresholds:
            self._say(f"no threshold, so no DAR: {reason}")
        seen: dict[str, Gathered] = {}
        missing: dict[str, str] = {}
        for name in self.sets:
            limit = min(self.max_images, self.nonsense_images if name == "nonsense" else self.max_images)
            try:
                images, index = unknown_images(name, data, self.unknown_root, limit, self.noise_seed)
            except FileNotFoundError as error:
                missing[name] = str(error)
                self._say(f"skipped: the unknown set {name} is missing: {error}")
                continue
            batches = passed(self, data.loader(images, index))
            if name == "nonsense":
                batches = (Batch(nonsense(self.net, input), target, index) for input, target, index in batches)
            seen[name] = self.see(batches)
        known = {"clean": clean}
        if self.corruptions:
            known["corrupt"] = self.see(self.corrupted())
        if self.attack_eps is not None:
            known["adversarial"] = self.see(self.attacked(self.attack_eps))
        rows = self._rows(known, seen, thresholds)
        self._log(clean, seen, rows)
        if self.trainer.is_global_zero:
            self._write(data, known, seen, missing, thresholds, rows)

    def _say(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line)

    # -- figures -------------------------------------------------------------------------------------------

    def _rows(self, same: dict[str, Gathered], seen: dict[str, Gathered], thresholds: dict[str, float]) -> list[Row]:
        """All figures: for each score each set of known and of unknown classes, each group, the kinds together."""
        rows: list[Row] = []
        clean = same["clean"]
        for score in self.scores:
            known = clean.scores[score]
            figures: dict[str, dict[str, float]] = {}
            for name, found in seen.items():
                unknown = found.scores[score]
                figures[name] = {figure: metric(known, unknown) for figure, metric in metrics.METRICS.items()}
                figures[name]["oscr"] = metrics.oscr(known, clean.correct, unknown)
            kinds: dict[str, list[dict[str, float]]] = defaultdict(list)
            if score in thresholds:
                for name, found in (same | seen).items():
                    correct: Tensor | bool = found.correct if name in same else False
                    dar = {
                        figure: metrics.detection_accuracy(
                            found.scores[score], correct, thresholds[score], strict=strict
                        )
                        for figure, strict in (("dar", False), ("dar_strict", True))
                    }
                    figures.setdefault(name, {}).update(dar)
                    kinds[name if name in same else kind_of(name)].append(dar)
            rows += [Row(score, short(name), 1, found) for name, found in figures.items()]
            for group, names in self.groups.items():
                if present := [figures[name] for name in names if name in seen]:
                    rows.append(Row(score, group, len(present), averaged(present)))
            if kinds:
                rows.append(Row(score, "overall", len(same) + len(seen), averaged(list(map(averaged, kinds.values())))))
        return rows

    def _log(self, clean: Gathered, seen: dict[str, Gathered], rows: list[Row]) -> None:
        self.log("test/accuracy", clean.correct.double().mean(), sync_dist=True)
        for row in rows:
            for figure, value in row.figures.items():
                # all into results.json; the means of AUROC alone on the screen and into TensorBoard
                shown = figure == "auroc" and row.name in self.groups
                self.log(f"test/{figure}/{row.score}/{row.name}", value, logger=shown, sync_dist=True)
        for group, names in self.groups.items():
            present = sum(name in seen for name in names)
            self.log(f"test/sets/{group}", float(present), logger=False, sync_dist=True)

    def _write(
        self,
        data: ImageDataModule,
        known: dict[str, Gathered],
        seen: dict[str, Gathered],
        missing: dict[str, str],
        thresholds: dict[str, float],
        rows: list[Row],
    ) -> None:
        clean = known["clean"]
        Console().print(self._table(data, clean, seen, rows))
        for score in self.scores:
            write_figure(self, f"rejection_{score}", self._figure(score, clean, seen, thresholds.get(score)))
        sizes = {short(name): len(found.correct) for name, found in (known | seen).items()}
        columns = ["score", "name", "sets", "images", *metrics.METRICS, "oscr", "dar", "dar_strict"]
        table = (
            {"score": row.score, "name": row.name, "sets": row.sets, "images": sizes.get(row.name)}
            | {key: round(value, 6) for key, value in row.figures.items()}
            for row in rows
        )
        write_table(self, "rejection", columns, table)
        record = {
            "convention": "scores are unknownness: positive = unknown, higher = more unknown",
            "known": data.name,
            "accuracy": float(clean.correct.double().mean()),
            "keep": self.keep,
            "temperature": None if self.temperature is None else self.temperature.temperature.item(),
            "thresholds": thresholds,
            "images": sizes,
            "groups": {
                group: {
                    "present": [name for name in names if name in seen],
                    "missing": [name for name in names if name in missing],
                }
                for group, names in self.groups.items()
            },
            "missing": missing,
            "corruptions": {"names": self.corruptions, "severity": self.severity},
            "attack_eps": self.attack_eps,
            "noise_seed": self.noise_seed,
        }
        write_record(self, "rejection", record)
        if writes(self):
            print(f"rejection: {folder_of(self) / 'rejection.csv'}, rejection.json and rejection_<score>.png")

    def _table(self, data: ImageDataModule, clean: Gathered, seen: dict[str, Gathered], rows: list[Row]) -> Table:
        """AUROC in per cent: unknown sets and means of groups against the scores that were asked for."""
        accuracy = 100 * float(clean.correct.double().mean())
        table = Table(title=f"AUROC (%), {data.title} known, accuracy {accuracy:.2f} %")
        table.add_column("unknown set")
        for score in self.asked:
            table.add_column(score, justify="right")
        values = {(row.name, row.score): row.figures.get("auroc") for row in rows}
        names = [short(name) for name in seen]
        for label, name in [*zip(names, names, strict=True), *(self._mean_of(g, seen) for g in self.groups)]:
            cells = [values.get((name, score)) for score in self.asked]
            table.add_row(
                label, *("-" if cell is None else f"{100 * cell:.2f}" for cell in cells), end_section=name in names[-1:]
            )
        return table

    def _mean_of(self, group: str, seen: dict[str, Gathered]) -> tuple[str, str]:
        names = self.groups[group]
        present = sum(name in seen for name in names)
        return f"{group}, mean of {present}/{len(names)}", group

    def _figure(self, score: str, clean: Gathered, seen: dict[str, Gathered], threshold: float | None) -> Figure:
        """Histograms of one score beside its ROC and OSCR curves, one line per unknown set."""
        known, correct = clean.scores[score], clean.correct
        unknown = {short(name): found.scores[score] for name, found in seen.items()}
        rocs = {name: metrics.roc(known, values) for name, values in unknown.items()}
        return rejection_curves(
            score,
            {"known": known, **unknown},
            {name: (curve.fpr, curve.tpr, metrics.auroc(known, unknown[name])) for name, curve in rocs.items()},
            {
                name: (*metrics.oscr_curve(known, correct, values), metrics.oscr(known, correct, values))
                for name, values in unknown.items()
            },
            threshold,
            self.keep,
        )


class Row(NamedTuple):
    """Figures of one score for one unknown set, or the means over several."""

    score: str
    name: str
    sets: int
    figures: dict[str, float]


class Gathered(NamedTuple):
    """The scores of a whole set, and what of it is classified rightly (nothing of an unknown one)."""

    scores: dict[str, Tensor]  # each (N,)
    correct: Tensor  # (N,) bool


class Seen:
    """The scores of a set as they come, batch by batch."""

    def __init__(self, task: RejectionTask) -> None:
        self.task = task
        self.scores: dict[str, list[Tensor]] = {name: [] for name in task.scores}
        self.correct: list[Tensor] = []

    def add(self, input: Tensor, target: Tensor) -> None:
        """Score a batch."""
        scores, label = self.task.score(input)
        for name, values in scores.items():
            self.scores[name].append(values.detach().double().cpu())
        self.correct.append((label == target).cpu())

    def gather(self) -> Gathered:
        """The whole set, of all processes."""
        scores = {name: gathered(self.task, parts) for name, parts in self.scores.items()}
        return Gathered(scores, gathered(self.task, self.correct).bool())


def short(name: str) -> str:
    """The name of a set in tables: a folder's own name."""
    return Path(name).name


def averaged(figures: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure that all have."""
    return {key: mean(each[key] for each in figures) for key in figures[0] if all(key in each for each in figures)}
