#!/usr/bin/env python3
"""Tessera's CUDA attention beside cuDNN, FlashAttention-2 and, where it is installed, FlashAttention-3, in one process.

    torch_attention.py [--cells GROUP,...] [--quick] [--rounds N] [--budget S] [--json FILE]

Groups of cells: forward (D 64 and 128, full and causal, S 512 to 16k: the 24 cells), dims (D 96 and 256), gqa (8 query heads a
kv head), varlen, decode (one query a sequence over a cache; ours paged by blocks of 64 and 16, the rivals' contiguous), small
(decode of one sequence), backward (the gradients alone), sm80 (our kernels of compute capability 8.0, forward, backward and
decode, beside FlashAttention-2 on the same GPU; runs alone, with TESSERA_CUDA_ARCH=80). Words of a cell's name (D128, causal,
S512, page16...) narrow a group: forward:D128:causal. B * S = 16k and H * D = 2048, but in decode and small.

How it is timed. Inputs are normal random numbers. After at least --warm-up seconds of work the engines take turns, and who
begins changes every round. A sample is one CUDA graph of as many calls as fill --sample-ms, over sets of inputs that together
exceed L2 twice; everything that a call launches is inside (cuDNN's varlen call cannot be captured: its kernels' own times). Ours
and every rival keep the log-sum-exp. SM clock, power and temperature are read by NVML during each sample; a round in which
somebody's clock is off its own median by more than 2 % is left out, unless too few would remain. A cell's figure is the median
over rounds; a ratio is the median of the rounds' own ratios (a rival's time / ours: above 1 we are faster). Before it is timed,
each engine's result is compared with float64: some rows, or all gradients of a head. A wrong result of ours, or a call of
ours that fails, leaves the cell out and makes the command fail at the end.

--quick is 5 rounds of 5 ms after 1 s of work; --budget S begins no cell that would end after S seconds if it took as long as the
slowest so far. Each group ends with its verdict, also when the time is up or the process is terminated.

cuDNN and FlashAttention-2 are PyTorch's; FlashAttention-3 is the module flash_attn_interface, if it can be imported. The first
line of --json has the device, driver, commit (TESSERA_COMMIT, or the checkout's), date and command.
"""

import argparse
import datetime
import importlib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from attention_figures import ENGINES, TOKENS, head, kind_of, lengths_of, row, selected, summary, verdict

DENSE_CLOCK_HZ = 1.83e9  # of NVIDIA's dense figure for the H100 and H200
FLOPS_PER_CLOCK = 4096  # bf16, dense, of one multiprocessor of compute capability 9.0
L2_BYTES = 60 << 20
# PyTorch 2.11 plans cuDNN's varlen call anew every time (40 ms of host time), which also fails inside a capture. Its kernels'
# own times are summed instead, which leaves out all else and lets the clocks rest between calls: cuDNN at its best.
NOT_CAPTURED = {("cudnn", "varlen")}
# Of bf16 results of normal inputs, beside float64: of outputs, and of gradients as a part of the largest.
ERROR_LIMIT, GRADIENT_LIMIT = 2e-2, 5e-2


# ---- Engines


class Unavailable(Exception):
    """An engine that is not here, or does not take a cell: why."""


class Wrong(Exception):
    """Our result is wrong, or our call failed: the cell has no figure and the command fails."""


class TimeIsUp(Exception):
    """The process was asked to end."""


def by_name(operator, values):
    """operator(*args), its arguments found in `values` by the names of its schema; None for those that are not there."""
    return operator.default(*[values.get(a.name) for a in operator.default._schema.arguments if not a.kwarg_only])


def heads_first(x):
    return tuple(x[name].transpose(1, 2) for name in "qkv")


