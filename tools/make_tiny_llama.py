#!/usr/bin/env python3
"""Makes two tiny Llama-type GGUF files and their goldens, for shapes that the default model lacks.

tests/goldens/tiny_llama_f32.gguf and tiny_llama_mixed.gguf (Q8_0, Q4_0, Q4_1, F16, BF16) hold two random layers
with a sliding window, head_dim 40 and an untied head; tests/goldens/tiny_llama.{json,bin} hold the logits that
transformers computes in float32 from the weights as each file gives them back. With --check all is remade and
compared, and the committed files are read again by transformers' own GGUF loader.

transformers' Llama has no window, so the goldens come from its Mistral class, which is the same network with one.
It counts the window as the number of keys that a query sees, itself included: key j is visible to query i iff
i - window < j <= i. The file's key is llama.attention.sliding_window; a window_left is window - 1.

    pip install -r tools/requirements.txt
    tools/make_tiny_llama.py [--check]
"""

import argparse
import json
import pathlib
import sys
import tempfile

import gguf
import numpy as np
import tokenizers
import torch
import transformers

import golden
from make_logit_goldens import GREEDY, LEAST_MARGIN, greedy

SEED = 7
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, WINDOW = 2, 32, 4, 2, 40, 96, 48
CONTEXT, EPS, ROPE_BASE = 512, 1e-5, 5000.0
MERGES = 61
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PROMPT = 200        # tokens: over four windows
EVERY = 8           # sampled positions
MAX_FILE = 400_000
CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
                 "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
                 "{% endif %}")
Q = gguf.GGMLQuantizationType
MIXED = {
    "token_embd": Q.Q8_0, "output": Q.F16,
    "blk.0.attn_q": Q.Q4_0, "blk.0.attn_k": Q.Q4_1, "blk.0.attn_v": Q.Q8_0, "blk.0.attn_output": Q.BF16,
    "blk.0.ffn_gate": Q.F16, "blk.0.ffn_up": Q.Q4_0, "blk.0.ffn_down": Q.Q8_0,
    "blk.1.attn_q": Q.BF16, "blk.1.attn_k": Q.F16, "blk.1.attn_v": Q.Q4_1, "blk.1.attn_output": Q.Q4_0,
    "blk.1.ffn_gate": Q.Q8_0, "blk.1.ffn_up": Q.Q4_1, "blk.1.ffn_down": Q.BF16,
}
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def train_tokenizer():
    """Byte-level BPE: 3 special tokens, 256 bytes, MERGES merges learnt from the test text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + 256 + MERGES, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    text = (golden.ROOT / "tests/data/tom_sawyer.txt").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def gguf_name(name):
    """A transformers parameter's name in the file."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
             "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permute(w, heads):
    """Half-and-half rotary pairs to GGUF's interleaved ones: row r of a head's first half moves to 2r, its
    partner to 2r + 1."""
    return w.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def rotary_heads(name):
    return HEADS if "attn_q." in name else KV_HEADS if "attn_k." in name else 0


def config_of(kind, vocab):
    extra = {"sliding_window": WINDOW} if kind is transformers.MistralConfig else {}
    config = kind(
        vocab_size=vocab, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, rms_norm_eps=EPS,
        max_position_embeddings=CONTEXT, tie_word_embeddings=False, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE}, **extra)
    return config


def random_weights(vocab):
    """By transformers' parameter names. Scales keep activations near 1, scores near +-2 and logits near +-3, so
    that a mistake in the window, a norm's weight or a rotation moves every logit."""
    rng = np.random.default_rng(SEED)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in
                  transformers.MistralForCausalLM(config_of(transformers.MistralConfig, vocab)).named_parameters()}
    gain = {"q_proj": 1.4, "k_proj": 1.4, "lm_head": 3.0}
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            w = rng.uniform(0.5, 1.5, shape)
        elif "embed_tokens" in name:
            w = rng.standard_normal(shape)
        else:
            scale = next((g for part, g in gain.items() if part in name), 1.0)
            w = rng.standard_normal(shape) * scale / np.sqrt(shape[1])
        weights[name] = w.astype(np.float32)
    return weights


def write_gguf(path, weights, tokenizer, types, file_type):
    vocab = tokenizer.get_vocab_size()
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(path.stem)
    w.add_file_type(file_type)
    w.add_license("apache-2.0")
    w.add_vocab_size(vocab)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_rope_dimension_count(HEAD_DIM)
    w.add_rope_freq_base(ROPE_BASE)
    w.add_layer_norm_rms_eps(EPS)
    w.add_sliding_window(WINDOW)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    tokens = [tokenizer.id_to_token(i) for i in range(vocab)]
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    merges = gguf_merges(tokenizer)
    w.add_token_merges(merges)
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)
    for name, value in weights.items():
        name = gguf_name(name)
        if heads := rotary_heads(name):
            value = permute(value, heads)
        kind = types.get(name.removesuffix(".weight"), Q.F32)
        data = gguf.quants.quantize(np.ascontiguousarray(value), kind)
        w.add_tensor(name, data, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    if path.stat().st_size > MAX_FILE:
        sys.exit(f"{path}: {path.stat().st_size} bytes, more than {MAX_FILE}")


def gguf_merges(tokenizer):
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(m) for m in merges]


