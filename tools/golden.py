"""Golden files: tensors made by an outside oracle, that the C++ tests compare against.

A golden NAME is two files in tests/goldens: NAME.json, an index, and NAME.bin, little-endian tensors, each on
a 64-byte edge. tests/goldens/README.md describes both; tests/support/golden.h reads them.
"""

import argparse
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import sys

import numpy as np

FORMAT = "tessera-golden 1"
ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "goldens"
DTYPES = {"f32": np.dtype("<f4"), "i32": np.dtype("<i4"), "u8": np.dtype("u1")}
ALIGNMENT = 64


def versions(*packages):
    """The versions of Python and of the packages that made a golden."""
    found = {"python": platform.python_version()}
    for package in packages:
        found[package] = importlib.metadata.version(package)
    if "torch" in packages:
        import torch
        found["torch"] = torch.__version__  # with the build's suffix
    return found


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Golden:
    """A golden in memory. Cases keep their order; a case's tensors are float32, int32 or uint8 arrays."""

    def __init__(self, name, made_by, made_with, source=None):
        self.name, self.made_by, self.made_with, self.source = name, made_by, made_with, source or {}
        self.cases = []

    def add(self, name, params, tensors):
        arrays = {}
        for key, value in tensors.items():
            value = np.asarray(value)
            if value.dtype == bool:
                value = value.astype(np.uint8)
            kind = "f32" if value.dtype.kind == "f" else "u8" if value.dtype == np.uint8 else "i32"
            if kind == "i32" and value.size and abs(value.astype(np.int64)).max() > 2**31 - 1:
                raise ValueError(f"{name}.{key}: an integer does not fit in 32 bits")
            arrays[key] = np.ascontiguousarray(value, dtype=DTYPES[kind])
        self.cases.append({"name": name, "params": params, "tensors": arrays})

    def write(self, folder=FOLDER):
        blob = bytearray()
        cases = []
        for case in self.cases:
            index = {}
            for key, array in case["tensors"].items():
                blob.extend(b"\0" * (-len(blob) % ALIGNMENT))
                index[key] = {"dtype": next(k for k, d in DTYPES.items() if d == array.dtype),
                              "shape": list(array.shape), "offset": len(blob)}
                blob.extend(array.tobytes())
            cases.append({"name": case["name"], "params": case["params"], "tensors": index})
        head = {"format": FORMAT, "made_by": self.made_by, "versions": self.made_with, "source": self.source,
                "data": f"{self.name}.bin", "data_bytes": len(blob),
                "data_sha256": hashlib.sha256(blob).hexdigest(), "cases": cases}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.bin").write_bytes(blob)
        text = json.dumps(head, indent=1, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        return len(blob)

    @classmethod
    def read(cls, name, folder=FOLDER):
        head = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            raise ValueError(f"{name}.json: format is {head['format']!r}, not {FORMAT!r}")
        blob = (folder / head["data"]).read_bytes()
        if hashlib.sha256(blob).hexdigest() != head["data_sha256"]:
            raise ValueError(f"{head['data']}: SHA-256 differs from the index's")
        golden = cls(name, head["made_by"], head["versions"], head["source"])
        for case in head["cases"]:
            tensors = {}
            for key, t in case["tensors"].items():
                count = int(np.prod(t["shape"], dtype=np.int64))
                flat = np.frombuffer(blob, DTYPES[t["dtype"]], count, t["offset"])
                tensors[key] = flat.reshape(t["shape"])
            golden.cases.append({"name": case["name"], "params": case["params"], "tensors": tensors})
        return golden


def compare(committed, remade, tolerance):
    """Differences between a committed golden and a remade one, as lines of text; empty when they agree.

    Integers, names, parameters and source must be equal. Floats may differ by tolerance * max |committed|: the
    oracle sums in another order on another processor.
    """
    lines = []
    if committed.source != remade.source:
        lines.append(f"source: {committed.source} became {remade.source}")
    names = [case["name"] for case in committed.cases], [case["name"] for case in remade.cases]
    if names[0] != names[1]:
        return lines + [f"cases: {names[0]} became {names[1]}"]
    for old, new in zip(committed.cases, remade.cases):
        where = f"{committed.name}/{old['name']}"
        if old["params"] != new["params"]:
            lines.append(f"{where}: parameters {old['params']} became {new['params']}")
        if old["tensors"].keys() != new["tensors"].keys():
            lines.append(f"{where}: tensors {list(old['tensors'])} became {list(new['tensors'])}")
            continue
        for key, a in old["tensors"].items():
            b = new["tensors"][key]
            if a.shape != b.shape or a.dtype != b.dtype:
                lines.append(f"{where}.{key}: {a.dtype}{a.shape} became {b.dtype}{b.shape}")
            elif a.dtype.kind != "f":
                if not np.array_equal(a, b):
                    lines.append(f"{where}.{key}: {int((a != b).sum())} of {a.size} integers differ")
            elif a.size:
                # Infinite entries (a masked row's lse) must be equal in place and sign.
                finite = np.isfinite(a)
                worst = np.abs(a[finite] - b[finite]).max(initial=0.0)
                limit = tolerance * np.abs(a[finite]).max(initial=0.0)
                if not (worst <= limit) or not np.array_equal(a[~finite], b[~finite]):
                    lines.append(f"{where}.{key}: differs by {worst:.3g}, limit {limit:.3g}")
    return lines


def main(description, make):
    """The command line of a script without other arguments: make() gives the goldens. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="remake and compare instead of writing")
    check = parser.parse_args().check
    return finish(make(), check)


def finish(goldens, check, tolerance=1e-5):
    """Writes the goldens, or with check compares each with the committed one. Returns the exit status."""
    failed = False
    for golden in goldens:
        if not check:
            size = golden.write()
            print(f"wrote {golden.name}: {len(golden.cases)} cases, {size} bytes")
            continue
        committed = Golden.read(golden.name)
        lines = compare(committed, golden, tolerance)
        if committed.made_with != golden.made_with:
            print(f"note: {golden.name} was made with {committed.made_with}, this is {golden.made_with}")
        for line in lines:
            print(line, file=sys.stderr)
        print(f"{golden.name}: {'differs' if lines else 'agrees'}")
        failed = failed or bool(lines)
    return 1 if failed else 0
