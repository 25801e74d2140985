"""Reports: the page, its tables and figures, over whole, partly failed, mixed and empty folders."""

import csv
import html.parser
import json
import math
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from hem import report
from hem.metrics.catalog import describe
from hem.report import page
from hem.report.findings import ranked
from hem.report.statistics import detectable, seeds_needed

FACTS = {
    "date": "2026-11-25T00:00:00+00:00",
    "hardware": "a processor, 1 threads",
    "devices": 1,
    "versions": {"hem": "0.1.0", "torch": "2.15.0"},
}


def leave(folder, cell, loss, seed, metrics, **facts):
    """Results as a run leaves them."""
    task, _, data = cell.partition("_")
    run = folder / cell / loss / f"seed{seed}"
    run.mkdir(parents=True)
    content = {"task": task, "data": data, "loss": loss, "seed": seed, "metrics": metrics, **FACTS, **facts}
    (run / "results.json").write_text(json.dumps(content))
    (run / "config.yaml").touch()
    return run


def accuracy(loss, seed):
    return 0.9 + 0.01 * ["ce", "hem", "focal"].index(loss) + 0.001 * (seed * 7 % 3) * (1 if loss == "ce" else 1.3)


@pytest.fixture
def folder(tmp_path):
    """A study: classification of three losses, five seeds, with curves; attacks; one run failed, some not begun."""
    study = tmp_path / "small"
    for loss in ("ce", "hem", "focal"):
        for seed in range(5):
            metrics = {"test/accuracy": accuracy(loss, seed), "test/calibration_error": 0.01 + 0.001 * seed}
            metrics |= {"test/class_accuracy/0": 0.9, "test/class_accuracy/1": 1.0, "test/logit_margin": 1.5}
            run = leave(study, "classification_digits", loss, seed, metrics)
            (run / "metrics.csv").write_text(
                "epoch,step,train/loss,val/accuracy\n0,1,2.0,\n0,2,1.0,\n0,2,,0.5\n1,4,0.5,\n1,4,,0.75\n"
            )
    for loss in ("ce", "hem"):
        for seed in range(2):
            curve = {f"test/robust_accuracy/linf/{eps}/worst": 0.8 - eps for eps in (0.1, 0.2)}
            leave(study, "adversarial_digits", loss, seed, {"test/accuracy": 0.99, **curve})
    asked = [f"{cell}/{loss}/seed{seed}" for cell in ("classification_digits", "adversarial_digits")
             for loss in ("ce", "hem", "focal") for seed in range(5)]  # fmt: skip
    runs = {name: {"after": name.replace("adversarial", "classification") if "adv" in name else None} for name in asked}
    (study / "plan.json").write_text(
        json.dumps({"study": "small", "source": "small.yaml", "cost": "1 h", "runs": runs})
    )
    failed = study / "adversarial_digits" / "hem" / "seed2"
    failed.mkdir(parents=True)
    (failed / "test.log").write_text("begin\n 10%|#\r 20%|##\rhalf\nerror: Expected <this>, got that.\n")
    return study


