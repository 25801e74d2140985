"""`hem.losses` needs torch, and nothing else."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
for name in ("numpy", "lightning", "torchvision", "torchmetrics", "triton", "timm", "sklearn", "scipy", "PIL",
             "matplotlib", "rich", "yaml"):
    sys.modules[name] = None  # whoever imports it fails
import torch
before = set(sys.modules)
from hem.losses import LOSSES
for name, cls in LOSSES.items():
    try:
        loss = cls()
    except ValueError:  # for want of class_counts
        loss = cls(class_counts=[3, 2])
    logits = torch.zeros(4, 2, requires_grad=True)
    loss(logits, torch.tensor([0, 1, 1, 0])).backward()
    assert loss(logits, torch.full((4, 2), 0.5)) > 0, name
assert len(LOSSES) > 10
after = {name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names}
print({name.partition(".")[0] for name in after} - {"torch"}, "torch._dynamo" in after)
"""


def test_the_losses_need_torch_alone():
    """`pip install --no-deps` beside torch gives them. Nor do they load its compiler, which takes as long as torch."""
    command = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{'hem'} False\n", "")
