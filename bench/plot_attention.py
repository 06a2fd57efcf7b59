#!/usr/bin/env python3
"""Draws the raw figures of a folder of bench/results: attention on a GPU. Needs matplotlib, and no GPU.

    plot_attention.py FOLDER [FILE...] [--out FOLDER] [--format svg|png]

Reads files that bench/peers/torch_attention.py or `tessera bench attention|decode|tree --json` wrote into FOLDER (those whose
tables its README.md has, unless FILEs are named) and draws each table that it finds: rates by sequence length for each engine
(forward, dims, gqa, varlen, backward, sm80), TB/s of a decode step for each engine (peers_decode, peers_small) and of ours
beside the reader (decode), a tree step beside its limit (tree). Of cells that several files have, the last file's count. The
same figures give the same bytes.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "results"))
from make_tables import MARKER  # noqa: E402
from records import NAMES, RIVALS, kind_of, median, tables  # noqa: E402

COLOURS = {"tessera": "#1b5fb4", "cudnn": "#4f9a3a", "fa3": "#e07b1a", "fa2": "#8c8c8c", "limit": "#c0392b", "reader": "#444444"}
TITLES = {"forward": "Forward", "dims": "Forward, D 96 and 256", "gqa": "Forward, 8 query heads a kv head",
          "varlen": "Forward, packed sequences", "backward": "Backward", "sm80": "Kernels of compute capability 8.0"}
TEXT = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
        "axes.axisbelow": True, "svg.fonttype": "none", "svg.hashsalt": "tessera", "figure.constrained_layout.use": True}


# ---- What is drawn: no matplotlib here


def latest(runs):
    """The cells of a table's files by name: the later file's count."""
    return list({c["name"]: c for _, _, cells in runs for c in cells if "failed" not in c}.values())


def files_of(folder):
    """The files that the folder's README makes tables of, in its order; all where it makes none."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    named = dict.fromkeys(file for match in MARKER.finditer(text) for file in match[2].split(","))
    return [folder / file for file in named] or sorted(folder.glob("*.jsonl"))


def rate_panels(cells):
    """{panel: {engine: [(seqlen, TFLOP/s)]}} of dense, packed or backward cells."""
    panels = {}
    for c in cells:
        if kind_of(c["cell"]) == "decode":
            continue
        words = [w for w in c["name"].split(":")[1:] if not w.startswith("S")]
        lines = panels.setdefault(" ".join(words), {})
        for engine, figures in c["engines"].items():
            lines.setdefault(engine, []).append((c["cell"]["seqlen"], figures["tflops"]))
    return {panel: {e: sorted(points) for e, points in lines.items()} for panel, lines in panels.items()}


def decode_panels(cells, of_name):
    """{kv heads: {step: {engine: TB/s}}} of decode cells of torch_attention.py; of_name: the words of a name for a step."""
    panels = {}
    for c in cells:
        bars = panels.setdefault(c["cell"]["kv_heads"], {}).setdefault(of_name(c), {})
        for engine, figures in c["engines"].items():
            bars[engine] = figures["bytes_per_second"] * 1e-12
    return panels


def reader_bars(cells):
    """[(cell, our TB/s, the reader's)] of tessera bench decode."""
    return [(c["name"], c["bytes"] / median(c["seconds"]) * 1e-12, c["reader_bytes"] / median(c["reader_seconds"]) * 1e-12)
            for c in cells]


def tree_bars(cells):
    """{kv heads: [(row, tree us, limit us, reader us, paged us)]} of tessera bench tree."""
    panels = {}
    for c in cells:
        panels.setdefault(c["kv_heads"], []).append(
            (c["row"], median(c["seconds"]) * 1e6, c["limit"] * 1e6, median(c["reader_seconds"]) * 1e6,
             median(c["paged_seconds"]) * 1e6))
    return panels


# ---- How


