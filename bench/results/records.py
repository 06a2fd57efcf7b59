"""Reads the files of raw figures that bench/peers/torch_attention.py and `tessera bench attention|decode|tree --json` write.

Both begin with a line about the machine and the run; then a line a cell, with all samples. Nothing but Python is needed.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
from attention_figures import NAMES, RIVALS, kind_of, mean  # noqa: E402, F401


def load(path):
    """(about, cells) of a file; a cell has its `table`: the group, or of tessera bench attention, decode or tree. ValueError
    names the file and line that cannot be read."""
    about, cells = None, []
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if about is None:
            if "device" not in record:
                raise ValueError(f"{path}:{number}: the first line must say the device")
            about = record
        elif "cell" in record:
            cells.append({**record, "table": record["cell"]["group"], "name": record["cell"]["name"]})
        elif "bench" in record:
            cells.append({**record, "table": record["bench"], "name": bench_name(record)})
        else:
            about.update(record)  # what is known at the end
    if about is None:
        raise ValueError(f"{path} is empty")
    return about, cells


def bench_name(record):
    heads = f"{record['heads']}/{record['kv_heads']}"
    if record["bench"] == "tree":
        return f"{record['row']} {heads}"
    if record["bench"] == "decode":
        page = f"page {record['page']}" if record["page"] else "contiguous"
        return f"b {record['batch']} heads {heads} n {record['length']} {page}"
    mask = "causal" if record["causal"] else "full"
    return f"{record['dtype']} D{record['dim']} {mask} S{record['seqlen']} heads {heads}"


def tables(files):
    """{table: [(path, about, cells)]} of several files, tables and cells in the order of the files."""
    found = {}
    for path in files:
        about, cells = load(path)
        for table in dict.fromkeys(c["table"] for c in cells):
            found.setdefault(table, []).append((pathlib.Path(path), about, [c for c in cells if c["table"] == table]))
    return found


def median(values):
    """The upper of the two in the middle of an even number, as `tessera bench` has it."""
    return sorted(values)[len(values) // 2]
