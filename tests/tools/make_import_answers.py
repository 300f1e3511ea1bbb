#!/usr/bin/env python3
"""Writes tests/golden/import: answers of inference engines and batches of trainers as each of these systems writes them, good
ones and bad ones, made by numpy, msgpack and json alone; the tests only read what was written.

Needs numpy and msgpack. usage: make_import_answers.py OUT

OUT/<model>/config.json      the models whose routes they are
OUT/manifest.json            {"models", "truth": what the requests are, "good": files and what they hold, "bad": files, how
                             they fail, and how many of their requests are read}
OUT/good_<layout>_<what>.*   answers that say what the truth says
OUT/bad_<layout>_<what>.*    answers that have to be refused
"""
import base64
import io
import json
import os
import random
import struct
import sys

import msgpack
import numpy as np

# E experts, K choices, all hidden layers, those with experts; layers with an indexer, how much each chooses and how many tokens
# make an entry; the K of each layer with experts, where they differ, which no config.json says
MODELS = {
    "narrow": {"E": 8, "K": 2, "hidden": 4, "moe": [1, 2, 3]},
    "wide": {"E": 300, "K": 3, "hidden": 2, "moe": [0, 1]},
    "single": {"E": 8, "K": 1, "hidden": 3, "moe": [0, 1, 2]},
    "indexed": {"E": 8, "K": 2, "hidden": 4, "moe": [0, 1, 2, 3], "indexer": {"layers": [1, 3], "k": 3, "rate": 4}},
    "differing": {"E": 8, "K": 3, "hidden": 4, "moe": [1, 2, 3], "layer_K": [3, 1, 2]},
}
OUT = sys.argv[1] if len(sys.argv) == 2 and not sys.argv[1].startswith("-") else sys.exit(__doc__)
RNG, LATER = random.Random(35), random.Random(16)
TRUTH, GOOD, BAD = [], [], []


# ---- models and what really happened ---------------------------------------------------------------------------------
def config(m):
    if "indexer" in m:
        sparse = m["indexer"]["layers"]
        return {
            "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "head_dim": 8, "hidden_size": 16,
            "compress_ratios": [m["indexer"]["rate"] if l in sparse else 0 for l in range(m["hidden"])], "index_topk": m["indexer"]["k"],
            "index_head_dim": 4, "index_n_heads": 2, "max_position_embeddings": 512, "moe_intermediate_size": 4,
            "n_routed_experts": m["E"], "n_shared_experts": 1, "num_attention_heads": 4, "num_experts_per_tok": m["K"],
            "num_hash_layers": 0, "num_hidden_layers": m["hidden"], "num_key_value_heads": 1, "o_groups": 2,
            "o_lora_rank": 3, "partial_rotary_factor": 0.5, "q_lora_rank": 5, "qk_rope_head_dim": 4, "vocab_size": 128,
        }
    dense = [l for l in range(m["hidden"]) if l not in m["moe"]]
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
        "decoder_sparse_step": 1, "mlp_only_layers": dense, "head_dim": 16, "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 48, "max_position_embeddings": 512, "moe_intermediate_size": 16, "norm_topk_prob": True,
        "num_attention_heads": 4, "num_experts": m["E"], "num_experts_per_tok": m["K"],
        "num_hidden_layers": m["hidden"], "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": 128,
    }


