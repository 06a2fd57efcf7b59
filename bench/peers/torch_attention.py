#!/usr/bin/env python3
"""Tessera's CUDA attention beside cuDNN, FlashAttention-2 and, where it is installed, FlashAttention-3, in one process.

    torch_attention.py [--cells GROUP,...] [--rounds N] [--json FILE]

Groups of cells: forward (D 64 and 128, full and causal, S 512 to 16k: the 24 cells), dims (D 96 and 256), gqa (8 query heads
a kv head), varlen, decode (one query a sequence over a cache; ours paged by blocks of 64 and 16, the rivals' contiguous). Words
of a cell's name (D128, causal, S512, page16...) narrow a group: forward:D128:causal. B * S = 16k and H * D = 2048, but in decode.

How it is timed. Inputs are normal random numbers. After at least --warm-up seconds of work the engines take turns, and who
begins changes every round. A sample is one CUDA graph of as many calls as fill --sample-ms, over sets of inputs that together
exceed L2 twice; everything that a call launches is inside (cuDNN's varlen call cannot be captured: its kernels' own times). Ours
and every rival keep the log-sum-exp. SM clock, power and temperature are read by NVML during each sample; a round in which
somebody's clock is off its own median by more than 2 % is left out, unless too few would remain. A cell's figure is the median
over rounds; a ratio is the median of the rounds' own ratios (a rival's time / ours: above 1 we are faster). Before it is timed,
each engine's result is compared with float64 on some rows.

cuDNN and FlashAttention-2 are PyTorch's; FlashAttention-3 is the module flash_attn_interface, if it can be imported.
"""

import argparse
import importlib
import json
import math
import statistics
import sys
import time

ENGINES = ("tessera", "cudnn", "fa2", "fa3")
GROUPS = ("forward", "dims", "gqa", "varlen", "decode")
TOKENS, WIDTH = 16384, 2048  # batch * seqlen and heads * head_dim
DENSE_CLOCK_HZ = 1.83e9  # of NVIDIA's dense figure for the H100 and H200
FLOPS_PER_CLOCK = 4096  # bf16, dense, of one multiprocessor of compute capability 9.0
L2_BYTES = 60 << 20
# PyTorch 2.11 plans cuDNN's varlen call anew every time (40 ms of host time), which also fails inside a capture. Its kernels'
# own times are summed instead, which leaves out all else and lets the clocks rest between calls: cuDNN at its best.
NOT_CAPTURED = {("cudnn", "varlen")}
CLOCK_TOLERANCE = 0.02
LEAST_ROUNDS = 5
ERROR_LIMIT = 2e-2  # of bf16 results of normal inputs, beside float64


# ---- Cells, figures and tables: no PyTorch here


