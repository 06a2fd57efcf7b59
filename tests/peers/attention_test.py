#!/usr/bin/env python3
"""`tessera bench attention`: its lines, its ratios to a peer that answers made-up times, and its mistakes.

    attention_test.py path/to/tessera
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

TESSERA = sys.argv.pop() if len(sys.argv) > 1 else "tessera"

# Answers 1 second for every call, the untimed first one aside.
PEER = """
import json, sys
print(json.dumps({"engine": "made up", "version": "1"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "cell" in request:
        assert request["cell"]["heads"] == 2 and request["cell"]["kv_heads"] == 1, request
        print(json.dumps({"ready": True}), flush=True)
    else:
        print(json.dumps({"seconds": [9.0] + [1.0] * (request["run"] - 1)}), flush=True)
"""
SMALL = ["-S", "48,70", "-D", "16", "--heads", "2", "--kv-heads", "1", "-t", "1,2", "-r", "2"]


def run(*arguments):
    return subprocess.run([TESSERA, "bench", "attention", *SMALL, *arguments], capture_output=True, text=True)


class BenchAttention(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.peer = pathlib.Path(folder.name) / "peer.py"
        self.json = pathlib.Path(folder.name) / "out.jsonl"
        self.peer.write_text(PEER)

    def lines(self):
        return [json.loads(line) for line in self.json.read_text().splitlines()]

    def test_every_cell_has_a_line_with_its_ratios(self):
        done = run("--peer", "torch", "--python", sys.executable, "--peer-script", str(self.peer), "--json", str(self.json))
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = self.lines()
        self.assertEqual(lines[0]["peer"]["engine"], "made up")
        cells = lines[1:]
        self.assertEqual(len(cells), 2 * 2 * 2 * 2)  # dtypes, masks, lengths, threads
        for cell in cells:
            self.assertEqual(cell["peer_seconds"], [1.0, 1.0])
            self.assertAlmostEqual(cell["ratio_best"] * min(cell["seconds"]), 1.0)
            self.assertGreater(cell["workspace_bytes"], 0)
            self.assertLess(cell["error"], 2e-2)
        self.assertIn("lowest cell", done.stdout)

    def test_schedules_and_gradients_are_timed(self):
        for arguments, part in ((["--schedule", "fa1"], "forward"), (["--backward"], "backward")):
            done = run(*arguments, "--dtype", "f32", "--json", str(self.json))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual({line["part"] for line in self.lines()}, {part})

    def test_a_peer_that_ends_is_an_error(self):
        self.peer.write_text("print('{}', flush=True)\n")
        done = run("--peer", "torch", "--python", sys.executable, "--peer-script", str(self.peer))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("it ended", done.stderr)

    def test_a_python_without_pytorch_says_so_in_a_line(self):
        script = pathlib.Path(__file__).parents[2] / "bench/peers/torch_sdpa.py"
        # Without site-packages no interpreter has it.
        done = subprocess.run([sys.executable, "-S", "-I", str(script)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn("--python", done.stderr)

    def test_a_python_that_is_missing_is_an_error(self):
        done = run("--peer", "torch", "--python", "/no/such/python")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("/no/such/python", done.stderr)


if __name__ == "__main__":
    unittest.main()
