#!/usr/bin/env python3
"""Measures llama.cpp through its own llama-bench and llama-batched-bench, found on the PATH.

    llama_bench.py model -m FILE [-p 512] [-n 128] [-d 0,1024] [-t 1,2] [-b 1,16] [--shared-prompt 1024] [-r 3]
    llama_bench.py check

Flags and JSON are those of llamacpp.py. Every test runs with flash attention off and on; the shared prompt also with
the split and, where the tool knows it, the unified KV cache. `check` says whether both tools are there. A tool that is
missing, fails or answers for other tests than it was asked for is an error. No packages are needed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

from driver import BATCH_STEPS, Output, add_model_arguments, model_sha256

BENCH, BATCHED = "llama-bench", "llama-batched-bench"
CPU_BACKENDS = {"CPU", "BLAS"}


def fail(message):
    sys.exit(f"llama_bench: {message}")


def find_tools():
    for tool in (BENCH, BATCHED):
        if shutil.which(tool) is None:
            fail(f"{tool} is not on the PATH; build llama.cpp with its tools, or use scripts/bench peers --install")


def call(arguments):
    """The exit code, standard output and the last line of standard error."""
    done = subprocess.run([str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", check=False)
    lines = done.stderr.strip().splitlines()
    return done.returncode, done.stdout, lines[-1] if lines else ""


def bench(args, threads, flash, prompt, generate, depths):
    """llama-bench's records for these tests, which must be all and no others."""
    code, text, error = call([BENCH, "-m", args.model, "-t", threads, "-ngl", 0, "-fa", int(flash), "-p", prompt,
                              "-n", generate, "-d", ",".join(map(str, depths)), "-r", args.repeats, "-o", "json"])
    if code != 0:
        fail(f"{BENCH} ended with {code}: {error}")
    try:
        records = json.loads(text)
    except json.JSONDecodeError as wrong:
        fail(f"{BENCH} printed no JSON: {wrong}")
    want = [(prompt, generate, depth, threads, flash) for depth in depths]
    have = [(r["n_prompt"], r["n_gen"], r["n_depth"], r["n_threads"], r["flash_attn"] == 1) for r in records]
    if sorted(have) != sorted(want):
        fail(f"{BENCH} ran {have}, not {want} (prompt, generated, depth, threads, flash attention)")
    for record in records:
        if os.path.realpath(record["model_filename"]) != os.path.realpath(args.model):
            fail(f"{BENCH} ran on {record['model_filename']}, not on {args.model}")
        others = set(record["backends"].split(",")) - CPU_BACKENDS
        if others:
            fail(f"{BENCH} was built for {record['backends']}; a build for the CPU alone is needed")
        if len(record["samples_ts"]) != args.repeats:
            fail(f"{BENCH} repeated {len(record['samples_ts'])} times, not {args.repeats}")
    return records


def batched(args, threads, flash, unified, sequences):
    """Tokens per second of each repeat, or None where the tool has no unified cache to choose."""
    steps = min(args.generate, BATCH_STEPS)
    cells = args.shared_prompt + sequences * steps if unified else sequences * (args.shared_prompt + steps)
    arguments = [BATCHED, "-m", args.model, "-t", threads, "-ngl", 0, "-c", (cells + 255) // 256 * 256, "-b", 2048,
                 "-npp", args.shared_prompt, "-ntg", steps, "-npl", sequences, "-pps", "--output-format", "jsonl"]
    arguments += ["-kvu"] if unified else []
    rates = []
    for _ in range(args.repeats):
        # A switch with a value, and in older builds one that is there or not.
        code, text, error = call([*arguments, "-fa", "on" if flash else "off"])
        if code != 0:
            code, text, error = call([*arguments, *(["-fa"] if flash else [])])
        if code != 0 and unified:
            return None
        records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        if code != 0 or len(records) != 1:
            fail(f"{BATCHED} ended with {code} and {len(records)} rows: {error}")
        record = records[0]
        have = {key: int(record[key]) for key in ("pp", "tg", "pl", "is_pp_shared", "flash_attn", "n_threads")}
        want = {"pp": args.shared_prompt, "tg": steps, "pl": sequences, "is_pp_shared": 1, "flash_attn": int(flash),
                "n_threads": threads}
        if have != want:
            fail(f"{BATCHED} ran {have}, not {want}")
        rates.append(record["speed_tg"])
    return rates


def bench_model(args):
    find_tools()
    out = Output(args.json)
    sha256 = model_sha256(args.model)
    head = {}
    for threads in args.threads:
        for flash in (False, True):
            records = bench(args, threads, flash, args.prompt, 0, [0]) if args.prompt > 0 else []
            if args.generate > 0:
                records += bench(args, threads, flash, 0, args.generate, args.depth)
            for record in records:
                head = {"bench": "model", "engine": "llama.cpp", "model_sha256": sha256,
                        "version": f"{BENCH} build {record['build_number']} {record['build_commit']}",
                        "system": f"{record['cpu_info']}, {record['backends']}"}
                name = f"pp{record['n_prompt']}" if record["n_prompt"] else f"tg{record['n_gen']}"
                name += f"@{record['n_depth']}" if record["n_depth"] else ""
                out.write_rates(head, name, threads, {"flash_attn": flash}, record["samples_ts"])
            for sequences in args.batch if args.generate > 0 else []:
                for unified in (False, True) if sequences > 1 else ():
                    rates = batched(args, threads, flash, unified, sequences)
                    if rates is not None:
                        out.write_rates(head, f"batch{sequences}@shared{args.shared_prompt}", threads,
                                        {"flash_attn": flash, "kv_unified": unified}, rates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model", help="prompt and generation rates")
    add_model_arguments(model)
    model.set_defaults(run=bench_model)
    check = commands.add_parser("check", help="whether the tools are there")
    check.set_defaults(run=lambda args: find_tools())
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