def cells_of(group):
    """The cells of a group, as dicts with a name whose words select them."""
    def cell(dim, causal, seqlen, kv_share=1, **more):
        heads = WIDTH // dim
        words = [group, f"D{dim}", "causal" if causal else "full", f"S{seqlen}"]
        return {"group": group, "name": ":".join(words), "dim": dim, "causal": causal, "seqlen": seqlen,
                "batch": TOKENS // seqlen, "heads": heads, "kv_heads": max(1, heads // kv_share), **more}

    if group == "forward":
        return [cell(d, c, s) for d in (128, 64) for c in (False, True) for s in (512, 1024, 2048, 4096, 8192, 16384)]
    if group == "dims":
        return [cell(d, c, s) for d in (96, 256) for c in (False, True) for s in (1024, 4096, 16384)]
    if group == "gqa":
        return [cell(d, c, s, 8) for d in (128, 64) for c in (False, True) for s in (1024, 4096, 16384)]
    if group == "varlen":
        return [cell(d, c, s, lengths=varlen_lengths(s)) for d in (128, 64) for c in (False, True) for s in (1024, 4096)]
    return [{"group": group, "name": f"decode:kv{kv}:n{n}:page{page}", "dim": 128, "causal": False, "seqlen": n, "batch": 32,
             "heads": 32, "kv_heads": kv, "page": page}
            for kv in (32, 8) for n in (1024, 2048, 4096) for page in (64, 16)]


def varlen_lengths(longest):
    """Lengths from an eighth of `longest` to `longest`, TOKENS in all, the same in every run."""
    lengths, state = [], 1
    while sum(lengths) < TOKENS:
        state = (state * 1103515245 + 12345) % 2**31
        length = longest // 8 + (state >> 8) % (longest - longest // 8 + 1)
        lengths.append(min(length, TOKENS - sum(lengths)))
    return lengths


def selected(selection):
    """The cells of "group:word:word,..."; ValueError names what is unknown."""
    cells = []
    for part in selection.split(","):
        group, *words = part.split(":")
        if group not in GROUPS:
            raise ValueError(f"'{group}' is no group of cells; there are {', '.join(GROUPS)}")
        found = [c for c in cells_of(group) if all(w in c["name"].split(":") for w in words)]
        if not found:
            raise ValueError(f"'{part}' selects no cell; the group's are " + ", ".join(c["name"] for c in cells_of(group)))
        cells += found
    return cells


def lengths_of(cell):
    return cell.get("lengths") or [cell["seqlen"]] * cell["batch"]


def flops_of(cell):
    """Two per multiply-add of both products over the visible pairs; causal counts half."""
    if cell["group"] == "decode":
        return 4.0 * cell["batch"] * cell["heads"] * cell["seqlen"] * cell["dim"]
    pairs = sum(n * n for n in lengths_of(cell))
    return 4.0 * cell["heads"] * cell["dim"] * pairs * (0.5 if cell["causal"] else 1.0)


def bytes_of(cell):
    """What must move: q and o once, K and V once."""
    rows = cell["batch"] if cell["group"] == "decode" else TOKENS
    keys = cell["batch"] * cell["seqlen"] if cell["group"] == "decode" else TOKENS
    return 2.0 * cell["dim"] * (2 * rows * cell["heads"] + 2 * keys * cell["kv_heads"])


def steady_rounds(clocks):
    """Indices of the rounds in which every engine's clock is near its own median. clocks: {engine: [Hz of each round]}."""
    rounds = range(min(len(c) for c in clocks.values()))
    def steady(values, r):
        middle = statistics.median(values)
        return middle == 0 or abs(values[r] - middle) <= CLOCK_TOLERANCE * middle
    kept = [r for r in rounds if all(steady(values, r) for values in clocks.values())]
    return kept if len(kept) >= min(LEAST_ROUNDS, len(rounds)) else list(rounds)


def quartiles(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]


def summary(cell, samples, clocks):
    """Medians, quartiles and paired ratios of a cell. samples: {engine: [seconds of a call, by round]}."""
    rounds = steady_rounds(clocks)
    kept = {engine: [values[r] for r in rounds] for engine, values in samples.items()}
    out = {"rounds": len(rounds), "dropped": len(next(iter(samples.values()))) - len(rounds), "engines": {}}
    for engine, values in kept.items():
        low, high = quartiles(values)
        out["engines"][engine] = {"seconds": statistics.median(values), "quartiles": [low, high],
                                  "tflops": flops_of(cell) / statistics.median(values) * 1e-12,
                                  "bytes_per_second": bytes_of(cell) / statistics.median(values)}
    if "tessera" in kept:
        for engine, values in kept.items():
            ratios = [theirs / ours for theirs, ours in zip(values, kept["tessera"])]
            out["engines"][engine]["ratio"] = statistics.median(ratios)
    rivals = {e: f for e, f in out["engines"].items() if e in ("cudnn", "fa3", "fa2")}
    if rivals and "tessera" in kept:
        out["best_rival"] = min(rivals, key=lambda e: rivals[e]["seconds"])
        out["ratio"] = rivals[out["best_rival"]]["ratio"]
    return out


def mean(ratios):
    return math.exp(sum(math.log(r) for r in ratios) / len(ratios))


def head(engines):
    names = {"tessera": "ours", "cudnn": "cuDNN", "fa2": "FA2", "fa3": "FA3"}
    return (f"{'cell':<28}" + "".join(f"{names[e] + ' us':>11}{'rate':>8}" for e in engines) + f"{'peak':>7}{'matmul':>8}  "
            + "".join(f"{'/' + names[e]:>8}" for e in engines if e != "tessera") + f"{'best':>8}{'IQR':>7}{'clock':>7}")


def row(cell, figures, engines, peak, matmul, clock):
    """One line: microseconds and rate (TFLOP/s; decode: TB/s) of each engine, ours in percent of peak and matmul, ratios."""
    decode = cell["group"] == "decode"
    text = f"{cell['name']:<28}"
    for engine in engines:
        f = figures["engines"].get(engine)
        if f is None:
            text += f"{'-':>11}{'-':>8}"
        else:
            rate = f["bytes_per_second"] * 1e-12 if decode else f["tflops"]
            text += f"{f['seconds'] * 1e6:>11.1f}{rate:>8.2f}" if decode else f"{f['seconds'] * 1e6:>11.1f}{rate:>8.0f}"
    ours = figures["engines"].get("tessera")
    if ours is None:
        return text
    text += f"{'':>15}" if decode else f"{100e12 * ours['tflops'] / peak:>6.1f}%{100e12 * ours['tflops'] / matmul:>7.1f}%"
    text += "  "
    for engine in engines:
        if engine != "tessera":
            f = figures["engines"].get(engine)
            text += f"{'-':>8}" if f is None else f"{f['ratio']:>8.3f}"
    low, high = ours["quartiles"]
    spread = 100 * (high - low) / ours["seconds"]
    return text + (f"{figures['ratio']:>8.3f}" if "ratio" in figures else f"{'-':>8}") + f"{spread:>6.1f}%{clock:>7.0f}"


def verdict(group, results):
    """Means and the lowest cell of a group's ratios against the best rival of each cell."""
    judged = [(figures["ratio"], cell["name"]) for cell, figures in results if "ratio" in figures]
    if not judged:
        return f"{group}: no rival to compare with"
    lowest, name = min(judged)
    text = f"{group}: against the best rival of each cell, mean {mean([r for r, _ in judged]):.3f}, lowest {lowest:.3f} ({name})"
    for rival in ("cudnn", "fa2", "fa3"):
        ratios = [f["engines"][rival]["ratio"] for _, f in results if "ratio" in f["engines"].get(rival, {})]
        if ratios:
            text += f"; /{rival} {mean(ratios):.3f} over {len(ratios)}"
    return text


# ---- Engines


class Unavailable(Exception):
    """An engine that is not here, or does not take a cell: why."""


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

    def randn(self, *shape):
        return self.torch.randn(shape, generator=self.generator, device=self.device, dtype=self.torch.bfloat16)

    def inputs(self, cell):
        """As many sets of inputs as exceed L2 twice, at least three."""
        element = 2 * cell["dim"]
        if cell["group"] == "decode":
            size = element * 2 * cell["batch"] * cell["seqlen"] * cell["kv_heads"]
            sets = max(2, math.ceil(150e6 / size))
        else:
            size = element * TOKENS * (cell["heads"] + 2 * cell["kv_heads"])
            sets = max(3, math.ceil(2 * L2_BYTES / size))
        return [self.one_input(cell) for _ in range(sets)]

    def one_input(self, cell):
        dim, heads, kv = cell["dim"], cell["heads"], cell["kv_heads"]
        if cell["group"] == "varlen":
            return {"q": self.randn(TOKENS, heads, dim), "k": self.randn(TOKENS, kv, dim), "v": self.randn(TOKENS, kv, dim)}
        if cell["group"] != "decode":
            batch, rows = cell["batch"], cell["seqlen"]
            return {"q": self.randn(batch, rows, heads, dim), "k": self.randn(batch, rows, kv, dim),
                    "v": self.randn(batch, rows, kv, dim)}
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
        """A function of one set of inputs that gives out as (batch, rows, heads, dim), or (rows, heads, dim) for varlen."""
        if engine in self.missing:
            raise Unavailable(self.missing[engine])
        aten, causal, group = self.torch.ops.aten, cell["causal"], cell["group"]
        if engine == "tessera":
            ours = self.modules["tessera"]
            if group == "varlen":
                cu, longest = self.cumulative(cell), max(cell["lengths"])
                return lambda x: ours.flash_attn_varlen_func(x["q"], x["k"], x["v"], cu, cu, longest, longest, causal=causal)
            if group == "decode":
                return lambda x: ours.flash_attn_with_kvcache(
                    x["q"], x["k_pages"], x["v_pages"], cache_seqlens=x["lengths"], block_table=x["table"],
                    return_softmax_lse=False)
            return lambda x: ours.flash_attn_func(x["q"], x["k"], x["v"], causal=causal)
        if engine == "fa3":
            theirs = self.modules["fa3"]
            if group in ("varlen", "decode"):
                raise Unavailable("not compared there")
            return lambda x: theirs.flash_attn_func(x["q"], x["k"], x["v"], causal=causal)
        if group == "varlen":
            cu, longest = self.cumulative(cell), max(cell["lengths"])
            if engine == "cudnn":
                return lambda x: aten._cudnn_attention_forward(
                    x["q"], x["k"], x["v"], None, cu, cu, longest, longest, True, 0.0, causal, False)[0]
            return lambda x: aten._flash_attention_forward(
                x["q"], x["k"], x["v"], cu, cu, longest, longest, 0.0, causal, False)[0]
        def heads_first(x):
            return tuple(x[name].transpose(1, 2) for name in "qkv")
        if engine == "cudnn":
            return lambda x: aten._scaled_dot_product_cudnn_attention(
                *heads_first(x), None, True, 0.0, causal, False)[0].transpose(1, 2)
        return lambda x: aten._scaled_dot_product_flash_attention(*heads_first(x), 0.0, causal, False)[0].transpose(1, 2)

    def error(self, cell, x, out):
        """The largest difference from float64, over some rows of two heads of the first and the last sequence."""
        torch = self.torch
        lengths = lengths_of(cell)
        worst = 0.0
        for index in (0, len(lengths) - 1):
            start, length = sum(lengths[:index]), lengths[index]
            if cell["group"] == "varlen":
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

        if (engine, cell["group"]) in NOT_CAPTURED:
            return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

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

    def prepare(self, engine, cell, sets):
        """(work, calls, error, timer) of an engine: checked, warm, and of the length of a sample."""
        run = self.call(engine, cell)
        with self.torch.no_grad():
            for x in sets[:2]:
                out = run(x)
            error = self.error(cell, sets[min(1, len(sets) - 1)], out)
            if not error <= ERROR_LIMIT:
                raise RuntimeError(f"{engine}, {cell['name']}: the result is off by {error}")
            few = self.sample(engine, cell, run, sets, len(sets))
            few()
            if (engine, cell["group"]) in NOT_CAPTURED:
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
            except (Unavailable, NotImplementedError, ValueError) as error:
                why[engine] = str(error).splitlines()[0]
            except RuntimeError as error:
                if engine == "tessera" or "CUDA error" in str(error):
                    raise
                why[engine] = str(error).splitlines()[0]
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
    about = {"device": bench.properties.name, "multiprocessors": bench.properties.multi_processor_count,
             "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
             "tessera": getattr(bench.modules.get("tessera"), "__version__", None), "rounds": options.rounds,
             "sample_ms": options.sample_ms, "warm_up_s": options.warm_up, "dense_peak": bench.peak, "matmul": matmul,
             "missing": bench.missing}
    write(about)
    print(f"{about['device']}, torch {about['torch']}, cuDNN {about['cudnn']}; dense bf16 peak {bench.peak * 1e-12:.0f} TFLOP/s,"
          f" matmul of 8192 {matmul * 1e-12:.0f}; times are medians of {options.rounds} rounds, rates TFLOP/s (decode TB/s of q, "
          f"K, V and o)\nratios: a rival's time / ours, median of the rounds' own; best: the cell's fastest")
    print(head(options.engines))
    started, done, reasons = time.monotonic(), [], {}
    for cell in options.cells:
        if options.budget and time.monotonic() - started > options.budget:
            print(f"the budget of {options.budget:.0f} s is spent: {len(options.cells) - len(done)} cells were not run")
            break
        samples, states, errors, why = bench.cell(cell)
        for engine, reason in why.items():
            reasons.setdefault((engine, reason), cell["name"])
        if not samples:
            print(f"{cell['name']:<28} no engine takes it")
            continue
        clocks = {e: [s[0] for s in values] for e, values in states.items()}
        figures = summary(cell, samples, clocks)
        write({"cell": {k: v for k, v in cell.items() if k != "lengths"}, "samples": samples, "clock_watts_degrees": states,
               "errors": errors, "why_not": why, **figures})
        clock = statistics.median(clocks.get("tessera", [0])) if clocks.get("tessera") else 0
        print(row(cell, figures, options.engines, bench.peak, matmul, clock), flush=True)
        done.append((cell, figures))
    after = bench.matmul()
    write({"matmul_after": after})
    print(f"matmul of 8192 after it: {after * 1e-12:.0f} TFLOP/s")
    for group in dict.fromkeys(cell["group"] for cell, _ in done):
        print(verdict(group, [(c, f) for c, f in done if c["group"] == group]))
    for (engine, reason), name in reasons.items():
        print(f"{engine} was left out first in {name}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="forward,dims,gqa,varlen,decode", help="groups, narrowed by words: forward:D64")
    parser.add_argument("--engines", default=",".join(ENGINES), help="whom to time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each engine and cell (default: %(default)s)")
    parser.add_argument("--sample-ms", type=float, default=10.0, help="least length of a sample (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds of work before the cells (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=0.0, help="begin no cell after so many seconds (default: no limit)")
    parser.add_argument("--json", help="write raw samples here, one JSON object a line")
    options = parser.parse_args()
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
    try:
        run(options)
    except ImportError as error:
        sys.exit(f"{sys.executable} has no PyTorch: {error}")
    except Unavailable as error:
        sys.exit(f"torch_attention.py needs a CUDA device: {error}")


if __name__ == "__main__":
    main()
