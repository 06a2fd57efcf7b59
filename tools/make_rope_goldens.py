#!/usr/bin/env python3
"""Makes tests/goldens/rope_frequencies: what transformers' ROPE_INIT_FUNCTIONS give for each kind of scaling.

Fixed NTK is not a kind of transformers': its case is the default kind over the scaled base. With --check it remakes
and compares.

    pip install -r tools/requirements.txt
    tools/make_rope_goldens.py [--check]
"""

import sys

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import golden

SCRIPT = "tools/make_rope_goldens.py"


def frequencies(dim, base, scaling, original=0, seqlen=0, **more):
    hf_kind = {"none": "default", "ntk": "default", "dynamic_ntk": "dynamic"}.get(scaling, scaling)
    theta = base * more["factor"]**(dim / (dim - 2)) if scaling == "ntk" else base
    parameters = {"rope_type": hf_kind, "rope_theta": theta, **({} if hf_kind == "default" else more)}
    if original and hf_kind != "dynamic":
        parameters["original_max_position_embeddings"] = original
    config = transformers.LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim,
                                      max_position_embeddings=original or 2048, rope_parameters=parameters)
    if hf_kind == "default":
        embedding = LlamaRotaryEmbedding(config)
        return embedding.inv_freq, embedding.attention_scaling
    return ROPE_INIT_FUNCTIONS[hf_kind](config, "cpu", seq_len=seqlen or None)


def make():
    made = golden.Golden("rope_frequencies", SCRIPT, golden.versions("torch", "transformers", "numpy"))
    for name, dim, base, scaling, arguments in [
        ("plain", 64, 10000.0, "none", {}),
        ("plain_wide", 128, 500000.0, "none", {}),
        ("linear", 64, 10000.0, "linear", {"factor": 4.0}),
        ("linear_odd_factor", 40, 10000.0, "linear", {"factor": 2.7}),
        ("ntk", 128, 10000.0, "ntk", {"factor": 4.0}),
        ("dynamic_ntk_short", 128, 10000.0, "dynamic_ntk", {"factor": 2.0, "original": 2048, "seqlen": 1000}),
        ("dynamic_ntk_long", 128, 10000.0, "dynamic_ntk", {"factor": 2.0, "original": 2048, "seqlen": 7777}),
        ("yarn", 128, 10000.0, "yarn", {"factor": 16.0, "original": 4096}),
        ("yarn_qwen", 128, 1000000.0, "yarn", {"factor": 4.0, "original": 32768}),
        ("yarn_betas", 64, 10000.0, "yarn", {"factor": 8.0, "original": 2048, "beta_fast": 24.0, "beta_slow": 2.0,
                                             "attention_factor": 1.25}),
        ("yarn_deepseek", 64, 10000.0, "yarn", {"factor": 40.0, "original": 4096, "mscale": 1.0,
                                                "mscale_all_dim": 0.707}),
        ("yarn_not_truncated", 64, 150000.0, "yarn", {"factor": 32.0, "original": 4096, "truncate": False}),
        ("llama3_1", 128, 500000.0, "llama3", {"factor": 8.0, "original": 8192, "low_freq_factor": 1.0,
                                               "high_freq_factor": 4.0}),
        ("llama3_2", 64, 500000.0, "llama3", {"factor": 32.0, "original": 8192, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0}),
    ]:
        inv_freq, scale = frequencies(dim, base, scaling, **arguments)
        made.add(name, {"rotary_dim": dim, "base": base, "scaling": scaling, "attention_scaling": float(scale),
                        **arguments}, {"frequency": inv_freq})
    return made


if __name__ == "__main__":
    sys.exit(golden.main(__doc__, lambda: [make()]))
