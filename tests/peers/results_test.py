#!/usr/bin/env python3
"""The tables and drawings of bench/results: what make_tables.py writes from files of raw figures, what plot_attention.py
draws. Needs neither matplotlib nor a GPU."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench/results")]
import make_tables  # noqa: E402
import plot_attention  # noqa: E402
import records  # noqa: E402
from attention_figures import cells_of, summary  # noqa: E402

ABOUT = {"device": "GPU", "driver": "580.1", "cudnn": 91900, "commit": "abc123", "date": "2026-01-01T00:00:00Z",
         "command": "torch_attention.py --quick", "rounds": 5, "dense_peak": 1000e12, "matmul": 800e12}
TREE = {"bench": "tree", "row": "np 1024 ns 1024", "batch": 32, "heads": 32, "kv_heads": 8, "dim": 128, "page": 64,
        "unique_bytes": 4e6, "seconds": [10e-6] * 3, "paged_seconds": [40e-6] * 3, "reader_seconds": [5e-6] * 3, "of_reader": 2.0,
        "limit": 18e-6, "met": True, "speed_up": 4.0, "error": 1e-3}
DECODE = {"bench": "decode", "batch": 1, "heads": 32, "kv_heads": 32, "length": 64, "page": 64, "dim": 128, "dtype": "bf16",
          "seconds": [4e-6] * 3, "reader_seconds": [2e-6] * 3, "reader_bytes": 1e6, "bytes": 1e6, "of_reader": 0.5, "error": 0.0}


def peers_cell(cell, **seconds):
    """A line of torch_attention.py in which an engine took so long in each of five rounds."""
    samples = {engine: [value] * 5 for engine, value in seconds.items()}
    return {"cell": cell, "samples": samples, "why_not": {},
            **summary(cell, samples, {engine: [0] * 5 for engine in samples})}


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, *lines):
        (self.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def readme(self, text):
        (self.folder / "README.md").write_text(text)

    def run_it(self, *options):
        script = ROOT / "bench/results/make_tables.py"
        return subprocess.run([sys.executable, str(script), str(self.folder), *options], capture_output=True, text=True)


class Tables(Folder):
    first, second = cells_of("forward")[:2]

    def table(self, name, *files):
        return "\n".join(make_tables.table(self.folder, files, name))

    def test_a_row_has_rates_shares_and_ratios_and_the_run_is_told(self):
        self.write("a.jsonl", ABOUT, peers_cell(self.first, tessera=1e-4, fa3=1.2e-4, cudnn=2e-4), {"matmul_after": 1.0})
        text = self.table("forward", "a.jsonl")
        self.assertIn("`a.jsonl`: GPU, driver 580.1, cuDNN 9.19, commit abc123, 2026-01-01T00:00:00Z, 5 rounds, matmul 800 "
                      "TFLOP/s; `torch_attention.py --quick`.", text)
        self.assertIn("**Mean 1.200, lowest 1.200** (D128 full S512).", text)
        self.assertIn("| cell | ours us | rate | of peak | of matmul | cuDNN | FA3 | best rival / ours |", text)
        self.assertIn("| D128 full S512 | 100.0 | 687 | 68.7 % | 85.9 % | 2.000 | 1.200 | **1.200** |", text)

    def test_a_table_may_be_of_several_files_whose_matmuls_differ(self):
        self.write("a.jsonl", ABOUT, peers_cell(self.first, tessera=1e-4, fa3=1.2e-4))
        self.write("b.jsonl", {**ABOUT, "matmul": 400e12}, peers_cell(self.second, tessera=1e-4, fa3=1.8e-4))
        text = self.table("forward", "a.jsonl", "b.jsonl")
        self.assertIn("85.9 % | 1.200", text)
        self.assertIn("S1024 | 100.0 | 1374 | 137.4 % | 343.6 % | 1.800", text)

    def test_an_engine_that_was_missing_has_a_column_and_one_that_was_not_asked_has_none(self):
        cell = peers_cell(self.first, tessera=1e-4)
        cell["why_not"] = {"fa3": "No module named 'flash_attn_interface'", "fa2": "not compared there"}
        self.write("a.jsonl", ABOUT, cell)
        text = self.table("forward", "a.jsonl")
        self.assertIn("| of matmul | FA3 | best", text)
        self.assertIn("| 85.9 % | - | - |", text)
        self.assertNotIn("Mean", text)

    def test_cells_that_failed_are_told(self):
        self.write("a.jsonl", ABOUT, peers_cell(self.first, tessera=1e-4, fa3=1e-4), {"cell": self.second, "failed": "off by 3"})
        self.assertIn("Left out: D128 full S1024: off by 3.", self.table("forward", "a.jsonl"))

    def test_decode_counts_bytes(self):
        cell = cells_of("small")[0]
        self.write("a.jsonl", ABOUT, peers_cell(cell, tessera=4e-6, fa3=8e-6))
        text = self.table("small", "a.jsonl")
        self.assertIn("| cell | ours us | rate | FA3 | best rival / ours |", text)
        self.assertIn("| kv32 n64 page64 | 4.00 | 0.27 TB/s | 2.000 | **2.000** |", text)

    def test_a_table_may_have_steps_among_other_cells(self):
        self.write("a.jsonl", ABOUT, *(peers_cell(c, tessera=1e-4, fa2=2e-4) for c in cells_of("sm80")))
        text = self.table("sm80", "a.jsonl")
        self.assertIn("| forward D128 full S1024 | 100.0 | 1374 | 137.4 % | 171.8 % | 2.000 | **2.000** |", text)
        self.assertIn("| decode kv8 n2048 page64 | 100.0 | 2.69 TB/s | - | - | 2.000 | **2.000** |", text)
        panels = plot_attention.rate_panels(records.load(self.folder / "a.jsonl")[1])
        self.assertEqual(set(panels), {f"{part} D128 {mask}" for part in ("forward", "backward") for mask in ("full", "causal")})

    def test_rows_of_tessera_bench(self):
        about = {k: v for k, v in ABOUT.items() if k not in ("cudnn", "matmul", "rounds")}
        self.write("tree.jsonl", {**about, "bench": "tree"}, TREE, {**TREE, "kv_heads": 32, "met": False})
        self.write("decode.jsonl", {**about, "bench": "decode"}, DECODE)
        text = self.table("tree", "tree.jsonl")
        self.assertIn("Within the limit: 1 of 2 rows.", text)
        self.assertIn("| np 1024 ns 1024 32/8 | 10.00 | 4.0 | 5.00 | 2.00 | 18.0 | yes | 40.00 | 4.00 |", text)
        self.assertIn("| **no** |", text)
        text = self.table("decode", "decode.jsonl")
        self.assertIn("| b 1 heads 32/32 n 64 page 64 | 4.00 | 0.25 | 2.00 | 0.50 | **50.0 %** |", text)

    def test_the_readme_is_rewritten_between_its_markers_alone(self):
        self.write("a.jsonl", ABOUT, peers_cell(self.first, tessera=1e-4, fa3=1.2e-4))
        self.readme("before\n\n<!-- table a.jsonl:forward -->\nby hand\n<!-- end -->\nafter\n")
        stale = self.run_it("--check")
        self.assertEqual(stale.returncode, 1)
        self.assertIn("a.jsonl:forward", stale.stderr)
        self.assertEqual(self.run_it().returncode, 0)
        text = (self.folder / "README.md").read_text()
        self.assertTrue(text.startswith("before\n\n<!-- table") and text.endswith("<!-- end -->\nafter\n"), text)
        self.assertNotIn("by hand", text)
        self.assertEqual(self.run_it("--check").returncode, 0)

    def test_markers_are_listed_and_mistakes_named(self):
        self.write("a.jsonl", ABOUT, peers_cell(self.first, tessera=1e-4))
        self.assertEqual(self.run_it("--list").stdout, "<!-- table a.jsonl:forward -->\n<!-- end -->\n")
        for marker, what in (("b.jsonl:forward", "b.jsonl is missing"), ("a.jsonl:gqa", "has no table 'gqa'")):
            self.readme(f"<!-- table {marker} -->\n<!-- end -->\n")
            done = self.run_it()
            self.assertEqual(done.returncode, 1)
            self.assertIn(what, done.stderr)
        (self.folder / "a.jsonl").write_text('{"device": "GPU"}\nno json\n')
        with self.assertRaisesRegex(ValueError, r"a\.jsonl:2"):
            records.load(self.folder / "a.jsonl")

    def test_the_committed_tables_are_of_their_figures(self):
        script = ROOT / "bench/results/make_tables.py"
        done = subprocess.run([sys.executable, str(script), str(ROOT / "bench/results/attention_h200"), "--check"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


class Drawings(Folder):
    def test_lines_are_by_seqlen_in_a_panel_each_head_size_and_mask(self):
        self.write("a.jsonl", ABOUT, *(peers_cell(c, tessera=1e-4, fa3=2e-4) for c in reversed(cells_of("forward"))))
        panels = plot_attention.rate_panels(records.load(self.folder / "a.jsonl")[1])
        self.assertEqual(set(panels), {f"D{d} {m}" for d in (64, 128) for m in ("full", "causal")})
        line = panels["D128 full"]["fa3"]
        self.assertEqual([s for s, _ in line], [512, 1024, 2048, 4096, 8192, 16384])
        self.assertAlmostEqual(line[0][1], 4.0 * 32 * 16 * 512 * 512 * 128 / 2e-4 * 1e-12)

    def test_steps_of_a_tree_stand_beside_limit_reader_and_paged_kernel(self):
        self.assertEqual(plot_attention.tree_bars([TREE]), {8: [("np 1024 ns 1024", 10.0, 18.0, 5.0, 40.0)]})

    def test_decode_stands_beside_the_reader(self):
        self.write("a.jsonl", {**ABOUT, "bench": "decode"}, DECODE)
        cells = records.load(self.folder / "a.jsonl")[1]
        self.assertEqual(plot_attention.reader_bars(cells), [("b 1 heads 32/32 n 64 page 64", 0.25, 0.5)])

    def test_what_the_readme_has_tables_of_is_drawn_else_all(self):
        self.write("a.jsonl", ABOUT)
        self.write("b.jsonl", ABOUT)
        self.assertEqual([p.name for p in plot_attention.files_of(self.folder)], ["a.jsonl", "b.jsonl"])
        self.readme("<!-- table b.jsonl:forward -->\n<!-- end -->\n")
        self.assertEqual([p.name for p in plot_attention.files_of(self.folder)], ["b.jsonl"])

    def test_a_later_files_cell_counts(self):
        cell = cells_of("forward")[0]
        self.write("a.jsonl", ABOUT, peers_cell(cell, tessera=1e-4))
        self.write("b.jsonl", ABOUT, peers_cell(cell, tessera=2e-4), {"cell": cell, "failed": "why"})
        found = records.tables([self.folder / "a.jsonl", self.folder / "b.jsonl"])
        self.assertEqual([c["samples"]["tessera"][0] for c in plot_attention.latest(found["forward"])], [2e-4])

    def test_a_folder_without_figures_is_named(self):
        script = ROOT / "bench/plot_attention.py"
        done = subprocess.run([sys.executable, str(script), str(self.folder)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("has no .jsonl with cells", done.stderr)


if __name__ == "__main__":
    unittest.main()
