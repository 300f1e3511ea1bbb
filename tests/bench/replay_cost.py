#!/usr/bin/env python3
"""What replay costs a training step of transformers: forward, cross entropy over all tokens and backward, no optimizer, by
the model alone and attached to a replay that forces every row, in turns.

    replay_cost.py [--device cuda] [--layers 8] [--hidden 512] [--width 192] [--experts 32] [--top-k 4]
                   [--sequences 4] [--length 256] [--rounds 9] [--recompute]
    replay_cost.py --trl [--rounds 9]

Processor time on the CPU, in one thread; wall clock on a GPU, in bf16. A step under replay has the begin, the plan, the gates
forward and backward, what is told of the experts, and the end. --trl: the same of a step of examples/05_trl_grpo.py. Needs the
Python package, torch and transformers 5. examples/04_megatron.py says it of Megatron-Core itself.
"""
import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import transformers  # noqa: E402

import waybill  # noqa: E402
import waybill.hf  # noqa: E402

VOCABULARY = 8192


def build(options):
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=options.hidden, intermediate_size=options.hidden, moe_intermediate_size=options.width,
        num_hidden_layers=options.layers, num_attention_heads=options.hidden // 64, num_key_value_heads=2, head_dim=64,
        num_experts=options.experts, num_experts_per_tok=options.top_k, norm_topk_prob=True, max_position_embeddings=8192,
        tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    with torch.device(options.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if options.recompute:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def replay_of(model, options, ids):
    """With a record of each sequence, whose routes are the model's own of now: the cost is that of any."""
    recorded = waybill.RouteModel(
        "qwen3_moe", "0" * 32, "softmax_norm", options.layers, range(options.layers), options.experts, options.top_k
    )  # fmt: skip
    replay = waybill.hf.replay_for(model, recorded)
    attached = waybill.hf.attach(model, replay)
    with torch.no_grad(), replay.step("record", 1):
        attached.plan(0, [None] * len(ids), ids)
        with attached.micro_batch(0):
            model(input_ids=ids)
    routes = replay.rows(0, waybill.ALL_LAYERS).ids.reshape(len(ids), ids.shape[1], options.layers, options.top_k)
    for b, tokens in enumerate(ids.cpu().numpy()):
        replay.add(waybill.Record(replay.model, f"{b}", tokens, 1, routes=routes[b, :-1]))
    attached.detach()
    return replay


def alone(model, replay, ids):
    model(input_ids=ids, labels=ids).loss.backward()


def under(model, replay, ids):
    attached = waybill.hf.attach(model, replay)
    with replay.step("rollout", 1):
        attached.plan(0, [f"{b}" for b in range(len(ids))], ids)
        with attached.micro_batch(0):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    attached.detach()


def now(device):
    """Processor time on the CPU; wall clock when a GPU has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def of_transformers(options):
    model = build(options)
    ids = torch.randint(VOCABULARY, (options.sequences, options.length), device=options.device)
    replay = replay_of(model, options, ids)

    def took(step):
        model.zero_grad(set_to_none=True)
        began = now(options.device)
        step(model, replay, ids)
        return now(options.device) - began

    what = (
        f"{sum(p.numel() for p in model.parameters()) * 1e-6:.1f}e6 parameters, experts {model.config._experts_implementation}, "
        f"{ids.numel()} tokens"
    )
    return what + ", recompute" * options.recompute, [(took(alone), took(under)) for _ in range(options.rounds + 2)][2:]


def of_trl(options):
    """A step of examples/05_trl_grpo.py but for its rollout, by TRL's own trainer and by the one that replays."""
    import importlib.util

    import trl

    path = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "05_trl_grpo.py")
    spec = importlib.util.spec_from_file_location("trl_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    generate, replaying = example.Engine.generate, waybill.trl.GRPOTrainer
    spent = [0.0]

    class Alone(trl.GRPOTrainer):
        def __init__(self, *args, recorded, mode, **kwargs):
            super().__init__(*args, **kwargs)
            self.attached = self

    def generate_apart(*args):
        began = now("cpu")
        made = generate(*args)
        spent[0] -= now("cpu") - began
        return made

    def steps_of(trainer):
        class Timed(trainer):
            def training_step(self, *args):
                spent[0], began = 0.0, now("cpu")
                loss = super().training_step(*args)
                times.append(now("cpu") - began + spent[0])
                return loss

        times, waybill.trl.GRPOTrainer = [], Timed
        example.train(options.rounds + 2, "rollout", 1, use_cpu=True)
        return times[2:]

    example.Engine.generate = generate_apart
    pairs = []
    for _ in range(3):
        pairs += zip(steps_of(Alone), steps_of(replaying))
    return f"TRL {trl.__version__}, 32 sequences of 7 tokens through 3 layers of width 32, without the rollout", pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--trl", action="store_true")
    for name, default in dict(layers=8, hidden=512, width=192, experts=32, top_k=4, sequences=4, length=256, rounds=9).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(1)
    what, pairs = of_trl(options) if options.trl else of_transformers(options)
    ratios = sorted(under / alone for alone, under in pairs)
    without, forced = (1e3 * statistics.median(times) for times in zip(*pairs))
    where = "the CPU, processor time" if options.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, {where}, {what}: a step alone {without:.1f} ms, under "
        f"replay {forced:.1f} ms; ratio of a pair {statistics.median(ratios):.3f} ({ratios[0]:.3f} - {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
