#!/usr/bin/env python3
"""Prints Tessera beside a rival from the JSON lines of both; exit 1 if Tessera is slower in any row.

    compare.py model [--model-sha256 SHA] FILES...
    compare.py perplexity FILES...

A line without "engine" is Tessera's. A rival's row is the best of its variants, by median over the rounds. A missing
row, or a model that differs, is an error and not a pass. No packages are needed.
"""

import argparse
import collections
import json
import statistics
import sys

VARIANT = ("flash_attn", "kv_unified")
REQUIRED_DIFFERENCE = 0.005  # quantised against f32


def records(paths):
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)


def variant_name(variant):
    return " ".join(f"{key.split('_')[0]}={'on' if on else 'off'}" for key, on in variant if on is not None)


def compare_model(args):
    rates = {"tessera": collections.defaultdict(list), "peer": collections.defaultdict(list)}
    versions = set()
    for record in records(args.files):
        if record.get("bench") != "model":
            continue
        side = "peer" if "engine" in record else "tessera"
        if args.model_sha256 and record.get("model_sha256", args.model_sha256) != args.model_sha256:
            sys.exit(f"compare: {side} ran on {record['model_sha256']}, not on {args.model_sha256}")
        if side == "peer":
            versions.add(f"{record['engine']} ({record['version']}; {record['system']})")
        key = (record["threads"], record["test"], tuple((k, record.get(k)) for k in VARIANT))
        rates[side][key] += record["repeats"]
    rows = [sorted({key[:2] for key in rates[side]}) for side in ("peer", "tessera")]
    if not rows[0] or rows[0] != rows[1]:
        sys.exit(f"compare: the rival has rows {rows[0]}, Tessera has {rows[1]}")
    print("rival: " + ", ".join(sorted(versions)))
    print(f"\n{'threads':>7} {'test':<20} {'rival best/median':>19} {'tessera best/median':>19} {'ratio best':>10} "
          f"{'median':>7}  rival's variant")
    slower = 0
    for threads, test in rows[0]:
        ours = next(r for key, r in rates["tessera"].items() if key[:2] == (threads, test))
        variants = {key[2]: r for key, r in rates["peer"].items() if key[:2] == (threads, test)}
        variant, theirs = max(variants.items(), key=lambda item: statistics.median(item[1]))
        best = max(ours) / max(max(r) for r in variants.values())
        median = statistics.median(ours) / statistics.median(theirs)
        below = not (median >= 1.0)
        slower += below
        print(f"{threads:>7} {test:<20} {max(max(r) for r in variants.values()):>10.1f} / {statistics.median(theirs):<6.1f} "
              f"{max(ours):>10.1f} / {statistics.median(ours):<6.1f} {best:>9.2f}x {median:>6.2f}x  "
              f"{variant_name(variant)}{'  SLOWER' if below else ''}")
    print(f"\n{len(rows[0]) - slower} of {len(rows[0])} rows at 1.00x or above (tokens per second, ratio of medians)")
    return 1 if slower else 0


def compare_perplexity(args):
    found = {(r.get("engine", "tessera"), r["compute"]): r for r in records(args.files) if r["bench"] == "perplexity"}
    print(f"{'engine':<12} {'arithmetic':<10} {'tokens':>7} {'perplexity':>12} {'against its own f32':>20}")
    status = 0
    for (engine, compute), record in sorted(found.items()):
        exact = found.get((engine, "f32"))
        difference = record["perplexity"] / exact["perplexity"] - 1 if exact else float("nan")
        beyond = engine == "tessera" and not (abs(difference) <= REQUIRED_DIFFERENCE)
        status = status or int(beyond)
        print(f"{engine:<12} {compute:<10} {record['tokens']:>7} {record['perplexity']:>12.4f} {difference:>+20.3%}"
              f"{'  BEYOND 0.5 %' if beyond else ''}")
    counts = {record["tokens"] for record in found.values()}
    if len(counts) != 1:
        sys.exit(f"compare: the runs scored different numbers of tokens: {sorted(counts)}")
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model")
    model.add_argument("--model-sha256", help="what both must have run on")
    model.set_defaults(run=compare_model)
    perplexity = commands.add_parser("perplexity")
    perplexity.set_defaults(run=compare_perplexity)
    for sub in (model, perplexity):
        sub.add_argument("files", nargs="+")
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
