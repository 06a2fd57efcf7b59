#!/usr/bin/env python3
"""Makes tests/goldens/smollm2_logits: logits and greedy tokens of SmolLM2-135M-Instruct (Q4_1 GGUF) by Hugging Face.

transformers reads the same GGUF, dequantises it to float32 and runs with eager attention, so what remains between
it and `--compute f32` is the order of float32 additions. With --check it remakes everything and compares.

    pip install -r tools/requirements.txt
    tools/make_logit_goldens.py --model "$(scripts/get-model smollm2)" [--check]
"""

import argparse
import pathlib
import sys

import gguf
import numpy as np
import tokenizers
import torch
import transformers

import golden

MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GREEDY = 64         # tokens generated after each prompt
EVERY = 64          # positions p % EVERY == EVERY - 1 of prompt + greedy tokens are sampled
COLUMNS = 512       # of the vocabulary, at the sampled positions
LONG_CHARACTERS = 4450
# Two engines within the tolerance of 1e-4 max|logit| cannot pick different greedy tokens where the two best
# logits are further apart than twice that; a prompt that comes nearer is refused and must be reworded.
LEAST_MARGIN = 2.5e-4


def prompts(template):
    """(name, text): plain continuations in several scripts, one chat, one text of over 1,000 tokens."""
    chat = template.render(add_generation_prompt=True, messages=[
        {"role": "user", "content": "What is the capital of France?"}])
    long_text = (golden.ROOT / "tests/data/tom_sawyer.txt").read_text(encoding="utf-8")[:LONG_CHARACTERS]
    return [
        ("capital", "The capital of France is"),
        ("chat", chat),
        ("code", "def fibonacci(n):\n    \"\"\"Return the first n Fibonacci numbers.\"\"\"\n    a, b = 0, 1\n"
                 "    result = []\n    for _ in range(n):\n"),
        ("korean", "대한민국의 수도는 서울이다. 서울은 한강을 끼고 있으며, 인구는 약 940만 명이다."),
        ("chinese_japanese", "人工智能正在改变我们的生活。東京は日本の首都であり、世界最大の都市の一つです。"),
        ("numbers_emoji", "1, 1, 2, 3, 5, 8, 13, 21 🙂🚀 3.14159 × 10⁻³ ≈ 0.00314 — naïve café, Ωμέγα;\t"
                          "2026-11-22T06:20:00Z 👩‍👩‍👧"),
        ("long", long_text),
    ]


def tokenizer_of(reader):
    """The file's own byte-level BPE with the `smollm` pre-tokenizer (each digit apart, then GPT-2's split).

    transformers' GGUF conversion leaves the digits' rule out, so the tokenizer is built here."""
    field = lambda key: reader.fields[key].contents()
    assert field("tokenizer.ggml.pre") == "smollm"
    tokens = field("tokenizer.ggml.tokens")
    bpe = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                                merges=[tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")])
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, field("tokenizer.ggml.token_type")) if kind == 3]
    tokenizer.add_special_tokens(control)
    assert tokenizer.token_to_id(control[1]) == tokens.index(control[1])
    return tokenizer


def greedy(model, ids):
    """GREEDY tokens after ids by the key-value cache; ties go to the lowest id."""
    made, cache, fed = [], None, ids
    for _ in range(GREEDY):
        out = model(torch.tensor([fed]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        made.append(int(np.argmax(out.logits[0, -1].numpy())))
        fed = made[-1:]
    return made


def arguments_and_model(description):
    """What every golden of the default model begins with."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--check", action="store_true", help="remake and compare instead of writing")
    args = parser.parse_args()
    if golden.sha256(args.model) != MODEL_SHA256:
        sys.exit(f"{args.model}: SHA-256 is not {MODEL_SHA256}")
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    return args, transformers.AutoModelForCausalLM.from_pretrained(
        args.model.parent, gguf_file=args.model.name, dtype=torch.float32, attn_implementation="eager").eval()


def main():
    args, model = arguments_and_model(__doc__)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr(), "the head must be tied"
    reader = gguf.GGUFReader(args.model)
    tokenizer = tokenizer_of(reader)
    environment = transformers.utils.chat_template_utils._compile_jinja_template
    template = environment(reader.fields["tokenizer.chat_template"].contents())

    vocab = model.config.vocab_size
    columns = np.sort(np.random.default_rng(20261122).choice(vocab, COLUMNS, replace=False)).astype(np.int32)
    made = golden.Golden(
        "smollm2_logits", "tools/make_logit_goldens.py",
        golden.versions("torch", "transformers", "tokenizers", "accelerate", "gguf", "numpy"),
        {"model": args.model.name, "model_sha256": MODEL_SHA256, "vocab": vocab, "dtype": "float32",
         "attention": "eager", "greedy_tokens": GREEDY})
    for name, text in prompts(template):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        generated = greedy(model, ids)
        sequence = ids + generated
        # One pass over everything, without a cache: it must agree with the cached steps about every token.
        logits = model(torch.tensor([sequence]), use_cache=False).logits[0].numpy()
        steps = logits[len(ids) - 1:len(sequence) - 1]
        if not np.array_equal(steps.argmax(-1), generated):
            sys.exit(f"{name}: the cached and the whole run choose different tokens; reword the prompt")
        best = np.partition(steps, -2, axis=-1)[:, -2:]
        margin = float(((best[:, 1] - best[:, 0]) / np.abs(steps).max(-1)).min())
        if not (margin >= LEAST_MARGIN):
            sys.exit(f"{name}: two greedy candidates are only {margin:.2g} max|logit| apart; reword the prompt")
        last = len(sequence) - 2  # the last position whose next token is known
        positions = sorted({0, last, *range(EVERY - 1, last, EVERY)})
        made.add(name, {"text": text, "greedy_text": tokenizer.decode(generated, skip_special_tokens=False),
                        "least_margin_permille": round(1000 * margin, 1)},
                 {"prompt": ids, "greedy": generated, "last_logits": logits[len(ids) - 1],
                  "positions": positions, "columns": columns, "sampled_logits": logits[np.ix_(positions, columns)],
                  "max_abs": np.abs(logits[positions]).max(-1), "argmax": logits[positions].argmax(-1)})
        print(f"{name}: {len(ids)} tokens, margin {margin:.2g}, {made.cases[-1]['params']['greedy_text'][:60]!r}")
    paris = made.cases[0]["params"]["greedy_text"]
    assert "Paris" in paris, f"the weights are not read rightly: {paris!r}"
    return golden.finish([made], args.check)


if __name__ == "__main__":
    sys.exit(main())
