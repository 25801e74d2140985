"""torch.compile and FSDP2: a sharded, compiled network, and HEM's mean over the batch of all processes.

torchrun --nproc-per-node 2 examples/compile_fsdp2.py
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hem.losses import HEMLoss, global_mean

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
device = "cuda" if torch.cuda.is_available() else "cpu"

dist.init_process_group("nccl" if device == "cuda" else "gloo")
rank, size = dist.get_rank(), dist.get_world_size()
if device == "cuda":
    torch.cuda.set_device(rank % torch.cuda.device_count())
mesh = init_device_mesh(device, (size,))
torch.manual_seed(0)  # the same weights everywhere
net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
for layer in net:
    if isinstance(layer, nn.Linear):
        fully_shard(layer, mesh=mesh)
fully_shard(net, mesh=mesh)
compiled = torch.compile(net) if "--compile" in sys.argv else net
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

criterion = HEMLoss(margin=0.5)  # CHANGED: was nn.CrossEntropyLoss()

draws = torch.Generator(device).manual_seed(rank)  # each process has samples of its own
for step in range(STEPS):
    images = torch.randn(32, 64, generator=draws, device=device)
    labels = images[:, :10].argmax(1)
    logits = compiled(images)
    with global_mean():  # CHANGED: HEM divides by the samples with error of all processes, not of its own
        loss = criterion(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0 and step % 10 == 0:
        print(f"step {step}: loss {loss:.3f}")
dist.destroy_process_group()
