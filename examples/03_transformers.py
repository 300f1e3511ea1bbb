#!/usr/bin/env python3
"""What replay changes for a model of transformers: the records of a dump go through it by its own routes and
by the recorded ones, and their log-probabilities are compared with those of the rollout.

usage: 03_transformers.py CHECKPOINT DUMP [--device cuda] [--batch 8] [--limit 64]

Needs the Python package (README.md, From Python), torch and transformers 5. CHECKPOINT has the weights that
the rollout had.
"""

import argparse
import sys

import numpy as np
import torch
import transformers

import waybill
import waybill.hf


def batch_of(records, device):
    """The records' tokens [B, S], padded on the right, and which of them are there."""
    ids = torch.zeros((len(records), max(len(record) for record in records)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for b, record in enumerate(records):
        ids[b, : len(record)] = torch.from_numpy(record.tokens.astype(np.int64))
        mask[b, : len(record)] = 1
    return ids.to(device), mask.to(device)


def observe(replay, records, ids, logits):
    """Tells the replay the log-probabilities of the sampled tokens, then and now. A text's first token follows no
    other one: without a prompt the model says nothing of it."""
    logprobs = torch.log_softmax(logits.float(), -1).cpu()
    for b, record in enumerate(records):
        at = torch.arange(max(record.prompt_len, 1), len(record))
        then = record.logprobs[len(record.logprobs) - len(at) :]
        replay.observe_logprobs(then, logprobs[b, at - 1, ids[b, at].cpu()].numpy())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("dump")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int, default=64)
    options = parser.parse_args()

    dump = waybill.open(options.dump)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="auto").to(
        options.device
    )
    replay = waybill.hf.replay_for(model, dump)
    attached = waybill.hf.attach(model, replay)
    records = [record for record in dump if record.logprobs is not None][: options.limit]
    for record in records:
        replay.add(record)
    batches = [records[i : i + options.batch] for i in range(0, len(records), options.batch)]
    for mode in ("off", "rollout"):
        with torch.no_grad(), replay.step(mode, len(batches)):
            for m, batch in enumerate(batches):
                ids, mask = batch_of(batch, options.device)
                attached.plan(m, [record.rid for record in batch], ids, mask)
                with attached.micro_batch(m):
                    observe(replay, batch, ids, model(ids, attention_mask=mask, use_cache=False).logits)
        found = replay.metrics()
        print(
            f"replay {mode}: {int(found.logprobs)} tokens, KL(rollout || model) {found.kl_k3:.3g}, "
            f"{found.token_differ:.2%} of {int(found.forced_rows)} rows would go elsewhere"
        )


if __name__ == "__main__":
    try:
        main()
    except (waybill.Error, OSError) as error:  # transformers has OSError for a checkpoint that is none
        sys.exit(f"03_transformers.py: {error}")
