#!/usr/bin/env python3
"""Compares the C++ reader with tools/gguf_validator.py: both must accept, or both refuse, every mutated model file.

    tools/gguf_differential.py --tool build/release/tests/model/gguf_tool [--count 5000] [--seed N] [--keep DIR]

Exit 0 when they agree on all, else 1 with the files that they disagree on (kept in DIR).
"""

import argparse
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_validator  # noqa: E402

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 9, 12, 13, 16, 31, 32, 33, 48, 64, 255, 256, 4096, 65536, 2**31 - 1, 2**31, 2**32 - 1,
           2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")]


def place(rng, data):
    """Mostly in the header, where the structure is."""
    return rng.randrange(min(len(data), 2600) if rng.random() < 0.9 else len(data))


def mutate(rng, data, others):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not data:
            break
        at, kind = place(rng, data), rng.randrange(10)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at] = rng.choice([0, 1, 0x0A, 0x20, 0x41, 0x7F, 0x80, 0xC0, 0xE0, 0xF4, 0xFF])
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        elif kind == 4:
            data[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif kind == 5:
            data[at : at + 4] = struct.pack("<f", rng.choice(FLOATS))
        elif kind == 6:
            del data[at : at + rng.choice([1, 4, 8, 32, 100, 1000])]
        elif kind == 7:
            data[at:at] = bytes(rng.choice([1, 4, 8, 32, 64])) if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 40))
        elif kind == 8:
            other = rng.choice(others)
            first = rng.randrange(len(other))
            data[at : at + 64] = other[first : first + 64]
        elif rng.random() < 0.5:
            del data[at:]
        else:
            data += rng.choice([bytes(1), bytes(31), bytes(64), b"x", rng.randbytes(100)])
    return bytes(data)


def gentle(rng, data):
    """A change that often leaves the file good: of a weight, a letter or a number's low bits."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(3)
    return bytes(data)


def judge_all(tool, paths):
    answer = subprocess.run([tool, "judge"], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True)
    lines = answer.stdout.splitlines()
    if answer.returncode != 0 or len(lines) != len(paths):
        sys.exit(f"{tool} ended with {answer.returncode} after {len(lines)} of {len(paths)} files: {answer.stderr[-2000:]}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn and printed")
    parser.add_argument("--keep", default=None, help="folder for files that they disagree on")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="tessera_gguf_") as scratch:
        folder = pathlib.Path(scratch)
        subprocess.run([options.tool, "make", str(folder / "seeds")], check=True)
        seeds = {path.name: path.read_bytes() for path in sorted((folder / "seeds").iterdir())}
        good = [data for name, data in seeds.items() if name.startswith("good")]
        cases = list(seeds.items())
        for i in range(options.count):
            source = rng.choice(good) if rng.random() < 0.8 else rng.choice(list(seeds.values()))
            change = gentle if rng.random() < 0.3 and source in good else mutate
            cases.append((f"{i}", change(rng, source, good) if change is mutate else gentle(rng, source)))
        accepted, wrong = 0, []
        for first in range(0, len(cases), 500):
            part = cases[first : first + 500]
            paths = [folder / f"{name}.case" for name, _ in part]
            for path, (_, data) in zip(paths, part):
                path.write_bytes(data)
            for (name, data), path, line in zip(part, paths, judge_all(options.tool, paths)):
                reason = gguf_validator.judge(data)
                accepted += reason is None
                if (reason is None) != (line == "accept"):
                    wrong.append((name, data, line, reason))
                path.unlink()
        for name, data, line, reason in wrong[:20]:
            print(f"case {name}: C++ says '{line}', Python says '{reason or 'accept'}'")
        if options.keep:
            for name, data, _, _ in wrong:
                pathlib.Path(options.keep, f"{seed}_{name}.gguf").write_bytes(data)
        print(f"{len(cases)} files, {accepted} accepted, {len(wrong)} disagreements")
        if accepted < len(cases) // 20:
            sys.exit("too few files were accepted for the comparison to mean anything")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
