#!/usr/bin/env python3
"""The machine code of the plain Hopper forward is as recorded: registers, spills and HGMMA instructions of each kernel.

    code_test.py OBJECT_FOLDER NVCC [--update]

A feature that is added beside the plain path must not change it; what a compiler makes of it is only comparable with the same
compiler, so the record (prefill_code.json) names ptxas' version and another one skips the test. Registers and spills come from
ptxas' own report beside each object, HGMMA from cuobjdump where the toolkit has it. --update records what is there now.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

RECORD = pathlib.Path(__file__).resolve().parent / "prefill_code.json"
PLAIN = "(tessera::attention::cuda::sm90::Form)0"
SKIPPED = 77


def demangled(text):
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def name_of(line):
    """The configuration of a plain prefill kernel named in the line, or None."""
    found = re.search(r"PrefillConfig<(.*?)> ?>\(", line)
    if found is None or PLAIN not in line:
        return None
    return found.group(1).replace("tessera::attention::cuda::sm90::", "").replace(", (Form)0", "")


def reported(folder):
    """{kernel: {registers, stack, spill_stores, spill_loads}} of ptxas' reports."""
    kernels, name = {}, None
    for path in sorted(folder.glob("prefill_*.ptxas")):
        for line in demangled(path.read_text()).splitlines():
            if "Compiling entry function" in line:
                name = name_of(line)
                continue
            if name is None:
                continue
            if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                stack, stores, loads = map(int, found.groups())
                kernels.setdefault(name, {}).update(stack=stack, spill_stores=stores, spill_loads=loads)
            if found := re.search(r"Used (\d+) registers", line):
                kernels.setdefault(name, {})["registers"] = int(found.group(1))
    return kernels


def count_hgmma(folder, cuobjdump, kernels):
    """Adds hgmma to the kernels."""
    for path in sorted(folder.glob("prefill_*.cu.o")):
        sass = subprocess.run([cuobjdump, "-sass", str(path)], capture_output=True, text=True, check=True).stdout
        name = None
        for line in demangled("\n".join(x for x in sass.splitlines() if "Function :" in x or "HGMMA" in x)).splitlines():
            if "Function :" in line:
                name = name_of(line)
            elif name in kernels:
                kernels[name]["hgmma"] = kernels[name].get("hgmma", 0) + 1


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
    if cuobjdump:
        count_hgmma(folder, cuobjdump, kernels)
    version = ptxas_version(nvcc)
    if update:
        if not cuobjdump:
            sys.exit("cuobjdump is not found; HGMMA cannot be recorded")
        lines = [f"  {json.dumps(name)}: {json.dumps(kernels[name], sort_keys=True)}" for name in sorted(kernels)]
        RECORD.write_text('{"nvcc": "' + version + '",\n"kernels": {\n' + ",\n".join(lines) + "\n}}\n")
        print(f"recorded {len(kernels)} kernels of nvcc {version}")
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
    for line in wrong:
        print(line)
    uncounted = "" if cuobjdump else "; no cuobjdump, so HGMMA was not counted"
    print(f"{len(kernels)} plain kernels, {len(wrong)} unlike the record{uncounted}")
    if wrong:
        print("if the plain path was meant to change: tests/cuda/code_test.py OBJECT_FOLDER NVCC --update")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