class Bench:
    def __init__(self, options):
        import torch

        self.torch, self.options = torch, options
        if not torch.cuda.is_available():
            raise Unavailable("PyTorch sees no CUDA device")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.device)
        self.peak = self.properties.multi_processor_count * DENSE_CLOCK_HZ * FLOPS_PER_CLOCK
        self.generator = torch.Generator(self.device).manual_seed(1)
        self.nvml = self._nvml()
        self.missing = {}
        self.modules = {}
        for engine, module in (("tessera", "tessera"), ("fa3", "flash_attn_interface")):
            try:
                self.modules[engine] = importlib.import_module(module)
            except ImportError as error:
                self.missing[engine] = str(error)

    def _nvml(self):
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(self.properties.uuid)
            return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else "GPU-" + uuid)
        except Exception as error:
            print(f"NVML is not read ({error}): no clocks, and no round is left out", file=sys.stderr)
            return None

    def state(self):
        """SM clock in MHz, watts, degrees."""
        if self.nvml is None:
            return 0, 0.0, 0
        nvml, handle = self.nvml
        return (nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
                nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))

    def driver(self):
        if self.nvml is None:
            return None
        version = self.nvml[0].nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else version

    def randn(self, *shape):
        return self.torch.randn(shape, generator=self.generator, device=self.device, dtype=self.torch.bfloat16)

    def inputs(self, cell):
        """As many sets of inputs as exceed L2 twice, at least three."""
        element = 2 * cell["dim"]
        if cell["kind"] == "decode":
            size = element * 2 * cell["batch"] * cell["seqlen"] * cell["kv_heads"]
            sets = min(512, max(2, math.ceil(150e6 / size)))
        else:
            size = element * TOKENS * (cell["heads"] + 2 * cell["kv_heads"])
            sets = max(3, math.ceil(2 * L2_BYTES / size))
        return [self.one_input(cell) for _ in range(sets)]

    def one_input(self, cell):
        dim, heads, kv = cell["dim"], cell["heads"], cell["kv_heads"]
        if cell["kind"] == "varlen":
            return {"q": self.randn(TOKENS, heads, dim), "k": self.randn(TOKENS, kv, dim), "v": self.randn(TOKENS, kv, dim)}
        if cell["kind"] != "decode":
            batch, rows = cell["batch"], cell["seqlen"]
            one = {"q": self.randn(batch, rows, heads, dim), "k": self.randn(batch, rows, kv, dim),
                   "v": self.randn(batch, rows, kv, dim)}
            if cell["kind"] == "backward":
                one["dout"] = self.randn(batch, rows, heads, dim)
            return one
        torch, batch, n, page = self.torch, cell["batch"], cell["seqlen"], cell["page"]
        one = {"q": self.randn(batch, 1, heads, dim), "k": self.randn(batch, n, kv, dim), "v": self.randn(batch, n, kv, dim)}
        # The same keys and values in pages, dealt at random.
        pages = n // page
        one["table"] = torch.randperm(batch * pages, generator=self.generator, device=self.device).to(torch.int32)
        one["table"] = one["table"].reshape(batch, pages)
        one["lengths"] = torch.full((batch,), n, dtype=torch.int32, device=self.device)
        for name in "kv":
            paged = torch.empty(batch * pages, page, kv, dim, dtype=torch.bfloat16, device=self.device)
            paged[one["table"].long().flatten()] = one[name].reshape(batch * pages, page, kv, dim)
            one[name + "_pages"] = paged
        return one

    def cumulative(self, cell):
        sums = [0]
        for length in cell["lengths"]:
            sums.append(sums[-1] + length)
        return self.torch.tensor(sums, dtype=self.torch.int32, device=self.device)

    def call(self, engine, cell):
        """A function of one set of inputs that gives out as (batch, rows, heads, dim), or (rows, heads, dim) for varlen; of
        backward, dq, dk and dv."""
        if engine in self.missing:
            raise Unavailable(self.missing[engine])
        if engine not in cell.get("engines", ENGINES):
            raise Unavailable("not compared there")
        if cell["kind"] == "backward":
            return self.gradients(engine, cell)
        return {"tessera": self.ours, "fa3": self.fa3, "cudnn": self.cudnn, "fa2": self.fa2}[engine](cell)

    def ours(self, cell):
        module, causal = self.modules["tessera"], cell["causal"]
        if cell["kind"] == "varlen":
            cu, longest = self.cumulative(cell), max(cell["lengths"])
            return lambda x: module.flash_attn_varlen_func(x["q"], x["k"], x["v"], cu, cu, longest, longest, causal=causal)
        if cell["kind"] == "decode":
            return lambda x: module.flash_attn_with_kvcache(
                x["q"], x["k_pages"], x["v_pages"], cache_seqlens=x["lengths"], block_table=x["table"],
                return_softmax_lse=False)
        return lambda x: module.flash_attn_func(x["q"], x["k"], x["v"], causal=causal)

    def fa3(self, cell):
        module, causal = self.modules["fa3"], cell["causal"]
        if cell["kind"] == "varlen":
            cu, longest = self.cumulative(cell), max(cell["lengths"])
            return lambda x: module.flash_attn_varlen_func(x["q"], x["k"], x["v"], cu, cu, longest, longest, causal=causal)
        if cell["kind"] == "decode":  # of whole caches: no lengths to read; it chooses how often to split
            return lambda x: module.flash_attn_func(x["q"], x["k"], x["v"], num_splits=0)
        return lambda x: module.flash_attn_func(x["q"], x["k"], x["v"], causal=causal)

    def cudnn(self, cell):
        aten, causal = self.torch.ops.aten, cell["causal"]
        if cell["kind"] == "varlen":
            cu, longest = self.cumulative(cell), max(cell["lengths"])
            return lambda x: aten._cudnn_attention_forward(
                x["q"], x["k"], x["v"], None, cu, cu, longest, longest, True, 0.0, causal, False)[0]
        return lambda x: aten._scaled_dot_product_cudnn_attention(
            *heads_first(x), None, True, 0.0, causal, False)[0].transpose(1, 2)

    def fa2(self, cell):
        aten, causal = self.torch.ops.aten, cell["causal"]
        if cell["kind"] == "varlen":
            cu, longest = self.cumulative(cell), max(cell["lengths"])
            return lambda x: aten._flash_attention_forward(
                x["q"], x["k"], x["v"], cu, cu, longest, longest, 0.0, causal, False)[0]
        return lambda x: aten._scaled_dot_product_flash_attention(*heads_first(x), 0.0, causal, False)[0].transpose(1, 2)

    def gradients(self, engine, cell):
        """The backward alone: what the forward leaves is computed at the first call of a set of inputs."""
        aten, causal, left = self.torch.ops.aten, cell["causal"], {}
        if engine == "fa3":
            raise Unavailable("its backward is not compared")
        if engine == "tessera":
            module = self.modules["tessera"]

            def ours(x):
                if id(x) not in left:
                    left[id(x)] = module.attention_forward(x["q"], x["k"], x["v"], causal=causal)
                return module.attention_backward(x["dout"], x["q"], x["k"], x["v"], *left[id(x)], causal=causal)

            return ours
        name = "cudnn" if engine == "cudnn" else "flash"
        forward = getattr(aten, f"_scaled_dot_product_{name}_attention")
        backward = getattr(aten, f"_scaled_dot_product_{name}_attention_backward")

        def theirs(x):
            q, k, v = heads_first(x)
            given = {"query": q, "key": k, "value": v, "dropout_p": 0.0, "is_causal": causal, "compute_log_sumexp": True,
                     "return_debug_mask": False}
            if id(x) not in left:
                out = by_name(forward, given)
                names = [r.name for r in forward.default._schema.returns]
                left[id(x)] = dict(zip(names, out))
            # The backwards name two of the forwards' results otherwise.
            kept = left[id(x)]
            given.update(kept, out=kept["output"], grad_out=x["dout"].transpose(1, 2))
            given.setdefault("philox_seed", kept.get("rng_state"))
            given.setdefault("philox_offset", kept.get("unused"))
            return tuple(g.transpose(1, 2) for g in by_name(backward, given))

        return theirs

    def gradient_error(self, cell, x, gradients):
        """The largest difference from float64 as a part of the largest gradient, in a head of the first and the last sequence."""
        torch = self.torch
        worst = 0.0
        for b, h in {(0, 0), (cell["batch"] - 1, cell["heads"] - 1)}:
            q, k, v, dout = (x[name][b, :, h].double() for name in ("q", "k", "v", "dout"))
            scale = cell["dim"] ** -0.5
            scores = q @ k.T * scale
            if cell["causal"]:
                scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), float("-inf"))
            p = torch.softmax(scores, -1)
            del scores
            dp = dout @ v.T
            ds = p * (dp - (p * dp).sum(-1, keepdim=True))
            for got, want in zip(gradients, (ds @ k * scale, ds.T @ q * scale, p.T @ dout)):
                worst = max(worst, ((got[b, :, h].double() - want).abs().max() / want.abs().max()).item())
        return worst

    def error(self, cell, x, out):
        """The largest difference from float64, over some rows of two heads of the first and the last sequence."""
        torch = self.torch
        lengths = lengths_of(cell)
        worst = 0.0
        for index in (0, len(lengths) - 1):
            start, length = sum(lengths[:index]), lengths[index]
            if cell["kind"] == "varlen":
                q, k, v, o = (t[start:start + length] for t in (x["q"], x["k"], x["v"], out))
            else:
                q, k, v, o = (t[index] for t in (x["q"], x["k"], x["v"], out))
            rows = torch.tensor(sorted({0, q.shape[0] // 3, q.shape[0] // 2, q.shape[0] - 1}), device=self.device)
            for h in (0, cell["heads"] - 1):
                g = h * cell["kv_heads"] // cell["heads"]
                scores = q[rows, h].double() @ k[:, g].double().T * cell["dim"] ** -0.5
                if cell["causal"]:
                    last = rows[:, None] + k.shape[0] - q.shape[0]
                    scores.masked_fill_(torch.arange(k.shape[0], device=self.device)[None, :] > last, float("-inf"))
                want = torch.softmax(scores, -1) @ v[:, g].double()
                worst = max(worst, (o[rows, h].double() - want).abs().max().item())
        return worst

    # ---- Time

    def sample(self, engine, cell, run, sets, calls):
        """What replays a captured graph of `calls` calls over the sets in turn (or makes the calls, see NOT_CAPTURED)."""
        torch = self.torch

        def work():
            with torch.no_grad():
                for i in range(calls):
                    run(sets[i % len(sets)])

        if (engine, cell["kind"]) in NOT_CAPTURED:
            return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()

        def replay(_kept=run):  # a backward's graph reads what `run` keeps of the forward
            graph.replay()

        return replay

    def seconds(self, work):
        """Device seconds of work(), enqueued behind a short wait so that the host is ahead of it; clock, watts, degrees."""
        torch = self.torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(100_000)
        start.record()
        work()
        end.record()
        state = self.state()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3, state

    def kernel_seconds(self, work):
        """The same, of work()'s kernels alone, from CUPTI by PyTorch's profiler."""
        profiler = self.torch.profiler
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            work()
            state = self.state()
            self.torch.cuda.synchronize()
        return sum(event.self_device_time_total for event in profile.key_averages()) * 1e-6, state

    def kernels_of(self, work):
        """The names of the kernels that work() launches."""
        profiler = self.torch.profiler
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            work()
            self.torch.cuda.synchronize()
        return [event.key for event in profile.key_averages()]

    def prepare(self, engine, cell, sets):
        """(work, calls, error, timer) of an engine: checked, warm, and of the length of a sample."""
        run = self.call(engine, cell)
        backward = cell["kind"] == "backward"
        with self.torch.no_grad():
            for x in sets if backward else sets[:2]:
                out = run(x)
            checked = sets[-1] if backward else sets[min(1, len(sets) - 1)]
            error = self.gradient_error(cell, checked, out) if backward else self.error(cell, checked, out)
            if not error <= (GRADIENT_LIMIT if backward else ERROR_LIMIT):
                raise RuntimeError(f"{cell['name']}: the result is off by {error}")
            if engine == "tessera" and cell["group"] == "sm80":
                names = self.kernels_of(lambda: run(sets[0]))
                if not any("sm80" in name for name in names):
                    raise RuntimeError(f"TESSERA_CUDA_ARCH=80 is not heeded: {', '.join(names)}")
            few = self.sample(engine, cell, run, sets, len(sets))
            few()
            if (engine, cell["kind"]) in NOT_CAPTURED:
                return few, len(sets), error, self.kernel_seconds
            once = self.seconds(few)[0] / len(sets)
            calls = max(1, math.ceil(self.options.sample_ms * 1e-3 / once / len(sets))) * len(sets)
            work = few if calls == len(sets) else self.sample(engine, cell, run, sets, calls)
        return work, calls, error, self.seconds

    def warm_up(self):
        torch = self.torch
        a, b = self.randn(8192, 8192), self.randn(8192, 8192)
        until = time.monotonic() + self.options.warm_up
        while time.monotonic() < until:
            for _ in range(50):
                torch.mm(a, b)
            torch.cuda.synchronize()

    def matmul(self):
        """FLOP/s of bf16 matrix products of 8192, as the cells are timed."""
        a, b, c = self.randn(8192, 8192), self.randn(8192, 8192), self.randn(8192, 8192)
        def work():
            for _ in range(10):
                self.torch.mm(a, b, out=c)
        work()
        return 10 * 2 * 8192.0**3 / statistics.median(self.seconds(work)[0] for _ in range(5))

    def cell(self, cell):
        """{engine: [seconds]}, {engine: [clock]}, the states and errors of one cell."""
        sets = self.inputs(cell)
        ready, why = {}, {}
        for engine in self.options.engines:
            try:
                ready[engine] = self.prepare(engine, cell, sets)
            except Unavailable as error:
                why[engine] = str(error)
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                text = (str(error).splitlines() or [type(error).__name__])[0]
                if "CUDA error" in str(error):
                    raise  # nothing more runs in this process
                if engine == "tessera":
                    raise Wrong(text) from error
                why[engine] = text
        samples = {engine: [] for engine in ready}
        states = {engine: [] for engine in ready}
        engines = list(ready)
        for work, *_ in ready.values():
            work()
        for r in range(self.options.rounds):
            turn = r % max(1, len(engines))
            for engine in engines[turn:] + engines[:turn]:
                work, calls, _, timer = ready[engine]
                seconds, state = timer(work)
                samples[engine].append(seconds / calls)
                states[engine].append(state)
        return samples, states, {e: error for e, (_, _, error, _) in ready.items()}, why


def commit():
    """Of TESSERA_COMMIT or of this file's checkout; None where neither says."""
    if "TESSERA_COMMIT" in os.environ:
        return os.environ["TESSERA_COMMIT"]
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True,
                              text=True, check=False, cwd=pathlib.Path(__file__).parent)
    except OSError:
        return None
    return done.stdout.strip() or None


def about(bench, matmul):
    options, torch = bench.options, bench.torch
    return {"device": bench.properties.name, "multiprocessors": bench.properties.multi_processor_count,
            "driver": bench.driver(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "tessera": getattr(bench.modules.get("tessera"), "__version__", None),
            "commit": commit(), "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": " ".join(sys.argv), "tessera_cuda_arch": os.environ.get("TESSERA_CUDA_ARCH"), "rounds": options.rounds,
            "sample_ms": options.sample_ms, "warm_up_s": options.warm_up, "dense_peak": bench.peak, "matmul": matmul,
            "missing": bench.missing}


class Budget:
    """Whether there is time for one more cell, judged by the slowest so far."""

    def __init__(self, seconds, clock=time.monotonic):
        self.seconds, self.clock, self.start, self.slowest = seconds, clock, clock(), 0.0
        self.begun = self.start

    def allows_one_more(self):
        self.begun = self.clock()
        return not self.seconds or self.begun - self.start + self.slowest <= self.seconds

    def done_one(self):
        self.slowest = max(self.slowest, self.clock() - self.begun)


def time_group(bench, group, cells, matmul, budget, write):
    """Times the group's cells and ends with its verdict. The words of what went wrong."""
    done, failed, reasons = [], [], {}
    options = bench.options
    try:
        for cell in cells:
            if not budget.allows_one_more():
                print(f"the budget of {options.budget:.0f} s is spent")
                break
            try:
                samples, states, errors, why = bench.cell(cell)
            except Wrong as error:
                failed.append(f"{cell['name']}: {error}")
                print(f"{cell['name']:<33} FAILED: {error}", flush=True)
                write({"cell": cell, "failed": str(error)})
                continue
            budget.done_one()
            for engine, reason in why.items():
                reasons.setdefault((engine, reason), cell["name"])
            if not samples:
                print(f"{cell['name']:<33} no engine takes it")
                continue
            clocks = {e: [s[0] for s in values] for e, values in states.items()}
            figures = summary(cell, samples, clocks)
            write({"cell": {k: v for k, v in cell.items() if k != "lengths"}, "samples": samples,
                   "clock_watts_degrees": states, "errors": errors, "why_not": why,
                   "captured": {e: (e, kind_of(cell)) not in NOT_CAPTURED for e in samples}, **figures})
            clock = statistics.median(clocks.get("tessera") or [0])
            print(row(cell, figures, options.engines, bench.peak, matmul, clock), flush=True)
            done.append((cell, figures))
    finally:
        print(verdict(group, done, len(cells)), flush=True)
        for (engine, reason), name in reasons.items():
            print(f"{engine} was left out first in {name}: {reason}")
    return failed


def run(options):
    bench = Bench(options)
    torch = bench.torch
    lines = open(options.json, "w", encoding="utf-8") if options.json else None
    def write(record):
        if lines:
            print(json.dumps(record), file=lines, flush=True)

    for engine, why in bench.missing.items():
        if engine in options.engines:
            print(f"{engine} is not here: {why}")
    bench.warm_up()
    matmul = bench.matmul()
    first = about(bench, matmul)
    write(first)
    print(", ".join([first["device"], *(f"{name} {first[name]}" for name in ("driver", "torch", "cudnn", "commit"))]))
    print(f"dense bf16 peak {bench.peak * 1e-12:.0f} TFLOP/s, matmul of 8192 {matmul * 1e-12:.0f}; times are medians of "
          f"{options.rounds} rounds, rates TFLOP/s (decode TB/s of q, K, V and o)")
    print("ratios: a rival's time / ours, median of the rounds' own; best: the cell's fastest")
    print(head(options.engines))
    budget, failed = Budget(options.budget), []
    for group in dict.fromkeys(cell["group"] for cell in options.cells):
        failed += time_group(bench, group, [c for c in options.cells if c["group"] == group], matmul, budget, write)
        torch.cuda.empty_cache()
    after = bench.matmul()
    write({"matmul_after": after})
    print(f"matmul of 8192 after it: {after * 1e-12:.0f} TFLOP/s")
    if failed:
        sys.exit("our results are wrong or missing in " + "; ".join(failed))


def parsed(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="forward,dims,gqa,varlen,decode", help="groups, narrowed by words: forward:D64")
    parser.add_argument("--engines", default=",".join(ENGINES), help="whom to time (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="5 rounds of 5 ms after 1 s of work, unless told otherwise")
    parser.add_argument("--rounds", type=int, help="samples of each engine and cell (default: 11)")
    parser.add_argument("--sample-ms", type=float, help="least length of a sample (default: 10)")
    parser.add_argument("--warm-up", type=float, help="seconds of work before the cells (default: 2)")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds, as above (default: no limit)")
    parser.add_argument("--json", help="write raw samples here, one JSON object a line")
    options = parser.parse_args(arguments)
    for name, usual, quick in (("rounds", 11, 5), ("sample_ms", 10.0, 5.0), ("warm_up", 2.0, 1.0)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    options.engines = options.engines.split(",")
    for engine in options.engines:
        if engine not in ENGINES:
            parser.error(f"--engines: '{engine}' is not one of {', '.join(ENGINES)}")
    if options.rounds < 1 or not options.sample_ms > 0:
        parser.error("--rounds and --sample-ms must be above 0")
    try:
        options.cells = selected(options.cells)
    except ValueError as error:
        parser.error(f"--cells: {error}")
    return options


def end(*_):
    raise TimeIsUp


def main():
    options = parsed(sys.argv[1:])
    if options.cells[0]["group"] == "sm80":
        os.environ["TESSERA_CUDA_ARCH"] = "80"  # read when the package makes a context
    signal.signal(signal.SIGTERM, end)
    try:
        run(options)
    except TimeIsUp:
        sys.exit("terminated before all cells were timed")
    except ImportError as error:
        sys.exit(f"{sys.executable} has no PyTorch: {error}")
    except Unavailable as error:
        sys.exit(f"torch_attention.py needs a CUDA device: {error}")


if __name__ == "__main__":
    main()
