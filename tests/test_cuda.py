"""What runs on a GPU and nowhere else; skipped without one.

Beside these, on a GPU: the kernels' tests (`tests/losses/test_kernels.py`), batches that live on the device
(`tests/datamodules/test_base.py`), and the overlays (`tests/test_configs.py`).
"""

import json

import pytest
import torch

import hem
from hem.losses import LOSSES, HEMLoss, kernels
from hem.losses.functional import hem_loss
from hem.networks import LeNet, ResNet8

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # of torch's compiler and graphs, which warn of what is not ours
]
DIGITS = ("fit", "--config", "configs/classification/digits.yaml", "--config", "configs/loss/hem.yaml")
SHORT = ("--trainer.max_epochs", 2)


def logits_and_target(*shape):
    torch.manual_seed(0)
    return (
        torch.randn(shape, device="cuda", requires_grad=True),
        torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda"),
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(64, 10), (2, 12, 30, 40)], ids=str)
def test_every_loss_is_what_it_is_on_the_processor(loss, shape):
    logits, target = logits_and_target(*shape)
    try:
        criterion = LOSSES[loss]()
    except (TypeError, ValueError):
        criterion = LOSSES[loss](class_counts=[100 // (i + 1) for i in range(shape[1])])
    host = logits.detach().cpu().requires_grad_()
    expected = criterion(host, target.cpu())
    expected.backward()
    value = criterion.cuda()(logits, target)
    value.backward()
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.cpu(), host.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(64, 10), (2, 12, 64, 64)], ids=str)
def test_a_step_in_a_cuda_graph(shape):
    logits, target = logits_and_target(*shape)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(hem_loss(logits, target), logits)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = hem_loss(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
    with torch.no_grad():
        logits.copy_(torch.randn_like(logits))  # other numbers in the same memory
    graph.replay()
    fresh = hem_loss(logits, target)
    assert torch.equal(loss, fresh)
    assert torch.equal(gradient, torch.autograd.grad(fresh, logits)[0])


def test_the_loss_makes_the_host_wait_for_nothing():
    logits, target = logits_and_target(64, 10)
    hem_loss(logits, target).backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for criterion in (HEMLoss(), HEMLoss(label_smoothing=0.1)):
            criterion(logits, target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [(4096, 1000), (4, 12, 256, 256)], ids=str)
def test_two_numbers_per_sample_are_kept(shape):
    logits, target = logits_and_target(*shape)
    hem_loss(logits, target).backward()
    logits.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    hem_loss(logits, target).backward()
    beyond = torch.cuda.max_memory_allocated() - before - logits.nbytes
    assert beyond <= 2 * 4 * target.numel() + 2**20  # and what torch's allocator leaves of a block


def test_on_a_stream_of_ones_own():
    logits, target = logits_and_target(512, 1000)
    expected = hem_loss(logits, target)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            loss = hem_loss(logits, target)
    stream.synchronize()
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_a_compiled_network_with_its_loss(mode):
    torch.manual_seed(0)
    net, input, target = LeNet().cuda(), torch.rand(32, 1, 28, 28, device="cuda"), torch.arange(32, device="cuda") % 10
    expected = hem_loss(net(input), target)
    step = torch.compile(lambda x, y: hem_loss(net(x), y), mode=mode)
    for _ in range(3):
        loss = step(input, target)
        net.zero_grad()
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "32-true"])
def test_fit_in_every_precision(precision, hem_command, tmp_path):
    """16-mixed scales the loss; a scale that grows too large is taken back, and training goes on."""
    outcome = hem_command(*DIGITS, *SHORT, "--trainer.precision", precision, "--trainer.accelerator", "gpu",
                          "--trainer.devices", 1, "--run_dir", tmp_path)  # fmt: skip
    assert outcome.code == 0, outcome.err
    outcome = hem_command("test", *DIGITS[1:], "--trainer.accelerator", "gpu", "--trainer.devices", 1,
                          "--run_dir", tmp_path, "--ckpt_path", "best")  # fmt: skip
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metrics"]["test/accuracy"] > 0.5
    assert results["hardware"] == torch.cuda.get_device_name()
    model = hem.load(tmp_path)  # on the processor
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("overlay", ["gpu", "gpu_fast", "fsdp"])
def test_fit_under_every_overlay(overlay, hem_command, tmp_path):
    more = ("--trainer.devices", 1)
    outcome = hem_command(*DIGITS, "--config", f"configs/trainer/{overlay}.yaml", *SHORT, *more, "--run_dir", tmp_path)
    assert outcome.code == 0, outcome.err


def test_fit_with_cuda_graphs(hem_command, tmp_path):
    outcome = hem_command(*DIGITS, "--config", "configs/trainer/gpu_fast.yaml", "--model.compile", "reduce-overhead",
                          *SHORT, "--run_dir", tmp_path)  # fmt: skip
    assert outcome.code == 0, outcome.err


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(hem_command, tmp_path):
    """To rounding: on a GPU sums are not made in one order unless `--trainer.deterministic true` asks for it."""
    words = (*DIGITS, "--trainer.accelerator", "gpu", "--trainer.devices", 1, "--trainer.deterministic", "true")
    for folder, epochs in (("whole", [2]), ("parts", [1, 2])):
        for number in epochs:
            resume = ("--ckpt_path", "last") if number > epochs[0] else ()
            outcome = hem_command(*words, "--trainer.max_epochs", number, *resume, "--run_dir", tmp_path / folder,
                                  "--model.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR")  # fmt: skip
            assert outcome.code == 0, outcome.err
    whole, parts = (
        torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
        for folder in ("whole", "parts")
    )
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-5)


def test_channels_last_stays_through_network_and_gradient():
    net = ResNet8().cuda().to(memory_format=torch.channels_last)
    input = torch.rand(8, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        loss = hem_loss(net(input), torch.arange(8, device="cuda"))
    loss.backward()
    weight = next(p for p in net.parameters() if p.dim() == 4 and p.shape[1] > 3 and p.shape[2] > 1)
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)
    assert kernels.backend(net(input)) == "triton"
