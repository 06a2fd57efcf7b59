"""tessera run, serve and bench as processes, on the tiny model: standard output, standard error, seeds.

    command_test.py TESSERA
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "tests/goldens/tiny_llama_mixed.gguf")
TESSERA = ""
SMALL = ["-m", MODEL, "-t", "1", "--kv-cache-memory-bytes", "1000000"]


def tessera(*arguments, text=""):
    return subprocess.run([TESSERA, *arguments], input=text, capture_output=True, text=True, timeout=120, check=False)


def answer(*arguments):
    done = tessera("run", *SMALL, "-p", "hello", "-n", "12", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Run(unittest.TestCase):
    def test_a_drawn_seed_is_told_and_gives_the_same_tokens_again(self):
        options = ["--temp", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--ignore-eos"]
        first = answer(*options)
        again = answer(*options, "--seed", str(first["seed"]))
        self.assertEqual(again["seed"], first["seed"])
        self.assertEqual(again["token_ids"], first["token_ids"])
        self.assertNotEqual(answer(*options)["token_ids"], first["token_ids"])

    def test_only_warnings_are_printed_unless_verbose(self):
        arguments = ["run", *SMALL, "-p", "hello", "-n", "2", "--json"]
        self.assertEqual(tessera(*arguments).stderr, "")
        self.assertIn("KV pool", tessera(*arguments, "-v").stderr)


class Serve(unittest.TestCase):
    def serve(self, *options):
        """Standard error of a server that answered one request and was told to drain."""
        with subprocess.Popen([TESSERA, "serve", *SMALL, "--port", "0", *options], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as server:
            try:
                ready = server.stdout.readline()
                address = re.search(r"http://\S+", ready).group()
                urllib.request.urlopen(address + "/health", timeout=60).read()
                server.send_signal(signal.SIGTERM)
                _, errors = server.communicate(timeout=60)
            finally:
                server.kill()
            self.assertEqual(server.returncode, 0, errors)
        return errors

    def test_what_was_chosen_and_draining_are_told_and_requests_are_not(self):
        errors = self.serve()
        self.assertIn("KV pool", errors)
        self.assertIn("draining", errors)
        self.assertNotIn("/health", errors)

    def test_the_access_log_has_a_line_for_each_request(self):
        errors = self.serve("--access-log")
        self.assertEqual(errors.count('target="/health" status=200'), 1, errors)


class BenchOnADevice(unittest.TestCase):
    def test_without_one_a_line_says_so(self):
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        for arguments in (["attention", "--device", "cuda"], ["decode"], ["decode", "--device", "cuda"], ["tree"],
                          ["tree", "--device", "cuda"]):
            done = subprocess.run([TESSERA, "bench", *arguments], capture_output=True, text=True, timeout=120, check=False,
                                  env=hidden)
            self.assertEqual(done.returncode, 1, f"{arguments}: {done.stderr}")
            self.assertRegex(done.stderr, r"\Atessera: [^\n]*CUDA[^\n]*\n\Z", arguments)


if __name__ == "__main__":
    TESSERA = sys.argv.pop(1)
    unittest.main()
