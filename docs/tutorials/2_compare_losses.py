# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Three losses on a folder of images
#
# A fair comparison, by the command line: the same config, the same seeds, one table with intervals. About a
# minute and a half on two cores.

# %%
import csv
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

QUICK = bool(os.environ.get("HEM_QUICK"))  # the tests set it
IMAGES, EPOCHS, SEEDS, LOSSES = (12, 1, "[0]", "[ce, hem]") if QUICK else (120, 12, "[0, 1]", "[ce, hem, logit_norm]")

# %% [markdown]
# ## A folder
#
# Yours has one sub-folder for each class. Here we write four digits as images, 16 pixels wide.

# %%
pixels, labels = load_digits(return_X_y=True)
for digit in (1, 3, 8, 9):
    folder = Path("my_images") / f"digit_{digit}"
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels[labels == digit][:IMAGES]):
        picture = Image.fromarray(np.uint8(image.reshape(8, 8) * 255 / 16)).resize((16, 16))
        picture.save(folder / f"{number:03}.png")
print(*sorted(str(path) for path in Path("my_images").iterdir()), sep="\n")

# %% [markdown]
# ## A study
#
# One file says what is compared. Everything that it does not name is the same for all: network, rate, epochs, order of
# the images. `num_workers: 0` and the small network suit tiny images; leave both out for photographs.

# %%
Path("mine.yaml").write_text(f"""\
name: mine
losses: {LOSSES}
seeds: {SEEDS}
tasks:
  - train: classification/folder
    primary: test/accuracy
    overrides:
      - --data.root my_images
      - --data.image_size [16,16]
      - --data.num_workers 0
      - --data.batch_size 32
      - --model.net LeNet
      - --trainer.max_epochs {EPOCHS}
      - --trainer.accelerator cpu
""")

# %% [markdown]
# In a terminal: `hem study mine.yaml`, then `hem report runs/mine`. Here the same is typed from Python:

# %%
for words in (["study", "mine.yaml"], ["report", "runs/mine"]):
    done = subprocess.run([sys.executable, "-m", "hem", *words], capture_output=True, text=True)
    print(done.stdout, done.stderr if done.returncode else "")

# %% [markdown]
# Runs that are done are not done again, so a study that was stopped goes on by the same command.
#
# ## The table
#
# `runs/mine/report/index.html` has figures, tables, tests and curves. The raw rows are beside it:

# %%
accuracy = {}
for row in csv.DictReader(Path("runs/mine/report/raw.csv").read_text().splitlines()):
    if row["metric"] == "test/accuracy":
        accuracy.setdefault(row["loss"], []).append(100 * float(row["value"]))
figure, panel = plt.subplots(figsize=(6, 2.2), layout="constrained", num="test accuracy of each loss and seed")
for place, (loss, values) in enumerate(accuracy.items()):
    panel.plot(values, [place] * len(values), "o")
    print(f"{loss:12} {np.mean(values):.1f} %  (seeds: {', '.join(f'{value:.1f}' for value in values)})")
panel.set(
    yticks=range(len(accuracy)), yticklabels=list(accuracy), xlabel="test accuracy, %", ylim=(-0.5, len(accuracy) - 0.5)
)

# %% [markdown]
# ## What it takes to believe a difference
#
# * **Look at the spread first.** If seeds of one loss differ by as much as the losses do, there is nothing to see. Two
#   seeds are enough for a first look, five for a claim.
# * **Search the learning rate for both or for none.**
# * **Mind what is compared**: the report marks what is significant after correction for the number of comparisons.
#
# [More about studies](../guides/studies.md)
