"""The kernels for a GPU, compiled for real processors without one, and what the compiler made of them.

Compiled code lies in Triton's cache: a second run takes a few seconds. The whole table: `benchmarks/kernel_code.py`.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="no Triton here")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from benchmarks import kernel_code

# for each kind of tile: registers at most, loads and stores of the widest kind in forward and backward
WIDE = {
    # rows: a thread has 8 logits of a row of 1000, 32 of a row of 32000 in the forward, 16 in the backward
    ((256, 1000), torch.float32): (48, 2, 2),
    ((256, 1000), torch.bfloat16): (48, 1, 1),
    ((4096, 32000), torch.float32): (64, 8, 4),
    # pixels: 4 of every class, 8 of half precision, 2 of double
    ((4, 12, 360, 480), torch.float32): (128, 12, 12),
    ((4, 12, 360, 480), torch.float64): (168, 12, 12),
    ((4, 12, 360, 480), torch.bfloat16): (168, 12, 6),
    ((2, 19, 512, 1024), torch.float32): (184, 19, 19),
}
TOO_SMALL_OR_ODD = [(128, 10), (64, 50257), (2, 64, 128, 128), (2, 150, 512, 512), (2, 1000, 64, 64), (32, 21, 7, 7)]


@pytest.mark.parametrize(("shape", "dtype"), WIDE, ids=str)
def test_logits_are_read_once_and_wide_and_nothing_spills(shape, dtype):
    registers, read, written = WIDE[shape, dtype]
    launches = {launch.kernel.__name__: launch for launch in kernel_code.launches(shape, dtype)}
    forward, backward = (kernel_code.read(launches[name]) for name in ("_forward", "_backward"))
    for code in (forward, backward):
        assert code.spilled == 0
        assert code.registers <= registers
    labels = shape[2:] and 128 // dtype.itemsize // 16  # loads of the labels of a thread's pixels, two at a time
    saved = 2 if shape[2:] else 0
    # a second reading would be twice as many
    assert read <= forward.loads[128] <= read + (labels or 0)
    assert forward.loads[128] < 2 * read or read <= 2
    assert backward.stores[128] == written
    assert written <= backward.loads[128] <= written + (labels or 0) + saved * max(1, (labels or 0) // 2)


@pytest.mark.parametrize("shape", TOO_SMALL_OR_ODD, ids=str)
def test_every_kind_of_tile_compiles_without_spills(shape):
    for launch in kernel_code.launches(shape, torch.float32):
        assert kernel_code.read(launch).spilled == 0


VARIANTS = [{}, {"each": True, "classwise": True}, {"high": False}]
KINDS = [((33, 10), torch.float16), ((2, 5, 30, 40), torch.float32), ((9, 70), torch.float64)]


@pytest.mark.parametrize("processor", [80, 90, 100, "gfx90a", "gfx942"])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_compiles_for_every_processor(processor, kind):
    """NVIDIA's and AMD's. Every variant meets every kind: losses by sample, margins by class, multi-margin."""
    shape, dtype = KINDS[kind]
    variant = (processor // 10 if isinstance(processor, int) else len(processor)) + kind
    for launch in kernel_code.launches(shape, dtype, **VARIANTS[variant % 3]):
        if isinstance(processor, int):
            assert kernel_code.read(launch, processor).spilled == 0
        else:
            found = kernel_code.read_amd(launch, processor)
            assert found["vgpr_count"] > 0
            assert found["vgpr_spill_count"] == found["sgpr_spill_count"] == found["private_segment_fixed_size"] == 0
