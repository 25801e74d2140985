"""The catalogue of metric keys: made and read by the same templates, one template for each key."""

from pathlib import Path

import pytest
import yaml

from hem.metrics import catalog
from hem.metrics.catalog import CATALOG, HEADLINES, check_mode, describe, headlines, match, with_means
from hem.metrics.template import STAGES, VARIANTS, Template, parts_of

ROOT = Path(__file__).resolve().parents[2]
# a value for each part, one of each kind that is not just a word
PARTS = {"severity": "3", "task": "2", "after": "1", "factor": "10", "eps": "0.1", "group": "_extra", "shot": "few",
         "name": "and/or mean", "set": "my/set"}  # fmt: skip


def keys(template: Template) -> list[str]:
    """Keys of a template, of every stage and variant."""
    parts = {name: PARTS.get(name, "word") for name in parts_of(template.path)}
    return [template.key(stage, variant, **parts) for stage in STAGES for variant in VARIANTS]


@pytest.mark.parametrize("template", CATALOG, ids=lambda template: template.path)
def test_a_key_is_of_one_template(template):
    """What is made by a template is read by it, with the parts that it was made from, and by no other before it."""
    for key in keys(template):
        found = match(key)
        assert found is not None
        assert found.template is template
        assert template.key(found.stage, found.variant, **found.parts) == key
        assert "{" not in found.title


def test_every_template_is_in_the_catalogue():
    named = [value for value in vars(catalog).values() if isinstance(value, Template)]
    assert named == CATALOG
    assert len({template.path for template in CATALOG}) == len(CATALOG)


def test_parts_are_those_of_the_path():
    assert (
        catalog.ROBUST_ACCURACY.key("test", norm="l2", eps=0.5, attack="worst") == "test/robust_accuracy/l2/0.5/worst"
    )
    with pytest.raises(ValueError, match=r"Expected the parts \['attack', 'eps', 'norm'\] of .*, got \['norm'\]"):
        catalog.ROBUST_ACCURACY.key("test", norm="l2")


def test_headlines():
    """In the order of the table; what a task has not got is left out; a task not listed shows its accuracy."""
    logged = ["test/accuracy", "test/robust_accuracy/linf/0.2/autoattack", "test/robust_accuracy/linf/mean/worst"]
    assert [metric.label for metric in headlines("adversarial", logged)] == [
        "robust accuracy, all attacks, L∞: mean of the curve in % ↑",
        "robust accuracy, AutoAttack, L∞: 0.2 in % ↑",
        "accuracy in % ↑",
    ]
    assert [metric.key for metric in headlines("other", logged)] == ["test/accuracy"]
    assert [metric.title for metric in headlines("segmentation", ["val/miou", "val/loss"])] == [
        "mean IoU of validation, best epoch"
    ]


@pytest.mark.parametrize("task", HEADLINES)
def test_headlines_say_which_way_is_better(task):
    for key in HEADLINES[task]:
        found = match(key.replace("*", "0.1"))
        assert found is not None, key
        assert found.higher is not None, key


@pytest.mark.parametrize(
    ("key", "higher", "percent"),
    [
        ("test/fpr95_known_positive/msp/novel", False, True),
        ("test/auroc/msp/novel", True, True),
        ("test/loss", None, False),  # each loss has a scale of its own
        ("test/robust_accuracy/linf/0.1/pgd_loss", True, True),
        ("test/active", None, True),
        ("test/mce", False, False),
        ("test/forgetting", False, True),
        ("test/backward_transfer", True, True),
        ("test/miou", True, True),
        ("test/iou/sky", True, True),
        ("test/corruption/fog/mean", True, True),
        ("test/max_logit", None, False),
        ("test/masking/black_box", None, False),
        ("test/images/worst", None, False),
        ("test/dar/msp/overall", True, True),
        ("test/train_prior/calibrated/nll", False, False),
        ("test/mine/top3_accuracy", True, True),  # of somebody's own task
        ("lr-SGD", None, False),
    ],
)
def test_directions(key, higher, percent):
    assert (describe(key).higher, describe(key).percent) == (higher, percent)


def test_means_of_curves_leave_out_clean_images():
    curve = {f"test/robust_accuracy/linf/{eps}/worst": value for eps, value in ((0, 1.0), (0.1, 0.5), (0.2, 0.1))}
    means = with_means(curve)
    assert means["test/robust_accuracy/linf/mean/worst"] == pytest.approx(0.3)
    assert with_means(means) == means


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val/accuracy", "min"), ("val/loss", "max"), ("val/calibration_error", "max")]
)
def test_a_mode_that_keeps_the_worst_is_refused(monitor, mode):
    with pytest.raises(ValueError, match=rf"Expected mode \w+ of EarlyStopping, since .* of {monitor} is better"):
        check_mode("EarlyStopping", monitor, mode)
    check_mode("EarlyStopping", monitor, {"min": "max", "max": "min"}[mode])
    check_mode("EarlyStopping", "val/active", mode)  # neither is better
    check_mode("EarlyStopping", "val/my_loss", mode)  # of somebody's own task


CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.yaml"))


@pytest.mark.parametrize("config", CONFIGS)
def test_monitors_of_shipped_configs_are_metrics(config):
    """Every monitor of a shipped config is a key of the catalogue, and is not chosen by the wrong way round."""

    def check(value: object, mode: str | None) -> None:
        if isinstance(value, list):
            for each in value:
                check(each, None)
        if isinstance(value, dict):
            if monitor := value.get("monitor"):
                assert match(monitor), monitor
                check_mode(config, monitor, value.get("mode") or mode or "min")
            for name, each in value.items():
                check(each, "max" if name == "checkpoint" else None)  # of configs/base.yaml

    check(yaml.safe_load((ROOT / config).read_text()), None)


def test_the_share_of_samples_that_a_loss_acts_on_is_no_error_rate():
    assert describe("test/active").label == "samples with loss > 0 in %"
