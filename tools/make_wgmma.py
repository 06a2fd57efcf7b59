#!/usr/bin/env python3
"""Writes src/attention/cuda/common/wgmma.cuh: one function for each wgmma shape that the kernels use.

    tools/make_wgmma.py            writes the file
    tools/make_wgmma.py --check    exits 1 if the committed file is not what this would write
"""
import pathlib
import sys

SIZES = [64, 80, 96, 128]
TYPES = {"__nv_bfloat16": "bf16", "__half": "f16"}
PATH = pathlib.Path(__file__).resolve().parent.parent / "src/attention/cuda/common/wgmma.cuh"

HEAD = """// Written by tools/make_wgmma.py; do not edit.
//
// D[64 x N] = A[64 x 16] B[16 x N] + (accumulate ? D : 0) by one warpgroup, f32 accumulators. A lies in registers (rs) or,
// K-major, in shared memory (ss); B lies in shared memory, K-major (kTransposeB = 0) or MN-major (1). Order of use:
// wgmma_fence(), all products, wgmma_commit(), wgmma_wait<n>(); accumulators may be touched only after the wait.
// Lane l of warp w holds d[4 * i + 2 * h + c] = D[16 * w + l / 4 + 8 * h][8 * i + 2 * (l % 4) + c].
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace tessera::attention::cuda {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most Pending groups are in flight.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

template <typename T, int N, int kTransposeB>
struct Wgmma;
"""


def operands(first, count):
    return ", ".join(f"%{i}" for i in range(first, first + count))


def wrapped(items, indent):
    lines, line = [], ""
    for item in items:
        if len(indent) + len(line) + len(item) + 2 > 110:
            lines.append(line.rstrip())
            line = ""
        line += item + ", "
    lines.append(line.rstrip().rstrip(","))
    return ("\n" + indent).join(lines)


def function(kind, n, word):
    registers = n // 2
    accumulators = wrapped([f'"+f"(d[{i}])' for i in range(registers)], " " * 10)
    text = wrapped([f"%{i}" for i in range(registers)], " " * 9).replace("\n", '"\n' + " " * 8 + '"').replace(
        '"' + " " * 9, '"')
    # The text of the operands is a sequence of string literals.
    lines = [part.strip().strip('"') for part in text.split("\n")]
    literals = "\n".join(f'        "{line} "' for line in lines)
    if kind == "ss":
        a = "uint64_t a"
        a_text = f"%{registers}"
        a_in = '"l"(a)'
        used = 1
    else:
        a = "const uint32_t (&a)[4]"
        a_text = "{" + operands(registers, 4) + "}"
        a_in = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])'
        used = 4
    b = registers + used
    transposes = f"0, %{b + 2}" if kind == "ss" else f"%{b + 2}"
    return f"""  static __device__ __forceinline__ void {kind}(float (&d)[{registers}], {a}, uint64_t b, uint32_t accumulate) {{
    asm volatile(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{b + 1}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{word}.{word} {{"
{literals}
        "}}, {a_text}, %{b}, p, 1, 1, {transposes};\\n}}\\n"
        : {accumulators}
        : {a_in}, "l"(b), "r"(accumulate), "n"(kTransposeB));
  }}
"""


def make():
    out = [HEAD]
    for cpp, word in TYPES.items():
        for n in SIZES:
            out.append(f"\ntemplate <int kTransposeB>\nstruct Wgmma<{cpp}, {n}, kTransposeB> {{\n"
                       + function("ss", n, word) + function("rs", n, word) + "};\n")
    out.append("\n}  // namespace tessera::attention::cuda\n")
    return "// clang-format off\n" + "".join(out)


def main():
    text = make()
    if "--check" in sys.argv[1:]:
        if PATH.read_text() != text:
            print(f"{PATH} is not what tools/make_wgmma.py writes: run it", file=sys.stderr)
            return 1
        return 0
    PATH.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
