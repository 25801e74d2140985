"""What Triton's compiler makes of the kernels for a GPU, without one: registers, spills, widths of loads, instructions.

    python benchmarks/kernel_code.py

The kernels are asked for as :mod:`hem.losses.kernels.cuda` asks for them, with tensors that have no memory, and
compiled instead of launched. Counted is the machine's code (SASS) of one thread; its logits are those of the tile, less
the classes that a tile, a power of two, has too many. `tests/losses/test_cuda_code.py` holds the kernels to it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from hem.losses.kernels import cuda
from hem.losses.kernels.problem import Problem, layout, real

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
# One of each kind that `cuda._tile` tells apart: few classes, many, more than a tile has; the same of pixels, and
# images smaller than a tile.
SHAPES = [
    *((128, 10), (256, 1000), (4096, 32000), (64, 50257)),
    *((4, 12, 360, 480), (2, 19, 512, 1024), (2, 64, 128, 128), (2, 150, 512, 512), (2, 1000, 64, 64), (32, 21, 7, 7)),
]


@dataclass
class Launch:
    """A kernel, what it is launched with, and how often."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The arguments by their names."""
        return dict(zip(self.kernel.arg_names, self.arguments, strict=True))


@dataclass
class Code:
    """What the compiler made of a kernel: numbers for one thread, but the shared memory of a block."""

    registers: int
    spilled: int  # bytes
    shared: int  # bytes
    loads: Counter[int]  # by their bits
    stores: Counter[int]
    instructions: int
    elements: float  # logits


@contextmanager
def recorded(launches: list[Launch]) -> Iterator[None]:
    """Note the launches of the kernels instead of launching them."""

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *arguments, **options: launches.append(Launch(self.kernel, grid[0], arguments, options))

    names = ("_forward", "_finish", "_backward")
    kernels = [getattr(cuda, name) for name in names]
    for name, kernel in zip(names, kernels, strict=True):
        setattr(cuda, name, Recorder(kernel))
    try:
        yield
    finally:
        for name, kernel in zip(names, kernels, strict=True):
            setattr(cuda, name, kernel)


def launches(
    shape: tuple[int, ...], dtype: torch.dtype, *, each: bool = False, classwise: bool = False, high: bool = True
) -> list[Launch]:
    """The launches of forward and backward of one loss.

    Args:
        shape: Of the logits.
        dtype: Of the logits.
        each: Whether the losses of the samples are asked for.
        classwise: Whether there are a margin and a weight for each class.
        high: HEM; otherwise multi-margin.
    """
    logits = torch.empty(shape, dtype=dtype, device="meta")
    target = torch.empty((shape[0], *shape[2:]), dtype=torch.int64, device="meta")
    values = logits.new_empty(shape[1], dtype=real(logits)) if classwise else None
    lies = layout(logits)
    assert lies is not None
    problem = Problem(*lies, -100, high, not each, 0.5, values, values, logits, target)
    saved = logits.new_empty((2, target.numel()), dtype=real(logits))
    losses = saved.new_empty(target.shape) if each else None
    found: list[Launch] = []
    with recorded(found):
        loss, mass, _ = cuda.forward(problem, saved, losses)
        cuda.backward(problem, saved, mass, loss if losses is None else losses, torch.empty_like(logits))
    return found


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """The launch's kernel for a processor, specialised for its arguments as a launch does it."""
    kernel, values = launch.kernel, launch.values
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[i,] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], constants[i,] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return compile(source, target=target, options=launch.options)


def read(launch: Launch, capability: int = 90) -> Code:
    """Compile a launch's kernel and read what came out."""
    binary = compiled(launch, GPUTarget("cuda", capability, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        used, code = (
            subprocess.run([knobs.nvidia.cuobjdump.path, option, file.name], check=True, capture_output=True, text=True)
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED):(\d+)", used.stdout)}
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code.stdout, re.MULTILINE)

    def widths(operation: str) -> Counter[int]:
        named = [o.split(".") for o in operations if o.startswith(operation)]
        return Counter(next((int(w.lstrip("US")) for w in o if re.fullmatch(r"[US]?\d+", w)), 32) for o in named)

    values = launch.values
    tile = values.get("SAMPLES", 1) * min(values["WIDTH"], values.get("CLASSES", values["WIDTH"]))
    return Code(
        registers=numbers["REG"],
        spilled=4 * sum(o.startswith("STL") for o in operations),
        shared=numbers["SHARED"],
        loads=widths("LDG"),
        stores=widths("STG"),
        instructions=sum(o != "NOP" for o in operations),
        elements=tile / (32 * launch.options["num_warps"]),
    )


def read_amd(launch: Launch, architecture: str = "gfx942") -> dict[str, int]:
    """Compile a launch's kernel for an AMD processor; its registers, and bytes or registers that are spilled."""
    assembly = compiled(launch, GPUTarget("hip", architecture, 64)).asm["amdgcn"]
    names = "vgpr_count|sgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size"
    return {name: int(number) for name, number in re.findall(rf"\.({names}):\s+(\d+)", assembly)}


def words(widths: Counter[int]) -> str:
    return ", ".join(f"{number} x {bits}" for bits, number in sorted(widths.items(), reverse=True))


def main() -> None:
    head = ["logits", "", "kernel", "programs", "warps", "registers", "spilled", "loads, bits", "stores, bits"]
    print("| " + " | ".join([*head, "instructions/logit"]) + " |\n" + "|---" * (len(head) + 1) + "|")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for launch in launches(shape, dtype):
                name = launch.kernel.__name__.lstrip("_")
                if name == "finish":
                    continue
                code = read(launch)
                row = ("x".join(map(str, shape)), str(dtype).removeprefix("torch."), name, launch.programs,
                       launch.options["num_warps"], code.registers, code.spilled, words(code.loads),
                       words(code.stores), f"{code.instructions / code.elements:.1f}")  # fmt: skip
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
