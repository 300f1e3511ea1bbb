#!/usr/bin/env python3
"""GRPO of TRL on a tiny Mixture-of-Experts model, whose rollout returns routes that the trainer replays: the
rollout engine is a copy of the policy in bf16, as engines have it, so that the two choose other experts now
and then.

usage: 05_trl_grpo.py [--steps 20] [--mode rollout|off] [--seed 1]

Needs the Python package (README.md, From Python), torch, transformers 5, trl and datasets. The reward is the
share of new tokens that are the prompt's number; the text of a prompt is one number.
"""

import argparse
import copy
import os
import tempfile

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

import waybill  # noqa: E402
import waybill.hf  # noqa: E402
import waybill.trl  # noqa: E402

NUMBERS, NEW_TOKENS = 8, 6


def tokenizer():
    words = ["<pad>", "<eos>", *(str(i) for i in range(NUMBERS))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def policy():
    """From a folder, where TRL finds a reference model too."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=2 + NUMBERS,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
    )
    folder = tempfile.mkdtemp()
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return transformers.Qwen3MoeForCausalLM.from_pretrained(folder)


def routes_of(model):
    """Whose records these are, as config.json says it."""
    return waybill.RouteModel.from_config(model.config._name_or_path)


class Engine:
    """A rollout engine: samples with a bf16 copy of the policy and returns tokens, log-probabilities and
    routes."""

    def __init__(self, model):
        self.model = copy.deepcopy(model).to(torch.bfloat16).eval()
        self.replay = waybill.hf.replay_for(self.model, routes_of(model))
        self.attached = waybill.hf.attach(self.model, self.replay)

    @torch.no_grad()
    def generate(self, model, prompts):
        """prompts [B, P]. Returns tokens [B, P + NEW_TOKENS], log-probabilities [B, NEW_TOKENS] and
        routes."""
        for mine, its in zip(self.model.parameters(), model.parameters()):
            mine.copy_(its)
        tokens, logprobs = prompts, []
        with self.attached.native():
            for _ in range(NEW_TOKENS):
                logits = self.model(tokens, use_cache=False).logits[:, -1].float()
                # Numbers alone: neither padding nor an end.
                logits[:, :2] = -torch.inf
                new = torch.multinomial(torch.softmax(logits, -1), 1)
                logprobs.append(torch.log_softmax(logits, -1).gather(-1, new))
                tokens = torch.cat([tokens, new], 1)
        with self.replay.step("record", 1):
            self.attached.plan(0, [None] * len(tokens), tokens[:, :-1])
            with self.attached.micro_batch(0):
                self.model(tokens[:, :-1], use_cache=False)
        # They stay until the next step begins.
        routes = self.replay.rows(0, waybill.ALL_LAYERS).ids
        return tokens, torch.cat(logprobs, 1), routes.reshape(len(tokens), -1, *routes.shape[1:])


def rollout_with(engine, words):
    def rollout(prompts, trainer):
        prompt_ids = words(prompts)["input_ids"]
        tokens, logprobs, routes = engine.generate(trainer.attached.model, torch.tensor(prompt_ids))
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": tokens[:, len(prompt_ids[0]) :].tolist(),
            "logprobs": logprobs.tolist(),
            "routed_experts": list(routes),
        }

    return rollout


def reward(prompts, completions, **_):
    return [np.mean([word == prompt for word in text.split()]) for prompt, text in zip(prompts, completions)]


def train(steps, mode, seed, **settings):
    """Returns the trainer, whose state.log_history has a line a step."""
    transformers.set_seed(seed)
    words, model = tokenizer(), policy()
    given = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=NEW_TOKENS,
        max_steps=steps,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        beta=0.0,
        seed=seed,
    )
    given.update(settings)
    prompts = datasets.Dataset.from_dict({"prompt": [str(i % NUMBERS) for i in range(256)]})
    trainer = waybill.trl.GRPOTrainer(
        model,
        reward,
        args=trl.GRPOConfig(**given),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(NUMBERS)),
        processing_class=words,
        recorded=routes_of(model),
        mode=mode,
        rollout_func=rollout_with(Engine(model), words),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mode", choices=("rollout", "off"), default="rollout")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps: expected 1 or more, found {options.steps}")
    for line in train(options.steps, options.mode, options.seed).state.log_history:
        if "reward" in line:
            print(
                f"step {line['step']}: reward {line['reward']:.3f}, {line['replay/token_differ']:.1%} of "
                f"{line['replay/forced_rows']:.0f} rows would have gone elsewhere"
            )


if __name__ == "__main__":
    main()
