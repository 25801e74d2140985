"""Rejection task: test how well a classifier tells unknown images from known ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch import Tensor

from hem.attacks import pgd
from hem.attacks.fooling import nonsense
from hem.calibration import Temperature, calibrate
from hem.corruptions import CORRUPTIONS, corrupt
from hem.datamodules.evaluation import EvaluationSet
from hem.datamodules.unknown import UNKNOWN, Kind, check_unknown, kind_of, unknown_images
from hem.metrics import catalog
from hem.modules.base import Task
from hem.modules.calibrator import CHANGED
from hem.modules.examination import data_of
from hem.modules.rejection_files import write_rejection
from hem.modules.rejector import calibration_images
from hem.names import check_name
from hem.rejection import LOGIT_SCORES, FeatureScore, InputScore, accept_threshold
from hem.rejection.evaluation import Row, Scored, table
from hem.rejection.named import score_of
from hem.rng import key, some
from hem.runs.ranks import gathered

DEFAULT_UNKNOWN = {"unrecognisable": [name for name, entry in UNKNOWN.items() if entry.kind == "unrecognisable"]}
KNOWN = ("clean", "corrupt", "adversarial")  # kinds of known images
RESERVED = {*KNOWN, "overall"}  # names in tables that no group may have
TEMPLATES = {
    each.path.partition("/")[0]: each
    for each in (catalog.AUROC, catalog.AUPR_IN, catalog.AUPR_OUT, catalog.FPR95_UNKNOWN, catalog.FPR95_KNOWN,
                 catalog.OSCR, catalog.DAR, catalog.DAR_STRICT)
}  # fmt: skip

LogitScore = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """Outputs of the network for a batch, kept on the CPU until the scores are fitted."""

    logits: Tensor  #: (N, C)
    features: Tensor | None  #: (N, D)
    asked: dict[str, Tensor]  #: the scores of input, each (N,)
    target: Tensor  #: (N,)


class RejectionTask(Task):
    """Test a classifier, trained with whatever loss, against unknown sets.

    Scores are unknownness (positive = unknown, higher = more unknown; see :mod:`hem.rejection`). For each score s,
    each unknown set u and the means over each group of them ``results.json`` has ``test/<metric>/<s>/<u>``:

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
    metrics, ``rejection_<s>.png`` the histograms and the curves.

    The task can train as well, and validates with ``val/accuracy``.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        unknown: Groups of unknown sets by name: keys of :data:`hem.datamodules.UNKNOWN`, or paths of folders of
            images (with a ``/`` in them). None: noise of every kind, as ``unrecognisable``.
        scores: Names of :data:`hem.rejection.LOGIT_SCORES`, or the path of one's own function of logits; scores
            that are fitted on features, or ask the network, such as :class:`~hem.rejection.KNN`, or one's own under
            :class:`~hem.rejection.FeatureScore`. None: all that need logits alone.
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
        scores: list[FeatureScore | InputScore | str] | None = None,
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
        self.unknown = list(dict.fromkeys(name for names in self.groups.values() for name in names))
        chosen = list(LOGIT_SCORES) if scores is None else scores
        self.scores = dict(map(score_of, chosen))  # by name
        if len(self.scores) < len(chosen):
            raise ValueError(
                "Expected scores of different names, got two of one name: give one of them another `name`."
            )
        self.temperature: Temperature | None = None
        for name in self.unknown:
            check_unknown(name)
        if len({short(name) for name in self.unknown}) < len(self.unknown):
            raise ValueError(f"Two unknown sets have the same name in tables: {', '.join(map(short, self.unknown))}.")
        if both := self.groups.keys() & ({short(name) for name in self.unknown} | RESERVED):
            raise ValueError(
                f"Expected a group of unknown sets of another name, got '{min(both)}', which is taken: rename it."
            )
        for name in corruptions or ():
            check_name(name, CORRUPTIONS, "corruption")
        if not 1 <= severity <= 5:
            raise ValueError(f"Expected a severity from 1 to 5, got {severity}: 3 is usual.")
        if attack_eps is not None and not 0 <= attack_eps <= 1:
            raise ValueError(f"Expected attack_eps in pixel units, in [0, 1], got {attack_eps}: write 8/255 as 0.0314.")
        if not 0 < keep <= 1:
            raise ValueError(f"Expected keep, the share of samples to accept, in (0, 1], got {keep}: 0.95 is usual.")
        sizes = {"max_images": max_images, "nonsense_images": nonsense_images, "known_images": known_images}
        for argument, number in (sizes | {"fit_images": fit_images}).items():
            if number < 1:
                raise ValueError(f"Expected {argument}, a number of images, to be 1 or more, got {number}: raise it.")
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
        self.sets: list[EvaluationSet] = []  # what the test goes through
        self.missing: dict[str, str] = {}
        self.parts: list[list[Part]] = []  # of each set, batch by batch

    # -- what is gone through ------------------------------------------------------------------------------

    def _of(self, kind: type) -> dict[str, Any]:
        return {name: score for name, score in self.scores.items() if isinstance(score, kind)}

    @property
    def logit_scores(self) -> dict[str, LogitScore]:
        """Those that read logits alone."""
        others = (FeatureScore, InputScore)
        return {name: score for name, score in self.scores.items() if not isinstance(score, others)}

    def setup(self, stage: str) -> None:
        """Give the data module the sets to test on; missing sets are named before the test begins."""
        super().setup(stage)
        if stage != "test":
            return
        data = data_of(self.trainer)
        test, places = data.part("test")
        known = chosen(places, self.known_images)
        sets, self.missing = [EvaluationSet("clean", "clean", test, places)], {}
        self.no_validation = ""
        try:
            sets.append(EvaluationSet("validation", "validation", *calibration_images(data)))
        except LookupError as error:
            self.no_validation = str(error)
        if self._of(FeatureScore):
            images, index = data.part("train")
            sets.append(EvaluationSet("fit", "fit", images, chosen(index, self.fit_images)))
        for name in self.unknown:
            limit = min(self.max_images, self.nonsense_images) if name == "nonsense" else self.max_images
            try:
                found = unknown_images(name, data, self.unknown_root, limit, self.noise_seed)
                sets.append(EvaluationSet(short(name), kind_of(name), *found))
            except FileNotFoundError as error:
                self.missing[name] = str(error)
                self._say(f"skipped: the unknown set {name} is missing: {error}")
        sets += [EvaluationSet(name, "corrupt", test, known) for name in self.corruptions]
        if self.attack_eps is not None:
            sets.append(EvaluationSet("adversarial", "adversarial", test, known))
        self.sets = data.evaluation_sets = sets

    def teardown(self, stage: str) -> None:
        """Restore the data module."""
        if stage == "test":
            data_of(self.trainer).evaluation_sets = []

    def on_test_start(self) -> None:
        """Clear the outputs; this task prints its own table in place of Lightning's, of one column per set."""
        self.trainer.test_loop.verbose = False
        self.parts = [[] for _ in self.sets]

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the outputs of the network for one batch of one set."""
        each = self.sets[dataloader_idx]
        input, target, index = batch
        input = self._changed(each, input, target, index)
        features = None
        if self._of(FeatureScore):
            features = self.features(input)
            logits = self.net.backbone.head(features)  # type: ignore[operator, union-attr]
            features = features.detach().cpu()
        else:
            logits = self(input)
        scores = {} if each.kind == "fit" else self._of(InputScore)
        asked = {name: score(self.net, input).detach().cpu() for name, score in scores.items()}
        self.parts[dataloader_idx].append(Part(logits.detach().cpu(), features, asked, target.cpu()))

    def _changed(self, each: EvaluationSet, input: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Corrupt or attack known images, by per-image keys; make fooling images from noise."""
        if each.kind == "corrupt":
            words = key(self.noise_seed, 6, self.corruptions.index(each.name), index)
            return corrupt(input.float(), each.name, self.severity, words).to(input)
        if each.kind == "adversarial" and self.attack_eps is not None:
            words = key(self.noise_seed, 7, index)
            return pgd(self.net, input, target, self.attack_eps, seed=words)
        return nonsense(self.net, input) if each.name == "nonsense" else input

    def features(self, input: Tensor) -> Tensor:
        """Return the features (N, D), the input of the last layer.

        Raises:
            ValueError: The network does not tell its features and its last layer apart.
        """
        backbone: Any = self.net.backbone
        if not (hasattr(backbone, "forward_features") and hasattr(backbone, "head")):
            raise ValueError(
                f"The scores {', '.join(self._of(FeatureScore))} need a network with `forward_features` and `head`, "
                f"but {type(backbone).__name__} lacks them: take another network or other scores."
            )
        normalize: Any = self.net.normalize
        features: Tensor = backbone.forward_features(normalize(input))
        return features

    # -- what was found ------------------------------------------------------------------------------------

    def on_test_epoch_end(self) -> None:
        """Fit the scores, score all sets, then log and write the results."""
        calibrated = self._calibrated(self._parts("validation"))
        fitted = self._fitted(self._parts("fit"))
        thresholds = {}
        validation = self._scored(self._parts("validation"), calibrated, fitted)
        if validation.correct.any():
            thresholds = {
                name: accept_threshold(scores[validation.correct], self.keep)
                for name, scores in validation.scores.items()
            }
        else:
            reason = self.no_validation or "no validation sample is classified rightly"
            self._say(f"no threshold, so no DAR: {reason}")
        known = {kind: self._scored(parts, calibrated, fitted) for kind in KNOWN if (parts := self._parts(kind))}
        unknown = {
            each.name: self._scored(parts, calibrated, fitted)
            for each, parts in zip(self.sets, self.parts, strict=True)
            if each.kind in get_args(Kind)
        }
        self.parts = []
        kinds = {short(name): kind_of(name) for name in self.unknown}
        groups = {group: [short(name) for name in names] for group, names in self.groups.items()}
        rows = table(known, unknown, kinds, groups, thresholds)
        self._log(known["clean"], unknown, groups, rows)
        if self.trainer.is_global_zero:
            record = {
                "convention": "scores are unknownness: positive = unknown, higher = more unknown",
                "known": data_of(self.trainer).name,
                "accuracy": float(known["clean"].correct.double().mean()),
                "keep": self.keep,
                "temperature": None if self.temperature is None else self.temperature.temperature.item(),
                "thresholds": thresholds,
                "images": {name: len(found.correct) for name, found in {**known, **unknown}.items()},
                "groups": {
                    group: {
                        "present": [name for name in names if name not in self.missing],
                        "missing": [name for name in names if name in self.missing],
                    }
                    for group, names in self.groups.items()
                },
                "missing": self.missing,
                "corruptions": {"names": self.corruptions, "severity": self.severity},
                "attack_eps": self.attack_eps,
                "noise_seed": self.noise_seed,
            }
            write_rejection(self.trainer, list(self.scores), known["clean"], unknown, groups, rows, record)

    def _parts(self, kind: str) -> list[Part]:
        """Return the batches of all sets of a kind."""
        return [part for each, parts in zip(self.sets, self.parts, strict=True) if each.kind == kind for part in parts]

    def _calibrated(self, validation: Sequence[Part]) -> dict[str, LogitScore]:
        """Return the scores that a temperature changes, under the temperature fitted on validation images."""
        self.temperature = None
        changed = [name for name in CHANGED if name in self.logit_scores]
        if not changed:
            return {}
        try:
            if not validation:
                raise LookupError(self.no_validation or "no validation image came within limit_test_batches")
            logits = gathered(self.trainer, [part.logits.float() for part in validation])
            found = calibrate(logits, gathered(self.trainer, [part.target for part in validation]))
        except (LookupError, ValueError) as error:
            self._say(f"no calibrated scores: {error}")
            return {}
        assert isinstance(found, Temperature)
        self.temperature = found.to(self.device)
        return {name: partial(scaled, LOGIT_SCORES[name], self.temperature) for name in changed}

    def _fitted(self, training: Sequence[Part]) -> dict[str, LogitScore]:
        """Return the scores of features, fitted on training images."""
        if not training:
            return {}
        features = gathered(self.trainer, [part.features for part in training if part.features is not None]).float()
        target = gathered(self.trainer, [part.target for part in training])
        head: Any = self.net.backbone.head  # type: ignore[union-attr]
        return {name: score.fit(features, target, head) for name, score in self._of(FeatureScore).items()}

    def _scored(
        self, parts: Sequence[Part], calibrated: Mapping[str, LogitScore], fitted: Mapping[str, LogitScore]
    ) -> Scored:
        """Return every score of a set, of all processes."""
        names = [*self.scores, *(f"{name}_calibrated" for name in calibrated)]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        right = []
        for part in parts:
            logits = part.logits.to(self.device)
            values = {name: score(logits) for name, score in self.logit_scores.items()} | part.asked
            values |= {f"{name}_calibrated": score(logits) for name, score in calibrated.items()}
            if part.features is not None:
                values |= {name: score(part.features.to(self.device)) for name, score in fitted.items()}
            for name, value in values.items():
                found[name].append(value.detach().double().cpu())
            right.append(part.logits.argmax(1) == part.target)
        scores = {name: gathered(self.trainer, values) for name, values in found.items()}
        return Scored(scores, gathered(self.trainer, right).bool())

    def _say(self, line: str) -> None:
        if self.trainer.is_global_zero:
            print(line)

    def _log(
        self, clean: Scored, unknown: Mapping[str, Scored], groups: Mapping[str, Sequence[str]], rows: Sequence[Row]
    ) -> None:
        self.log(catalog.ACCURACY.key("test"), clean.correct.double().mean(), sync_dist=True)
        for row in rows:
            for metric, value in row.metrics.items():
                # all into results.json; the means of AUROC alone on the screen and into TensorBoard
                shown = metric == "auroc" and row.name in groups
                name = TEMPLATES[metric].key("test", score=row.score, set=row.name)
                self.log(name, value, logger=shown, sync_dist=True)
        for group, names in groups.items():
            present = sum(name in unknown for name in names)
            self.log(catalog.SETS.key("test", set=group), float(present), logger=False, sync_dist=True)


def short(name: str) -> str:
    """Return the name of a set in tables: a folder's own name."""
    return Path(name).name


def chosen(index: Tensor, count: int) -> Tensor:
    """Return at most so many of the positions, always the same ones, ascending."""
    return index[some(count, len(index), 0)]


def scaled(score: LogitScore, temperature: Temperature, logits: Tensor) -> Tensor:
    """Return a score of logits over a temperature."""
    return score(temperature.scaled(logits))