def request(model, prompt, new, rng=RNG):
    """A request of `prompt` + `new` tokens, number len(TRUTH)."""
    m, n = MODELS[model], prompt + new
    tokens = rng.sample(range(1, 128), n)
    layer_K = m.get("layer_K", [m["K"]] * len(m["moe"]))
    rows = [[rng.sample(range(m["E"]), K) for K in layer_K] for _ in range(n - 1)]
    masks = [sorted({t} | set(rng.sample(range(128), rng.randrange(3)))) for t in tokens[prompt:]]
    TRUTH.append({"model": model, "prompt_len": prompt, "tokens": tokens, "rows": rows,
                  "logprobs": [-rng.randrange(1, 800) / 128 for _ in range(new)], "masks": masks})
    if "indexer" in m:
        # k of the entries that are complete at the token, or all where they are fewer, ascending: [row][layer].
        most, rate = m["indexer"]["k"], m["indexer"]["rate"]
        TRUTH[-1]["indexer"] = [[sorted(rng.sample(range((p + 1) // rate), min(most, (p + 1) // rate))) for _ in m["indexer"]["layers"]]
                                for p in range(n - 1)]
    return len(TRUTH) - 1


A, B = request("narrow", 4, 3), request("narrow", 2, 5)
W, S = request("wide", 3, 4), request("single", 6, 6)
I, J, D = request("indexed", 4, 20, LATER), request("indexed", 2, 20, LATER), request("differing", 3, 5, LATER)


def prompt(i):
    return TRUTH[i]["tokens"][:TRUTH[i]["prompt_len"]]


def new(i):
    return TRUTH[i]["tokens"][TRUTH[i]["prompt_len"]:]


def rows(i, start=0, hidden=True, dtype=np.int32, fill=0):
    """[n - 1 - start, all hidden or the MoE layers, K]"""
    t, m = TRUTH[i], MODELS[TRUTH[i]["model"]]
    filled = [[choices + [-1] * (m["K"] - len(choices)) for choices in row] for row in t["rows"]]
    moe = np.array(filled, dtype=dtype).reshape(len(t["rows"]), len(m["moe"]), m["K"])
    if not hidden:
        return moe[start:]
    every = np.full((moe.shape[0], m["hidden"], m["K"]), fill, dtype=dtype)
    every[:, m["moe"], :] = moe
    return every[start:]


def indexed(i, start=0, every_layer=False, turned=False):
    """[n - 1 - start, layers with an indexer or all hidden ones, k], -1 behind the last position; turned: positions descend."""
    m = MODELS[TRUTH[i]["model"]]
    k, layers = m["indexer"]["k"], m["indexer"]["layers"]
    lists = [[(c[::-1] if turned else c) + [-1] * (k - len(c)) for c in row] for row in TRUTH[i]["indexer"]]
    a = np.array(lists, dtype=np.int32).reshape(len(lists), len(layers), k)[start:]
    if not every_layer:
        return a
    every = np.full((a.shape[0], m["hidden"], k), 99, dtype=np.int32)
    every[:, layers, :] = a
    return every


def padded(a, before=0, after=0, fill=0):
    return np.concatenate([np.full((before,) + a.shape[1:], fill, a.dtype), a, np.full((after,) + a.shape[1:], fill, a.dtype)])


# ---- envelopes -------------------------------------------------------------------------------------------------------
def b64(a):
    return base64.b64encode(a.tobytes() if isinstance(a, np.ndarray) else a).decode()


def npy(a):
    out = io.BytesIO()
    np.save(out, a)
    return out.getvalue()


def nrlre1(a):
    return f"nrlre1:{a.dtype.name}:{'x'.join(map(str, a.shape))}:{b64(a)}"


def lines(*answers):
    return "".join(json.dumps(a) + "\n" for a in answers).encode()


# ---- files -----------------------------------------------------------------------------------------------------------
def write(name, content):
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(content)


def expected(truth, rid, **more):
    """What a record of a request has to say; start: of its rows, missing: positions without one."""
    return {"truth": truth, "rid": rid, "start": 0, "missing": [], "finish": "none", "logprobs": False, "mask": False,
            "version": None, "routes": True, "indexer": False, **more}


def good(layout, what, content, *records, extension="jsonl"):
    name = f"good_{layout}_{what}.{extension}"
    write(name, content)
    for number, record in enumerate(records):
        record.setdefault("group", number)
    GOOD.append({"file": name, "layout": layout, "model": TRUTH[records[0]["truth"]]["model"], "records": list(records)})


def bad(layout, what, content, status, message, model="narrow", extension="jsonl", good_read=0):
    name = f"bad_{layout}_{what}.{extension}"
    write(name, content)
    BAD.append({"file": name, "layout": layout, "model": model, "status": status, "message": message,
                "good_read": good_read})


# ---- SGLang ----------------------------------------------------------------------------------------------------------
def sglang(i, routes=None, rid=None, finish="stop", **meta):
    routes = rows(i) if routes is None else routes
    return {"text": "..", "input_ids": prompt(i), "output_ids": new(i),
            "meta_info": {"id": rid or f"sg-{i}", "finish_reason": {"type": finish, "matched": 7}, "prompt_tokens": len(prompt(i)),
                          "completion_tokens": len(new(i)), "weight_version": "default", "cached_tokens": 0,
                          "routed_experts": b64(routes) if isinstance(routes, np.ndarray) else routes, **meta}}


def make_sglang():
    logprobs = [[p, t, None] for p, t in zip(TRUTH[A]["logprobs"], new(A))]
    no_ids = sglang(A, output_token_logprobs=logprobs, weight_version="12")
    del no_ids["output_ids"]
    good("sglang", "generate", lines(sglang(A), sglang(B, finish="length")), expected(A, f"sg-{A}", finish="stop"),
         expected(B, f"sg-{B}", finish="length"))
    good("sglang", "logprobs", lines(no_ids), expected(A, f"sg-{A}", finish="stop", logprobs=True, version=12))
    good("sglang", "list", json.dumps([sglang(A), sglang(B)], indent=1).encode(), expected(A, f"sg-{A}", finish="stop"),
         expected(B, f"sg-{B}", finish="stop"), extension="json")
    good("sglang", "start", lines(sglang(A, rows(A, 2), routed_experts_start_len=2)),
         expected(A, f"sg-{A}", finish="stop", start=2))
    good("sglang", "dtype_u8", lines(sglang(A, rows(A, dtype=np.uint8), routed_experts_dtype="uint8")),
         expected(A, f"sg-{A}", finish="stop"))
    good("sglang", "wide_u16", lines(sglang(W, rows(W, dtype=np.uint16), routed_experts_dtype="uint16")),
         expected(W, f"sg-{W}", finish="stop"))
    good("sglang", "moe_layers", lines(sglang(B, rows(B, hidden=False))), expected(B, f"sg-{B}", finish="stop"))
    good("sglang", "one_choice_a_token", lines(sglang(S)), expected(S, f"sg-{S}", finish="stop"))
    dense = rows(A)
    dense[:, 0, :] = 7
    good("sglang", "dense_layer_is_not_looked_at", lines(sglang(A, dense)), expected(A, f"sg-{A}", finish="stop"))
    missing = rows(A)
    missing[1] = -1
    good("sglang", "missing", lines(sglang(A, missing)), expected(A, f"sg-{A}", finish="stop", missing=[1]))
    chat = {"id": "chat-1", "object": "chat.completion", "input_ids": prompt(A), "output_ids": new(A),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "logprobs": None, "finish_reason": "stop"}],
            "sglext": {"routed_experts": b64(rows(A))}, "usage": {"prompt_tokens": len(prompt(A))}}
    good("sglang", "chat", lines(chat), expected(A, "chat-1", finish="stop"))
    events = []
    for n in range(1, len(new(B)) + 1):
        done = n == len(new(B))
        meta = {"id": "stream-1", "finish_reason": {"type": "length"} if done else None, "prompt_tokens": len(prompt(B)),
                "completion_tokens": n}
        if done:
            meta["routed_experts"] = b64(rows(B))
        events.append({"text": "..", "input_ids": prompt(B), "output_ids": new(B)[:n], "meta_info": meta})
    stream = "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"
    good("sglang", "stream", stream.encode(), expected(B, "stream-1", finish="length"), extension="txt")
    good("sglang", "stream_lines", lines(*events), expected(B, "stream-1", finish="length"))
    for n, event in enumerate(events):
        event["output_ids"] = new(B)[n:n + 1]
    good("sglang", "stream_increments", lines(*events), expected(B, "stream-1", finish="length"))

    aborted = sglang(B, finish="abort")
    del aborted["meta_info"]["routed_experts"]
    good("sglang", "aborted", lines(sglang(A), aborted), expected(A, f"sg-{A}", finish="stop"),
         expected(B, f"sg-{B}", finish="abort", routes=False))

    # A status of HTTP beside it does not say how the request ended, nor the number asked for what was answered.
    asked = dict(aborted, status=200), dict(sglang(A, output_token_logprobs=logprobs), status=200, logprobs=True)
    good("sglang", "status_beside", lines(*asked), expected(B, f"sg-{B}", finish="abort", routes=False),
         expected(A, f"sg-{A}", finish="stop", logprobs=True))
    bad("sglang", "zeros", lines(sglang(A, rows(A) * 0)), "INVALID_ARGUMENT", f"request sg-{A}: every id of all 6 rows is zero")
    one = rows(A)
    one[:, 2, :] = 0
    bad("sglang", "layer_of_zeros", lines(sglang(A, one)), "INVALID_ARGUMENT", "MoE layer 1 (model layer 2) is zero in all 6 rows")
    one = rows(A)
    one[3, 1:, :] = 0
    bad("sglang", "row_of_zeros", lines(sglang(A, one)), "INVALID_ARGUMENT", "position 3, MoE layer 0 (model layer 1): expert 0 is chosen twice")
    one = rows(A)
    one[2, 1, 1] = one[2, 1, 0]
    bad("sglang", "twice", lines(sglang(A, one)), "INVALID_ARGUMENT", "position 2, MoE layer 0 (model layer 1): expert")
    for what, value in (("too_large", 8), ("wraps", 256), ("negative", -2), ("huge", 2**31 - 1)):
        one = rows(A)
        one[5, 3, 0] = value
        bad("sglang", what, lines(sglang(A, one)), "INVALID_ARGUMENT", f"position 5, MoE layer 2 (model layer 3): expected experts 0..7, found {value}")
    one = rows(A)
    one[4, 2, 0] = -1
    bad("sglang", "missing_in_part", lines(sglang(A, one)), "INVALID_ARGUMENT", "position 4: expected a row that is there or all -1")
    bad("sglang", "n_rows", lines(sglang(A, padded(rows(A), after=1))), "MISMATCH", f"request sg-{A}: elements without a shape: expected [6 rows, 4 hidden or 3 MoE layers, 2 choices], found [56]")
    bad("sglang", "too_few_rows", lines(sglang(A, rows(A)[1:])), "MISMATCH", "found [40]")
    bad("sglang", "start_without_its_field", lines(sglang(A, rows(A, 2))), "MISMATCH", "expected [6 rows")
    bad("sglang", "start_after_the_prompt", lines(sglang(A, rows(A, 5), routed_experts_start_len=5)), "INVALID_ARGUMENT", "start at 0..4, in the prompt, found 5")
    bad("sglang", "other_layers", lines(sglang(A, rows(A)[:, :2])), "MISMATCH", "4 hidden or 3 MoE layers")
    bad("sglang", "odd_bytes", lines(sglang(A, b64(rows(A).tobytes()[:-1]))), "CORRUPT", "found 191")
    bad("sglang", "not_base64", lines(sglang(A, "AA*A")), "CORRUPT", "base64: character 2 is 0x2a")
    bad("sglang", "dtype_too_narrow", lines(sglang(W, rows(W).astype(np.uint8), routed_experts_dtype="uint8")), "MISMATCH", "experts 0..299, found uint8", model="wide")
    bad("sglang", "dtype_unknown", lines(sglang(A, routed_experts_dtype="uint3")), "UNSUPPORTED", "uint3")
    bad("sglang", "no_routes", lines({k: v for k, v in sglang(A, routes=False).items()}), "CORRUPT", "found true or false")
    nothing = sglang(A)
    del nothing["meta_info"]["routed_experts"]
    bad("sglang", "none", lines(nothing, sglang(B)), "NOT_FOUND", f"line 1: request sg-{A}: expected routes, found none", good_read=1)
    no_prompt = sglang(A)
    del no_prompt["input_ids"]
    bad("sglang", "no_prompt", lines(no_prompt), "NOT_FOUND", "expected the prompt's tokens")
    bad("sglang", "broken_line", lines(sglang(A))[:-20] + b"\n" + lines(sglang(B)), "CORRUPT", "line 1: JSON", good_read=1)
    bad("sglang", "one_row_throughout", lines(sglang(B, np.repeat(rows(B)[:1], 6, axis=0))), "INVALID_ARGUMENT", "the same experts in all 6 rows")
    bad("sglang", "single_zeros", lines(sglang(S, rows(S) * 0)), "INVALID_ARGUMENT", "every id of all 11 rows is zero", model="single")
    bad("sglang", "same_id", lines(sglang(A), sglang(B, rid=f"sg-{A}"), sglang(B)), "INVALID_ARGUMENT",
        f"line 2: request sg-{A}: expected an id of its own, found that of an earlier request, number 0", good_read=2)
    two = json.loads(json.dumps(chat))
    two["choices"].append({"index": 1, "message": {}, "finish_reason": "stop"})
    bad("sglang", "second_choice", lines(two), "NOT_FOUND", "request chat-1-1: expected routes of this choice", good_read=1)
    bad("sglang", "page", b"<html>502 Bad Gateway</html>\n", "CORRUPT", 'a file that begins with "<html>502 Bad Gateway</"', extension="txt")
    bad("sglang", "cut_list", json.dumps([sglang(A), sglang(B)]).encode()[:-30], "CORRUPT", "line 1: JSON", extension="json")


# ---- what indexers chose -------------------------------------------------------------------------------------------------
def sglang_indexed(i, topk=None, layers=2, routes=None, **meta):
    topk = indexed(i) if topk is None else topk
    return sglang(i, routes, indexer_topk=b64(topk) if isinstance(topk, np.ndarray) else topk, indexer_topk_num_layers=layers, **meta)


def make_indexers():
    both = [expected(i, f"sg-{i}", finish="stop", indexer=True) for i in (I, J)]
    good("sglang", "indexer", lines(sglang_indexed(I), sglang_indexed(J)), *[dict(e) for e in both])
    good("sglang", "indexer_all_layers", lines(sglang_indexed(I, indexed(I, every_layer=True), 4), sglang_indexed(J)), *[dict(e) for e in both])
    good("sglang", "indexer_descending", lines(sglang_indexed(I, indexed(I, turned=True))), dict(both[0]))
    good("sglang", "indexer_start", lines(sglang_indexed(I, indexed(I, 3), routes=rows(I, 3), routed_experts_start_len=3)),
         dict(both[0], start=3))
    good("sglang", "indexer_lists", lines(sglang_indexed(I, indexed(I).tolist())), dict(both[0]))
    good("sglang", "indexer_of_one_request", lines(sglang_indexed(I), sglang(J)), dict(both[0]), expected(J, f"sg-{J}", finish="stop"))
    archive = io.BytesIO()
    np.savez(archive, tokens_0=np.array(TRUTH[I]["tokens"]), response_length_0=len(new(I)), rollout_routed_experts_0=rows(I),
             rollout_indexer_topk_0=indexed(I), tokens_1=np.array(TRUTH[J]["tokens"]), response_length_1=len(new(J)),
             rollout_routed_experts_1=rows(J))
    good("slime", "indexer", archive.getvalue(), expected(I, "request-0", indexer=True), expected(J, "request-1"), extension="npz")

    def wrong(what, status, message, topk=None, **more):
        bad("sglang", f"indexer_{what}", lines(sglang_indexed(I, topk, **more), sglang_indexed(J)), status, f"request sg-{I}: {message}",
            model="indexed", good_read=1)
    wrong("layers", "MISMATCH", "indexer_topk_num_layers: expected 4 hidden layers, 2 that use an indexer or 2 that have one, found 3", layers=3)
    wrong("rows", "MISMATCH", "indexer_topk: expected integers of 23 rows, 2 layers", padded(indexed(I), after=1)[:, :, :1].reshape(-1)[:47])
    wrong("wide", "MISMATCH", "indexer_topk: expected integers of 23 rows, 2 layers and up to 3 positions, found 184 elements",
          np.repeat(indexed(I)[:, :, :1], 4, axis=2))
    # Cell (position, layer 1 or 3): the token at position 10 sees entries 0 and 1, that at 17 four, and 0 .. 2 see none.
    for what, position, layer, cell, message in (
        ("negative", 10, 3, [0, 1, -2], "indexer_topk: position 10: expected -1..2147483647, found -2"),
        ("twice", 10, 1, [1, 0, 1], "indexer_topk: position 10: 1 is chosen twice"),
        ("future", 10, 3, [2, 0, -1], f"record sg-{I}: indexer: position 10, model layer 3: expected positions below 2, found 2"),
        ("own_position", 10, 1, [10, 0, -1], f"record sg-{I}: indexer: position 10, model layer 1: expected positions below 2, found 10"),
        ("huge", 17, 3, [0, 1, 2**31 - 1], f"record sg-{I}: indexer: position 17, model layer 3: expected positions below 4, found 2147483647"),
        ("more", 10, 3, [0, 1, 2], f"record sg-{I}: indexer: position 10, model layer 3: expected a count of 2, found 3"),
        ("before_any", 2, 1, [0, -1, -1], f"record sg-{I}: indexer: position 2, model layer 1: expected a count of 0, found 1"),
        ("fewer", 17, 1, [0, 3, -1], f"record sg-{I}: indexer: position 17, model layer 1: expected a count of 3, found 2"),
        ("missing_row", 17, None, [-1, -1, -1], f"record sg-{I}: indexer: position 17, model layer 1: expected a count of 3, found 0"),
    ):
        one = indexed(I)
        one[position, slice(None) if layer is None else layer // 2] = cell
        wrong(what, "INVALID_ARGUMENT", message, one)
    wrong("reals", "CORRUPT", "indexer_topk: lists: expected integers of 32 bits, found a real number", (indexed(I) + 0.5).tolist())
    wrong("not_base64", "CORRUPT", "indexer_topk", "AA*A")
    wrong("odd_bytes", "CORRUPT", "indexer_topk", b64(indexed(I).tobytes()[:-1]))


# ---- layers that differ in K -----------------------------------------------------------------------------------------------
def make_differing():
    filled = rows(D)
    one = expected(D, f"r{D}")
    good("sglang", "differing", lines(sglang(D)), expected(D, f"sg-{D}", finish="stop"))
    good("sglang", "differing_moe_layers", lines(sglang(D, rows(D, hidden=False))), expected(D, f"sg-{D}", finish="stop"))
    missing = rows(D)
    missing[2] = -1
    good("nemo-rl", "differing", lines(beside(D, routed_experts=nrlre1(missing.astype(np.int8)))), dict(one, missing=[2]))
    good("slime", "differing", lines(beside(D, rollout_routed_experts=filled.tolist())), dict(one))
    good("trtllm", "differing", lines(beside(D, routed_experts=b64(rows(D, hidden=False, dtype=np.int16)))), dict(one))
    good("dynamo", "differing", lines(beside(D, routed_experts=b64(filled))), dict(one))
    # verl: a row of zeros is missing, that of position 3 here.
    zeros = rows(D)
    zeros[3] = 0
    batch = io.BytesIO()
    np.savez(batch, input_ids=np.array([TRUTH[D]["tokens"]]), attention_mask=np.ones((1, len(TRUTH[D]["tokens"])), np.int64),
             prompts=np.array([prompt(D)]), responses=np.array([new(D)]), routed_experts=padded(zeros, after=1)[None])
    good("verl", "differing", batch.getvalue(), dict(one, rid="request-0", missing=[3]), extension="npz")
    unfilled = rows(D)
    unfilled[4, 2, 2] = 5
    behind = "position 4, MoE layer 1 (model layer 2): expected -1 behind its 1 choices, found 5"
    bad("sglang", "differing_unfilled", lines(sglang(D, unfilled)), "INVALID_ARGUMENT", behind, model="differing")
    unfilled[4, 2, 2] = 0
    bad("slime", "differing_zero", lines(beside(D, rollout_routed_experts=unfilled.tolist())), "INVALID_ARGUMENT", "behind its 1 choices, found 0", model="differing")
    short = rows(D)
    short[1, 1, 2] = -1
    bad("sglang", "differing_short", lines(sglang(D, short)), "INVALID_ARGUMENT", "position 1: expected a row that is there or all -1", model="differing")
    empty = rows(D)
    empty[:, 3, :2] = 0
    bad("sglang", "differing_zeros", lines(sglang(D, empty)), "INVALID_ARGUMENT", "MoE layer 2 (model layer 3) is zero in all 7 rows", model="differing")
    unsigned = np.where(filled < 0, 0, filled).astype(np.uint8)
    bad("vllm", "differing", lines(vllm(choice(D, unsigned), of=D)), "UNSUPPORTED", "MoE layer 1 (model layer 2) has 1 choices and others up to 3", model="differing")


# ---- vLLM ------------------------------------------------------------------------------------------------------------
def vllm(*choices, rid="cmpl-1", of=None, **more):
    return {"id": rid, "object": "text_completion", "created": 1, "model": "m", "prompt_token_ids": prompt(of), "choices": list(choices),
            "usage": {"prompt_tokens": len(prompt(of)), "total_tokens": 1, "completion_tokens": 1}, "kv_transfer_params": None, **more}


def choice(i, routes=None, index=0, finish="stop", **more):
    routes = rows(i, dtype=np.uint8 if TRUTH[i]["model"] != "wide" else np.uint16) if routes is None else routes
    return {"index": index, "text": "..", "token_ids": new(i), "finish_reason": finish, "stop_reason": None, "logprobs": None,
            "routed_experts": b64(npy(routes)) if isinstance(routes, np.ndarray) else routes, **more}


def make_vllm():
    t = TRUTH[A]
    done = expected(A, "cmpl-1", finish="stop")
    good("vllm", "u1", lines(vllm(choice(A), of=A)), done)
    good("vllm", "u2", lines(vllm(choice(W), of=W)), expected(W, "cmpl-1", finish="stop"))
    for name, dtype in (("i1", np.int8), ("i2_big", ">i2"), ("u2_big", ">u2"), ("i4", np.int32), ("i8", np.int64), ("u8", np.uint64)):
        good("vllm", name, lines(vllm(choice(A, rows(A).astype(dtype)), of=A)), done)
    good("vllm", "fortran", lines(vllm(choice(A, np.asfortranarray(rows(A, dtype=np.uint8))), of=A)), done)
    flat = rows(A, dtype=np.uint8)
    good("vllm", "two_dims", lines(vllm(choice(A, flat.reshape(len(flat), -1)), of=A)), done)
    good("vllm", "moe_layers", lines(vllm(choice(A, rows(A, hidden=False, dtype=np.uint8)), of=A)), done)
    good("vllm", "start", lines(vllm(choice(A, rows(A, 3, dtype=np.uint8)), of=A, routed_experts_prompt_start=3)),
         expected(A, "cmpl-1", finish="stop", start=3))
    good("vllm", "logprobs", lines(vllm(choice(A, logprobs={"token_logprobs": t["logprobs"], "tokens": ["a", "b", "c"]}), of=A)),
         expected(A, "cmpl-1", finish="stop", logprobs=True))
    chat = {"content": [{"token": "x", "logprob": p, "bytes": [1], "top_logprobs": []} for p in t["logprobs"]]}
    good("vllm", "chat", lines(vllm(choice(A, logprobs=chat, message={"role": "assistant", "content": "x", "tool_calls": []}), of=A)),
         expected(A, "cmpl-1", finish="stop", logprobs=True))
    ids = [f"token_id:{token}" for token in new(A)]
    named = {"token_logprobs": t["logprobs"], "tokens": ids}, {"content": [{"token": x, "logprob": p} for x, p in zip(ids, t["logprobs"])]}
    echoed = {"token_logprobs": [None] + [-1.0] * (len(prompt(A)) - 1) + t["logprobs"], "tokens": [f"token_id:{token}" for token in t["tokens"]]}
    by_id = [{"0": {"logprob": -9.5, "rank": 2}, str(x): {"logprob": p, "rank": 1}} for x, p in zip(new(A), t["logprobs"])]
    for what, logprobs in (("names", named[0]), ("chat_names", named[1]), ("echo", echoed), ("by_id", by_id)):
        good("vllm", f"logprobs_{what}", lines(vllm(choice(A, logprobs=logprobs), of=A)), expected(A, "cmpl-1", finish="stop", logprobs=True))
    for what, logprobs in (("names", dict(named[0], tokens=ids[:1] + ["token_id:0"] + ids[2:])), ("chat_names", {"content": [named[1]["content"][0], dict(named[1]["content"][1], token="token_id:0")] + named[1]["content"][2:]}),
                           ("echo", dict(echoed, tokens=echoed["tokens"][:-2] + ["token_id:0"] + echoed["tokens"][-1:]))):
        bad("vllm", f"logprobs_{what}", lines(vllm(choice(A, logprobs=logprobs), of=A)), "INVALID_ARGUMENT", f'new token 1: expected that of token {new(A)[1]}, found of "token_id:0"')
    bad("vllm", "logprobs_by_id", lines(vllm(choice(A, logprobs=[{"0": {"logprob": -9.5}}] * 3), of=A)), "INVALID_ARGUMENT", f'new token 0: expected "logprob" or "{new(A)[0]}"')
    good("vllm", "mask_lists", lines(vllm(choice(A, sampling_mask=t["masks"]), of=A)), expected(A, "cmpl-1", finish="stop", mask=True))
    flat, ends = [x for row in t["masks"] for x in reversed(row)], np.cumsum([0] + [len(row) for row in t["masks"]])
    good("vllm", "mask_csr", lines(vllm(choice(A, sampling_mask={"indices": flat, "indptr": ends.tolist()}), of=A)),
         expected(A, "cmpl-1", finish="stop", mask=True))
    good("vllm", "mask_counts", lines(vllm(choice(A, sampling_mask={"ids": b64(npy(np.array(flat, np.int32))), "counts": np.diff(ends).tolist()}), of=A)),
         expected(A, "cmpl-1", finish="stop", mask=True))
    good("vllm", "aborted", lines(vllm(choice(A), of=A), vllm(dict(choice(B, False, finish="abort"), routed_experts=None), of=B, rid="cmpl-2")),
         done, expected(B, "cmpl-2", finish="abort", routes=False))
    good("vllm", "generate", json.dumps({"request_id": "r-9", "choices": [choice(A)], "prompt_logprobs": None, "prompt_token_ids": prompt(A)}, indent=2).encode(),
         expected(A, "r-9", finish="stop"), extension="json")
    good("vllm", "outputs", lines({"request_id": "7", "prompt_token_ids": prompt(A), "outputs": [choice(A)]}), expected(A, "7", finish="stop"))
    good("vllm", "beside", lines({"input_ids": prompt(A), "response": {k: v for k, v in vllm(choice(A), of=A).items() if k != "prompt_token_ids"}}), done)
    # Before 0.22: the prompt's rows at the answer, those of new tokens at the choice, as nested lists.
    old = rows(A, hidden=False)
    p = t["prompt_len"]
    good("vllm", "lists", lines(vllm(choice(A, old[p:].tolist()), of=A, prompt_routed_experts=old[:p].tolist())), done)
    good("vllm", "lists_g_rows", lines(vllm(choice(A, padded(old, after=1)[p:].tolist()), of=A, prompt_routed_experts=old[:p].tolist())), done)
    events = []
    for n, token in enumerate(new(A)):
        last = n + 1 == len(new(A))
        events.append({"id": "cmpl-1", "object": "text_completion.chunk", "prompt_token_ids": prompt(A) if n == 0 else None,
                       "choices": [{"index": 0, "text": ".", "token_ids": [token], "finish_reason": "stop" if last else None,
                                    "logprobs": {"token_logprobs": [t["logprobs"][n]]},
                                    "routed_experts": b64(npy(rows(A, dtype=np.uint8))) if last else None}]})
    events.append({"id": "cmpl-1", "object": "text_completion.chunk", "choices": [], "usage": {"total_tokens": 7}})
    stream = "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n"
    broken = stream.replace(f'"{b64(npy(rows(A, dtype=np.uint8)))}"', "null")
    bad("vllm", "stream_without_routes", broken.encode(), "NOT_FOUND", "request cmpl-1: expected routes in the last part of its stream", extension="txt")
    good("vllm", "stream_aborted", broken.replace('"stop"', '"abort"').encode(), expected(A, "cmpl-1", finish="abort", logprobs=True, routes=False), extension="txt")
    good("vllm", "stream", stream.encode(), expected(A, "cmpl-1", finish="stop", logprobs=True), extension="txt")

    mixed = []
    for n in range(3):
        for index, token in ((0, new(A)[n]), (1, new(A)[n])):
            mixed.append({"id": "cmpl-1", "object": "chat.completion.chunk", "prompt_token_ids": prompt(A) if n == 0 else None,
                          "choices": [{"index": index, "token_ids": [token], "finish_reason": "stop" if n == 2 else None,
                                       "routed_experts": b64(npy(rows(A, dtype=np.uint8))) if n == 2 else None}]})
    good("vllm", "stream_of_two", lines(*mixed), expected(A, "cmpl-1", finish="stop"), expected(A, "cmpl-1-1", finish="stop"))
    n_choices = vllm(choice(A), choice(A, index=1), of=A)
    good("vllm", "two_choices_alike", lines(n_choices, vllm(choice(B), of=B, rid="b")), expected(A, "cmpl-1-0", finish="stop", group=0),
         expected(A, "cmpl-1-1", finish="stop", group=0), expected(B, "b", finish="stop", group=1))
    other = choice(A, index=1)
    other["token_ids"] = [1] + other["token_ids"][1:]
    bad("vllm", "copied_choice", lines(vllm(choice(A), other, of=A)), "INVALID_ARGUMENT", "request cmpl-1-1: expected routes of this choice, found those of the first", good_read=1)
    # The CPU build of 0.25.1: right shape, right type, and never filled.
    bad("vllm", "cpu_zeros", lines(vllm(choice(A, rows(A, dtype=np.uint8) * 0), of=A)), "INVALID_ARGUMENT", "line 1: request cmpl-1: every id of all 6 rows is zero: the engine has not filled its buffer")
    bad("vllm", "n_rows", lines(vllm(choice(A, padded(rows(A, dtype=np.uint8), after=1)), of=A)), "MISMATCH", "rows: expected [6 rows, 4 hidden or 3 MoE layers, 2 choices], found [7, 4, 2]")
    bad("vllm", "start_unsaid", lines(vllm(choice(A, rows(A, 3, dtype=np.uint8)), of=A)), "MISMATCH", "found [3, 4, 2]")
    bad("vllm", "choices_of_a_row", lines(vllm(choice(A, rows(A)[:, :, :1]), of=A)), "MISMATCH", "choices of a row")
    bad("vllm", "layers", lines(vllm(choice(A, rows(A)[:, :2]), of=A)), "MISMATCH", "layers: expected")
    bad("vllm", "minus_one", lines(vllm(choice(A, rows(A) * 0 - 1), of=A)), "INVALID_ARGUMENT", "expected experts 0..7, found -1")
    bad("vllm", "u1_of_300", lines(vllm(choice(W, rows(W).astype(np.uint8)), of=W)), "MISMATCH", "experts 0..299, found uint8", model="wide")
    bad("vllm", "reals", lines(vllm(choice(A, rows(A).astype(np.float32)), of=A)), "MISMATCH", "found float32")
    bad("vllm", "raw", lines(vllm(choice(A, b64(rows(A))), of=A)), "CORRUPT", "expected a .npy file")
    bad("vllm", "cut_npy", lines(vllm(choice(A, b64(npy(rows(A))[:-1])), of=A)), "CORRUPT", ".npy: expected 192 bytes")
    bad("vllm", "cut_header", lines(vllm(choice(A, b64(npy(rows(A))[:60])), of=A)), "CORRUPT", "inside its header")
    bad("vllm", "pickled", lines(vllm(choice(A, b64(npy(rows(A).astype(object)))), of=A)), "UNSUPPORTED", "'|O'")
    bad("vllm", "null", lines(vllm(dict(choice(A, False), routed_experts=None), of=A)), "NOT_FOUND", "expected routes, found none")
    bad("vllm", "ragged", lines(vllm(choice(A, [[[1, 2], [2, 3], [0]]]), of=A, prompt_routed_experts=[])), "CORRUPT", "lists: expected")
    bad("vllm", "words", lines(vllm(choice(A, [[["a", "b"]]]), of=A)), "CORRUPT", "expected integers of 32 bits, found text")
    bad("vllm", "logprobs", lines(vllm(choice(A, logprobs={"token_logprobs": t["logprobs"][:-1]}), of=A)), "CORRUPT", "log-probabilities: expected 3")
    bad("vllm", "mask_rows", lines(vllm(choice(A, sampling_mask=t["masks"][:-1]), of=A)), "CORRUPT", "sampling_mask: expected rows of 3 new tokens")
    bad("vllm", "mask_without_the_token", lines(vllm(choice(A, sampling_mask=[[127], [126], [125]]), of=A)), "INVALID_ARGUMENT", "mask")
    bad("vllm", "mask_indptr", lines(vllm(choice(A, sampling_mask={"indices": flat, "indptr": [0, 99, 1, 2]}), of=A)), "CORRUPT", "sampling_mask: row 0")
    bad("vllm", "token", lines(vllm(dict(choice(A), token_ids=[1, -5, 2]), of=A)), "CORRUPT", "new tokens[1]: expected 0..4294967295, found -5")


# ---- the others ------------------------------------------------------------------------------------------------------
def beside(i, **more):
    return {"rid": f"r{i}", "prompt_token_ids": prompt(i), "token_ids": new(i), **more}


def make_nemo_rl():
    def answer(i, a, **more):
        return {"prompt_token_ids": prompt(i), "generation_token_ids": new(i), "routed_experts": nrlre1(a), "rid": f"r{i}", **more}
    moe = rows(A, hidden=False)
    good("nemo-rl", "int16", lines(answer(A, moe.astype(np.int16), generation_log_probs=TRUTH[A]["logprobs"])), expected(A, f"r{A}", logprobs=True))
    good("nemo-rl", "int8", lines(answer(A, padded(moe, after=1, fill=-1).astype(np.int8))), expected(A, f"r{A}"))
    good("nemo-rl", "int32", lines(answer(W, rows(W))), expected(W, f"r{W}"))
    holes = padded(moe, after=1, fill=-1).astype(np.int16)
    holes[[0, 3]] = -1
    good("nemo-rl", "missing", lines(answer(A, holes)), expected(A, f"r{A}", missing=[0, 3]))
    good("nemo-rl", "all_missing", lines(answer(A, (moe * 0 - 1).astype(np.int16))), expected(A, f"r{A}", missing=list(range(6))))
    good("nemo-rl", "lists", lines(dict(answer(A, moe), routed_experts=moe.tolist())), expected(A, f"r{A}"))
    good("nemo-rl", "output", lines({"id": "resp", "response": {"output": [1]}, "message": answer(A, moe)}), expected(A, "resp"))
    part = moe.copy()
    part[1, 2, 0] = -1
    bad("nemo-rl", "missing_in_part", lines(answer(A, part)), "INVALID_ARGUMENT", "position 1: expected a row that is there or all -1")
    bad("nemo-rl", "last_row", lines(answer(A, padded(moe, after=1, fill=1))), "INVALID_ARGUMENT", "position 6: expected no row of the last token")
    bad("nemo-rl", "int8_of_300", lines(answer(W, rows(W).astype(np.int8))), "MISMATCH", "experts 0..299, found int8", model="wide")
    for what, text, message in (("no_shape", "nrlre1:int16:AAAA", "nrlre1: expected"), ("two_dims", "nrlre1:int16:6x6:AAAA", "6x6"),
                                ("type", "nrlre1:float32:6x3x2:AAAA", "float32"), ("bytes", "nrlre1:int16:6x3x2:AAAA", "expected 72 bytes"),
                                ("version", "nrlre2:int16:6x3x2:AAAA", "expected nrlre1, found nrlre2")):
        status = "UNSUPPORTED" if what in ("type", "version") else "CORRUPT"
        bad("nemo-rl", what, lines(dict(answer(A, moe), routed_experts=text)), status, message)
    huge = "nrlre1:int32:4294967295x4294967295x4294967295:AAAA"
    bad("nemo-rl", "huge_shape", lines(dict(answer(A, moe), routed_experts=huge)), "CORRUPT", "nrlre1: expected a shape that fits memory")


def make_slime():
    def sample(i, routes, status="completed", **more):
        return {"group_index": 3, "index": 5, "rid": f"r{i}", "prompt": "p", "tokens": TRUTH[i]["tokens"], "response": "..", "response_length": len(new(i)),
                "rollout_log_probs": TRUTH[i]["logprobs"], "weight_versions": ["4", "4"], "status": status, "rollout_routed_experts": routes, **more}
    done = dict(finish="stop", logprobs=True, version=4, group=3)
    good("slime", "base64", lines(sample(A, b64(rows(A)))), expected(A, f"r{A}", **done))
    good("slime", "lists", lines(sample(B, rows(B).tolist(), status="truncated")), expected(B, f"r{B}", **dict(done, finish="length")))
    good("slime", "msgpack", msgpack.packb(sample(A, rows(A).tobytes())) + msgpack.packb(sample(B, {"data": rows(B).tobytes(), "shape": [6, 4, 2], "dtype": "<i4"})),
         expected(A, f"r{A}", **done), expected(B, f"r{B}", **done), extension="msgpack")
    good("slime", "samples", msgpack.packb({"rollout_id": 0, "samples": [sample(A, rows(A).tobytes()), sample(B, b64(rows(B)))]}),
         expected(A, f"r{A}", **done), expected(B, f"r{B}", **done), extension="msgpack")
    good("slime", "aborted_by_an_error", lines(sample(A, b64(rows(A))), sample(B, None, status="aborted", error="timed out", metadata={"error": {"code": 7}})),
         expected(A, f"r{A}", **done), expected(B, f"r{B}", **dict(done, finish="abort"), routes=False))
    good("slime", "no_group", lines(sample(A, b64(rows(A)), group_index=-1, metadata={"error": "of a tool", "group": -1})), expected(A, f"r{A}", **{k: v for k, v in done.items() if k != "group"}))
    out = io.BytesIO()
    np.savez(out, tokens=np.array(TRUTH[A]["tokens"], np.int64), response_length=np.int64(3), rollout_routed_experts=rows(A),
             rollout_log_probs=np.array(TRUTH[A]["logprobs"], np.float32))
    good("slime", "one", out.getvalue(), expected(A, "request-0", logprobs=True), extension="npz")
    out = io.BytesIO()
    fields = {}
    for k, i in enumerate((A, B)):
        fields.update({f"tokens_{k}": np.array(TRUTH[i]["tokens"]), f"response_length_{k}": np.array(len(new(i))), f"rollout_routed_experts_{k}": rows(i)})
    np.savez(out, **fields)
    good("slime", "numbered", out.getvalue(), expected(A, "request-0"), expected(B, "request-1"), extension="npz")
    bad("slime", "n_rows", lines(sample(A, padded(rows(A), after=1).tolist())), "MISMATCH", "rows: expected [6 rows")
    bad("slime", "zero_layer", lines(sample(A, np.where(np.arange(4)[None, :, None] == 3, 0, rows(A)).tolist())), "INVALID_ARGUMENT", "MoE layer 2 (model layer 3) is zero")
    bad("slime", "no_length", lines({k: v for k, v in sample(A, b64(rows(A))).items() if k != "response_length"}), "NOT_FOUND", "expected the prompt's tokens")
    cut = msgpack.packb(sample(A, rows(A).tobytes()))[:-9]
    bad("slime", "cut", cut, "CORRUPT", "object 1: byte", extension="msgpack")
    bad("slime", "claims_much", b"\xdd\xff\xff\xff\xff", "CORRUPT", "expected msgpack", extension="msgpack")
    out = io.BytesIO()
    np.save(out, rows(A))
    alone = np.stack([rows(A), rows(B)])
    TRUTH.append(dict(TRUTH[A], tokens=[0] * 7, prompt_len=7, logprobs=[], masks=[]))
    TRUTH.append(dict(TRUTH[B], tokens=[0] * 7, prompt_len=7, logprobs=[], masks=[]))
    no_a, no_b = len(TRUTH) - 2, len(TRUTH) - 1
    good("slime", "routes_alone", out.getvalue(), expected(no_a, "request-0"), extension="npy")
    good("slime", "batch_alone", npy(alone), expected(no_a, "request-0"), expected(no_b, "request-1"), extension="npy")
    bad("slime", "one_row_alone", npy(np.repeat(rows(A)[:1], 6, axis=0)), "INVALID_ARGUMENT", "the same experts in all 6 rows", extension="npy")
    bad("slime", "flat_alone", npy(rows(A).reshape(-1)), "NOT_FOUND", "expected routes [rows, layers, choices]", extension="npy")
    bad("slime", "no_tokens", lines({"rollout_routed_experts": rows(A).tolist()}), "NOT_FOUND", "expected the prompt's tokens")
    out = io.BytesIO()
    np.savez_compressed(out, **fields)
    good("slime", "compressed", out.getvalue(), expected(A, "request-0"), expected(B, "request-1"), extension="npz")
    packed = bytearray(out.getvalue())
    middle = packed.rindex(b"rollout_routed_experts_1.npy", 0, packed.index(b"PK\x01\x02")) + 90
    packed[middle] ^= 0x10
    bad("slime", "compressed_damaged", bytes(packed), "CORRUPT", "rollout_routed_experts_1.npy: expected", extension="npz")
    directory = bytearray(out.getvalue())
    entry = directory.index(b"PK\x01\x02")
    directory[entry + 24:entry + 28] = struct.pack("<I", 2**31)
    bad("slime", "compressed_claims_much", bytes(directory), "CORRUPT", "compressed ones, found 2147483648", extension="npz")
    whole = io.BytesIO()
    np.savez(whole, tokens=np.arange(7), rollout_routed_experts=rows(A))
    damaged = bytearray(whole.getvalue())
    damaged[200] ^= 1
    bad("slime", "damaged", bytes(damaged), "CORRUPT", "checksum", extension="npz")


def make_verl():
    P, R = 6, 6
    batch = {"input_ids": [], "attention_mask": [], "responses": [], "prompts": [], "routed_experts": [], "rollout_log_probs": [], "response_mask": []}
    for i in (A, B):
        left, right = P - len(prompt(i)), R - len(new(i))
        batch["input_ids"].append([0] * left + TRUTH[i]["tokens"] + [0] * right)
        batch["attention_mask"].append([0] * left + [1] * len(TRUTH[i]["tokens"]) + [0] * right)
        batch["responses"].append(new(i) + [0] * right)
        batch["response_mask"].append([1] * len(new(i)) + [0] * right)
        batch["prompts"].append([0] * left + prompt(i))
        batch["routed_experts"].append(padded(rows(i, dtype=np.int16), left, right + 1))
        batch["rollout_log_probs"].append(TRUTH[i]["logprobs"] + [0.0] * right)
    batch = {k: np.array(v) for k, v in batch.items()}
    batch["rollout_log_probs"] = batch["rollout_log_probs"].astype(np.float32)

    def npz(**arrays):
        out = io.BytesIO()
        np.savez(out, **arrays)
        return out.getvalue()
    both = expected(A, "request-0", logprobs=True), expected(B, "request-1", logprobs=True)
    good("verl", "batch", npz(**batch), *both, extension="npz")
    named = dict(batch, rid=np.array([b"first", b"second one"]), uid=np.array([{"a": 1}, None], dtype=object), data_source=np.array(["x", "y"]))
    three = {k: np.concatenate([v, v[:1]]) for k, v in batch.items()}
    uids = expected(A, "request-0", logprobs=True, group=7), expected(B, "request-1", logprobs=True, group=2)
    good("verl", "uid", npz(**three, uid=np.array([7, 2, 7])), *uids, dict(uids[0], rid="request-2", sample=1), extension="npz")
    good("verl", "wide_names", npz(**dict(batch, rid=np.array(["f\u00fcr", "\u8def\U0001f6e4"]))), dict(both[0], rid="f\u00fcr"), dict(both[1], rid="\u8def\U0001f6e4"), extension="npz")
    good("verl", "named", npz(**named), dict(both[0], rid="first"), dict(both[1], rid="second one"), extension="npz")
    beside_pads = {"rid": "x", "input_ids": prompt(B), "output_ids": new(B), "attention_mask": batch["attention_mask"][1].tolist(),
                   "routed_experts": batch["routed_experts"][1].tolist()}
    good("verl", "tokens_without_padding", lines(beside_pads), expected(B, "x"))
    bad("verl", "mask_of_other_tokens", lines(dict(beside_pads, attention_mask=[1] * 12)), "CORRUPT", "attention_mask: expected 7 tokens")
    good("verl", "len_minus_one", npz(**dict(batch, routed_experts=batch["routed_experts"][:, :-1])), *both, extension="npz")
    one = {k: v[1].tolist() for k, v in batch.items()}
    good("verl", "json", lines(dict(one, rid="x")), expected(B, "x", logprobs=True))
    good("verl", "start", lines(dict(one, rid="x", routed_experts_start_len=2)), expected(B, "x", logprobs=True, start=2))
    no_responses = {k: v for k, v in one.items() if k not in ("responses", "prompts")}
    good("verl", "response_mask", lines(dict(no_responses, rid="x")), expected(B, "x", logprobs=True))
    # verl's agent loop has the new tokens alone; what pads a half may be any number.
    alone = dict(no_responses, response_ids=new(B), rid="x")
    good("verl", "response_ids_beside_mask", lines(alone), expected(B, "x", logprobs=True))
    good("verl", "response_ids_and_prompts", lines(dict(alone, prompts=one["prompts"])), expected(B, "x", logprobs=True))
    good("verl", "halves_padded_otherwise", lines(dict(one, rid="x", responses=new(B) + [-100] * (R - len(new(B))), prompts=[-1] * (P - len(prompt(B))) + prompt(B))),
         expected(B, "x", logprobs=True))
    bad("verl", "response_ids_of_other_tokens", lines(dict(alone, response_ids=new(B)[::-1])), "CORRUPT", "response_ids[0]: expected")
    halves = {k: v for k, v in one.items() if k != "input_ids"}
    good("verl", "prompts_and_responses", lines(dict(halves, rid="x")), expected(B, "x", logprobs=True))
    named_alike = dict(prompt_token_ids=one["prompts"], token_ids=one["responses"], **{k: v for k, v in halves.items() if k not in ("prompts", "responses")})
    good("verl", "padded_halves", lines(dict(named_alike, rid="x")), expected(B, "x", logprobs=True))
    bad("verl", "prompts_alone", lines({k: v for k, v in halves.items() if k != "responses"}), "NOT_FOUND", "expected input_ids, or prompts and responses")
    listed = {k: v.tolist() for k, v in batch.items()}
    good("verl", "batch_of_lists", json.dumps(dict(listed, uid=[7, 7], rid=["x", "y"])).encode(), dict(both[0], rid="x", group=7),
         dict(both[1], rid="y", group=7, sample=1), extension="json")
    agent = {"rid": "x", "prompt_ids": prompt(A), "response_ids": new(A), "response_logprobs": TRUTH[A]["logprobs"], "response_mask": [1] * 3,
             "routed_experts": padded(rows(A), after=1).tolist()}
    good("verl", "agent_loop", lines(agent), expected(A, "x", logprobs=True))
    holes = batch["routed_experts"].copy()
    holes[1, 4 + 3] = 0
    good("verl", "zeros_are_missing", npz(**dict(batch, routed_experts=holes)), both[0], expected(B, "request-1", logprobs=True, missing=[3]), extension="npz")
    t = TRUTH[S]
    single = {"rid": "s", "input_ids": [0] + t["tokens"], "attention_mask": [0] + [1] * 12, "prompts": [0] + prompt(S), "routed_experts": padded(rows(S), 1, 1).tolist()}
    good("verl", "single_zero_is_an_expert", lines(single), expected(S, "s"))
    bad("verl", "zeros", npz(**dict(batch, routed_experts=batch["routed_experts"] * 0)), "INVALID_ARGUMENT", "request request-0: every id of all 6 rows is zero", extension="npz")
    full = batch["routed_experts"].copy()
    full[0, 2 + 6] = full[0, 4]
    bad("verl", "last_row", npz(**dict(batch, routed_experts=full)), "INVALID_ARGUMENT", "position 6: expected no row of the last token", extension="npz", good_read=1)
    bad("verl", "mask_length", lines(dict(one, attention_mask=one["attention_mask"][:-1])), "CORRUPT", "attention_mask: expected 12")
    for what, more, message in (
        ("mask_of_sequences", {"attention_mask": [2 * t for t in one["attention_mask"]]}, "attention_mask[4]: expected 0 or 1, found 2"),
        ("halves_of_other_places", {"prompts": one["prompts"][1:]}, "prompts and responses: expected 12 places, as many as input_ids has, found"),
        ("prompts_of_other_tokens", {"prompts": [t + (t > 0) for t in one["prompts"]]}, "prompts[4]: expected"),
        ("responses_of_other_tokens", {"responses": one["responses"][::-1]}, "responses[0]: expected"),
        ("prompts_too_long", {"prompts": one["prompts"] * 3}, "prompts: expected at most 12 places, as many as input_ids has, found"),
    ):
        bad("verl", what, lines(dict(one, **more)), "CORRUPT", message)
    bad("verl", "no_lengths", lines({k: v for k, v in no_responses.items() if k != "response_mask"}), "NOT_FOUND", "expected prompts, responses")
    bad("verl", "no_mask", lines({k: v for k, v in one.items() if k != "attention_mask"}), "NOT_FOUND", "expected attention_mask beside input_ids")
    bad("verl", "rows", npz(**dict(batch, routed_experts=batch["routed_experts"][:, 2:])), "MISMATCH", "found [10, 4, 2]", extension="npz", good_read=0)


def make_trtllm():
    moe = rows(A, hidden=False, dtype=np.int16)
    good("trtllm", "lists", lines(beside(A, routed_experts=moe.tolist(), finish_reason="length")), expected(A, f"r{A}", finish="length"))
    good("trtllm", "no_logprobs", lines({"request_id": "t", "prompt_token_ids": prompt(A), "outputs": [{"index": 0, "token_ids": new(A), "logprobs": [], "finish_reason": "length", "routed_experts": moe.tolist()}]}),
         expected(A, "t", finish="length"))
    good("trtllm", "base64", lines(beside(A, routed_experts=b64(moe))), expected(A, f"r{A}"))
    holes = moe.copy()
    holes[2] = -1
    good("trtllm", "missing", lines(beside(A, routed_experts={"data": b64(holes), "shape": list(holes.shape), "dtype": "int16"})), expected(A, f"r{A}", missing=[2]))
    out = io.BytesIO()
    np.savez(out, routed_experts=moe, prompt_token_ids=np.array(prompt(A)), token_ids=np.array(new(A)))
    good("trtllm", "npz", out.getvalue(), expected(A, "request-0"), extension="npz")
    bad("trtllm", "padding_throughout", lines(beside(B, routed_experts=np.broadcast_to(np.arange(2), (6, 3, 2)).tolist())), "INVALID_ARGUMENT", "the same experts in all 6 rows")
    bad("trtllm", "one_expert", lines(beside(B, routed_experts=(rows(B, hidden=False) * 0 + 3).tolist())), "INVALID_ARGUMENT", f"request r{B}: ")


def make_prime_rl():
    a, w = rows(A), rows(W, dtype=np.uint16)
    good("prime-rl", "base85", lines(beside(A, routed_experts={"data": base64.b85encode(a.tobytes()).decode(), "shape": list(a.shape)})), expected(A, f"r{A}"))
    u8 = a.astype(np.uint8)
    good("prime-rl", "base64_u8", lines(beside(A, routed_experts={"data": b64(u8), "shape": list(u8.shape), "start": 0})), expected(A, f"r{A}"))
    good("prime-rl", "base64_u16", lines(beside(W, routed_experts={"data": b64(w), "shape": list(w.shape), "start": 0, "dtype": "uint16"})), expected(W, f"r{W}"))
    good("prime-rl", "start", lines(beside(A, routed_experts={"data": b64(u8[3:]), "shape": [3, 4, 2], "start": 3, "dtype": "uint8"})), expected(A, f"r{A}", start=3))
    good("prime-rl", "msgpack", msgpack.packb(beside(A, routed_experts=[u8.tobytes(), list(u8.shape), "uint8"])) + msgpack.packb(
        beside(B, routed_experts={"data": rows(B).tobytes(), "shape": [6, 4, 2], "dtype": "int32"})), expected(A, f"r{A}"), expected(B, f"r{B}"), extension="msgpack")
    good("prime-rl", "last_row_of_zeros", lines(beside(A, routed_experts={"data": b64(padded(u8, after=1)), "shape": [7, 4, 2], "dtype": "uint8"})), expected(A, f"r{A}"))
    for name, dtype in (("u8", np.uint8), ("i16", np.int16), ("i32", np.int32), ("i64", np.int64)):
        for code in (base64.b64encode, base64.b85encode):
            untyped = {"data": code(rows(A, dtype=dtype).tobytes()).decode(), "shape": list(a.shape)}
            good("prime-rl", f"untyped_{name}_{code.__name__[:3]}", lines(beside(A, routed_experts=untyped)), expected(A, f"r{A}"))
    bad("prime-rl", "length", lines(beside(A, routed_experts={"data": b64(u8[:-1]), "shape": list(u8.shape), "dtype": "uint8"})), "CORRUPT", "neither base64 nor base85")
    bad("prime-rl", "alphabet", lines(beside(A, routed_experts={"data": base64.b85encode(a.tobytes()).decode()[:-1] + '"', "shape": list(a.shape)})), "CORRUPT", "base85: character")
    bad("prime-rl", "triple_without_tokens", msgpack.packb([u8.tobytes(), list(u8.shape), "uint8"]), "CORRUPT", "expected a map, found a list", extension="msgpack")


def make_megatron():
    moe = rows(A, hidden=False)
    t = TRUTH[A]
    c = {"index": 0, "message": {"role": "assistant", "content": "x", "prompt_token_ids": prompt(A), "generation_token_ids": new(A), "generation_log_probs": t["logprobs"]},
         "generation_log_probs": t["logprobs"], "finish_reason": "length", "policy_epoch": [[0, 3]], "num_evictions": 0,
         "moe_topk_indices": moe.tolist(), "prompt_moe_topk_indices": moe[:4].tolist()}
    good("megatron", "chat", lines({"id": "u-1", "object": "chat.completion", "choices": [c]}), expected(A, "u-1", finish="length", logprobs=True))
    good("megatron", "without_the_copy", lines(beside(A, moe_topk_indices=moe.tolist())), expected(A, f"r{A}"))
    good("megatron", "msgpack", msgpack.packb({"request_id": 7, "prompt_tokens": prompt(A), "generated_tokens": new(A), "routing_indices": {"data": moe.tolist(), "dtype": "int16"}}), expected(A, "7"), extension="msgpack")
    other = moe[:4].copy()
    other[1] = moe[2]
    bad("megatron", "other_copy", lines(beside(A, moe_topk_indices=moe.tolist(), prompt_moe_topk_indices=other.tolist())), "INVALID_ARGUMENT", "routes of the prompt that begin those of the text")
    bad("megatron", "prompt_alone", lines(beside(A, prompt_moe_topk_indices=moe[:4].tolist())), "NOT_FOUND", "found those of the prompt alone")


def make_dynamo():
    a = rows(A, dtype=np.uint8)
    value = {"data": b64(a), "shape": list(a.shape), "dtype": "uint8", "start": 0}
    chat = {"id": "d-1", "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}],
            "nvext": {"engine_data": {"prompt_token_ids": prompt(A), "completion_token_ids": new(A), "completion_logprobs": TRUTH[A]["logprobs"], "routed_experts": value}}}
    good("dynamo", "nvext", lines(chat), expected(A, "d-1", finish="stop", logprobs=True))
    good("dynamo", "start", lines(beside(A, routed_experts={"data": b64(a[2:]), "shape": [4, 4, 2], "dtype": "uint8", "start": 2})), expected(A, f"r{A}", start=2))
    good("dynamo", "sglang", lines(beside(A, disaggregated_params={"routed_experts": b64(rows(A))})), expected(A, f"r{A}"))
    good("dynamo", "npy", lines(beside(A, routed_experts=b64(npy(a)))), expected(A, f"r{A}"))
    good("dynamo", "base85", lines(beside(A, nvext={"routed_experts": {"data": base64.b85encode(rows(A).tobytes()).decode(), "shape": [6, 4, 2]}})), expected(A, f"r{A}"))
    bad("dynamo", "shape", lines(beside(A, routed_experts=dict(value, shape=[6, 4]))), "CORRUPT", "neither base64 nor base85")
    bad("dynamo", "start", lines(beside(A, routed_experts=dict(value, start=3))), "MISMATCH", "expected [3 rows")


def main():
    for name, m in MODELS.items():
        if "layer_K" in m:
            continue
        os.makedirs(os.path.join(OUT, name), exist_ok=True)
        write(f"{name}/config.json", json.dumps(config(m), indent=1).encode() + b"\n")
    for make in (make_sglang, make_vllm, make_nemo_rl, make_slime, make_verl, make_trtllm, make_prime_rl, make_megatron, make_dynamo, make_indexers,
                 make_differing):
        make()
    write("manifest.json", json.dumps({"models": MODELS, "truth": TRUTH, "good": GOOD, "bad": BAD}, indent=None).replace("}, {", "},\n {").encode() + b"\n")


main()
