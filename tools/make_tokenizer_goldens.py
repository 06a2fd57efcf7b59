#!/usr/bin/env python3
"""Makes and re-checks the goldens of tests/tokenizer with Hugging Face's `tokenizers` as the oracle.

    pip install tokenizers gguf numpy
    tools/make_tokenizer_goldens.py --model SmolLM2.gguf           # rewrites tests/tokenizer/golden/{tiny,smollm2}.json
    tools/make_tokenizer_goldens.py --model SmolLM2.gguf --check   # exit 1 if a committed file differs
    tools/make_tokenizer_goldens.py --model SmolLM2.gguf --fuzz BINARY --rounds 200
        BINARY is `tessera tokenize -m MODEL`-like: run as `BINARY MODEL`, it reads one text from standard input and
        prints the ids as a JSON list.

tiny.json     a BPE of a few hundred merges trained here on a sentence list: vocabulary, merges and cases
smollm2.json  cases of the SmolLM2 vocabulary, rebuilt from the GGUF file as the model's own tokenizer is: digits one by
              one, then byte level with GPT-2's pattern. Without --model this file is left alone.
"""
import argparse
import hashlib
import json
import pathlib
import random
import subprocess
import sys

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/tokenizer/golden"
SEED = 20261122

SENTENCES = """The capital of France is Paris, isn't it? We're sure they'll say it's so; I'd bet you've 12 of 1,345.
for (int i = 0; i < 10; ++i) { printf("%d\\n", values[i]); }
Grüße aus München! Ça va? El niño comió piñas. Łódź, Škoda, œuvre, naïve, coöperate.
Привет, мир. Съешь ещё этих мягких французских булок. Γειά σου Κόσμε. ΑΣ ας
你好,世界。我们今天去北京吃饺子。こんにちは世界、カタカナとひらがな。안녕하세요 세계
مرحبا بالعالم ١٢٣ שלום עולם नमस्ते दुनिया १२३ สวัสดีชาวโลก
the quick brown fox jumps over the lazy dog and the other dogs; then they rest there, and that is that
import numpy as np; def main(): return [x ** 2 for x in range(10) if x % 2 == 0]
<|im_start|>user<|im_end|> https://example.org/path?q=1&r=2#top mail@example.org $3.50 50% @you #tag""".split("\n")

ODD = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n", "a", " a", "  a", "a ", "a  ", "a \n b", "a\n\n\nb", "\n a",
    "'s", "'S", "it's", "IT'S", "'re 've 'll 'd 'm 't", "''s", "'", "' s", "x'lly", "'l", "'r", "'v", "don't've",
    "0", "00", "1234567890", "1 2 3", " 1", "  1", "   12", "a1b2c3", "a 1", "a  1", "a\n1", "a \n 1", "1.5e-10", "½ ¾ ²³ ⅷ Ⅷ",
    "١٢٣", "१२३ ४", "①②③", "𝟘𝟙𝟚", " ½x", "一二三", "𐄇𐄈", "x²+y²=z²", "\u3007\u3021", "1\u00a02", "1\u20092", " \u00a0 1",
    "\u00a0", "\u3000", "a\u3000b", "\u2003\u2003x", "\u200b", "a\u200bb", "\ufeff", "\u2028\u2029", "\x85", "\x1c\x1d\x1e\x1f",
    "\x00", "\x01\x02\x03", "a\x00b", "\x7f", "\x04\x06\x13", "tab\tand\vvertical\fform", "\u00ad",
    "😀", "😀😁", " 😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇩🇪", "👍🏽 ok", "a😀b", "☃", "♥️", "\U0001fae8", "\U000e0001",
    "é", "e\u0301", "ﬁ", "Å", "Å", "ẞß", "İı", "ǅ", "\u0345", "ͅ a", "a\u0308\u0323", "क्षत्रिय", "ก็", "각", "\u1112\u1161\u11ab",
    "\U00010400\U00010428", "\U0001e900", "\u0378", "\ue000", "\U0010ffff", "\ufffd", "\ufffe", "\ufdd0",
    "<|im_start|>", "<|im_start|>system\nYou<|im_end|>\n", "<|im_start", "|im_start|>", "<|im_start|><|im_start|>", "<|endoftext|>x",
    "a<|im_end|>b", " <|im_end|> ", "<<|im_end|>>", "<|im_<|im_end|>", "<repo_name>a<reponame>b", "<file_sep><filename>", "1<|im_end|>1",
    "...", "!!!", "?!", "a.b", "a . b", "(a)", "[[x]]", "{{ x }}", "--", "—", "– x", "“quoted”", "«x»", "、。", "¿?", "_a_", "__init__",
    "a" * 100, "ab" * 60, " " * 50, " " * 50 + "x", "\n" * 30, "0" * 40, "é" * 40, "你" * 40, "!" * 70, "a " * 40, "'s" * 20,
    "CamelCaseWord snake_case_word kebab-case-word SHOUTING", "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x = {'a': 1, \"b\": [2, 3]}", "<p class=\"x\">Hi&nbsp;there</p>", "SELECT * FROM t WHERE a >= 10;", "$\\frac{1}{2}$",
    "C:\\Users\\me\\file.txt", "/usr/local/bin", "192.168.0.1:8080", "2026-11-22T06:30:00Z", "+1 (555) 010-9999", "3.14159265358979",
]


