#!/usr/bin/env python3
"""The machine code of the Hopper forward is as recorded.

    code_test.py OBJECT_FOLDER NVCC [--update]

Of each plain kernel registers, spills and HGMMA instructions: a feature that is added beside the plain path must not change it. Of
every kernel the loads and stores of local memory in the loop over keys, where a spill costs time in each block: none but those
recorded. What a compiler makes of a kernel is only comparable with the same compiler, so the record (prefill_code.json) names ptxas'
version and another one skips the test. Registers and spills come from ptxas' own report beside each object, instructions from
cuobjdump where there is one. --update records what is there now.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

RECORD = pathlib.Path(__file__).resolve().parent / "prefill_code.json"
PLAIN = "(Form)0"
SKIPPED = 77


def demangled(text):
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def name_of(line):
    """The configuration of the prefill kernel named in the line, or None."""
    found = re.search(r"prefill_kernel<(?:\w+::)*(\w+<.*?>) ?>\(", line)
    return None if found is None else found.group(1).replace("tessera::attention::cuda::sm90::", "")


def reported(folder):
    """{plain kernel: {registers, stack, spill_stores, spill_loads}} of ptxas' reports."""
    kernels, name = {}, None
    for path in sorted(folder.glob("*.ptxas")):
        for line in demangled(path.read_text()).splitlines():
            if "Compiling entry function" in line:
                name = name_of(line)
                continue
            if name is None or PLAIN not in name:
                continue
            if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                stack, stores, loads = map(int, found.groups())
                kernels.setdefault(name, {}).update(stack=stack, spill_stores=stores, spill_loads=loads)
            if found := re.search(r"Used (\d+) registers", line):
                kernels.setdefault(name, {})["registers"] = int(found.group(1))
    return kernels


def disassembled(folder, cuobjdump):
    """(name, [(address, instruction)]) of every prefill kernel."""
    for path in sorted(folder.glob("*.cu.o")):
        sass = subprocess.run([cuobjdump, "-sass", str(path)], capture_output=True, text=True, check=True).stdout
        for part in sass.split("\t\tFunction : ")[1:]:
            mangled, _, text = part.partition("\n")
            if "prefill_kernel" in mangled:
                found = re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(\S.*?) ;", text)
                yield name_of(demangled(mangled)), [(int(address, 16), what) for address, what in found]


def local_in_loop(name, code):
    """Loads and stores of local memory in the loop over keys: the smallest with the products of a block, D / 16 HGMMA for its scores
    and a column part's keys / 16 for each part of its values."""
    numbers = [int(x) for x in re.findall(r"[ (<](\d+)(?=[,>])", name)]
    dim, keys = (numbers[0], numbers[2]) if name.startswith("PrefillConfig") else (256, 64)
    products = dim // 16 + keys // 16 * (2 if dim > 128 else 1)
    loops = []
    for address, what in code:
        if (found := re.search(r"\bBRA(?:\.\S+)? .*?0x([0-9a-f]+)$", what)) and int(found.group(1), 16) < address:
            inside = [w for a, w in code if int(found.group(1), 16) <= a <= address]
            if sum("HGMMA" in w for w in inside) >= products:
                loops.append(inside)
    if not loops:
        sys.exit(f"{name}: no loop with {products} HGMMA was found")
    return sum(re.search(r"\b(LDL|STL)\b", w) is not None for w in min(loops, key=len))


def ptxas_version(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text).group(1)


def main():
    folder, nvcc = pathlib.Path(sys.argv[1]), sys.argv[2]
    update = "--update" in sys.argv[3:]
    kernels = reported(folder)
    if not kernels:
        sys.exit(f"no report of ptxas on a plain prefill kernel in {folder}: is the library built?")
    beside = pathlib.Path(nvcc).resolve().parent / "cuobjdump"
    cuobjdump = str(beside) if beside.exists() else shutil.which("cuobjdump")
    local = {}
    if cuobjdump:
        for name, code in disassembled(folder, cuobjdump):
            if name in kernels:
                kernels[name]["hgmma"] = sum("HGMMA" in what for _, what in code)
            local[name] = local_in_loop(name, code)
    version = ptxas_version(nvcc)
    if update:
        if not cuobjdump:
            sys.exit("cuobjdump is not found; HGMMA and loops cannot be recorded")
        lines = [f"  {json.dumps(name)}: {json.dumps(kernels[name], sort_keys=True)}" for name in sorted(kernels)]
        loops = [f"  {json.dumps(name)}: {count}" for name, count in sorted(local.items()) if count > 0]
        RECORD.write_text('{"nvcc": "' + version + '",\n"kernels": {\n' + ",\n".join(lines) + '\n},\n"local_in_loop": {\n' +
                          ",\n".join(loops) + "\n}}\n")
        print(f"recorded {len(kernels)} plain kernels of nvcc {version}, {len(loops)} of {len(local)} with local memory in the loop")
        return 0
    record = json.loads(RECORD.read_text())
    if record["nvcc"] != version:
        print(f"SKIPPED: recorded with nvcc {record['nvcc']}, this is {version}")
        return SKIPPED
    wrong = [f"{name}: recorded, but not built" for name in record["kernels"] if name not in kernels]
    for name, found in kernels.items():
        want = dict(record["kernels"].get(name, {}))
        if not cuobjdump:
            want.pop("hgmma", None)
        if found != want:
            wrong.append(f"{name}: is {found}, recorded {want}")
    for name, count in sorted(local.items()):
        if count != record["local_in_loop"].get(name, 0):
            wrong.append(f"{name}: {count} loads and stores of local memory in the loop over keys, "
                         f"recorded {record['local_in_loop'].get(name, 0)}")
    for line in wrong:
        print(line)
    looked = f"; loops of {len(local)}" if cuobjdump else "; no cuobjdump, so neither HGMMA nor loops were looked at"
    print(f"{len(kernels)} plain kernels, {len(wrong)} unlike the record{looked}")
    if wrong:
        print("if the code was meant to change: tests/cuda/code_test.py OBJECT_FOLDER NVCC --update")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