@pytest.fixture
def undrawn(monkeypatch):
    """Tables alone, for tests that look at nothing else."""
    monkeypatch.setattr(page, "drawings", lambda *arguments: [])
    monkeypatch.setattr(page, "saved", lambda figure, form: b"")


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Reader(html.parser.HTMLParser):
    """Whether tags are closed in order, and what the page asks for from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(folder):
    reader = Reader()
    reader.feed((folder / "report" / "index.html").read_text())
    assert reader.open == []
    return reader


def test_page(folder, capsys):
    """Self-contained: no link leads out of the folder of the study, every picture is in the page."""
    assert report.main([str(folder)]) == 0
    assert "11 runs are missing" in capsys.readouterr().out
    shown = page_of(folder)
    text = " ".join(shown.text)
    assert sum(link.startswith("data:image/svg+xml;base64,") for link in shown.links) >= 5
    for link in shown.links:
        assert re.match(r"#|data:image/|[\w./-]+$", link)
        if not link.startswith(("#", "data:")):
            assert (folder / "report" / link).is_file()
    assert "http" not in text
    assert "not significant" in text
    assert "too few seeds" in text
    assert "error: Expected <this>, got that." in text
    for name in (
        "summary",
        "classification_digits_training",
        "adversarial_digits_robustness",
        "classification_digits_classes",
    ):
        assert (folder / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "report" / f"{name}.svg").read_text()


def test_command(folder):
    """In a process of its own, which has imported nothing before."""
    done = subprocess.run([sys.executable, "-m", "hem.report", str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(folder / "report" / "index.html"))


def test_it_is_the_same_each_time(folder):
    """The same runs give the same files, to the byte."""
    report.write(folder)
    before = {p.name: p.read_bytes() for p in (folder / "report").iterdir()}
    report.write(folder)
    assert {p.name: p.read_bytes() for p in (folder / "report").iterdir()} == before


@pytest.mark.usefixtures("undrawn")
def test_tables(folder):
    """Mean, standard deviation, number of seeds; differences, intervals and corrected p-values as scipy has them."""
    report.write(folder)
    (first, *_) = rows(folder / "report" / "classification_digits.csv")
    values = {loss: [accuracy(loss, seed) for seed in range(5)] for loss in ("ce", "hem", "focal")}
    assert first["metric"] == "accuracy in % ↑"
    for loss, numbers in values.items():
        assert first[loss] == f"{100 * statistics.mean(numbers):.2f} ± {100 * statistics.stdev(numbers):.2f} (5)"
    compared = rows(folder / "report" / "classification_digits_primary.csv")
    assert [(row["metric"], row["loss"]) for row in compared] == [
        ("accuracy in % ↑", "hem"),
        ("accuracy in % ↑", "focal"),
    ]
    for row in compared:
        test = stats.ttest_rel(values[row["loss"]], values["ce"])
        low, high = test.confidence_interval()
        assert row["95 % interval"] == f"{100 * low:+.2f} to {100 * high:+.2f}"
        assert row["verdict"] == "better"
        assert float(row["p (signs)"]) == 0.0625
        assert (row["could have shown"], row["seeds needed"]) == ("-", "-"), "it has shown a difference"
    further = rows(folder / "report" / "classification_digits_exploratory.csv")
    assert [(row["metric"], row["loss"]) for row in further] == [
        ("calibration error in % ↓", "hem"),
        ("calibration error in % ↓", "focal"),
    ]
    assert further[0].keys() == {"metric", "loss", "seeds", "difference to ce", "95 % interval"}, "and no test"
    (robust, *_) = rows(folder / "report" / "adversarial_digits.csv")
    assert robust == {"metric": "robust accuracy, all attacks, L∞: mean of the curve in % ↑",
                      "ce": "65.00 ± 0.00 (2)", "hem": "65.00 ± 0.00 (2)", "focal": "missing"}  # fmt: skip
    assert rows(folder / "report" / "coverage.csv")[1] == {
        "task": "adversarial_digits", "ce": "2 of 5", "hem": "2 of 5", "focal": "0 of 5"}  # fmt: skip
    text = (folder / "report" / "tables.md").read_text()
    assert "| accuracy in % ↑ |" in text
    assert "| missing |" in text


@pytest.mark.usefixtures("undrawn")
def test_what_was_compared(folder):
    """Network, length and the like, of the runs' own records; where losses differ, the page says so."""
    for loss in ("ce", "hem", "focal"):
        for seed in range(5):
            run = folder / "classification_digits" / loss / f"seed{seed}"
            optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5 if loss == "ce" else 0.25}}
            net = {"class_path": "hem.networks.MLP"}
            config = {
                "trainer": {"max_epochs": 3, "max_steps": -1, "accumulate_grad_batches": 2},
                "model": {"class_path": "Task", "init_args": {"net": net, "optimizer": optimizer}},
                "data": {"class_path": "Digits", "init_args": {"batch_size": 64, "val_fraction": 0.1}},
            }
            (run / "config.yaml").write_text(json.dumps(config))
            files = {"train": {"count": 100}, "val": {"count": 10}, "test": {"count": 20}}
            (run / "data.json").write_text(json.dumps({"files": files}))
            facts = json.loads((run / "results.json").read_text())
            (run / "results.json").write_text(json.dumps({**facts, "checkpoint": "/of/last.ckpt"}))
    report.write(folder)
    text = " ".join(" ".join(page_of(folder).text).split())
    assert (
        "What was compared network MLP epochs 3 batch size 64 batches in a step 2 optimiser differs: SGD, rate 0.5 "
        "(ce); SGD, rate 0.25 (hem, focal) images 100 training, 10 validation, 20 test tested checkpoint last.ckpt"
    ) in text
    assert text.count("What was compared") == 1, "nothing is known of the attacks' trainings"
    assert "such as 0.025 for two of four" in text


