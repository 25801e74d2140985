"""Every drawing of a report is made from what the tasks really log: names that are written twice have to agree."""

import pytest

from hem import report
from hem.cli import main
from tests.conftest import ROOT
from tests.datamodules.mask_trees import mask_folder_tree

QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", 1,
         "--trainer.enable_model_summary", "false", "--trainer.limit_train_batches", 4)  # fmt: skip
EXAMINATIONS = {
    "rejection": ("--model.unknown", '{"unrecognisable": [uniform, blobs]}', "--model.max_images", 40,
                  "--model.scores", "[max_logit]", "--model.attack_eps", "null"),
    "corruption": ("--model.corrupted.corruptions", "[fog, contrast]", "--model.corrupted.severities", "[1, 5]",
                   "--model.corrupted.images", 40),
    "adversarial": ("--model.attacks", "[{class_path: PGD, init_args: {objective: ce}}]", "--model.linf", "[0.1]",
                    "--model.l2", "[0.5]", "--model.steps", 2, "--model.images", 20, "--model.checks", "false"),
}  # fmt: skip
TRAININGS = {
    "classification_digits": ("--config", "configs/classification/digits.yaml", "--model.net", "MLP"),
    "longtail_digits": ("--config", "configs/longtail/digits.yaml", "--model.net", "MLP", "--data.val_fraction", 0.1),
    "continual_digits": ("--config", "configs/continual/digits.yaml", "--model.net", "MLP"),
    "segmentation_mask_folder": ("--config", "configs/segmentation/mask_folder.yaml", "--model.net", "SegNet",
                                 "--data.dataset.class_names", "[ground, object]", "--data.image_size", "[32, 32]",
                                 "--data.crop_size", "null", "--data.num_workers", 0, "--data.batch_size", 2),
}  # fmt: skip
EXPECTED = {
    "classification_digits": {"seeds", "training", "classes"},
    "classification_digits_rejection": {"seeds", "unknown"},
    "classification_digits_corruption": {"seeds", "severity", "corruptions"},
    "classification_digits_adversarial": {"seeds", "robustness", "classes"},
    "longtail_digits": {"seeds", "training"},
    "continual_digits": {"seeds", "training"},
    "segmentation_mask_folder": {"seeds", "training", "iou"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each task, and the examinations of the classifier."""
    folder = tmp_path_factory.mktemp("drawings")
    mask_folder_tree(folder / "masks", n=4)

    def command(*words):
        assert main([str(word) for word in words]) == 0, words

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for cell, options in TRAININGS.items():
            run = folder / "runs" / cell / "ce" / "seed0"
            data = ("--data.root", folder / "masks") if "mask" in cell else ()
            epochs = 10 if "continual" in cell else 2
            command("fit", *options, *data, *QUICK, "--trainer.max_epochs", epochs, "--run_dir", run)
            command("test", "--run", run, *QUICK)
        run = folder / "runs" / "classification_digits" / "ce" / "seed0"
        for name, options in EXAMINATIONS.items():
            command("test", "--run", run, "--config", f"configs/evaluate/{name}.yaml", *options, *QUICK)
    return folder / "runs"


def test_every_drawing_is_made(runs):
    page = report.write(runs)
    made = {path.stem for path in page.parent.glob("*.svg")}
    for cell, names in EXPECTED.items():
        assert {f"{cell}_{name}" for name in names} <= made, cell
    found = report.Runs(runs)
    for cell in found.cells:
        assert found.headlines(cell), f"{cell} has no headline metric"
    text = page.read_text()
    assert "object at 0x" not in text
    assert f"hem report {runs}" in text


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_masks_are_not_examined_as_images(name, runs, hem_command):
    """Whose labels are of pixels: accuracies would count void ones as mistakes, where shapes fit at all."""
    run = runs / "segmentation_mask_folder" / "ce" / "seed0"
    outcome = hem_command(
        "test", "--run", run, "--config", f"configs/evaluate/{name}.yaml", *EXAMINATIONS[name], *QUICK
    )
    assert outcome.code == 1
    assert "Expected images with a label each" in outcome.err
    assert not (run / "evaluate" / name / "results.json").exists()
