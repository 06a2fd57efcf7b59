#!/usr/bin/env python3
"""Says whether a GGUF file is a Llama model that Tessera must accept. Written from the format's rules and not from
the C++ reader, so that the two can be compared (tools/gguf_differential.py).

    tools/gguf_validator.py FILE...      one line a file: "accept" or "reject: REASON"

What is checked: the preamble, every key and tensor, that the tensors cover the data section, then the keys and shapes
of a Llama decoder and its vocabulary. Only the standard library is used.
"""

import math
import re
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FIXED = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
LEAST = {**{kind: struct.calcsize("<" + code) for kind, code in FIXED.items()}, STRING: 8, ARRAY: 12}
# Tensor type: elements and bytes of a block.
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2)}
HEADER_LIMIT = 64 << 20


class Reject(Exception):
    pass


def need(condition, reason):
    if not condition:
        raise Reject(reason)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, count, what):
        need(count <= self.left(), f"{what}: {count} bytes wanted at {self.at}, {self.left()} left")
        need(self.at + count <= HEADER_LIMIT, f"{what}: beyond the header's limit")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code, what):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, limit, what):
        length = self.number("Q", what)
        need(length <= limit, f"{what}: {length} bytes")
        return self.take(length, what)

    def label(self, limit, what):
        raw = self.string(limit, what)
        need(raw, f"{what} is empty")
        try:
            text = raw.decode("utf-8", "strict")
        except UnicodeDecodeError:
            raise Reject(f"{what} is not UTF-8") from None
        need(all(ord(c) >= 32 and ord(c) != 127 for c in text), f"{what} has a control character")
        return text

    def value(self, kind, what, depth=0):
        if kind == STRING:
            return self.string(16 << 20 if depth == 0 else HEADER_LIMIT, what)
        if kind == ARRAY:
            need(depth < 8, f"{what}: nested too deeply")
            element, count = self.number("I", what), self.number("Q", what)
            need(element in LEAST, f"{what}: element type {element}")
            need(count * LEAST[element] <= min(self.left(), HEADER_LIMIT), f"{what}: {count} elements")
            if element in FIXED and element != BOOL:
                raw = self.take(count * LEAST[element], what)
                return element, struct.unpack(f"<{count}{FIXED[element]}", raw)
            return element, [self.value(element, what, depth + 1) for _ in range(count)]
        number = self.number(FIXED[kind], what)
        need(kind != BOOL or number in (0, 1), f"{what}: bool {number}")
        return number


def read_keys(reader, count):
    keys = {}
    for i in range(count):
        name = reader.label(256, f"key {i}")
        need(name not in keys, f"key {name} twice")
        kind = reader.number("I", name)
        need(kind in LEAST, f"key {name}: type {kind}")
        keys[name] = (kind, reader.value(kind, name))
    return keys