@pytest.mark.usefixtures("undrawn")
def test_seeds_without_a_value(folder):
    """As where calibration failed: they drop out of mean and difference, and the tables say it."""
    for seed in (1, 2, 3):
        path = folder / "classification_digits" / "hem" / f"seed{seed}" / "results.json"
        facts = json.loads(path.read_text())
        del facts["metrics"]["test/calibration_error"]
        path.write_text(json.dumps(facts))
    report.write(folder)
    (row,) = [each for each in rows(folder / "report" / "classification_digits.csv") if "calibration" in each["metric"]]
    assert row["hem"].endswith("(2 of 5; no value in the others)")
    assert row["ce"].endswith("(5)")
    further = rows(folder / "report" / "classification_digits_exploratory.csv")
    assert [row["seeds"] for row in further] == ["2 of 5", "5"]


@pytest.mark.usefixtures("undrawn")
def test_raw(folder):
    """Every figure of every run, whole, with date, hardware and config."""
    report.write(folder)
    found = rows(folder / "report" / "raw.csv")
    assert list(found[0]) == ["study", "task", "data", "loss", "seed", "metric", "value", "date", "hardware", "config"]
    (one,) = [
        r
        for r in found
        if (r["loss"], r["seed"], r["metric"]) == ("hem", "3", "test/accuracy") and "class" in r["task"]
    ]
    assert float(one["value"]) == accuracy("hem", 3)
    assert one["config"] == "classification_digits/hem/seed3/config_test.yaml"


