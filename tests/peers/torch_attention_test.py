#!/usr/bin/env python3
"""bench/peers/torch_attention.py: its cells, ratios and verdicts, on made-up samples. Needs neither PyTorch nor a GPU."""

import argparse
import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "bench/peers/torch_attention.py"
sys.path.insert(0, str(SCRIPT.parent))
import attention_figures as bench  # noqa: E402
import torch_attention as script  # noqa: E402


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

    def test_names_are_unique_and_every_group_has_cells(self):
        names = [c["name"] for group in bench.GROUPS for c in bench.cells_of(group)]
        self.assertEqual(len(set(names)), len(names))
        self.assertEqual({n.split(":")[0] for n in names}, set(bench.GROUPS))
        self.assertLess(max(map(len, names)), 33)  # the width of a row's first column

    def test_small_steps_are_of_one_sequence(self):
        cells = bench.cells_of("small")
        self.assertEqual({(c["batch"], c["heads"], c["kv_heads"], c["seqlen"]) for c in cells},
                         {(1, 32, kv, n) for kv in (32, 8) for n in (64, 256, 1024)})

    def test_sm80_is_beside_flash_attention_2_alone_and_runs_alone(self):
        self.assertEqual({tuple(c["engines"]) for c in bench.cells_of("sm80")}, {("tessera", "fa2")})
        self.assertEqual(len(bench.selected("sm80:backward")), 6)
        with self.assertRaisesRegex(ValueError, "'sm80' runs alone"):
            bench.selected("forward,sm80")

    def test_the_backward_counts_five_products(self):
        forward, backward = (bench.selected(f"{g}:D128:causal:S4096")[0] for g in ("forward", "backward"))
        self.assertEqual(bench.flops_of(backward), 2.5 * bench.flops_of(forward))

    def test_files_without_kinds_are_understood(self):
        for group, kind in (("forward", "dense"), ("gqa", "dense"), ("varlen", "varlen"), ("decode", "decode")):
            cell = dict(bench.cells_of(group)[0])
            del cell["kind"]
            self.assertEqual(bench.kind_of(cell), kind)

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


    def test_a_verdict_says_how_many_cells_there_were(self):
        figures = bench.summary(self.cell, {"tessera": [1.0] * 5, "fa3": [2.0] * 5}, {"tessera": [0] * 5, "fa3": [0] * 5})
        self.assertIn("forward (1 of 24 cells): against", bench.verdict("forward", [(self.cell, figures)], 24))
        self.assertIn("forward: against", bench.verdict("forward", [(self.cell, figures)], 1))
        self.assertEqual(bench.verdict("forward", [], 24), "forward (0 of 24 cells): no cell was timed")


class FakeBench:
    """Cells that take a second of a clock of its own; those named in `wrong` are."""

    def __init__(self, wrong=(), ends_in=None):
        self.wrong, self.ends_in, self.now, self.peak, self.cells = wrong, ends_in, 0.0, 989e12, 0
        self.options = argparse.Namespace(engines=list(bench.ENGINES), budget=0.0)

    def cell(self, cell):
        self.now += 1
        self.cells += 1
        if self.cells == self.ends_in:
            raise script.TimeIsUp
        if cell["name"] in self.wrong:
            raise script.Wrong("off by 3")
        state = [[1980, 600.0, 50]] * 5
        return ({"tessera": [1e-4] * 5, "fa3": [2e-4] * 5}, {"tessera": state, "fa3": state}, {"tessera": 0.0, "fa3": 0.0},
                {"cudnn": "is not there"})


class Groups(unittest.TestCase):
    cells = bench.cells_of("dims")

    def time_group(self, fake, budget=0.0):
        """What is printed, written and failed."""
        fake.options.budget = budget
        records, text = [], io.StringIO()
        failed = []
        with contextlib.redirect_stdout(text):
            try:
                judge = script.Budget(budget, lambda: fake.now)
                failed = script.time_group(fake, "dims", self.cells, 700e12, judge, records.append)
            except script.TimeIsUp:
                records.append("time is up")
        return text.getvalue(), records, failed

    def test_a_group_ends_with_its_verdict_and_who_was_left_out(self):
        text, records, failed = self.time_group(FakeBench())
        self.assertEqual((len(records), failed), (12, []))
        self.assertIn("\ndims: against the best rival of each cell, mean 2.000", text)
        self.assertIn("cudnn was left out first in dims:D96:full:S1024: is not there", text)
        self.assertEqual(records[0]["captured"], {"tessera": True, "fa3": True})

    def test_the_budget_begins_no_cell_that_would_not_end_in_time(self):
        text, records, _ = self.time_group(FakeBench(), budget=3.5)
        self.assertEqual(len(records), 3)
        self.assertIn("dims (3 of 12 cells): against", text)

    def test_a_wrong_cell_is_left_out_and_told(self):
        text, records, failed = self.time_group(FakeBench(wrong=["dims:D96:full:S4096"]))
        self.assertEqual(failed, ["dims:D96:full:S4096: off by 3"])
        self.assertEqual(records[1]["failed"], "off by 3")
        self.assertIn("dims (11 of 12 cells): against", text)

    def test_a_terminated_group_still_has_its_verdict(self):
        text, records, _ = self.time_group(FakeBench(ends_in=3))
        self.assertEqual(records[-1], "time is up")
        self.assertIn("dims (2 of 12 cells): against", text)


