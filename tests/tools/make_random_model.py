#!/usr/bin/env python3
"""Makes a qwen3_moe checkpoint of any size, whose weights are a random pattern that repeats: for runs that ask what a model takes
or where its experts go, and not what it says. Needs nothing but Python.

usage: make_random_model.py DIR H L E F V K
H hidden width, L layers, E experts of width F, V tokens, K experts a token; DIR must not exist
"""
import array
import json
import os
import random
import struct
import sys

HEAD, HEADS, KV_HEADS, POSITIONS = 32, 8, 2, 512


def shapes_of(H, L, E, F, V):
    shapes = {"model.embed_tokens.weight": [V, H], "lm_head.weight": [V, H], "model.norm.weight": [H]}
    for layer in range(L):
        p = f"model.layers.{layer}."
        shapes |= {p + "input_layernorm.weight": [H], p + "post_attention_layernorm.weight": [H]}
        shapes |= {p + "mlp.gate.weight": [E, H], p + "self_attn.q_proj.weight": [HEADS * HEAD, H]}
        shapes |= {p + f"self_attn.{name}_proj.weight": [KV_HEADS * HEAD, H] for name in "kv"}
        shapes |= {p + "self_attn.o_proj.weight": [H, HEADS * HEAD]}
        shapes |= {p + f"self_attn.{name}_norm.weight": [HEAD] for name in "qk"}
        for e in range(E):
            q = p + f"mlp.experts.{e}."
            shapes |= {q + "gate_proj.weight": [F, H], q + "up_proj.weight": [F, H], q + "down_proj.weight": [H, F]}
    return shapes


def write_weights(path, shapes):
    header, end = {}, 0
    for name, shape in shapes.items():
        n = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + n]}
        end += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random.seed(7)
    pattern = array.array("f", (random.gauss(0, 0.05) for _ in range(65537))).tobytes()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for at in range(0, end, len(pattern)):
            out.write(pattern[: end - at])


def main(folder, H, L, E, F, V, K):
    os.mkdir(folder)
    write_weights(folder + "/model.safetensors", shapes_of(H, L, E, F, V))
    config = {
        "model_type": "qwen3_moe", "hidden_size": H, "num_hidden_layers": L, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "num_experts": E, "num_experts_per_tok": K,
        "moe_intermediate_size": F, "intermediate_size": 512, "vocab_size": V, "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    with open(folder + "/config.json", "w") as out:
        json.dump(config, out)


if __name__ == "__main__":
    if len(sys.argv) != 8:
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
