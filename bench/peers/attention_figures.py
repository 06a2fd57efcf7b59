"""What torch_attention.py times and computes from its samples: cells, ratios, rows and verdicts. Needs no PyTorch.

A cell is a dict: group, name, kind (dense, varlen, decode or backward), dim, causal, seqlen, batch, heads, kv_heads; some have
page, lengths, or engines (those that are timed there, where it is not all).
"""

import math
import statistics

ENGINES = ("tessera", "cudnn", "fa2", "fa3")
RIVALS = ("cudnn", "fa2", "fa3")
NAMES = {"tessera": "ours", "cudnn": "cuDNN", "fa2": "FA2", "fa3": "FA3"}
GROUPS = ("forward", "dims", "gqa", "varlen", "decode", "small", "backward", "sm80")
TOKENS, WIDTH = 16384, 2048  # batch * seqlen and heads * head_dim
CLOCK_TOLERANCE = 0.02
LEAST_ROUNDS = 5


def dense(group, dim, causal, seqlen, kv_share=1, kind="dense", prefix="", **more):
    heads = WIDTH // dim
    name = f"{prefix or group}:D{dim}:{'causal' if causal else 'full'}:S{seqlen}"
    return {"group": group, "name": name, "kind": kind, "dim": dim, "causal": causal, "seqlen": seqlen,
            "batch": TOKENS // seqlen, "heads": heads, "kv_heads": max(1, heads // kv_share), **more}


def decode(group, batch, kv_heads, length, page, prefix="", **more):
    return {"group": group, "name": f"{prefix or group}:kv{kv_heads}:n{length}:page{page}", "kind": "decode", "dim": 128,
            "causal": False, "seqlen": length, "batch": batch, "heads": 32, "kv_heads": kv_heads, "page": page, **more}


def cells_of(group):
    """The cells of a group, in their order; the words of a name select them."""
    masks = (False, True)
    if group == "forward":
        return [dense(group, d, c, s) for d in (128, 64) for c in masks for s in (512, 1024, 2048, 4096, 8192, 16384)]
    if group == "dims":
        return [dense(group, d, c, s) for d in (96, 256) for c in masks for s in (1024, 4096, 16384)]
    if group == "gqa":
        return [dense(group, d, c, s, 8) for d in (128, 64) for c in masks for s in (1024, 4096, 16384)]
    if group == "varlen":
        return [dense(group, d, c, s, kind="varlen", lengths=varlen_lengths(s))
                for d in (128, 64) for c in masks for s in (1024, 4096)]
    if group == "decode":
        return [decode(group, 32, kv, n, page) for kv in (32, 8) for n in (1024, 2048, 4096) for page in (64, 16)]
    if group == "small":
        return [decode(group, 1, kv, n, 64) for kv in (32, 8) for n in (64, 256, 1024)]
    if group == "backward":
        return [dense(group, d, c, s, kind="backward") for d in (128, 64) for c in masks for s in (512, 1024, 4096, 16384)]
    only = {"engines": ["tessera", "fa2"]}
    return ([dense(group, 128, c, s, kind=kind, prefix=f"sm80:{'backward' if kind == 'backward' else 'forward'}", **only)
             for kind in ("dense", "backward") for c in masks for s in (1024, 4096, 16384)]
            + [decode(group, 32, kv, 2048, 64, prefix="sm80:decode", **only) for kv in (32, 8)])


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
    if len({c["group"] == "sm80" for c in cells}) > 1:
        raise ValueError("'sm80' runs alone: what it forces holds for the whole process")
    return cells


def lengths_of(cell):
    return cell.get("lengths") or [cell["seqlen"]] * cell["batch"]


def kind_of(cell):
    """The cell's kind; files older than the field have it by their group."""
    return cell.get("kind") or (cell["group"] if cell["group"] in ("varlen", "decode") else "dense")


def flops_of(cell):
    """Two per multiply-add of both products over the visible pairs (the backward: of its five); causal counts half."""
    if kind_of(cell) == "decode":
        return 4.0 * cell["batch"] * cell["heads"] * cell["seqlen"] * cell["dim"]
    each = 10.0 if kind_of(cell) == "backward" else 4.0
    pairs = sum(n * n for n in lengths_of(cell))
    return each * cell["heads"] * cell["dim"] * pairs * (0.5 if cell["causal"] else 1.0)


def bytes_of(cell):
    """What must move: q and o once, K and V once."""
    rows = cell["batch"] if kind_of(cell) == "decode" else TOKENS
    keys = cell["batch"] * cell["seqlen"] if kind_of(cell) == "decode" else TOKENS
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
    rivals = {e: f for e, f in out["engines"].items() if e in RIVALS}
    if rivals and "tessera" in kept:
        out["best_rival"] = min(rivals, key=lambda e: rivals[e]["seconds"])
        out["ratio"] = rivals[out["best_rival"]]["ratio"]
    return out


def mean(ratios):
    return math.exp(sum(math.log(r) for r in ratios) / len(ratios))


def head(engines):
    return (f"{'cell':<33}" + "".join(f"{NAMES[e] + ' us':>11}{'rate':>8}" for e in engines) + f"{'peak':>7}{'matmul':>8}  "
            + "".join(f"{'/' + NAMES[e]:>8}" for e in engines if e != "tessera") + f"{'best':>8}{'IQR':>7}{'clock':>7}")


def row(cell, figures, engines, peak, matmul, clock):
    """One line: microseconds and rate (TFLOP/s; decode: TB/s) of each engine, ours in percent of peak and matmul, ratios."""
    decode = kind_of(cell) == "decode"
    text = f"{cell['name']:<33}"
    for engine in engines:
        f = figures["engines"].get(engine)
        if f is None:
            text += f"{'-':>11}{'-':>8}"
        else:
            rate = f["bytes_per_second"] * 1e-12 if decode else f["tflops"]
            text += f"{f['seconds'] * 1e6:>11.2f}{rate:>8.2f}" if decode else f"{f['seconds'] * 1e6:>11.1f}{rate:>8.0f}"
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


def verdict(group, results, cells=None):
    """Means and the lowest cell of a group's ratios against the best rival of each cell; `cells`: how many there are."""
    judged = [(figures["ratio"], cell["name"]) for cell, figures in results if "ratio" in figures]
    some = f" ({len(results)} of {cells} cells)" if cells is not None and len(results) < cells else ""
    if not judged:
        return f"{group}{some}: " + ("no rival to compare with" if results else "no cell was timed")
    lowest, name = min(judged)
    text = f"{group}{some}: against the best rival of each cell, mean {mean([r for r, _ in judged]):.3f}, "
    text += f"lowest {lowest:.3f} ({name})"
    for rival in RIVALS:
        ratios = [f["engines"][rival]["ratio"] for _, f in results if "ratio" in f["engines"].get(rival, {})]
        if ratios:
            text += f"; /{rival} {mean(ratios):.3f} over {len(ratios)}"
    return text
