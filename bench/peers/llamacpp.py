#!/usr/bin/env python3
"""Measures llama.cpp through the C API that llama-cpp-python carries, with the flags and JSON of `tessera bench`.

    llamacpp.py model -m FILE [-p 512] [-n 128] [-d 0,1024] [-t 1,2] [-b 1,16] [--shared-prompt 1024] [-r 3]
    llamacpp.py perplexity -m FILE -f TEXT [--compute f32]

What each test does and counts is written in docs/benchmarks.md and is the same on both sides. Here every test runs
with flash attention off and on, and a shared prompt also with the unified and with the split KV cache: one JSON line
per variant, of which the reader takes the best.
"""

import argparse
import ctypes
import importlib.metadata
import itertools
import math
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

import llama_cpp as api

from driver import BATCH_STEPS, Output, add_common_arguments, add_model_arguments, integers, model_sha256

MICRO_BATCH = 512  # llama.cpp's default
FIRST_ID = 200     # pseudo-random tokens stay clear of the special ones
TYPE_F32 = 0       # ggml's number


@api.llama_log_callback
def log(level, text, user_data):
    """Errors only: the library is talkative."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


def version():
    return f"llama-cpp-python {importlib.metadata.version('llama_cpp_python')}"


class Model:
    def __init__(self, path):
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.handle = api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocab = api.llama_model_get_vocab(self.handle)
        self.vocab_size = api.llama_vocab_n_tokens(self.vocab)

    def tokens(self, text):
        """Ids without special tokens, as the text alone gives them."""
        data = text.encode()
        ids = (api.llama_token * (len(data) + 8))()
        count = api.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        if count < 0:
            sys.exit(f"llama.cpp cannot tokenize the text ({count})")
        return list(ids[:count])


class Context:
    """One llama_context and one batch that is refilled in place, so that a step costs Python a few microseconds."""

    def __init__(self, model, threads, flash, cells, sequences=1, unified=True, capacity=MICRO_BATCH, f32_kv=False):
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, capacity, MICRO_BATCH
        params.n_seq_max, params.kv_unified = sequences, unified
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash)
        params.no_perf = True
        if f32_kv:
            params.type_k = params.type_v = TYPE_F32
        self.model = model
        self.handle = api.llama_init_from_model(model.handle, params)
        if not self.handle:
            sys.exit(f"llama.cpp cannot make a context (flash attention {flash}, {cells} cells)")
        self.memory = api.llama_get_memory(self.handle)
        self.batch = api.llama_batch_init(capacity, 0, 1)

    def close(self):
        api.llama_batch_free(self.batch)
        api.llama_free(self.handle)

    def decode(self, rows):
        """rows of (token, position, sequence, whether its logits are wanted); returns when they are computed."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        status = api.llama_decode(self.handle, batch)
        if status != 0:
            sys.exit(f"llama_decode failed ({status})")
        api.llama_synchronize(self.handle)

    def prefill(self, tokens):
        """A prompt in sequence 0, in micro-batches; only the last position's logits are wanted."""
        for first in range(0, len(tokens), MICRO_BATCH):
            part = tokens[first:first + MICRO_BATCH]
            self.decode([(token, first + i, 0, first + i == len(tokens) - 1) for i, token in enumerate(part)])

    def clear(self):
        api.llama_memory_clear(self.memory, True)


class Random:
    """The same stream of ids in every run; their values do not change the work."""

    def __init__(self, vocab_size):
        self.rng, self.vocab_size = np.random.default_rng(1), vocab_size

    def ids(self, count):
        return self.rng.integers(FIRST_ID, self.vocab_size, count).tolist()


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def prompt_rates(context, random, count, repeats):
    rates = []
    for repeat in range(repeats + 1):  # the first warms up
        context.clear()
        tokens = random.ids(count)
        seconds = timed(lambda: context.prefill(tokens))
        if repeat > 0:
            rates.append(count / seconds)
    return rates


def generation_rates(context, random, count, depth, repeats):
    rates = []
    for repeat in range(repeats):
        context.clear()
        if depth > 0:
            context.prefill(random.ids(depth))
        rows = [[(token, depth + 1 + i, 0, True)] for i, token in enumerate(random.ids(count))]
        context.decode([(random.ids(1)[0], depth, 0, True)])  # warms up
        seconds = timed(lambda: [context.decode(row) for row in rows])
        rates.append(count / seconds)
    return rates


def shared_rates(context, random, sequences, shared, steps, repeats):
    rates = []
    context.clear()
    context.prefill(random.ids(shared))
    for sequence in range(1, sequences):
        api.llama_memory_seq_cp(context.memory, 0, sequence, -1, -1)
    step = lambda i: [(token, shared + i, s, True) for s, token in enumerate(random.ids(sequences))]
    for _ in range(repeats):
        context.decode(step(0))  # warms up, and carries out the copies of a split cache
        rows = [step(1 + i) for i in range(steps)]
        seconds = timed(lambda: [context.decode(row) for row in rows])
        rates.append(sequences * steps / seconds)
        for sequence in range(sequences):
            api.llama_memory_seq_rm(context.memory, sequence, shared, -1)
    return rates


