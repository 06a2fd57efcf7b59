#!/usr/bin/env python3
"""Makes tests/goldens/smollm2_perplexity: the perplexity of the test text by Hugging Face in float32.

`tessera bench perplexity --compute f32` must give the same number; docs/benchmarks.md says how it is counted. With
--check it remakes and compares. Several minutes on two cores.

    pip install -r tools/requirements.txt
    tools/make_perplexity_golden.py --model "$(scripts/get-model smollm2)" [--check]
"""

import math
import sys

import gguf
import torch

import golden
from make_logit_goldens import MODEL_SHA256, arguments_and_model, tokenizer_of

CONTEXT = 1024
TEXT = golden.ROOT / "tests/data/tom_sawyer.txt"


def main():
    args, model = arguments_and_model(__doc__)
    ids = tokenizer_of(gguf.GGUFReader(args.model)).encode(TEXT.read_text(encoding="utf-8")).ids

    window_nll, window_tokens = [], []
    for first in range(0, len(ids), CONTEXT):
        window = torch.tensor(ids[first:first + CONTEXT])
        if len(window) < 2:
            continue
        logits = model(window[None], use_cache=False).logits[0, :-1].double()
        chosen = logits.gather(1, window[1:, None])[:, 0]
        window_nll.append(float((torch.logsumexp(logits, -1) - chosen).sum()))
        window_tokens.append(len(window) - 1)
        print(f"\r{first + len(window)} of {len(ids)} tokens", end="", file=sys.stderr)
    print(file=sys.stderr)

    total, tokens = sum(window_nll), sum(window_tokens)
    made = golden.Golden("smollm2_perplexity", "tools/make_perplexity_golden.py",
                         golden.versions("torch", "transformers", "tokenizers", "accelerate", "gguf", "numpy"),
                         {"model": args.model.name, "model_sha256": MODEL_SHA256, "text": TEXT.name,
                          "text_sha256": golden.sha256(TEXT), "dtype": "float32"})
    # Rounded, since --check wants equal parameters; the windows' sums hold the digits.
    made.add("context_1024", {"context": CONTEXT, "bos": False, "tokens": tokens,
                              "perplexity": round(math.exp(total / tokens), 4)},
             {"window_nll": window_nll, "window_tokens": window_tokens})
    print(f"{tokens} tokens, nll {total:.6f}, perplexity {math.exp(total / tokens):.6f}")
    return golden.finish([made], args.check)


if __name__ == "__main__":
    sys.exit(main())