def legend(figure, axes):
    named = {label: handle for row in axes for axis in row for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(named.values(), named, frameon=False, fontsize=7, ncols=len(named), loc="outside lower center")


def rates(plt, title, panels):
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.5 * columns, 2.1 * lines + 0.3), sharey=True, squeeze=False)
    for axis, (name, engines) in zip(axes.flat, panels.items()):
        for engine in ("fa2", "cudnn", "fa3", "tessera"):
            if engine in engines:
                axis.plot(*zip(*engines[engine]), color=COLOURS[engine], marker="o", markersize=3,
                          linewidth=1.8 if engine == "tessera" else 1.1, label=NAMES[engine])
        lengths = sorted({s for points in engines.values() for s, _ in points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{s // 1024}k" if s >= 1024 else str(s) for s in lengths])
        axis.minorticks_off()
        axis.set_title(name, fontsize=8)
        axis.set_ylim(bottom=0)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    axes[0][0].set_ylabel("TFLOP/s")
    legend(figure, axes)
    figure.suptitle(title, fontsize=9)
    return figure


def grouped_bars(axis, names, series):
    """series: [(label, colour, [value or None])]."""
    width = 0.8 / len(series)
    for i, (label, colour, values) in enumerate(series):
        at = [x - 0.4 + (i + 0.5) * width for x, v in enumerate(values) if v is not None]
        axis.bar(at, [v for v in values if v is not None], width * 0.92, color=colour, label=label)
    many = len(names) > 3
    axis.set_xticks(range(len(names)), names, rotation=30 if many else 0, ha="right" if many else "center")
    axis.grid(axis="x", visible=False)


def peers_decode(plt, title, panels):
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 2.4), sharey=True, squeeze=False)
    for axis, (kv, steps) in zip(axes[0], panels.items()):
        engines = [e for e in ("tessera", *RIVALS) if any(e in bars for bars in steps.values())]
        grouped_bars(axis, list(steps), [(NAMES[e], COLOURS[e], [bars.get(e) for bars in steps.values()]) for e in engines])
        axis.set_title(f"{kv} kv heads", fontsize=8)
    axes[0][0].set_ylabel("TB/s")
    legend(figure, axes)
    figure.suptitle(title, fontsize=9)
    return figure


def decode(plt, bars):
    figure, axis = plt.subplots(figsize=(7.5, 0.24 * len(bars) + 0.8))
    places = range(len(bars))
    axis.barh(places, [reader for _, _, reader in bars], 0.8, color="#dddddd", label="reader of as many bytes")
    axis.barh(places, [ours for _, ours, _ in bars], 0.5, color=COLOURS["tessera"], label="ours")
    for place, (_, ours, reader) in zip(places, bars):
        axis.text(reader, place, f" {100 * ours / reader:.0f} %", va="center", fontsize=7)
    axis.set_yticks(places, [name for name, _, _ in bars])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("TB/s")
    legend(figure, [[axis]])
    return figure


def tree(plt, panels):
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3), sharey=True, squeeze=False)
    for axis, (kv, rows) in zip(axes[0], panels.items()):
        grouped_bars(axis, [r[0] for r in rows], [("paged kernel", "#cccccc", [r[4] for r in rows]),
                                                  ("tree", COLOURS["tessera"], [r[1] for r in rows])])
        for x, (_, _, limit, reader, _) in enumerate(rows):
            for value, name in ((limit, "limit"), (reader, "reader")):
                axis.plot([x - 0.45, x + 0.45], [value, value], color=COLOURS[name], linewidth=1.2,
                          linestyle="-" if name == "limit" else ":", label=name if x == 0 else None)
        axis.set_yscale("log")
        axis.set_title(f"{kv} kv heads", fontsize=8)
    axes[0][0].set_ylabel("us")
    legend(figure, axes)
    figure.suptitle("A decode step over shared prefixes", fontsize=9)
    return figure


def figures_of(plt, found):
    """(file name, figure) of each table."""
    for table, runs in found.items():
        # `tessera bench decode` and torch_attention's group share a name, not a form.
        for peers in (True, False):
            some = [(path, about, [c for c in cells if ("cell" in c) == peers]) for path, about, cells in runs]
            cells = latest(some)
            if not cells:
                continue
            if not peers and table == "decode":
                yield "decode", decode(plt, reader_bars(cells))
            elif not peers and table == "tree":
                yield "tree", tree(plt, tree_bars(cells))
            elif peers and all(kind_of(c["cell"]) == "decode" for c in cells):
                cell = cells[0]["cell"]
                title = f"A decode step, b {cell['batch']}, h {cell['heads']}, D {cell['dim']}"
                panels = decode_panels(cells, lambda c: " ".join(c["name"].split(":")[2:]))
                yield f"peers_{table}", peers_decode(plt, title, panels)
            elif peers:
                yield table, rates(plt, TITLES.get(table, table), rate_panels(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="with .jsonl files")
    parser.add_argument("files", nargs="*", help="of the folder (default: those of its README's tables)")
    parser.add_argument("--out", type=pathlib.Path, help="where the drawings go (default: FOLDER)")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="(default: %(default)s)")
    options = parser.parse_args()
    out = options.out or options.folder
    try:
        found = tables([options.folder / f for f in options.files] or files_of(options.folder))
    except (OSError, ValueError) as error:
        sys.exit(f"plot_attention.py: {error}")
    if not found:
        sys.exit(f"plot_attention.py: {options.folder} has no .jsonl with cells")
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        sys.exit(f"plot_attention.py needs matplotlib: {error}")
    out.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(TEXT):
        for name, figure in figures_of(plt, found):
            path = out / f"{name}.{options.format}"
            figure.savefig(path, dpi=110, metadata={"Date": None} if options.format == "svg" else None)
            plt.close(figure)
            print(path)


if __name__ == "__main__":
    main()
