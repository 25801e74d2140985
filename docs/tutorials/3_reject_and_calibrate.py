# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Know what you do not know
#
# A classifier of the digits 0 to 6 is shown a 7. It should say "none of mine"; and when it says "90 % sure" it should
# be right nine times in ten. About half a minute on two cores.

# %%
import os

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer

import hem
from hem.datamodules import DigitsDataModule, OpenSetDataModule
from hem.losses import HEMLoss
from hem.metrics import calibration_error
from hem.modules import ClassificationTask
from hem.networks import LeNet
from hem.rejection import accept_threshold, auroc, max_logit, msp

EPOCHS = 2 if os.environ.get("HEM_QUICK") else 30  # the tests set it
torch.manual_seed(0)

# %% [markdown]
# ## Train on seven of ten classes
#
# The data module holds the others out. The task is a Lightning module: any Trainer runs it.

# %%
data = OpenSetDataModule("digits", [0, 1, 2, 3, 4, 5, 6], batch_size=64, val_fraction=0.2)
task = ClassificationTask(
    LeNet(num_classes=7, in_channels=1, image_size=(8, 8)),
    HEMLoss(margin=0.5),
    lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
    num_classes=7,
)
trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
trainer.fit(task, data)


# %%
def logits_of(images):
    """The logits of images as bytes."""
    task.eval()
    with torch.no_grad():
        return task(images.float() / 255)


val_images, val_index = data.part("val")
test = data.load("test")
seen = DigitsDataModule().load("test")
strangers = seen.images[seen.targets >= 7]
val_logits, val_target = logits_of(val_images.images[val_index]), val_images.targets[val_index]
known, unknown = logits_of(test.images), logits_of(strangers)
print(
    f"{len(known)} known test images, accuracy {(known.argmax(1) == test.targets).float().mean():.1%};",
    f"{len(unknown)} unknown",
)

# %% [markdown]
# ## Which score tells them apart?
#
# A score is an *unknownness*: higher means more unknown. AUROC is how often an unknown image has the higher one.

# %%
for score in (max_logit, msp):
    print(f"{score.__name__:10} AUROC {auroc(score(known), score(unknown)):.1%}")

# %% [markdown]
# ## A threshold
#
# Set it on validation images alone: accept 95 % of those that are classified rightly.

# %%
right = val_logits.argmax(1) == val_target
threshold = accept_threshold(max_logit(val_logits)[right], keep=0.95)
print(f"known images accepted   {(max_logit(known) <= threshold).float().mean():.1%}")
print(f"unknown images accepted {(max_logit(unknown) <= threshold).float().mean():.1%}")
figure, panel = plt.subplots(figsize=(7, 2.6), layout="constrained", num="unknownness of known and unknown digits")
for name, logits in (("digits 0 to 6", known), ("digits 7 to 9", unknown)):
    panel.hist(max_logit(logits).tolist(), bins=30, alpha=0.6, density=True, label=name)
panel.axvline(threshold, color="black", linestyle=":", label="threshold")
panel.set(xlabel="unknownness (minus the largest logit)", yticks=[])
panel.legend()

# %% [markdown]
# ## Scores that mean something
#
# One temperature, fitted on the same validation images.

# %%
probabilities = hem.calibrate(val_logits, val_target)
for name, values in (("softmax", known.softmax(1)), ("calibrated", probabilities(known))):
    error = calibration_error(values.log(), test.targets)
    print(f"{name:11} mean score {values.amax(1).mean():.1%}, calibration error {100 * float(error):.1f} points")

# %% [markdown]
# No decision changes: the largest probability is the largest logit still. For what is unknown the probabilities mean
# nothing, calibrated or not; that is what the threshold is for.
#
# ## From the terminal
#
# `hem test` does both for every run and keeps them in its folder; `hem.load(run).predict(images)` then has `score` and
# `accepted`. [In production](../guides/production.md)
