"""bench/peers and scripts/bench peers: what passes, what fails, what is an error."""

import hashlib
import json
import os
import pathlib
import shutil
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


def bare_path(folder):
    """A PATH with what the scripts need and no rival."""
    for name in ("bash", "env", "python3", "dirname", "cat"):
        os.symlink(shutil.which(name), os.path.join(folder, name))
    return folder


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


# What llama-bench prints, with the fields of build 5163: a rate per test that tells the test, in an object of strings,
# numbers and booleans. {python} and {flash} are filled in.
FAKE_BENCH = r'''#!{python}
import itertools, json, sys
o = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "-pg" in o or o["-o"] != "json" or o["-ngl"] != "0":
    sys.exit("error: invalid parameter")
records = []
for depth in o["-d"].split(","):
    for prompt, gen in ((o["-p"], "0"), ("0", o["-n"])):
        if prompt == gen == "0":
            continue
        rate = int(prompt) + int(gen) + int(depth) / 10000 + int(o["-fa"]) * {flash}
        records.append(dict(
            build_commit="8cf427ff", build_number=5163, cpu_info="Some CPU", gpu_info="", backends="{backends}",
            model_filename=o["-m"], model_type="llama 1B Q4_1", model_size=1, model_n_params=1, n_batch=2048,
            n_ubatch=512, n_threads=int(o["-t"]), cpu_mask="0x0", cpu_strict=False, poll=50, type_k="f16",
            type_v="f16", n_gpu_layers=0, split_mode="layer", main_gpu=0, no_kv_offload=False,
            flash_attn=o["-fa"] == "1", tensor_split="0.00", tensor_buft_overrides="none", use_mmap=True,
            embeddings=False, n_prompt=int(prompt), n_gen=int(gen), n_depth=int(depth),
            test_time="2025-04-24T11:58:50Z", avg_ns=1, stddev_ns=1, avg_ts=rate, stddev_ts=0.5,
            samples_ns=[1] * int(o["-r"]), samples_ts=[rate] * int(o["-r"])))
print(json.dumps(records, indent=2))
print("a word on standard error", file=sys.stderr)
'''
# An older llama-batched-bench: -fa is a switch without a value, -kvu is not known, text around the row.
FAKE_BATCHED = r'''#!{python}
import json, sys
words = sys.argv[1:]
if "-kvu" in words or "on" in words or "off" in words:
    sys.exit("error: invalid argument")
value = lambda flag: int(words[words.index(flag) + 1])
flash = "-fa" in words
print("\n" + json.dumps(dict(
    n_kv_max=value("-c"), n_batch=2048, n_ubatch=512, flash_attn=int(flash), is_pp_shared=int("-pps" in words),
    n_gpu_layers=0, n_threads=value("-t"), n_threads_batch=value("-t"), pp=value("-npp"), tg=value("-ntg"),
    pl=value("-npl"), n_kv=1, t_pp=1.0, speed_pp=1.0, t_tg=1.0, speed_tg=300.0 + flash, t=1.0, speed=1.0)) + "\n\n")
'''


