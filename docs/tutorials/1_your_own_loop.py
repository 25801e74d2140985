# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # From cross-entropy to HEM in your own loop
#
# You have a training loop in plain PyTorch. One line changes. Then the curves look odd, and this page says why.
# About half a minute on two cores; the data, 8 x 8 digits, come with scikit-learn.

# %%
import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hem
from hem.losses import HEMLoss

QUICK = bool(os.environ.get("HEM_QUICK"))  # the tests set it
EPOCHS = 2 if QUICK else 30

pixels, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, val, test = order[:1100], order[1100:1400], order[1400:]

# %% [markdown]
# ## The loop
#
# It is anybody's: the criterion is an argument. The one thing added is what is kept of each epoch.


# %%
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


def fit(criterion):
    net, curve = network(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        net.train()
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            criterion(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
        net.eval()
        with torch.no_grad():
            logits = net(images[val])
            accuracy = (logits.argmax(1) == labels[val]).float().mean()
            curve.append((float(criterion(logits, labels[val])), float(accuracy)))
    return net, curve


# %% [markdown]
# ## One line changes

# %%
ce_net, ce_curve = fit(nn.CrossEntropyLoss())
hem_net, hem_curve = fit(HEMLoss(margin=0.5))
for name, net in (("cross-entropy", ce_net), ("HEM", hem_net)):
    with torch.no_grad():
        print(f"{name:14} test accuracy {(net(images[test]).argmax(1) == labels[test]).float().mean():.1%}")

# %% [markdown]
# One seed of a small data set says that both work, not which is better.
#
# ## What the curves say
#
# Accuracy rises for both. Cross-entropy's validation loss falls; HEM's need not, for **its mean is over the samples
# that still carry error**: the easy ones leave the mean as they are learnt, and the hard ones stay.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", num="loss and accuracy of both")
for name, curve in (("cross-entropy", ce_curve), ("HEM", hem_curve)):
    losses, accuracies = zip(*curve, strict=True)
    left.plot(losses, label=name)
    right.plot([100 * each for each in accuracies], label=name)
left.set(title="validation loss", xlabel="epoch")
right.set(title="validation accuracy, %", xlabel="epoch")
left.legend()

# %% [markdown]
# So do not stop early by this number, and do not keep the "best" model by it: use accuracy. If you want a loss that
# falls, take the mean over all samples, and look at the share that still carries error beside it:

# %%
with torch.no_grad():
    errors = HEMLoss(margin=0.5, reduction="none")(hem_net(images[val]), labels[val])
print(f"mean over all samples {errors.mean():.3f}; {(errors > 0).float().mean():.1%} of them carry error")

# %% [markdown]
# ## Scores that mean something
#
# HEM's softmax is too modest: it stops pushing once the margin is met. One temperature, fitted on validation samples,
# mends that, and changes no decision.

# %%
with torch.no_grad():
    probabilities = hem.calibrate(hem_net(images[val]), labels[val])
    logits = hem_net(images[test])
print(f"accuracy                   {(logits.argmax(1) == labels[test]).float().mean():.1%}")
print(f"mean score, plain softmax  {logits.softmax(1).amax(1).mean():.1%}")
print(f"mean score, calibrated     {probabilities(logits).amax(1).mean():.1%}")

# %% [markdown]
# ## To take home
#
# * `HEMLoss(margin=0.5)` in place of `nn.CrossEntropyLoss()`; then try 1 and 2. [Which margin](../choosing.md)
# * The same learning rate, normalisation layers kept, no label smoothing.
# * Choose by accuracy; calibrate before you read scores. [What to expect](../expect.md)
