"""A network sharded over two processes gets the gradient of one process on the whole batch."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hem.losses import HEMLoss, evaluate, global_mean
from tests.processes import Processes

PARTS = (slice(0, 4), slice(4, 12))  # uneven: each process holds another share of the error-carrying samples


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 8, generator=generator), torch.randint(5, (12,), generator=generator)


def work(store: str, out: str) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    input, target = (part[PARTS[rank]] for part in batch())
    with global_mean():
        loss = evaluate(HEMLoss(), net(input), target)
    loss.backward()
    gradients = [parameter.grad.full_tensor() for parameter in net.parameters()]
    if rank == 0:
        torch.save({"loss": loss.detach(), "gradients": gradients}, out)
    dist.destroy_process_group()


@pytest.mark.slow
def test_fsdp(tmp_path):
    done = Processes(work, str(tmp_path / "store"), str(tmp_path / "out.pt"), ranks=2).wait()
    assert done.code == 0, done.err
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    net = network()
    input, target = batch()
    loss = HEMLoss()(net(input), target)
    loss.backward()
    torch.testing.assert_close(got["loss"], loss.detach())
    for gradient, parameter in zip(got["gradients"], net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)
    halves = [HEMLoss()(net(input[part]), target[part]).item() for part in PARTS]
    assert abs(sum(halves) / 2 - loss.item()) > 1e-3, "the mean of the two means would have been another loss"
