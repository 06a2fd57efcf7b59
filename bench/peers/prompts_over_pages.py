#!/usr/bin/env python3
"""Prompts over a paged cache beside the same rows and keys in tensors, both Tessera's, on the current CUDA device.

    prompts_over_pages.py [--pages 16,64,20]

Causal, random numbers, pages dealt in random order; flash_attn_varlen_func with a block_table beside flash_attn_func. A time is the
median of 7 CUDA graphs of 20 calls. x: the tensors' time / the pages'. With TESSERA_CUDA_ARCH=80 in the environment the kernels
of every device run on a newer one, too. Needs PyTorch and a GPU.
"""

import argparse
import os
import sys

# sequences, rows and keys of each, heads, kv heads, head_dim, dtype
CELLS = [(4, 4096, 16, 16, 128, "bfloat16"), (4, 4096, 16, 4, 128, "bfloat16"), (16, 1024, 16, 16, 64, "bfloat16"),
         (4, 4096, 8, 8, 256, "bfloat16"), (4, 2048, 16, 16, 128, "float32")]


def timed(torch, call, calls=20):
    """Microseconds of a call."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls * 1e3)
    return sorted(times)[3]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", default="16,64,20", help="keys of a page (default: %(default)s)")
    pages = [int(x) for x in parser.parse_args().pages.split(",")]
    import torch

    import tessera

    if not torch.cuda.is_available():
        print("prompts_over_pages.py: PyTorch sees no CUDA device", file=sys.stderr)
        return 1
    arch = os.environ.get("TESSERA_CUDA_ARCH") or "the device's"
    print(f"{torch.cuda.get_device_name()}, kernels of architecture: {arch}")
    for batch, rows, heads, kv_heads, dim, dtype in CELLS:
        kind = getattr(torch, dtype)
        q, k, v = (torch.randn(batch, rows, h, dim, device="cuda").to(kind) for h in (heads, kv_heads, kv_heads))
        tensors = timed(torch, lambda q=q, k=k, v=v: tessera.flash_attn_func(q, k, v, causal=True))
        want = tessera.flash_attn_func(q, k, v, causal=True)
        ends = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * rows
        rate = 2 * batch * rows * rows * heads * dim / tensors / 1e6
        line = f"b {batch:<2d} S {rows} h {heads}/{kv_heads:<2d} D {dim:<3d} {dtype}: tensors {tensors:.1f} us {rate:.0f} TFLOP/s"
        for page in pages:
            count = -(-rows // page)
            table = torch.randperm(batch * count, device="cuda").to(torch.int32).reshape(batch, count)
            caches = []
            for x in (k, v):
                cache = torch.zeros(batch * count, page, kv_heads, dim, device="cuda", dtype=kind)
                padded = torch.zeros(batch, count * page, kv_heads, dim, device="cuda", dtype=kind)
                padded[:, :rows] = x
                cache[table.long()] = padded.reshape(batch, count, page, kv_heads, dim)
                caches.append(cache)

            def paged(q=q, caches=caches, ends=ends, rows=rows, table=table):
                return tessera.flash_attn_varlen_func(q.reshape(-1, *q.shape[2:]), *caches, ends, ends, rows, rows, causal=True,
                                                      block_table=table)

            off = (paged().reshape(q.shape).float() - want.float()).abs().max().item()
            time = timed(torch, paged)
            line += f" | page {page} {time:.1f} us {tensors / time:.3f}x, unlike by {off:.1e}"
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