def read_tensors(reader, count, alignment):
    tensors = {}
    for i in range(count):
        name = reader.label(64, f"tensor {i}")
        need(name not in tensors, f"tensor {name} twice")
        rank = reader.number("I", name)
        need(1 <= rank <= 4, f"tensor {name}: rank {rank}")
        dims = [reader.number("Q", name) for _ in range(rank)]
        kind, offset = reader.number("I", name), reader.number("Q", name)
        need(all(dim > 0 for dim in dims) and math.prod(dims) < 1 << 63, f"tensor {name}: dims {dims}")
        need(kind in BLOCKS, f"tensor {name}: type {kind}")
        block, size = BLOCKS[kind]
        need(dims[0] % block == 0, f"tensor {name}: rows of {dims[0]}")
        need(offset % alignment == 0, f"tensor {name}: offset {offset}")
        tensors[name] = (tuple(reversed(dims)), kind, offset, math.prod(dims) // block * size)
    return tensors


def check_cover(data, end, tensors, alignment):
    start = -(-end // alignment) * alignment
    gaps = []
    for name, (_, _, offset, size) in sorted(tensors.items(), key=lambda item: item[1][2]):
        first = start + offset
        need(first + size <= len(data), f"tensor {name}: ends at {first + size}")
        need(end <= first < end + alignment, f"tensor {name}: begins at {first}, expected near {end}")
        gaps.append((end, first))
        end = first + size
    need(len(data) <= -(-end // alignment) * alignment, f"{len(data) - end} bytes after the end")
    gaps.append((end, len(data)))
    for first, last in gaps:
        need(not any(data[first:last]), f"padding at {first}")


def parse(data):
    reader = Reader(data)
    need(reader.take(4, "magic") == b"GGUF", "magic")
    need(reader.number("I", "version") in (2, 3), "version")
    tensor_count, key_count = reader.number("Q", "tensors"), reader.number("Q", "keys")
    need(tensor_count <= 65536 and key_count <= 4096, "counts")
    keys = read_keys(reader, key_count)
    kind, alignment = keys.get("general.alignment", (U32, 32))
    need(kind == U32 and 8 <= alignment <= 65536 and alignment & (alignment - 1) == 0, f"alignment {alignment}")
    tensors = read_tensors(reader, tensor_count, alignment)
    check_cover(data, reader.at, tensors, alignment)
    return keys, tensors, -(-reader.at // alignment) * alignment


KNOWN = """block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv
attention.key_length attention.value_length attention.layer_norm_rms_epsilon attention.sliding_window
rope.dimension_count rope.freq_base rope.scaling.type expert_count expert_used_count vocab_size""".split()


class Llama:
    def __init__(self, data, keys, tensors, start):
        self.data, self.keys, self.tensors, self.start = data, keys, tensors, start

    def get(self, name, kind, default=None, required=False):
        if name not in self.keys:
            need(not required, f"{name} is missing")
            return default
        need(self.keys[name][0] == kind, f"{name} has type {self.keys[name][0]}")
        return self.keys[name][1]

    def number(self, name, default=None, least=1, most=1 << 24, required=False):
        value = self.get("llama." + name, U32, None, required)
        if value is None:
            return default
        need(least <= value <= most, f"{name} = {value}")
        return value

    def array(self, name, kind, length=None, required=False):
        value = self.get(name, ARRAY, None, required)
        if value is None:
            return None
        need(value[0] == kind, f"{name} is an array of {value[0]}")
        need(length is None or len(value[1]) == length, f"{name} has {len(value[1])} entries")
        return value[1]

    def tensor(self, name, *shape, norm=False):
        need(name in self.tensors, f"{name} is missing")
        found, kind, _, _ = self.tensors.pop(name)
        need(found == shape, f"{name} has shape {found}, expected {shape}")
        need(not norm or kind == 0, f"{name} is not f32")

    def check(self):
        need(self.get("split.count", U16, 0) <= 1, "split")
        need(self.get("general.architecture", STRING, required=True) == b"llama", "architecture")
        self.get("general.name", STRING)
        self.check_numbers()
        self.check_tensors()
        self.check_vocabulary()

    def check_numbers(self):
        self.layers = self.number("block_count", required=True)
        need(self.layers <= len(self.tensors) // 9, f"block_count = {self.layers}")
        self.number("context_length", most=1 << 27, required=True)
        self.width = self.number("embedding_length", required=True)
        self.ffn = self.number("feed_forward_length", required=True)
        self.heads = self.number("attention.head_count", required=True)
        self.kv_heads = self.number("attention.head_count_kv", self.heads)
        need(self.heads % self.kv_heads == 0, "heads do not divide")
        self.head_dim = self.number("attention.key_length")
        if self.head_dim is None:
            need(self.width % self.heads == 0, "width does not divide")
            self.head_dim = self.width // self.heads
        need(self.number("attention.value_length", self.head_dim) == self.head_dim, "value length")
        eps = self.get("llama.attention.layer_norm_rms_epsilon", F32, required=True)
        need(0 < eps < 1, f"eps = {eps}")
        self.rope_dims = self.number("rope.dimension_count", self.head_dim, least=2)
        need(self.rope_dims % 2 == 0 and self.rope_dims <= self.head_dim, "rope dims")
        self.positive("llama.rope.freq_base")
        scaling = self.get("llama.rope.scaling.type", STRING, b"none")
        need(scaling in (b"none", b"linear"), f"scaling {scaling}")
        known = {"llama." + name for name in KNOWN}
        if scaling == b"linear":
            known.add("llama.rope.scaling.factor")
            self.positive("llama.rope.scaling.factor")
        self.number("attention.sliding_window", most=1 << 27)
        for name in ("expert_count", "expert_used_count"):
            need(not self.number(name, 0, least=0), name)
        for name in self.keys:
            need(not name.startswith("llama.") or name in known, f"unknown key {name}")

    def positive(self, name):
        value = self.get(name, F32, 1.0)
        need(0 < value < math.inf, f"{name} = {value}")

    def check_tensors(self):
        need("token_embd.weight" in self.tensors, "no embedding")
        shape = self.tensors["token_embd.weight"][0]
        need(len(shape) == 2 and 1 <= shape[0] <= 1 << 24, f"embedding {shape}")
        self.vocab = shape[0]
        need(self.number("vocab_size", self.vocab) == self.vocab, "vocab_size")
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.tensor("token_embd.weight", self.vocab, self.width)
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            self.tensor(prefix + "attn_norm.weight", self.width, norm=True)
            self.tensor(prefix + "attn_q.weight", q, self.width)
            self.tensor(prefix + "attn_k.weight", kv, self.width)
            self.tensor(prefix + "attn_v.weight", kv, self.width)
            self.tensor(prefix + "attn_output.weight", self.width, q)
            self.tensor(prefix + "ffn_norm.weight", self.width, norm=True)
            self.tensor(prefix + "ffn_gate.weight", self.ffn, self.width)
            self.tensor(prefix + "ffn_up.weight", self.ffn, self.width)
            self.tensor(prefix + "ffn_down.weight", self.width, self.ffn)
        self.tensor("output_norm.weight", self.width, norm=True)
        if "output.weight" in self.tensors:
            self.tensor("output.weight", self.vocab, self.width)
        if "rope_freqs.weight" in self.tensors:
            self.check_factors()
        need(not self.tensors, f"unknown tensors {list(self.tensors)[:3]}")

    def check_factors(self):
        _, _, offset, size = self.tensors["rope_freqs.weight"]
        self.tensor("rope_freqs.weight", self.rope_dims // 2, norm=True)
        start = self.start + offset
        factors = struct.unpack(f"<{size // 4}f", self.data[start : start + size])
        need(all(0 < factor < math.inf for factor in factors), "rope factors")

    def check_vocabulary(self):
        self.get("tokenizer.ggml.model", STRING, required=True)
        self.get("tokenizer.ggml.pre", STRING)
        self.array("tokenizer.ggml.tokens", STRING, self.vocab, required=True)
        types = self.array("tokenizer.ggml.token_type", I32, self.vocab)
        need(all(1 <= kind <= 6 for kind in types or ()), "token types")
        scores = self.array("tokenizer.ggml.scores", F32, self.vocab)
        need(all(math.isfinite(score) for score in scores or ()), "scores")
        self.array("tokenizer.ggml.merges", STRING)
        for name in ("bos", "eos", "eot", "unknown", "padding", "seperator"):
            need(self.get(f"tokenizer.ggml.{name}_token_id", U32, 0) < self.vocab, f"{name} id")
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
            self.get("tokenizer.ggml." + name, BOOL)
        need(len(self.get("tokenizer.chat_template", STRING, b"")) <= 1 << 20, "template")


def judge(data):
    """None when the file must be accepted, else why not."""
    try:
        Llama(data, *parse(data)).check()
        return None
    except Reject as reason:
        return re.sub(r"[^\x20-\x7e]", "?", str(reason))


def main():
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            reason = judge(file.read())
        print("accept" if reason is None else f"reject: {reason}")


if __name__ == "__main__":
    main()
