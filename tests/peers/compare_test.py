"""bench/peers/compare.py and scripts/bench peers: what passes, what fails, what is an error."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHA = "a" * 64


def ours(test, *rates, threads=1):
    return {"bench": "model", "test": test, "threads": threads, "tokens_per_second": rates[0], "repeats": list(rates)}


def rival(test, *rates, threads=1, flash=False, **more):
    return {**ours(test, *rates, threads=threads), "engine": "llama.cpp", "version": "1", "system": "none",
            "model_sha256": SHA, "flash_attn": flash, **more}


def perplexity(value, compute, tokens=100, **more):
    return {"bench": "perplexity", "compute": compute, "tokens": tokens, "nll": 1.0, "perplexity": value, **more}


class Compare(unittest.TestCase):
    def run_compare(self, command, *files):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for i, lines in enumerate(files):
                paths.append(os.path.join(folder, f"{i}.jsonl"))
                with open(paths[-1], "w", encoding="utf-8") as out:
                    out.writelines(json.dumps(line) + "\n" for line in lines)
            options = ["--model-sha256", SHA] if command == "model" else []
            done = subprocess.run([sys.executable, ROOT / "bench/peers/compare.py", command, *options, *paths],
                                  capture_output=True, text=True, timeout=60)
            return done.returncode, done.stdout + done.stderr

    def test_faster_everywhere_passes(self):
        status, text = self.run_compare("model", [rival("pp512", 100), rival("tg128", 10)],
                                        [ours("pp512", 200), ours("tg128", 15)])
        self.assertEqual(status, 0, text)
        self.assertIn("2 of 2 rows", text)

    def test_one_slower_row_fails(self):
        status, text = self.run_compare("model", [rival("pp512", 100), rival("tg128", 10)],
                                        [ours("pp512", 200), ours("tg128", 9.9)])
        self.assertEqual(status, 1, text)
        self.assertEqual(text.count("SLOWER"), 1)

    def test_the_rivals_best_variant_counts(self):
        files = [rival("pp512", 100, flash=False), rival("pp512", 130, flash=True)], [ours("pp512", 120)]
        status, text = self.run_compare("model", *files)
        self.assertEqual(status, 1, text)
        self.assertIn("flash=on", text)

    def test_rounds_are_joined_and_medians_decide(self):
        rounds = [[rival("pp512", 100)], [rival("pp512", 500)], [rival("pp512", 101)]]
        status, text = self.run_compare("model", *rounds, [ours("pp512", 110)], [ours("pp512", 111)],
                                        [ours("pp512", 30)])
        self.assertEqual(status, 0, text)
        self.assertIn("500.0", text)  # the best is shown all the same

    def test_a_rate_that_is_not_a_number_fails(self):
        status, text = self.run_compare("model", [rival("pp512", 100)], [ours("pp512", float("nan"))])
        self.assertEqual(status, 1, text)

    def test_a_missing_row_is_an_error(self):
        for files in ([rival("pp512", 1), rival("tg128", 1)], [ours("pp512", 2)]), \
                     ([rival("pp512", 1)], [ours("pp512", 2), ours("pp512", 2, threads=2)]), \
                     ([], [ours("pp512", 2)]), ([rival("pp512", 1)], []), ([], []):
            status, text = self.run_compare("model", *files)
            self.assertNotEqual(status, 0, text)
            self.assertNotIn("1 of 1 rows", text)

    def test_another_model_is_an_error(self):
        status, text = self.run_compare("model", [rival("pp512", 1) | {"model_sha256": "b" * 64}], [ours("pp512", 2)])
        self.assertNotEqual(status, 0)
        self.assertIn("b" * 64, text)

    def test_perplexity_within_half_a_percent_passes_and_beyond_fails(self):
        exact = perplexity(20.0, "f32")
        self.assertEqual(self.run_compare("perplexity", [exact, perplexity(20.09, "quantized")])[0], 0)
        for wrong in (20.11, 19.89, float("nan")):
            status, text = self.run_compare("perplexity", [exact, perplexity(wrong, "quantized")])
            self.assertEqual(status, 1, text)

    def test_perplexity_needs_its_own_f32(self):
        self.assertNotEqual(self.run_compare("perplexity", [perplexity(20.0, "quantized")])[0], 0)

    def test_the_rivals_difference_is_shown_and_never_fails(self):
        peer = {"engine": "llama.cpp"}
        status, text = self.run_compare("perplexity", [perplexity(20.0, "f32"), perplexity(20.0, "quantized"),
                                                       perplexity(20.0, "f32", **peer),
                                                       perplexity(21.0, "quantized", **peer)])
        self.assertEqual(status, 0, text)
        self.assertIn("+5.000%", text)

    def test_different_counts_of_tokens_are_an_error(self):
        self.assertNotEqual(self.run_compare("perplexity", [perplexity(20.0, "f32"),
                                                            perplexity(20.0, "quantized", tokens=99)])[0], 0)


class Script(unittest.TestCase):
    def test_an_absent_rival_is_an_error_with_the_way_to_install_it(self):
        with tempfile.TemporaryDirectory() as empty:
            environment = {**os.environ, "XDG_CACHE_HOME": empty}
            environment.pop("TESSERA_PEER_PYTHON", None)
            done = subprocess.run([ROOT / "scripts/bench", "peers"], env=environment, capture_output=True, text=True,
                                  timeout=60)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("scripts/bench peers --install", done.stderr)

    def test_help_names_every_command(self):
        done = subprocess.run([ROOT / "scripts/bench", "--help"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0)
        for command in ("peers", "perplexity", "model", "prefix", "serving"):
            self.assertIn(command, done.stdout)


if __name__ == "__main__":
    unittest.main()
