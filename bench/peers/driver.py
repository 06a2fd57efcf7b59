"""What the rivals' drivers have in common: the flags of `tessera bench model`, and JSON lines. No packages are needed."""

import hashlib
import json
import sys

BATCH_STEPS = 32  # of the test with a shared prompt, at most


def integers(text):
    return [int(part) for part in text.split(",")]


def add_common_arguments(parser):
    parser.add_argument("-m", "--model", required=True, help="GGUF file")
    parser.add_argument("--json", help="write JSON lines here instead of to standard output")


def add_model_arguments(parser):
    add_common_arguments(parser)
    parser.add_argument("-t", "--threads", type=integers, default=[1, 2])
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt test; 0: none")
    parser.add_argument("-n", "--generate", type=int, default=128, help="tokens of the generation tests; 0: none")
    parser.add_argument("-d", "--depth", type=integers, default=[0, 1024], help="context before generation")
    parser.add_argument("-b", "--batch", type=integers, default=[1, 16], help="sequences; above 1 over a shared prompt")
    parser.add_argument("--shared-prompt", type=int, default=1024)
    parser.add_argument("-r", "--repeats", type=int, default=3)


def model_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class Output:
    """One JSON object a line, to a file or to standard output."""

    def __init__(self, path):
        self.stream = open(path, "w", encoding="utf-8") if path else sys.stdout

    def write(self, record):
        print(json.dumps(record), file=self.stream, flush=True)

    def write_rates(self, head, test, threads, variant, rates):
        ordered = sorted(rates)
        middle = (ordered[(len(rates) - 1) // 2] + ordered[len(rates) // 2]) / 2
        self.write({**head, "test": test, "threads": threads, **variant, "tokens_per_second": middle,
                    "repeats": rates})
