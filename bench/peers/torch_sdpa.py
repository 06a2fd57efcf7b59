#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on the CPU, as a peer of `tessera bench attention --peer torch`.

Started by the benchmark, which writes one JSON object a line and reads one back:

    {"cell": {"batch": 1, "heads": 4, "kv_heads": 1, "seqlen": 512, "dim": 64, "dtype": "f32", "causal": true,
              "threads": 2, "backward": false}}                              -> {"ready": true}
    {"run": 3}                                                               -> {"seconds": [s, s, s]}

One thread is timed by its own CPU clock, several by the wall's, as the benchmark times itself. Inputs lie as
[batch, seqlen, heads, dim], like the benchmark's, and are handed over transposed.
"""

import json
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit(f"{sys.executable} has no PyTorch; pass --python an interpreter that has it")

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Cell:
    def __init__(self, cell):
        torch.set_num_threads(cell["threads"])
        self.clock = time.thread_time if cell["threads"] == 1 else time.perf_counter
        generator = torch.Generator().manual_seed(1)
        dtype = DTYPES[cell["dtype"]]

        def tensor(heads):
            shape = (cell["batch"], cell["seqlen"], heads, cell["dim"])
            values = torch.randn(shape, generator=generator).to(dtype).transpose(1, 2)
            return values.requires_grad_(cell["backward"])

        self.q, self.k, self.v = tensor(cell["heads"]), tensor(cell["kv_heads"]), tensor(cell["kv_heads"])
        self.options = {"is_causal": cell["causal"], "enable_gqa": cell["heads"] != cell["kv_heads"]}
        self.dout = torch.randn(self.q.shape, generator=generator).to(dtype) if cell["backward"] else None
        # The graph is made once; only its backward is timed.
        self.out = self.forward() if cell["backward"] else None

    def forward(self):
        return F.scaled_dot_product_attention(self.q, self.k, self.v, **self.options)

    def once(self):
        if self.dout is None:
            with torch.no_grad():
                start = self.clock()
                self.forward()
                return self.clock() - start
        start = self.clock()
        torch.autograd.grad(self.out, (self.q, self.k, self.v), self.dout, retain_graph=True)
        return self.clock() - start


def main():
    print(json.dumps({"engine": "torch", "version": torch.__version__,
                      "cpu": torch.backends.cpu.get_cpu_capability()}), flush=True)
    cell = None
    for line in sys.stdin:
        request = json.loads(line)
        if "cell" in request:
            cell = Cell(request["cell"])
            print(json.dumps({"ready": True}), flush=True)
        else:
            print(json.dumps({"seconds": [cell.once() for _ in range(request["run"])]}), flush=True)


if __name__ == "__main__":
    main()