@pytest.mark.usefixtures("undrawn")
def test_further_metrics(folder, capsys):
    """They stand in the tables and in the small file of runs behind the headline ones, once each."""
    assert report.main([str(folder), "--metrics", "class_accuracy/[01]", "test/accuracy"]) == 0
    with open(folder / "report" / "classification_digits_runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figures = ["accuracy", "calibration_error", "class_accuracy/0", "class_accuracy/1"]
    assert list(rows[0]) == ["task", "loss", "seed", *figures, "date", "hardware"]
    assert len(rows) == 15
    row = next(row for row in rows if row["loss"] == "hem" and row["seed"] == "2")
    assert float(row["accuracy"]) == pytest.approx(accuracy("hem", 2), rel=1e-5)
    with open(folder / "report" / "classification_digits.csv", newline="") as file:
        assert [line[0] for line in csv.reader(file)][3:] == [
            "accuracy of class 0 in % ↑",
            "accuracy of class 1 in % ↑",
        ]
    primary = (folder / "report" / "classification_digits_primary.csv").read_text()
    assert report.main([str(folder)]) == 0
    assert (folder / "report" / "classification_digits_primary.csv").read_text() == primary, "what one asks besides"
    assert report.main([str(folder), "--metrics", "class_(accuracy"]) == 1
    assert "expected regular expressions after --metrics, got 'class_(accuracy'" in capsys.readouterr().err
    assert report.main([str(folder), "--metrics", "test/acuracy"]) == 1
    assert "got 'test/acuracy'; did you mean 'test/accuracy'" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_figures_of_validation(folder):
    """What hyper-parameters are chosen by: the best epoch of each run."""
    assert report.main([str(folder), "--figures", "val/accuracy"]) == 0
    with open(folder / "report" / "classification_digits.csv", newline="") as file:
        last = list(csv.reader(file))[-1]
    assert last == ["accuracy of validation, best epoch in % ↑", *["75.00 ± 0.00 (5)"] * 3]


@pytest.mark.parametrize(("rule", "expected"), [
    ("{monitor: val/accuracy, mode: max}", (0.9, 2.0)),
    ("{monitor: val/loss, mode: min}", (0.65, 0.5)),
    ("{monitor: null}", (0.6, 1.0)),
])  # fmt: skip
def test_the_best_checkpoint_is_of_one_of_several_validations_in_an_epoch(tmp_path, rule, expected):
    """Its metrics are of that validation, neither of the mean over its epoch nor of the epoch's last one."""
    run = leave(tmp_path, "classification_digits", "ce", 0, {"test/accuracy": 0.5})
    (run / "config.yaml").write_text(f"model: {{}}\ndata: {{}}\ncheckpoint: {rule}\n")
    (run / "metrics.csv").write_text(
        "epoch,step,train/loss,val/accuracy,val/loss\n0,10,3.0,,\n0,10,,0.9,2.0\n0,20,,0.5,1.5\n"
        "1,30,,0.65,0.5\n1,35,2.0,,\n1,40,,0.6,1.0\n1,50,,0.7"
    )
    runs = report.Runs(tmp_path)
    found = runs.values.set_index("metric").value
    assert (found["val/accuracy"], found["val/loss"]) == expected
    curve = runs.curves[runs.curves.metric == "train/loss"]
    assert dict(zip(curve.epoch, curve.value, strict=True)) == {1: 3.0, 2: 2.0}


@pytest.mark.usefixtures("undrawn")
def test_no_seed_in_common_with_the_baseline(folder, monkeypatch):
    """There is nothing to draw of such a loss; the others are drawn."""
    drawn, draw = [], page.comparison.relative_change
    monkeypatch.setattr(page.comparison, "relative_change", lambda rows, hues: draw(drawn.append(rows) or rows, hues))
    for seed in range(5):
        run = folder / "classification_digits" / "hem" / f"seed{seed}"
        run.rename(run.with_name(f"seed{seed + 5}"))
        path = run.with_name(f"seed{seed + 5}") / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": seed + 5}))
    report.write(folder)
    assert set(drawn[0].loss[drawn[0].task.str.startswith("classification")]) == {"focal"}
    assert drawn[0].change.notna().all()


@pytest.mark.usefixtures("undrawn")
def test_only_seeds_of_both_are_paired(folder):
    """A seed that one loss lacks is left out of the comparison, not of the mean."""
    (folder / "classification_digits" / "ce" / "seed4" / "results.json").unlink()
    report.write(folder)
    (row, *_) = rows(folder / "report" / "classification_digits_primary.csv")
    assert row["seeds"] == "4"
    difference = np.mean([accuracy("hem", s) - accuracy("ce", s) for s in range(4)])
    assert row["difference to ce"] == f"{100 * difference:+.2f}"
    assert "(5)" in rows(folder / "report" / "classification_digits.csv")[0]["hem"]


@pytest.mark.usefixtures("undrawn")
def test_another_baseline(folder, capsys):
    assert report.main([str(folder), "--baseline", "focal"]) == 0
    assert {r["loss"] for r in rows(folder / "report" / "classification_digits_primary.csv")} == {"ce", "hem"}
    assert "No run of focal has results here" in " ".join(page_of(folder).text)
    capsys.readouterr()
    assert report.main([str(folder), "--baseline", "dice"]) == 1
    assert "one of the study's losses as --baseline, got 'dice': choose from ce, hem, focal." in capsys.readouterr().err


def test_nothing_there(tmp_path, capsys):
    """No folder, an empty one, and a study of which nothing was run."""
    assert report.main([str(tmp_path / "none")]) == 1
    assert "there is no" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 1
    assert "holds no results: expected <task>_<data>/<loss>/seed<k>/results.json" in capsys.readouterr().err
    plan = {"study": "s", "source": "s.yaml", "cost": "", "runs": {"classification_digits/ce/seed0": {"after": None}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert report.main([str(tmp_path)]) == 0
    text = " ".join(page_of(tmp_path).text)
    assert "No run of this task has results yet." in text
    assert "classification_digits/ce/seed0" in text
    assert "not begun" in text


def test_missing_runs_say_why(folder):
    found = {run.name: run for run in report.Runs(folder).missing}
    failed = found["adversarial_digits/hem/seed2"]
    assert failed.why.startswith("begun, but it has no results")
    assert failed.log == "begin\nhalf\nerror: Expected <this>, got that."
    assert found["adversarial_digits/focal/seed0"].why == "not begun"
    (folder / "classification_digits" / "focal" / "seed0" / "results.json").unlink()
    found = {run.name: run for run in report.Runs(folder).missing}
    assert found["adversarial_digits/focal/seed0"].why == "not begun: classification_digits/focal/seed0 is not done"


@pytest.mark.usefixtures("undrawn")
def test_mixed_folder(folder):
    """Other machines, other versions, runs that nobody asked for, files that are none: each gets a sentence."""
    leave(folder, "classification_digits", "dice", 0, {"test/accuracy": 0.5}, hardware="another", devices=2,
          versions={"hem": "0.2.0", "torch": "2.15.0"})  # fmt: skip
    (folder / "classification_digits" / "ce" / "seed9").mkdir()
    (folder / "classification_digits" / "ce" / "seed9" / "results.json").write_text("{")
    moved = folder / "classification_digits" / "ce" / "seed0" / "results.json"
    moved.write_text(moved.read_text().replace('"seed": 0', '"seed": 8'))
    notes = "\n".join(report.Runs(folder).notes)
    for sentence in (
        "seed9/results.json cannot be read as the results of a run",
        "is of seed 8, but lies under seed0",
        "1 runs lie here that the study does not ask for: classification_digits/dice/seed0",
        "2 kinds of hardware: a processor, 1 threads (19 runs); another (1 runs)",
        "2 numbers of devices",
        "2 versions of hem: 0.1.0 (19 runs); 0.2.0 (1 runs)",
    ):
        assert sentence in notes
    report.write(folder)
    assert "cannot be read as the results" in " ".join(page_of(folder).text)


def test_runs_made_in_other_ways_are_named(folder):
    """By other options than the study has now, and by a config that was edited in between."""
    name = "classification_digits/ce/seed1"
    plan = json.loads((folder / "plan.json").read_text())
    plan["runs"][name]["steps"] = {"fit": ["fit", "--trainer.max_epochs", "2"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    for seed in range(5):
        run = folder / f"classification_digits/ce/seed{seed}"
        text = f"# lightning\nseed_everything: {seed}\nrun_dir: runs/classification_digits/ce/seed{seed}\nlr: 0.1\n"
        (run / "config.yaml").write_text(text)
    (folder / name / "study.json").write_text(json.dumps({"fit": {"arguments": plan["runs"][name]["steps"]["fit"]}}))
    assert report.Runs(folder).notes == []
    (folder / name / "study.json").write_text('{"fit": {}}')
    (folder / name / "config.yaml").write_text("lr: 0.2\n")
    notes = "\n".join(report.Runs(folder).notes)
    assert "1 runs were made with other options than the study has now, and are made anew if their folders" in notes
    assert notes.count(name) == 1
    assert "The runs of classification_digits/ce differ in more than their seed: lr: 0.1; lr: 0.2." in notes


@pytest.mark.parametrize("content", ["", "{", "[]"])
@pytest.mark.parametrize("path", ["plan.json", "classification_digits/ce/seed0/study.json"])
def test_a_damaged_record_is_named(folder, path, content, capsys):
    (folder / path).write_text(content)
    assert report.main([str(folder)]) == 1
    said = capsys.readouterr().err
    assert str(folder / path) in said
    assert "delete it, and it will be made anew" in said


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_came_to_nothing(folder):
    """NaN and infinity are named where they stand, and stop nothing."""
    path = folder / "classification_digits" / "hem" / "seed1" / "results.json"
    content = json.loads(path.read_text())
    content["metrics"] |= {"test/accuracy": math.nan, "test/logit_margin": math.inf}
    path.write_text(json.dumps(content))
    report.write(folder)
    assert rows(folder / "report" / "classification_digits.csv")[0]["hem"] == "not a number in 1 of 5"
    found = rows(folder / "report" / "classification_digits_primary.csv")
    assert next(row["verdict"] for row in found if row["loss"] == "hem") == "not a number in some seed"


@pytest.mark.usefixtures("undrawn")
def test_runs_made_by_hand(folder, tmp_path):
    """A folder of runs without a plan is reported on as well."""
    (folder / "plan.json").unlink()
    report.write(folder)
    assert rows(folder / "report" / "coverage.csv")[1]["task"] == "classification_digits"


def test_a_run_is_drawn_once_it_has_pictures(folder):
    """What runs drew is in the page, of the first seed of each loss."""
    run = folder / "classification_digits" / "hem" / "seed0"
    Image.new("RGB", (4, 4)).save(run / "rejection_msp.png")
    report.write(folder)
    shown = page_of(folder)
    assert sum(link.startswith("data:image/png") for link in shown.links) == 1
    assert "hem, seed 0" in shown.text


def declare(folder, **primary):
    """Let the study's file declare primary metrics."""
    plan = json.loads((folder / "plan.json").read_text())
    plan["cells"] = {cell: {"primary": key, "untuned": None} for cell, key in primary.items()}
    (folder / "plan.json").write_text(json.dumps(plan))


@pytest.mark.usefixtures("undrawn")
def test_the_declared_metric_is_the_one_that_is_tested(folder):
    """It stands first, and no other metric has a p-value or the word significant."""
    declare(folder, classification_digits="test/calibration_error", adversarial_digits="test/accuracy")
    report.write(folder)
    compared = rows(folder / "report" / "classification_digits_primary.csv")
    assert {row["metric"] for row in compared} == {"calibration error in % ↓"}
    assert {row["verdict"] for row in compared} == {"not significant"}
    assert rows(folder / "report" / "classification_digits.csv")[0]["metric"] == "calibration error in % ↓"
    further = (folder / "report" / "classification_digits_exploratory.csv").read_text()
    assert "accuracy in % ↑" in further
    assert "significant" not in further
    assert "declares no primary metric" not in " ".join(page_of(folder).text)
    declare(folder, classification_digits="test/calibration_error")
    report.write(folder)
    text = " ".join(page_of(folder).text)
    assert "The study's file declares no primary metric for adversarial_digits:" in text


@pytest.mark.usefixtures("undrawn")
def test_further_losses_are_corrected_for_and_further_metrics_are_not(folder):
    """Holm over the losses of the primary metric, whatever else was measured."""
    report.write(folder)
    values = {loss: [accuracy(loss, seed) for seed in range(5)] for loss in ("ce", "hem", "focal")}
    p = {loss: stats.ttest_rel(values[loss], values["ce"]).pvalue for loss in ("hem", "focal")}
    found = {row["loss"]: row for row in rows(folder / "report" / "classification_digits_primary.csv")}
    low, high = sorted(p, key=p.__getitem__)
    for loss, corrected in ((low, 2 * p[low]), (high, max(p[high], 2 * p[low]))):
        assert found[loss]["p (Holm)"] == ("< 0.0001" if corrected < 1e-4 else f"{corrected:.4f}")


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_shown_says_what_it_could_have_shown(folder):
    """As the statistics have it, of these losses and this level."""
    for seed in range(5):
        path = folder / "classification_digits" / "hem" / f"seed{seed}" / "results.json"
        content = json.loads(path.read_text())
        content["metrics"]["test/accuracy"] = accuracy("ce", seed) + [0.01, -0.02, 0.015, 0.0, 0.01][seed]
        path.write_text(json.dumps(content))
    report.write(folder)
    found = {row["loss"]: row for row in rows(folder / "report" / "classification_digits_primary.csv")}
    differences = np.array([0.01, -0.02, 0.015, 0.0, 0.01])
    assert found["hem"]["verdict"] == "not significant"
    assert found["focal"]["verdict"] == "better"
    assert found["hem"]["could have shown"] == f"± {100 * detectable(differences, comparisons=2):.2f}"
    assert found["hem"]["seeds needed"] == str(seeds_needed(differences, comparisons=2))


@pytest.mark.usefixtures("undrawn")
def test_a_loss_that_was_not_tested_is_not_corrected_for(folder):
    """Neither in p nor in the seeds that are needed."""
    leave(folder, "classification_digits", "dice", 0, {"test/accuracy": 0.5})
    test_what_was_not_shown_says_what_it_could_have_shown(folder)


def ranks(folder, values):
    """Ranks over two tasks, from the values of each loss by seed."""
    for task in ("classification_digits", "longtail_digits"):
        for loss, by_seed in values.items():
            for seed, value in by_seed.items():
                leave(folder, task, loss, seed, {"test/accuracy": value})
    return ranked(report.Runs(folder), {task: describe("test/accuracy") for task in report.Runs(folder).cells})


def test_a_loss_that_failed_wins_no_rank(tmp_path):
    """The mean of the seeds that came to something is no mean of the loss."""
    values = {name: dict.fromkeys(range(3), 0.1 * i) for i, name in enumerate(("ce", "focal", "hem"))}
    values["dice"] = {0: math.nan, 1: 0.99, 2: math.nan}
    assert ranks(tmp_path, values).ranks.to_dict() == {"hem": 1, "focal": 2, "ce": 3}


def test_ranks_are_of_the_seeds_in_common(tmp_path):
    """A loss of which only the seed is done that is the best for all has no advantage by it."""
    values = {name: {0: 0.1 * i, 1: 0.1 * i + 0.5} for i, name in enumerate(("ce", "focal", "hem"))}
    del values["ce"][0]
    assert ranks(tmp_path, values).ranks.to_dict() == {"hem": 1, "focal": 2, "ce": 3}


def test_over_all_tasks(folder):
    """Mean relative change, probability of improvement, ranks; one task or two losses have none of it."""
    for task, base in (("longtail_digits", 0.6), ("continual_digits", 0.3)):
        key = {"longtail_digits": "test/balanced_accuracy", "continual_digits": "test/average_accuracy"}[task]
        for i, loss in enumerate(("ce", "hem", "focal")):
            for seed in range(3):
                leave(folder, task, loss, seed, {key: base + 0.1 * i + 0.01 * seed})
    report.write(folder)
    found = {row["loss"]: row for row in rows(folder / "report" / "overall.csv")}
    clean = (
        100
        * np.mean([accuracy("hem", s) - accuracy("ce", s) for s in range(5)])
        / np.mean([accuracy("ce", s) for s in range(5)])
    )
    assert found["hem"]["tasks"] == "3"  # attacks have two seeds
    assert found["hem"]["mean relative change"] == f"{np.mean([clean, 10 / 0.61, 10 / 0.31]):+.2f} %"
    assert found["hem"]["probability of improvement"] == "100 %"
    text = " ".join(page_of(folder).text)
    p = stats.friedmanchisquare([1, 1, 1], [2, 2, 2], [3, 3, 3]).pvalue  # attacks were not made on all three losses
    assert f"Friedman's test that all losses rank alike: p = {p:.4f}" in text
    assert (folder / "report" / "ranks.svg").is_file()


def test_few_tasks_have_no_answer_over_all(folder):
    report.write(folder)
    assert not (folder / "report" / "overall.csv").exists()
    assert not (folder / "report" / "ranks.svg").exists()
