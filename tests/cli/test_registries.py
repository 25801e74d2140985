"""The one registry of names: complete, alone, and open to one's own classes."""

import ast
import sys
from pathlib import Path

import pytest
from torch import nn

import hem
from hem.attacks import FGSM, PGD
from hem.cli import build, quiet
from hem.cli.own import Unusable
from hem.cli.registries import REGISTRIES, class_of
from hem.rejection import KNN, LOGIT_SCORES, Mahalanobis, ViM
from hem.rejection.named import score_of

PACKAGE = Path(hem.__file__).parent
OWN = """
from hem.attacks import Attack
from hem.rejection import FeatureScore, InputScore

class Darker(Attack):
    def __init__(self, name: str | None = None):
        self.name = name

    def __call__(self, net, input, target, eps, norm, keys):
        return (input - eps).clamp_min(0)

class Far(FeatureScore):
    def __init__(self, power: int = 1):
        self.power = power

    def fit(self, features, target, head):
        return lambda each: each.norm(dim=1) ** self.power

def second(logits):
    return logits.topk(2).values[:, 1]
"""
CONFIGS = {
    "AdversarialTask": "attacks: [FGSM, own_kinds.Darker, {class_path: own_kinds.Darker, init_args: {name: other}}]",
    "RejectionTask": (
        "scores: [energy, KNN, own_kinds.Far, own_kinds.second, {class_path: ViM, init_args: {dimension: 3}}]"
    ),
}


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Build a task of a config in a file, beside which the own classes lie."""
    (tmp_path / "own_kinds.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    quiet()

    def build_task(task):
        config = tmp_path / "own.yaml"
        net = "net: {class_path: LeNet}, loss: {class_path: HEMLoss}"
        config.write_text(f"model: {{class_path: {task}, init_args: {{{net}, {CONFIGS[task]}}}}}")
        words = ["--config", str(config), "--data", "hem.datamodules.DigitsDataModule", "--run_dir", str(tmp_path)]
        return build([*words, "--trainer.accelerator=cpu"], run=False).model

    yield build_task
    sys.modules.pop("own_kinds", None)


def test_attacks_from_a_file(built):
    """By short name, by the path of one's own class, with arguments: as losses."""
    task = built("AdversarialTask")
    assert list(map(str, task.attacks)) == ["fgsm", "darker", "other"]
    assert type(task.attacks[0]) is FGSM
    assert isinstance(task.loss, nn.Module)


def test_scores_from_a_file(built):
    """Of logits by name, fitted ones by class, and one's own of both kinds."""
    scores = built("RejectionTask").scores
    assert list(scores) == ["energy", "knn", "far", "second", "vim"]
    assert scores["energy"] is LOGIT_SCORES["energy"]
    assert (type(scores["knn"]), scores["far"].power, scores["vim"].dimension) == (KNN, 1, 3)


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("attacks", "hem.attacks.PDG", "hem.attacks has no class 'PDG'; did you mean 'PGD'"),
        ("attacks", "hem.rejection.KNN", "hem.rejection.KNN is no attack: derive it from hem.attacks.Attack"),
        ("scores", "hem.attacks.PGD", "no rejection score: derive it from hem.rejection.FeatureScore"),
    ],
)
def test_what_is_wrong_is_said(key, name, words):
    with pytest.raises(Unusable, match=words):
        REGISTRIES[key].path(name)


@pytest.mark.parametrize(("name", "meant"), [("max_logits", "max_logit"), ("KN", "KNN")])
def test_a_misspelt_score(name, meant):
    """Near names are those of functions of logits and of classes."""
    with pytest.raises(ValueError, match=f"Unknown rejection score '{name}'; did you mean '{meant}'.* msp, .*ViM"):
        score_of(name)


def test_the_registry_has_every_kind():
    """Tasks, networks, losses, data sets, strategies, attacks and scores, each at its path."""
    assert {"model", "net", "loss", "data", "dataset", "strategy", "attacks", "scores"} <= REGISTRIES.keys()
    for registry in REGISTRIES.values():
        assert registry.classes
        assert all(issubclass(class_of(path), registry.base) for path in registry.classes.values())
    assert [class_of(REGISTRIES["attacks"].path(name)) for name in ("FGSM", "PGD")] == [FGSM, PGD]
    assert {Mahalanobis, ViM} < {class_of(path) for path in REGISTRIES["scores"].classes.values()}


#: short names of classes, former names, and the data sets that lie in memory, of which classes can be held out
TABLES = {"LOSSES", "STRATEGIES", "FORMER", "WHOLE", "__all__"}


def test_there_is_no_second_list():
    """Of three or more of our classes, as words or as classes, anywhere in the package."""
    ours = {name for registry in REGISTRIES.values() for name, path in registry.classes.items() if path[:4] == "hem."}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        known = {
            id(node)
            for statement in tree.body
            if isinstance(statement, ast.Assign | ast.AnnAssign)
            for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
            if isinstance(target, ast.Name) and target.id in TABLES
            for node in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict) or id(node) in known:
                continue
            entries = [*node.keys, *node.values] if isinstance(node, ast.Dict) else node.elts
            words = {str(getattr(each, "id", getattr(each, "value", ""))).rpartition(".")[2] for each in entries}
            if len(words & ours) > 2:
                found.append(f"{path.relative_to(PACKAGE)}: {sorted(words & ours)}")
    assert found == []