def random_text(rng):
    pools = [
        "abcdefghijklmnopqrstuvwxyz", "etaoin ", "ABCXYZ", "0123456789", " ", " \t\n\r", "'", "'stmdrevl", ".,;:!?-_()[]{}<>|/\\@#$%^&*+=~`\"",
        "éèüßñçøåœ", "абвгдежя", "αβγδσς", "你好世界", "かなカナ", "한국어", "אבג", "ابت", "कखग", "०१२", "٠١٢", "½²Ⅷ①", "\u00a0\u2003\u3000\u200b\u2028\x85",
        "😀👍🏽\u200d\ufe0f", "\u0301\u0308\u0323", "\x00\x01\x1f\x7f",
    ]
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.15:
            parts.append(rng.choice(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im", "'ll", "'s", "  ", "\n\n"]))
        elif kind < 0.3:
            parts.append(rng.choice(rng.choice(SENTENCES).split(" ")) + rng.choice(["", " ", "\n"]))
        elif kind < 0.36:
            code = rng.randrange(0x110000)
            parts.append("?" if 0xD800 <= code < 0xE000 else chr(code))
        else:
            pool = rng.choice(pools)
            parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 7))))
    return "".join(parts)


def texts(count):
    rng = random.Random(SEED)
    return SENTENCES + ODD + [random_text(rng) for _ in range(count)]


def build(spec, special):
    """The oracle. spec: as the VocabSpec of tokenizer.h. special: recognise control tokens in the text."""
    vocab = {token: i for i, token in enumerate(spec["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in spec["merges"]]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, level]) if spec["pre"] == "smollm" else level
    made.decoder = decoders.ByteLevel()
    if special:
        control = [t for t, kind in zip(spec["tokens"], spec["token_types"]) if kind == 3]
        made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
        user = [t for t, kind in zip(spec["tokens"], spec["token_types"]) if kind == 4]
        made.add_tokens([AddedToken(t, normalized=False, special=False) for t in user])
    return made


def cases(spec, count):
    plain, special = build(spec, False), build(spec, True)
    out = []
    for text in texts(count):
        case = {"text": text, "ids": plain.encode(text).ids}
        parsed = special.encode(text).ids
        if parsed != case["ids"]:
            case["parsed"] = parsed
        out.append(case)
    rng = random.Random(SEED + 1)
    decoded = []
    for _ in range(60):
        ids = [rng.randrange(len(spec["tokens"])) if rng.random() < 0.5 else rng.randrange(280) for _ in range(rng.randint(1, 12))]
        decoded.append({"ids": ids, "text": special.decode(ids, skip_special_tokens=False),
                        "skipped": special.decode(ids, skip_special_tokens=True)})
    return {"cases": out, "decode": decoded}


def tiny_spec():
    trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(SENTENCES * 3, trainer)
    model = json.loads(made.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_types": [3, 3, 3] + [1] * (len(tokens) - 3),
            "merges": merges, "bos_id": 0, "eos_id": 2}


def gguf_spec(path):
    import gguf

    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert get("model") == "gpt2" and get("pre") == "smollm", "this script knows SmolLM2 only"
    return {"model": "gpt2", "pre": "smollm", "tokens": get("tokens"), "token_types": get("token_type"), "merges": get("merges")}


def emit(name, value, check):
    lines = []
    for key, item in value.items():
        if key in ("cases", "decode"):
            body = ",\n".join(json.dumps(case, ensure_ascii=True) for case in item)
            lines.append(f"{json.dumps(key)}: [\n{body}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=True)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    path = FOLDER / name
    if check:
        if path.read_text() != text:
            sys.exit(f"{path} differs from what this script makes with tokenizers {tokenizers.__version__}")
        print(f"{name}: the same")
    else:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"{name}: {len(text)} bytes, {len(value['cases'])} cases")


def fuzz(binary, model, rounds):
    oracle = build(gguf_spec(model), False)
    rng = random.Random()
    seed = rng.randrange(1 << 32)
    rng.seed(seed)
    print(f"seed {seed}")
    for _ in range(rounds):
        text = "".join(random_text(rng) for _ in range(50))
        done = subprocess.run([*binary.split(" "), model], input=text.encode(), capture_output=True, check=True)
        ours, theirs = json.loads(done.stdout), oracle.encode(text).ids
        if ours != theirs:
            sys.exit(f"different ids for {text!r}\nours   {ours}\ntheirs {theirs}")
    print(f"{rounds} rounds: the same")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a SmolLM2 GGUF file")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--fuzz", metavar="BINARY")
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    if args.fuzz:
        return fuzz(args.fuzz, args.model, args.rounds)
    versions = {"tokenizers": tokenizers.__version__}
    # Training breaks ties by hash order in some versions, so the committed vocabulary is kept when checking.
    tiny_path = FOLDER / "tiny.json"
    tiny = json.loads(tiny_path.read_text())["vocab"] if args.check else tiny_spec()
    emit("tiny.json", {"versions": versions, "vocab": tiny, **cases(tiny, 250)}, args.check)
    smollm = dict(tiny, pre="smollm")
    emit("tiny_smollm.json", {"versions": versions, **cases(smollm, 150)}, args.check)
    if args.model:
        spec = gguf_spec(args.model)
        digest = hashlib.sha256("\n".join(spec["tokens"] + spec["merges"]).encode()).hexdigest()
        emit("smollm2.json", {"versions": versions, "vocab_sha256": digest, **cases(spec, 400)}, args.check)


if __name__ == "__main__":
    main()
