#!/usr/bin/env python3
"""bench/peers/torch_attention.py: its cells, ratios and verdicts, on made-up samples. Needs neither PyTorch nor a GPU."""

import pathlib
import subprocess
import sys
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "bench/peers/torch_attention.py"
sys.path.insert(0, str(SCRIPT.parent))
import torch_attention as bench  # noqa: E402


class Cells(unittest.TestCase):
    def test_forward_has_24_of_equal_tokens_and_width(self):
        cells = bench.cells_of("forward")
        self.assertEqual(len({c["name"] for c in cells}), 24)
        for cell in cells:
            self.assertEqual(cell["batch"] * cell["seqlen"], 16384)
            self.assertEqual(cell["heads"] * cell["dim"], 2048)

    def test_words_narrow_a_group(self):
        names = [c["name"] for c in bench.selected("forward:D64:causal,decode:kv8:page16")]
        self.assertEqual(len(names), 6 + 3)
        self.assertTrue(all("D64:causal" in n or "kv8" in n for n in names))

    def test_an_unknown_word_is_named(self):
        with self.assertRaisesRegex(ValueError, "'sideways' is no group"):
            bench.selected("sideways")
        with self.assertRaisesRegex(ValueError, "'forward:D63' selects no cell"):
            bench.selected("forward:D63")

    def test_work_is_counted_over_visible_pairs(self):
        full, causal = (bench.selected(f"forward:D128:{word}:S512")[0] for word in ("full", "causal"))
        self.assertEqual(bench.flops_of(full), 4.0 * 32 * 16 * 512 * 512 * 128)
        self.assertEqual(bench.flops_of(causal), bench.flops_of(full) / 2)
        varlen = bench.selected("varlen:D64:full:S1024")[0]
        self.assertEqual(sum(varlen["lengths"]), bench.TOKENS)
        self.assertLess(bench.flops_of(varlen), 4.0 * bench.TOKENS * 1024 * 2048)

    def test_bytes_of_decode_are_unique_keys_values_q_and_o(self):
        cell = bench.selected("decode:kv8:n1024:page64")[0]
        self.assertEqual(bench.bytes_of(cell), 2.0 * 128 * 2 * 32 * (32 + 1024 * 8))


class Figures(unittest.TestCase):
    cell = bench.selected("forward:D128:full:S512")[0]

    def test_ratios_are_paired_by_round(self):
        ours = [1.0, 2.0, 4.0, 8.0, 16.0]
        figures = bench.summary(self.cell, {"tessera": ours, "cudnn": [1.5 * x for x in ours], "fa3": [1.1 * x for x in ours]},
                                {e: [1980] * 5 for e in ("tessera", "cudnn", "fa3")})
        self.assertAlmostEqual(figures["engines"]["cudnn"]["ratio"], 1.5)
        self.assertEqual(figures["best_rival"], "fa3")
        self.assertAlmostEqual(figures["ratio"], 1.1)
        self.assertAlmostEqual(figures["engines"]["tessera"]["tflops"], bench.flops_of(self.cell) / 4.0 * 1e-12)

    def test_rounds_with_an_unsteady_clock_are_left_out(self):
        clocks = {"tessera": [1980] * 6 + [1900], "fa3": [1700, 1800, 1700, 1700, 1700, 1700, 1700]}
        self.assertEqual(bench.steady_rounds(clocks), [0, 2, 3, 4, 5])
        figures = bench.summary(self.cell, {"tessera": [1.0] * 6 + [9.0], "fa3": [1.0, 9.0] + [1.0] * 5}, clocks)
        self.assertEqual((figures["rounds"], figures["dropped"]), (5, 2))
        self.assertEqual(figures["ratio"], 1.0)

    def test_too_few_steady_rounds_keep_all(self):
        clocks = {"tessera": [1000, 1100, 1200, 1300, 1400, 1500, 1600]}
        self.assertEqual(len(bench.steady_rounds(clocks)), 7)

    def test_without_a_rival_there_is_no_ratio(self):
        figures = bench.summary(self.cell, {"tessera": [1.0] * 5}, {"tessera": [0] * 5})
        self.assertNotIn("ratio", figures)
        self.assertIn("no rival", bench.verdict("forward", [(self.cell, figures)]))

    def test_a_verdict_names_the_lowest_cell(self):
        other = bench.selected("forward:D64:full:S512")[0]
        clocks = {"tessera": [1980] * 5, "fa3": [1980] * 5}
        high = bench.summary(self.cell, {"tessera": [1.0] * 5, "fa3": [2.0] * 5}, clocks)
        low = bench.summary(other, {"tessera": [1.0] * 5, "fa3": [0.5] * 5}, clocks)
        text = bench.verdict("forward", [(self.cell, high), (other, low)])
        self.assertIn("mean 1.000, lowest 0.500 (forward:D64:full:S512)", text)

    def test_a_row_has_a_place_for_every_engine(self):
        clocks = {"tessera": [1980] * 5, "fa3": [1980] * 5}
        figures = bench.summary(self.cell, {"tessera": [1e-4] * 5, "fa3": [2e-4] * 5}, clocks)
        line = bench.row(self.cell, figures, bench.ENGINES, 989e12, 780e12, 1980)
        self.assertEqual(len(line), len(bench.head(bench.ENGINES)))
        self.assertIn("2.000", line)


class Command(unittest.TestCase):
    def run_it(self, *arguments):
        return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)

    def test_help_needs_no_pytorch(self):
        done = self.run_it("--help")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("--rounds", done.stdout)

    def test_mistakes_are_named(self):
        for arguments, text in ((["--engines", "fa9"], "'fa9' is not one of"), (["--rounds", "0"], "must be above 0"),
                                (["--cells", "forward:D1"], "selects no cell")):
            done = self.run_it(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn(text, done.stderr)


if __name__ == "__main__":
    unittest.main()