def read_weights(path, names):
    """The file's tensors in float32 under transformers' names, rotary pairs back in halves."""
    tensors = {}
    for t in gguf.GGUFReader(path).tensors:
        value = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        tensors[t.name] = value.reshape([int(n) for n in reversed(t.shape)])
    weights = {}
    for name in names:
        value = tensors.pop(gguf_name(name))
        heads = rotary_heads(gguf_name(name))
        weights[name] = unpermute(value, heads) if heads else value
    assert not tensors, f"{path}: unknown tensors {list(tensors)}"
    return weights


def model_of(kind, config, weights):
    model = kind(config).eval()
    missing = model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()}, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    return model


def make_case(made, name, path, names, vocab, ids):
    weights = read_weights(path, names)
    windowed = model_of(transformers.MistralForCausalLM, config_of(transformers.MistralConfig, vocab), weights)
    plain = model_of(transformers.LlamaForCausalLM, config_of(transformers.LlamaConfig, vocab), weights)
    run = lambda model, tokens: model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    # The writer's rotary order and names, seen by a reader that shares nothing with it: transformers' own loader.
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    unwindowed = run(plain, ids)
    assert np.abs(run(loaded, ids) - unwindowed).max() <= 1e-5 * np.abs(unwindowed).max(), f"{path} reads otherwise"

    generated = greedy(windowed, ids)
    sequence = ids + generated
    logits, without = run(windowed, sequence), run(plain, sequence)
    steps = logits[len(ids) - 1:len(sequence) - 1]
    if not np.array_equal(steps.argmax(-1), generated):
        sys.exit(f"{name}: the cached and the whole run choose different tokens; change SEED")
    best = np.partition(steps, -2, axis=-1)[:, -2:]
    margin = float(((best[:, 1] - best[:, 0]) / np.abs(steps).max(-1)).min())
    if not (margin >= LEAST_MARGIN):
        sys.exit(f"{name}: two greedy candidates are only {margin:.2g} max|logit| apart; change SEED")
    # The window must matter, and only beyond itself.
    effect = np.abs(logits - without).max(-1) / np.abs(logits).max(-1)
    assert effect[:WINDOW].max() <= 1e-5 and np.median(effect[WINDOW:]) >= 0.01, effect

    last = len(sequence) - 2
    positions = sorted({0, WINDOW - 1, WINDOW, WINDOW + 1, last, *range(EVERY - 1, last, EVERY)})
    made.add(name, {"file": path.name, "file_sha256": golden.sha256(path), "window": WINDOW,
                    "least_margin_permille": round(1000 * margin, 1)},
             {"prompt": ids, "greedy": generated, "last_logits": logits[len(ids) - 1], "positions": positions,
              "columns": np.arange(vocab), "sampled_logits": logits[positions],
              "unwindowed_logits": without[positions], "max_abs": np.abs(logits[positions]).max(-1),
              "argmax": logits[positions].argmax(-1)})
    print(f"{name}: {path.stat().st_size} bytes, margin {margin:.2g}, window moves logits by "
          f"{np.median(effect[WINDOW:]):.2g} of the largest (median)")


def same_gguf(a, b):
    """Whether two files hold the same metadata and tensors, bit for bit."""
    a, b = gguf.GGUFReader(a), gguf.GGUFReader(b)
    fields = [{k: f.contents() for k, f in r.fields.items()} for r in (a, b)]
    tensors = [{t.name: (t.tensor_type, t.data.tobytes()) for t in r.tensors} for r in (a, b)]
    return fields[0] == fields[1] and tensors[0] == tensors[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="remake and compare instead of writing")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)

    tokenizer = train_tokenizer()
    vocab = tokenizer.get_vocab_size()
    weights = random_weights(vocab)
    files = {"f32": ({}, gguf.LlamaFileType.ALL_F32), "mixed": (MIXED, gguf.LlamaFileType.MOSTLY_Q8_0)}
    text = (golden.ROOT / "tests/data/tom_sawyer.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:PROMPT]

    made = golden.Golden(
        "tiny_llama", "tools/make_tiny_llama.py",
        golden.versions("torch", "transformers", "tokenizers", "accelerate", "gguf", "numpy"),
        {"seed": SEED, "vocab": vocab, "dtype": "float32", "attention": "eager", "greedy_tokens": GREEDY})
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, (types, file_type) in files.items():
            committed = golden.FOLDER / f"tiny_llama_{name}.gguf"
            path = pathlib.Path(scratch) / committed.name if args.check else committed
            write_gguf(path, weights, tokenizer, types, file_type)
            if args.check and not same_gguf(path, committed):
                print(f"{committed.name}: the remade file differs", file=sys.stderr)
                failed = True
            make_case(made, name, committed, list(weights), vocab, ids)
        for i, sample in enumerate(["The boy said nothing.", "naïve 한국 🙂\n\t  x2 == 10", "<|im_start|>user\n",
                                    text[:1500]]):
            encoded = tokenizer.encode(sample, add_special_tokens=False).ids
            assert tokenizer.decode(encoded, skip_special_tokens=False) == sample
            made.add(f"tokens_{i}", {"text": sample}, {"ids": encoded})
    return golden.finish([made], args.check) or int(failed)


if __name__ == "__main__":
    sys.exit(main())
