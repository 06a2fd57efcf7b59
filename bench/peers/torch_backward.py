#!/usr/bin/env python3
"""Times backward against PyTorch's scaled_dot_product_attention, alternated in one run; needs torch.

    torch_backward.py BACKWARD_BENCH [--threads N] [--rounds N] [--seqlens 512,1024] [--dims 64,128] [--dtypes f32,bf16]

BACKWARD_BENCH is the binary of bench/backward_bench.cc. Each round times one call of either side; the ratio is
PyTorch's seconds by ours, of the best and of the medians. With fewer kv heads PyTorch gets enable_gqa.
"""

import argparse
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Peer:
    """One problem's graph, kept for many backward calls."""

    def __init__(self, dtype, heads, kv_heads, dim, seqlen, causal):
        make = lambda n: torch.randn(1, n, seqlen, dim, dtype=DTYPES[dtype], requires_grad=True)
        self.leaves = make(heads), make(kv_heads), make(kv_heads)
        self.out = F.scaled_dot_product_attention(*self.leaves, is_causal=causal, enable_gqa=heads != kv_heads)
        self.grad = torch.randn_like(self.out)
        self.run()

    def run(self):
        start = time.perf_counter()
        torch.autograd.grad(self.out, self.leaves, self.grad, retain_graph=True)
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seqlens", default="512,1024,2048,4096")
    parser.add_argument("--dims", default="64,128")
    parser.add_argument("--dtypes", default="f32,bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours = subprocess.Popen([args.bench, "--serve", str(args.threads)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)

    def time_ours(*case):
        print(*case, file=ours.stdin, flush=True)
        return float(ours.stdout.readline())

    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds")
    for dtype in args.dtypes.split(","):
        bests, medians = [], []
        for dim in map(int, args.dims.split(",")):
            for seqlen in map(int, args.seqlens.split(",")):
                for heads, kv_heads in ((4, 4), (8, 2)):
                    for causal in (0, 1):
                        peer = Peer(dtype, heads, kv_heads, dim, seqlen, bool(causal))
                        case = dtype, heads, kv_heads, dim, seqlen, causal
                        time_ours(*case)
                        theirs, mine = [], []
                        for _ in range(args.rounds):
                            theirs.append(peer.run())
                            mine.append(time_ours(*case))
                        best = min(theirs) / min(mine)
                        median = statistics.median(theirs) / statistics.median(mine)
                        bests.append(best)
                        medians.append(median)
                        print(f"{dtype} h{heads}/kv{kv_heads}/d{dim} S={seqlen:<5}{'causal' if causal else 'full  '} "
                              f"torch {min(theirs) * 1e3:8.2f} ms, ours {min(mine) * 1e3:8.2f} ms; "
                              f"ratio {best:5.2f} best {median:5.2f} median", flush=True)
        print(f"{dtype}: mean ratio {statistics.mean(bests):.2f} best, {statistics.mean(medians):.2f} median; "
              f"lowest {min(bests):.2f} best, {min(medians):.2f} median", flush=True)


if __name__ == "__main__":
    main()