class LlamaBench(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.model = self.put("model.gguf", "weights")
        self.environment = {**os.environ, "XDG_CACHE_HOME": self.folder.name, "PATH": bare_path(self.folder.name)}
        self.environment.pop("TESSERA_PEER_PYTHON", None)

    def put(self, name, text, **values):
        path = pathlib.Path(self.folder.name, name)
        for key, value in {"python": sys.executable, "flash": 1, "backends": "CPU", **values}.items():
            text = text.replace("{" + key + "}", str(value))
        path.write_text(text, encoding="utf-8")
        path.chmod(0o700)
        return path

    def run_tools(self, *options):
        done = subprocess.run([sys.executable, ROOT / "bench/peers/llama_bench.py", "model", "-m", self.model, "-t", "1",
                               "-r", "2", *options], env=self.environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def test_every_test_comes_with_flash_attention_off_and_on(self):
        self.put("llama-bench", FAKE_BENCH)
        self.put("llama-batched-bench", FAKE_BATCHED)
        status, text, errors = self.run_tools()
        self.assertEqual(status, 0, errors)
        found = {(r["test"], r["flash_attn"]): r for r in map(json.loads, text.splitlines())}
        rates = {key: record["repeats"] for key, record in found.items()}
        self.assertEqual(rates, {("pp512", False): [512.0, 512.0], ("pp512", True): [513.0, 513.0],
                                 ("tg128", False): [128.0, 128.0], ("tg128", True): [129.0, 129.0],
                                 ("tg128@1024", False): [128.1024] * 2, ("tg128@1024", True): [129.1024] * 2,
                                 ("batch16@shared1024", False): [300.0] * 2,
                                 ("batch16@shared1024", True): [301.0] * 2})
        for record in found.values():
            self.assertEqual(record["model_sha256"], hashlib.sha256(b"weights").hexdigest())
            self.assertEqual(record["engine"], "llama.cpp")
            self.assertIn("5163", record["version"])

    def test_its_lines_are_what_the_comparison_reads(self):
        self.put("llama-bench", FAKE_BENCH)
        self.put("llama-batched-bench", FAKE_BATCHED)
        theirs = self.put("theirs.jsonl", self.run_tools()[1])
        mine = [ours("pp512", 600), ours("tg128", 130), ours("tg128@1024", 128.5), ours("batch16@shared1024", 400)]
        own = self.put("ours.jsonl", "".join(json.dumps(line) + "\n" for line in mine))
        done = subprocess.run([sys.executable, ROOT / "bench/peers/compare.py", "model", theirs, own],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1, done.stderr)  # tg128@1024: 128.5 against its best, 129.1024
        self.assertIn("3 of 4 rows", done.stdout)

    def test_a_missing_or_failing_tool_is_an_error(self):
        self.put("llama-bench", FAKE_BENCH)
        status, _, errors = self.run_tools()
        self.assertNotEqual(status, 0)
        self.assertIn("llama-batched-bench is not on the PATH", errors)
        self.put("llama-batched-bench", "#!/bin/sh\necho out of memory >&2; exit 3\n")
        status, _, errors = self.run_tools()
        self.assertNotEqual(status, 0)
        self.assertIn("out of memory", errors)
        os.remove(os.path.join(self.folder.name, "llama-bench"))
        done = subprocess.run([ROOT / "scripts/bench", "peers", "--llama-bench"], capture_output=True, text=True,
                              env=self.environment, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("llama-bench is not on the PATH", done.stderr)

    def test_a_build_for_a_gpu_is_an_error(self):
        self.put("llama-bench", FAKE_BENCH, backends="CUDA")
        self.put("llama-batched-bench", FAKE_BATCHED)
        status, _, errors = self.run_tools()
        self.assertNotEqual(status, 0)
        self.assertIn("CUDA", errors)

    def test_other_tests_than_asked_for_are_an_error(self):
        self.put("llama-bench", FAKE_BENCH.replace("n_threads=int", "n_threads=1 + int"))
        self.put("llama-batched-bench", FAKE_BATCHED)
        status, _, errors = self.run_tools()
        self.assertNotEqual(status, 0)
        self.assertIn("not [(512, 0, 0, 1, False)]", errors)

    def test_the_script_takes_the_tools_on_the_path_where_nothing_else_is_installed(self):
        self.put("llama-bench", FAKE_BENCH)
        done = subprocess.run([ROOT / "scripts/bench", "peers"], env=self.environment, capture_output=True, text=True,
                              timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("llama-batched-bench is not on the PATH", done.stderr)


class Script(unittest.TestCase):
    def test_an_absent_rival_is_an_error_with_the_way_to_install_it(self):
        with tempfile.TemporaryDirectory() as empty:
            environment = {**os.environ, "XDG_CACHE_HOME": empty, "PATH": bare_path(empty)}
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
