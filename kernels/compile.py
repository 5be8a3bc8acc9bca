"""Compiles every kernel for real GPUs where there is none: `python -m kernels.compile`.

Prints registers and local memory per thread (what registers spill to) and shared memory per program, as ptxas
allotted them. What is compiled is what is launched: the launches are planned with tensors that hold no data.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import triton_adaptive_span, triton_block_causal, triton_slots
from kernels.launch import Launch, rows_first

ARCHITECTURES = (80, 90)  # A100; H100 and H200
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADS, WIDTH, CONTEXT = 6, 64, 1500  # of tiny.en; every Whisper's heads are this wide
VIEWS = 3  # of a block of 300 ms while training


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes of a processor."""

    name: str
    dtype: str
    architecture: int
    warps: int
    registers: int  # per thread
    local_bytes: int  # per thread, of memory in place of registers
    shared_bytes: int  # per program


def launches(dtype: torch.dtype) -> dict[str, Launch]:
    """Every kernel as Whisper launches it, by name."""

    def of(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, slots = 16, of(16, dtype=torch.int64)
    cache = of(64, HEADS, CONTEXT, WIDTH)
    chunk, token = of(rows, HEADS, 45, WIDTH), of(rows, HEADS, 1, WIDTH)
    limits = of(rows, 1, dtype=torch.int64)
    window = rows_first(of(8, HEADS, VIEWS * 750, WIDTH))
    edges = triton_block_causal.block_edges(of(750, dtype=torch.int64), VIEWS)
    out, lse, forward = triton_block_causal.plan_forward(window, window, window, edges)
    _, (of_queries, of_keys) = triton_block_causal.plan_backward(out, window, window, window, out, lse, edges)
    frames, right = rows_first(of(8, 4, 375, WIDTH)), of(8, 375, 16, dtype=torch.float32)
    span_out, span_lse, span_forward = triton_adaptive_span.plan_forward(frames, frames, frames, right, 64)
    _, _, (of_span_queries, of_span_keys) = triton_adaptive_span.plan_backward(
        span_out, frames, frames, frames, right, span_out, span_lse, 64
    )
    _, (of_chunk,) = triton_slots.plan_attention(chunk, cache, cache, slots, limits.expand(rows, 45), 1)
    _, (of_token, join) = triton_slots.plan_attention(token, cache, cache, slots, limits, 4)
    return {
        "block_causal forward": forward,
        "block_causal backward, queries": of_queries,
        "block_causal backward, keys": of_keys,
        "adaptive_span forward": span_forward,
        "adaptive_span backward, queries": of_span_queries,
        "adaptive_span backward, keys": of_span_keys,
        "cached_chunk": of_chunk,
        "limit_cross, split": of_token,
        "split, joined": join,
        "slot_append": triton_slots.plan_append(cache, cache, slots, slots, chunk, chunk),
    }


def compile_all(dtypes: list[str], architectures: list[int]) -> Iterator[Compiled]:
    """Compiles kernel after kernel; what was compiled before comes from Triton's own cache."""
    for dtype in dtypes:
        for name, launch in launches(DTYPES[dtype]).items():
            for architecture in architectures:
                yield Compiled(name, dtype, architecture, launch.warps, *resources(launch, architecture))


def source(launch: Launch) -> ASTSource:
    """The kernel, specialised as Triton does when it is launched: pointers and integers that 16 divides, and ones."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[i,] = "constexpr", value
            continue
        signature[parameter.name] = kind(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def kind(value: Tensor | int | float) -> str:
    """Triton's name for the type of an argument."""
    if isinstance(value, Tensor):
        names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32", "int64": "i64"}
        return "*" + names[str(value.dtype).removeprefix("torch.")]
    return "i32" if isinstance(value, int) else "fp32"


def resources(launch: Launch, architecture: int) -> tuple[int, int, int]:
    """Compiles a kernel: registers and bytes of local memory per thread, bytes of shared memory per program."""
    built = triton.compile(
        source(launch),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(built.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"], built.metadata.shared


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--sm", nargs="+", type=int, default=ARCHITECTURES, help="80: A100; 90: H100, H200")
    chosen = parser.parse_args(arguments)
    table = Table("kernel", "type", "target")
    for name in ("warps", "registers", "local bytes", "shared bytes"):
        table.add_column(name, justify="right")
    with Console(stderr=True).status("compiling ...") as status:
        for one in compile_all(chosen.dtype, chosen.sm):
            status.update(f"compiled {one.name} for sm_{one.architecture}")
            numbers = (one.warps, one.registers, one.local_bytes, one.shared_bytes)
            table.add_row(
                one.name, one.dtype, f"sm_{one.architecture}", *(f"{number:,}" for number in numbers)
            )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
