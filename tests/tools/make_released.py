#!/usr/bin/env python3
"""Writes a DeepSeek-V4 checkpoint as it is released, whose bytes are random, and what each of its numbers is: FP8 (e4m3) with an exponent
for each block, two FP4 (e2m1) a byte with an exponent for 32 of a row. Knows nothing of our code, nor of torch's: every code of 4 and 8
bits is taken apart here, and its product with its scale is made in float64, where it is exact, and rounded once.

usage: make_released.py OUT [SEED]       needs numpy; OUT must not exist

    make_released.py tests/golden/deepseek_v4_bytes

config.json, model.safetensors: the checkpoint, of one layer. expected.safetensors: all of its floats as f32, under the same names.
"""
import json
import os
import struct
import sys

import numpy as np

# Of blocks of 64 the last ones of wq_a are cut short both ways.
H, V, E, F, BLOCK, GROUP = 96, 8, 2, 32, 64, 32
HEADS, DIM, Q, GROUPS, O, INDEX_HEADS, INDEX_DIM, STREAMS = 4, 8, 70, 2, 5, 2, 8, 2
MIX = STREAMS * (STREAMS + 2)
CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16", "hidden_size": H,
    "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": DIM, "qk_rope_head_dim": 4,
    "partial_rotary_factor": 0.5,
    "vocab_size": V, "max_position_embeddings": 64, "n_routed_experts": E, "num_experts_per_tok": 1, "moe_intermediate_size": F,
    "q_lora_rank": Q, "o_groups": GROUPS, "o_lora_rank": O, "index_n_heads": INDEX_HEADS, "index_head_dim": INDEX_DIM, "index_topk": 4,
    "compress_ratios": [4], "num_hash_layers": 0, "hc_mult": STREAMS, "scoring_func": "sqrtsoftplus", "norm_topk_prob": True,
    "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-6, "sliding_window": 8, "n_shared_experts": 1, "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0, "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "activation_scheme": "dynamic",
                            "weight_block_size": [BLOCK, BLOCK]},
}  # fmt: skip


def small_float(codes, exponent_bits, fraction_bits):
    """float64 of sign, exponent and fraction, subnormal numbers included; what has no finite value is the caller's."""
    codes = codes.astype(np.int64)
    bias = 2 ** (exponent_bits - 1) - 1
    fraction, exponent = codes & (2**fraction_bits - 1), codes >> fraction_bits & (2**exponent_bits - 1)
    normal = exponent > 0
    size = np.ldexp(fraction + np.where(normal, 2.0**fraction_bits, 0), np.where(normal, exponent, 1) - bias - fraction_bits)
    return np.where(codes >> (exponent_bits + fraction_bits) & 1, -size, size)


def e4m3(codes):
    return np.where(codes & 127 == 127, np.nan, small_float(codes, 4, 3))


def e8m0(codes):
    return np.where(codes == 255, np.nan, np.ldexp(1.0, codes.astype(np.int64) - 127))


def once(values):
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


class Files:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.stored, self.expected = {}, {}

    def bytes(self, *shape):
        """Every value as often as the size allows, in random order."""
        n = int(np.prod(shape))
        return self.random.permutation(np.arange(n) % 256).astype(np.uint8).reshape(shape)

    def fp8(self, name, rows, columns):
        codes, scales = self.bytes(rows, columns), self.random.integers(0, 256, (-(-rows // BLOCK), -(-columns // BLOCK)))
        wide = e8m0(scales).repeat(BLOCK, 0).repeat(BLOCK, 1)[:rows, :columns]
        self.put(name, "F8_E4M3", codes, e4m3(codes) * wide)
        self.stored[name.removesuffix("weight") + "scale"] = ("F8_E8M0", scales.astype(np.uint8))

    def fp4(self, name, rows, columns):
        pairs, scales = self.bytes(rows, columns // 2), self.bytes(rows, columns // GROUP)
        values = small_float(np.stack([pairs & 15, pairs >> 4], axis=-1), 2, 1).reshape(rows, columns)
        self.put(name, "I8", pairs, values * e8m0(scales).repeat(GROUP, 1))
        self.stored[name.removesuffix("weight") + "scale"] = ("F8_E8M0", scales)

    def f32(self, name, *shape):
        values = self.random.standard_normal(shape).astype(np.float32)
        self.put(name, "F32", values, values)

    def bf16(self, name, *shape):
        halves = (self.random.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        self.put(name, "BF16", halves, (halves.astype(np.uint32) << 16).view(np.float32))

    def put(self, name, dtype, stored, values):
        self.stored[name] = (dtype, stored)
        self.expected[name] = ("F32", once(values))


def fill(files):
    p = "layers.0."
    for name, shape in {"embed.weight": (V, H), "head.weight": (V, H), "norm.weight": (H,), p + "attn_norm.weight": (H,),
                        p + "ffn_norm.weight": (H,), p + "attn.q_norm.weight": (Q,), p + "attn.kv_norm.weight": (DIM,),
                        p + "attn.compressor.wkv.weight": (2 * DIM, H), p + "attn.compressor.wgate.weight": (2 * DIM, H),
                        p + "attn.compressor.norm.weight": (DIM,), p + "attn.indexer.compressor.norm.weight": (INDEX_DIM,),
                        p + "attn.indexer.compressor.wkv.weight": (2 * INDEX_DIM, H),
                        p + "attn.indexer.compressor.wgate.weight": (2 * INDEX_DIM, H),
                        p + "attn.indexer.weights_proj.weight": (INDEX_HEADS, H), p + "ffn.gate.weight": (E, H)}.items():  # fmt: skip
        files.bf16(name, *shape)
    for name, shape in {"hc_head_fn": (STREAMS, STREAMS * H), "hc_head_base": (STREAMS,), "hc_head_scale": (1,),
                        p + "attn.attn_sink": (HEADS,), p + "attn.compressor.ape": (4, 2 * DIM),
                        p + "attn.indexer.compressor.ape": (4, 2 * INDEX_DIM), p + "ffn.gate.bias": (E,)}.items():  # fmt: skip
        files.f32(name, *shape)
    for part in ("attn", "ffn"):
        files.f32(f"{p}hc_{part}_fn", MIX, STREAMS * H)
        files.f32(f"{p}hc_{part}_base", MIX)
        files.f32(f"{p}hc_{part}_scale", 3)
    for name, rows, columns in (("wq_a", Q, H), ("wq_b", HEADS * DIM, Q), ("wkv", DIM, H), ("wo_a", GROUPS * O, HEADS * DIM // GROUPS),
                                ("wo_b", H, GROUPS * O), ("indexer.wq_b", INDEX_HEADS * INDEX_DIM, Q)):  # fmt: skip
        files.fp8(f"{p}attn.{name}.weight", rows, columns)
    for w, rows, columns in (("w1", F, H), ("w2", H, F), ("w3", F, H)):
        files.fp8(f"{p}ffn.shared_experts.{w}.weight", rows, columns)
        for e in range(E):
            files.fp4(f"{p}ffn.experts.{e}.{w}.weight", rows, columns)


def write(path, tensors):
    header, end = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            out.write(np.ascontiguousarray(array).tobytes())


def main(folder, seed):
    files = Files(seed)
    fill(files)
    os.mkdir(folder)
    write(os.path.join(folder, "model.safetensors"), files.stored)
    write(os.path.join(folder, "expected.safetensors"), files.expected)
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump(CONFIG, out, indent=1)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 1)