def bench_model(args):
    out = Output(args.json)
    model = Model(args.model)
    head = {"bench": "model", "engine": "llama.cpp", "version": version(), "model_sha256": model_sha256(args.model),
            "system": api.llama_print_system_info().decode().strip(" |")}

    def report(test, threads, variant, rates):
        out.write_rates(head, test, threads, variant, rates)

    for threads, flash in itertools.product(args.threads, (False, True)):
        random = Random(model.vocab_size)
        cells = max(args.prompt, max(args.depth) + args.generate + 1)
        context = Context(model, threads, flash, (cells + 255) // 256 * 256)
        variant = {"flash_attn": flash}
        if args.prompt > 0:
            report(f"pp{args.prompt}", threads, variant, prompt_rates(context, random, args.prompt, args.repeats))
        for depth in args.depth if args.generate > 0 else []:
            name = f"tg{args.generate}" + (f"@{depth}" if depth else "")
            report(name, threads, variant, generation_rates(context, random, args.generate, depth, args.repeats))
        context.close()
        batches = [b for b in args.batch if b > 1] if args.generate > 0 else []
        for sequences, unified in itertools.product(batches, (True, False)):
            steps = min(args.generate, BATCH_STEPS)
            own = steps + 2
            per_sequence = args.shared_prompt + own
            cells = args.shared_prompt + sequences * own if unified else sequences * ((per_sequence + 255) // 256 * 256)
            context = Context(model, threads, flash, (cells + 255) // 256 * 256, sequences, unified)
            report(f"batch{sequences}@shared{args.shared_prompt}", threads, {**variant, "kv_unified": unified},
                   shared_rates(context, random, sequences, args.shared_prompt, steps, args.repeats))
            context.close()


def dequantized_copy(path, folder):
    """The same model with every tensor in float32, written by gguf-py."""
    import gguf
    reader = gguf.GGUFReader(path)
    copy = pathlib.Path(folder) / "f32.gguf"
    writer = gguf.GGUFWriter(copy, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, data.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def bench_perplexity(args):
    out = Output(args.json)
    with tempfile.TemporaryDirectory() as folder:
        exact = args.compute == "f32"
        model = Model(dequantized_copy(args.model, folder) if exact else args.model)
        ids = model.tokens(pathlib.Path(args.file).read_text(encoding="utf-8"))
        ids = ids[:args.tokens] if args.tokens else ids
        context = Context(model, args.threads[0], not exact, (args.context + 255) // 256 * 256, capacity=args.context,
                          f32_kv=exact)
        total, scored, start = 0.0, 0, time.perf_counter()
        for first in range(0, len(ids), args.context):
            window = ids[first:first + args.context]
            if len(window) < 2:
                continue
            context.clear()
            context.decode([(token, i, 0, True) for i, token in enumerate(window)])
            count = len(window) - 1
            logits = np.ctypeslib.as_array(ctypes.cast(api.llama_get_logits(context.handle),
                                                       ctypes.POINTER(ctypes.c_float)),
                                           (len(window), model.vocab_size))[:count]
            for row, target in zip(logits, window[1:]):
                shifted = row.astype(np.float64) - float(row.max())
                total += math.log(np.exp(shifted).sum()) - shifted[target]
            scored += count
        seconds = time.perf_counter() - start
        context.close()
    out.write({"bench": "perplexity", "engine": "llama.cpp", "version": version(),
               "model_sha256": model_sha256(args.model), "compute": args.compute, "context": args.context,
               "tokens": scored, "nll": total / scored, "perplexity": math.exp(total / scored), "seconds": seconds})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("model", help="prompt and generation rates")
    two = commands.add_parser("perplexity", help="how well the model predicts a text")
    add_model_arguments(one)
    add_common_arguments(two)
    one.set_defaults(run=bench_model)
    two.add_argument("-t", "--threads", type=integers, default=[2])
    two.add_argument("-f", "--file", required=True, help="UTF-8 text")
    two.add_argument("--context", type=int, default=1024, help="tokens of a window")
    two.add_argument("--tokens", type=int, default=0, help="use only the text's first tokens; 0: all")
    two.add_argument("--compute", choices=("quantized", "f32"), default="quantized",
                     help="f32: a float32 copy of the weights and a float32 cache, flash attention off")
    two.set_defaults(run=bench_perplexity)
    args = parser.parse_args()
    api.llama_log_set(log, None)
    api.llama_backend_init()
    args.run(args)


if __name__ == "__main__":
    main()
