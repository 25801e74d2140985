"""A plain PyTorch loop: HEM in place of cross-entropy, the best weights by accuracy, exact gradient accumulation."""

import copy
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import hem
from hem.losses import Accumulation, HEMLoss, accumulate

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
MICRO = 2  # micro-batches of a step

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels).float() / 16, torch.tensor(labels)
train, val, test = torch.randperm(len(images)).split([1200, 300, 297])
net = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

criterion = HEMLoss(margin=0.5)  # CHANGED: was nn.CrossEntropyLoss()
step = Accumulation()  # CHANGED: only if you accumulate; HEM's mean is then over all micro-batches

best, kept = 0.0, copy.deepcopy(net.state_dict())
for _ in range(EPOCHS):
    net.train()
    for batch in train[torch.randperm(len(train))].split(64):
        for micro in batch.chunk(MICRO):
            with accumulate(step):  # CHANGED
                criterion(net(images[micro]), labels[micro]).backward()
        for parameter in net.parameters():
            parameter.grad *= step.factor()  # CHANGED: once, before clipping and the step
        optimizer.step()
        optimizer.zero_grad()
        step.reset()
    schedule.step()

    net.eval()
    with torch.no_grad():
        accuracy = float((net(images[val]).argmax(1) == labels[val]).float().mean())
    if accuracy >= best:  # CHANGED: by accuracy; HEM's loss can rise while accuracy does
        best, kept = accuracy, copy.deepcopy(net.state_dict())

net.load_state_dict(kept)
with torch.no_grad():
    probabilities = hem.calibrate(net(images[val]), labels[val])  # CHANGED: scores become probabilities
    logits = net(images[test])
    print(f"test accuracy {(logits.argmax(1) == labels[test]).float().mean():.1%}")
    print(f"mean score of the calibrated network {probabilities(logits).amax(1).mean():.1%}")