def nothing_torch():
    """A PyTorch whose calls do nothing and take a millisecond each, on a GPU that is not there."""
    torch = mock.MagicMock()
    torch.__version__ = "2.11"
    torch.version.cuda = "13.0"
    torch.backends.cudnn.version.return_value = 91900
    torch.cuda.is_available.return_value = True
    properties = torch.cuda.get_device_properties.return_value
    properties.name, properties.multi_processor_count, properties.uuid = "GPU", 132, "0"
    torch.cuda.Event.return_value.elapsed_time.return_value = 1.0
    profile = torch.profiler.profile.return_value.__enter__.return_value
    profile.key_averages.return_value = [argparse.Namespace(self_device_time_total=1000.0, key="sm80::forward")]
    for name in ("cudnn", "flash"):
        forward = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention").default
        backward = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention_backward").default
        results = ["output", "logsumexp", *(["philox_seed"] if name == "cudnn" else ["rng_state"])]
        forward._schema.returns = [argparse.Namespace(name=r) for r in results]
        forward._schema.arguments = [argparse.Namespace(name=n, kwarg_only=False) for n in ("query", "key", "value", "is_causal")]
        forward.return_value = tuple(f"{name} {r}" for r in results)
        backward._schema.arguments = [argparse.Namespace(name=n, kwarg_only=False)
                                      for n in ("grad_out", "out", "logsumexp", "philox_seed")]
        backward.return_value = [mock.MagicMock() for _ in range(3)]
    return torch


class WholeRun(unittest.TestCase):
    def run_it(self, torch, *arguments):
        """What is printed and the lines of the file, of a run whose results are always right."""
        modules = {"torch": torch, "tessera": mock.MagicMock(__version__="1"), "flash_attn_interface": mock.MagicMock(),
                   "pynvml": None}
        text = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(sys.modules, modules), \
                mock.patch.object(script.Bench, "error", return_value=0.0), \
                mock.patch.object(script.Bench, "gradient_error", return_value=0.0), \
                contextlib.redirect_stdout(text), contextlib.redirect_stderr(io.StringIO()):
            path = pathlib.Path(folder) / "out.jsonl"
            script.run(script.parsed([*arguments, "--warm-up", "0", "--rounds", "3", "--json", str(path)]))
            return text.getvalue(), [json.loads(line) for line in path.read_text().splitlines()]

    def test_every_group_is_timed_and_judged(self):
        groups = [g for g in bench.GROUPS if g != "sm80"]
        text, lines = self.run_it(nothing_torch(), "--cells", ",".join(groups))
        for group in groups:
            self.assertIn(f"\n{group}: against the best rival of each cell, mean ", text)
        self.assertEqual(lines[0]["device"], "GPU")
        self.assertTrue({"driver", "commit", "date", "command", "matmul"} <= set(lines[0]))
        self.assertEqual(len(lines), 2 + sum(len(bench.cells_of(g)) for g in groups))
        for line in lines[1:-1]:
            engines = {"tessera", "cudnn", "fa2"} | ({"fa3"} if line["cell"]["kind"] != "backward" else set())
            self.assertEqual(set(line["samples"]), engines, line["cell"]["name"])
            # Everything is in graphs, but cuDNN's packed sequences.
            outside = [e for e, captured in line["captured"].items() if not captured]
            self.assertEqual(outside, ["cudnn"] if line["cell"]["kind"] == "varlen" else [])

    def test_sm80_times_flash_attention_2_alone_and_looks_at_our_kernels(self):
        text, lines = self.run_it(nothing_torch(), "--cells", "sm80")
        self.assertEqual({tuple(line["samples"]) for line in lines[1:-1]}, {("tessera", "fa2")})
        torch = nothing_torch()
        torch.profiler.profile.return_value.__enter__.return_value.key_averages.return_value[0].key = "sm90::forward"
        with self.assertRaisesRegex(SystemExit, "TESSERA_CUDA_ARCH=80 is not heeded: sm90::forward"):
            self.run_it(torch, "--cells", "sm80:forward:full:S1024")

    def test_a_backward_gets_what_its_forward_left(self):
        torch = nothing_torch()
        self.run_it(torch, "--cells", "backward:D128:full:S512")
        for name, seed in (("cudnn", "cudnn philox_seed"), ("flash", "flash rng_state")):
            backward = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention_backward").default
            self.assertEqual(backward.call_args.args[1:], (f"{name} output", f"{name} logsumexp", seed))
            forward = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention").default
            self.assertEqual(forward.call_count, 3)  # of each set of inputs once: none is in a graph


class Operators(unittest.TestCase):
    def test_arguments_go_by_their_names_and_what_is_not_given_is_none(self):
        class Operator:
            class default:  # noqa: N801
                class _schema:  # noqa: N801
                    arguments = [argparse.Namespace(name=n, kwarg_only=n == "scale") for n in ("q", "bias", "p", "scale")]

                def __new__(cls, *arguments):
                    return arguments

        self.assertEqual(script.by_name(Operator, {"p": 0.5, "q": "Q", "more": 1}), ("Q", None, 0.5))


class Command(unittest.TestCase):
    def test_quick_is_fewer_and_shorter_samples_unless_told(self):
        usual, quick = script.parsed([]), script.parsed(["--quick", "--rounds", "7"])
        self.assertEqual((usual.rounds, usual.sample_ms, usual.warm_up), (11, 10.0, 2.0))
        self.assertEqual((quick.rounds, quick.sample_ms, quick.warm_up), (7, 5.0, 1.0))
        self.assertEqual([c["name"] for c in quick.cells], [c["name"] for c in usual.cells])

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
