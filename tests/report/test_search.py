"""What a report says of a search: budget, space, every trial, what mattered, what was chosen and what it brought."""

import json
import sys

import pytest

from hem import report
from hem.plots.search import position
from tests.report.test_page import leave, page_of, rows

optuna = pytest.importorskip("optuna", reason="searches need Optuna")
CELL, TUNED = "classification_digits", "classification_digits_tuned"
SPACE = {
    "lr": {"options": ["--model.optimizer.lr"], "low": 0.01, "high": 1.0, "log": True, "choices": []},
    "net": {"options": ["--model.net"], "low": None, "high": None, "log": False, "choices": ["MLP", "LeNet"]},
}
BEST = {"ce": (3, 0.1), "hem": (5, 0.97)}  # trial and rate; the second is at the edge


def searched(folder, storage):
    """Eight trials for each loss, one of them pruned and one not finite."""
    states = optuna.trial.TrialState
    distributions = {
        "lr": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
        "net": optuna.distributions.CategoricalDistribution(["MLP", "LeNet"]),
    }
    for loss, (best, rate) in BEST.items():
        study = optuna.create_study(storage=storage, study_name=f"{CELL}/{loss}", direction="maximize")
        for number in range(8):
            state = {6: states.PRUNED, 7: states.FAIL}.get(number, states.COMPLETE)
            ended = state == states.COMPLETE
            trial = optuna.trial.create_trial(
                state=state,
                value=(0.99 if number == best else 0.9 + 0.001 * number) if ended else None,
                params={"lr": rate if number == best else 0.02 * (number + 1), "net": ["MLP", "LeNet"][number % 2]},
                distributions=distributions,
                user_attrs={"seconds": 10.0, "own": not number, **({} if ended else {"why": "too slow"})},
            )
            study.add_trial(trial)
        place = folder / "search" / CELL / loss
        place.mkdir(parents=True)
        record = {
            "space": SPACE, "monitor": "val/accuracy", "mode": "max", "trials": 8, "seconds": None, "seed": 1000,
            "sampler": ["tpe", {}], "pruner": ["median", {}],
            "best": {"trial": best, "value": 0.99, "params": {"lr": rate, "net": "LeNet"}},
            "own": {"lr": 0.02, "net": "MLP"},
        }  # fmt: skip
        (place / "search.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path):
    """A study with a search of two losses, and its tuned and untuned runs of three seeds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = tmp_path / "small"
    for cell, gain in ((CELL, 0.0), (TUNED, 0.05)):
        for loss, base in (("ce", 0.8), ("hem", 0.82)):
            for seed in range(3):
                accuracy = base + gain * (2 if loss == "hem" else 1) + 0.01 * seed + (0.001 * seed**2 if gain else 0)
                leave(study, cell, loss, seed, {"test/accuracy": accuracy})
    storage = f"sqlite:///{study / 'search.db'}"
    searched(study, storage)
    names = [f"{cell}/{loss}/seed{seed}" for cell in (CELL, TUNED) for loss in ("ce", "hem") for seed in range(3)]
    untuned = {CELL: None, TUNED: CELL}
    plan = {
        "study": "small", "source": "small.yaml", "cost": "", "runs": {name: {"after": None} for name in names},
        "cells": {cell: {"primary": "test/accuracy", "untuned": untuned[cell]} for cell in untuned},
        "search": {"storage": storage, "searches": [f"{CELL}/{loss}" for loss in BEST]},
    }  # fmt: skip
    (study / "plan.json").write_text(json.dumps(plan))
    return study


def test_search(folder):
    """Budget, space, what was chosen and what mattered; the edge is named; every trial stands in its table."""
    report.write(folder)
    text = " ".join(page_of(folder).text)
    assert "8 trials for each loss; sampler tpe, pruner median, seed 1000; judged by accuracy of validation" in text
    assert "ce 8 trials in 80 s, hem 8 trials in 80 s" in text
    assert "The best lr of hem in classification_digits, 0.97, lies at the upper edge of its space, 0.01 to 1" in text
    assert "The best lr of ce" not in text
    chosen = rows(folder / "report" / f"{CELL}_chosen.csv")
    assert [(row["loss"], row["parameter"], row["chosen"]) for row in chosen] == [
        ("ce", "lr", "0.1"), ("ce", "net", "LeNet"), ("hem", "lr", "0.97"), ("hem", "net", "LeNet"),
    ]  # fmt: skip
    assert sum(float(row["importance"]) for row in chosen if row["loss"] == "ce") == pytest.approx(1, abs=0.011)
    trials = rows(folder / "report" / f"{CELL}_trials.csv")
    assert [row["state"] for row in trials] == 2 * (["complete"] * 6 + ["pruned", "fail"])
    assert [row["why"] for row in trials[5:8]] == ["", "too slow", "too slow"]
    assert [row["trial"] for row in trials if row["why"] == "the config's own setting"] == ["0", "0"]
    for name in ("slices", "parallel"):
        assert "<svg" in (folder / "report" / f"{CELL}_{name}.svg").read_text()


@pytest.mark.parametrize("name", ["search.db", "search.journal"])
def test_without_its_trials_the_page_is_there(folder, name):
    """As where results alone were copied: a sentence, and no empty storage in its place."""
    (folder / "search.db").unlink()
    plan = json.loads((folder / "plan.json").read_text())
    plan["search"]["storage"] = f"{'sqlite:///' if name.endswith('db') else ''}{folder / 'elsewhere' / name}"
    (folder / "plan.json").write_text(json.dumps(plan))
    report.write(folder)
    text = " ".join(page_of(folder).text)
    assert f"trials of the search are not shown: Expected them in {folder / name}, got no such file" in text
    assert not (folder / name).exists()


def test_the_configs_own_setting(folder):
    """The page says where it was chosen, and where it was none of the trials."""
    changes = {"ce": {"best": {"trial": 0, "value": 0.99, "params": {"lr": 0.02, "net": "MLP"}}},
               "hem": {"own": None, "why": "lr is 2.0 there, and is searched in 0.01 to 1.0"}}  # fmt: skip
    for loss, change in changes.items():
        path = folder / "search" / CELL / loss / "search.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    report.write(folder)
    chosen = rows(folder / "report" / f"{CELL}_chosen.csv")
    assert [row["best trial"] for row in chosen] == ["0: the config's own setting"] * 2 + ["5"] * 2
    text = " ".join(page_of(folder).text)
    assert f"own setting of hem in {CELL} is none of the trials: lr is 2.0 there, and is searched in 0.01 to" in text
    assert "own setting of ce" not in text


def test_tuned_beside_untuned(folder):
    """How much was the setting, how much the loss: differences of the same seeds."""
    report.write(folder)
    found = {row["loss"]: row for row in rows(folder / "report" / f"{TUNED}_beside_untuned.csv")}
    assert found["ce"]["by the setting"].startswith("+5.17 (")
    assert found["hem"]["by the setting"].startswith("+10.17 (")
    assert found["hem"]["over ce, untuned"] == "+2.00 (+2.00 to +2.00)"
    assert found["hem"]["over ce, tuned"] == "+7.00 (+7.00 to +7.00)"
    assert found["ce"]["over ce, tuned"] == ""
    assert "<svg" in (folder / "report" / f"{TUNED}_beside_untuned.svg").read_text()
    assert not (folder / "report" / f"{CELL}_beside_untuned.csv").exists()


def test_without_optuna(folder, monkeypatch):
    """What was chosen is in the folder; the trials are not shown, and the page says why. Also: it was moved."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    report.write(folder.rename(folder.with_name("moved")))
    text = " ".join(page_of(folder.with_name("moved")).text)
    assert "The trials of the search are not shown:" in text
    assert "pip install 'hem-loss[search]'" in text
    assert rows(folder.with_name("moved") / "report" / f"{CELL}_chosen.csv")[0]["chosen"] == "0.1"


def test_a_search_that_has_just_begun(folder):
    """Nothing is chosen yet, and one loss has not begun; a study that was moved is found where it lies."""
    path = folder / "search" / CELL / "ce" / "search.json"
    record = json.loads(path.read_text())
    del record["best"]
    path.write_text(json.dumps(record))
    (folder / "search" / CELL / "hem" / "search.json").unlink()
    moved = folder.rename(folder.with_name("moved"))
    report.write(moved)
    chosen = rows(moved / "report" / f"{CELL}_chosen.csv")
    assert [(row["loss"], row["chosen"], row["best trial"]) for row in chosen] == [("ce", "-", "not over")] * 2
    assert len(rows(moved / "report" / f"{CELL}_trials.csv")) == 8


def test_positions():
    assert position(1.0, {"low": 0.01, "high": 1.0, "log": True}) == pytest.approx(1)
    assert position(0.505, {"low": 0.01, "high": 1.0}) == pytest.approx(0.5)
    assert position("b", {"choices": ["a", "b", "c"]}) == 0.5
