"""skorch and scikit-learn: a grid search over HEM's margin, scored by accuracy."""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from torch import nn

from hem.losses import HEMLoss

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
pixels = (pixels / 16).astype(np.float32)


class Net(nn.Module):
    """Two layers; logits, no softmax: skorch's own criterion would want log-probabilities."""

    def __init__(self, width=64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, X):
        return self.layers(X)


classifier = NeuralNetClassifier(
    Net,
    criterion=HEMLoss,  # CHANGED: was nn.CrossEntropyLoss
    criterion__margin=0.5,  # CHANGED
    optimizer=torch.optim.SGD, optimizer__momentum=0.9, lr=0.05, batch_size=64, max_epochs=EPOCHS, verbose=0,
    train_split=None,
)  # fmt: skip
search = GridSearchCV(
    classifier,
    {"criterion__margin": [0.5, 1.0, 2.0], "lr": [0.02, 0.05]},  # CHANGED: search it upwards from 0.5
    scoring="accuracy",  # CHANGED: losses of different margins cannot be compared
    cv=3,
)
search.fit(pixels, labels)
print(f"best: {search.best_params_}, accuracy of cross-validation {search.best_score_:.1%}")
