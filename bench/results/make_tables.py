#!/usr/bin/env python3
"""Writes the tables of a README.md of bench/results from the raw figures beside it, so that none is made by hand.

    make_tables.py FOLDER [--check | --list]

What stands between <!-- table FILE[,FILE...]:TABLE --> and <!-- end --> in FOLDER/README.md becomes the table of those files; the
rest stays. TABLE is a group of torch_attention.py (forward, dims, gqa, varlen, decode, small, backward, sm80), or attention,
decode or tree of `tessera bench` in a file of its own. Above each table stand the run (device, driver, commit, date, rounds, the
matrix product beside it, the command), as far as the file says, and the mean and the lowest ratio to the best rival of a cell.

  --check   write nothing; fail, naming the tables, when the README is not what would be written
  --list    print a marker for each table of the folder's files
"""

import argparse
import pathlib
import re
import sys

from records import NAMES, RIVALS, kind_of, load, mean, median

MARKER = re.compile(r"(<!-- table ([^:>\s]+):(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def lines_of(head, rows):
    """A Markdown table."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def origin(path, about):
    parts = [about["device"]]
    for name, text in (("driver", "driver {}"), ("cudnn", "cuDNN {}"), ("commit", "commit {}"), ("date", "{}"),
                       ("rounds", "{} rounds"), ("tessera_cuda_arch", "TESSERA_CUDA_ARCH={}")):
        if about.get(name):
            value = about[name]
            parts.append(text.format(f"{value // 10000}.{value // 100 % 100}" if name == "cudnn" else value))
    if about.get("matmul"):
        parts.append(f"matmul {about['matmul'] * 1e-12:.0f} TFLOP/s")
    command = f"; `{about['command']}`" if about.get("command") else ""
    return f"`{path.name}`: {', '.join(parts)}{command}."


def short(cell):
    """A cell's name without its group."""
    return " ".join(cell["name"].split(":")[1:])


def peers_table(runs):
    """Of cells of torch_attention.py, one or more (about, cells)."""
    cells = [(about, c) for about, some in runs for c in some if "failed" not in c]
    timed = {e for _, c in cells for e in c["engines"]}
    # A rival that no cell of the table asks for has no column; one that was only missing has.
    asked = {e for _, c in cells for e, why in c["why_not"].items() if why != "not compared there"}
    rivals = [e for e in ("cudnn", "fa3", "fa2") if e in timed | asked]
    steps = all(kind_of(c["cell"]) == "decode" for _, c in cells)
    head = ["cell", "ours us", "rate"] + ([] if steps else ["of peak", "of matmul"])
    rows = []
    for about, c in cells:
        ours = c["engines"].get("tessera")
        row = [short(c)]
        if ours is None:
            row += ["-"] * (len(head) - 1)
        elif kind_of(c["cell"]) == "decode":
            digits = 2 if ours["seconds"] < 30e-6 else 1
            row += [f"{ours['seconds'] * 1e6:.{digits}f}", f"{ours['bytes_per_second'] * 1e-12:.2f} TB/s"]
            row += [] if steps else ["-", "-"]
        else:
            rate = ours["tflops"] * 1e12
            row += [f"{ours['seconds'] * 1e6:.1f}", f"{ours['tflops']:.0f}", f"{100 * rate / about['dense_peak']:.1f} %",
                    f"{100 * rate / about['matmul']:.1f} %"]
        row += [f"{c['engines'][e]['ratio']:.3f}" if "ratio" in c["engines"].get(e, {}) else "-" for e in rivals]
        rows.append(row + [f"**{c['ratio']:.3f}**" if "ratio" in c else "-"])
    judged = [(c["ratio"], short(c)) for _, c in cells if "ratio" in c]
    text = []
    if judged:
        text = [f"**Mean {mean([r for r, _ in judged]):.3f}, lowest {min(judged)[0]:.3f}** ({min(judged)[1]}).", ""]
    text += lines_of(head + [NAMES[e] for e in rivals] + ["best rival / ours"], rows)
    failed = [f"{short(c)}: {c['failed']}" for _, some in runs for c in some if "failed" in c]
    return text + ([""] + [f"Left out: {'; '.join(failed)}."] if failed else [])


def attention_table(runs):
    rows = []
    for about, some in runs:
        for c in some:
            us = median(c["seconds"]) * 1e6
            rows.append([c["name"], c["part"], f"{us:.1f}", f"{c['tflops']:.0f}", f"{100 * c['of_peak']:.1f} %",
                         f"{100 * c['of_matmul']:.1f} %", f"{median(c['megahertz'])}", c["kernel"], f"{c['error']:.0e}"])
    return lines_of(["cell", "", "us", "TFLOP/s", "of peak", "of matmul", "MHz", "kernel", "error"], rows)


def decode_table(runs):
    rows = []
    for _, some in runs:
        for c in some:
            ours, reader = median(c["seconds"]), median(c["reader_seconds"])
            rows.append([c["name"], f"{ours * 1e6:.2f}", f"{c['bytes'] / ours * 1e-12:.2f}", f"{reader * 1e6:.2f}",
                         f"{c['reader_bytes'] / reader * 1e-12:.2f}", f"**{100 * c['of_reader']:.1f} %**"])
    return lines_of(["cell", "us", "TB/s", "reader us", "TB/s", "of the reader"], rows)


def tree_table(runs):
    cells = [c for _, some in runs for c in some]
    rows = []
    for c in cells:
        rows.append([c["name"], f"{median(c['seconds']) * 1e6:.2f}", f"{c['unique_bytes'] * 1e-6:.1f}",
                     f"{median(c['reader_seconds']) * 1e6:.2f}", f"{c['of_reader']:.2f}", f"{c['limit'] * 1e6:.1f}",
                     "yes" if c["met"] else "**no**", f"{median(c['paged_seconds']) * 1e6:.2f}", f"{c['speed_up']:.2f}"])
    text = [f"Within the limit: {sum(c['met'] for c in cells)} of {len(cells)} rows.", ""]
    head = ["row", "tree us", "unique MB", "reader us", "x reader", "limit us", "met", "paged us", "paged / tree"]
    return text + lines_of(head, rows)


def table(folder, files, name):
    """The lines of one table; ValueError says what the files lack."""
    runs, sources = [], []
    for file in files:
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        about, cells = load(path)
        cells = [c for c in cells if c["table"] == name]
        if not cells:
            raise ValueError(f"{path} has no table '{name}'")
        runs.append((about, cells))
        sources.append(origin(path, about))
    peers = "cell" in runs[0][1][0]
    make = peers_table if peers else {"attention": attention_table, "decode": decode_table, "tree": tree_table}[name]
    return sources + ([""] if not peers else []) + make(runs)


def rewritten(folder, text):
    """The README with its tables made anew, and the markers whose tables were not so before."""
    changed = []

    def make(match):
        body = "\n".join(table(folder, match[2].split(","), match[3])) + "\n"
        if body != match[4]:
            changed.append(f"{match[2]}:{match[3]}")
        return match[1] + body + match[5]

    return MARKER.sub(make, text), changed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="fail when the tables are not up to date")
    group.add_argument("--list", action="store_true", help="print the markers of all tables")
    options = parser.parse_args()
    try:
        if options.list:
            for path in sorted(options.folder.glob("*.jsonl")):
                for name in dict.fromkeys(c["table"] for c in load(path)[1]):
                    print(f"<!-- table {path.name}:{name} -->\n<!-- end -->")
            return
        readme = options.folder / "README.md"
        before = readme.read_text(encoding="utf-8")
        after, changed = rewritten(options.folder, before)
    except (OSError, ValueError) as error:
        sys.exit(f"make_tables.py: {error}")
    if options.check and changed:
        sys.exit(f"{readme} is not what its figures give in {', '.join(changed)}: run make_tables.py {options.folder}")
    if not options.check and after != before:
        readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
