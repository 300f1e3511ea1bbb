#!/usr/bin/env python3
"""Writes what Hugging Face transformers means where a key of a config.json is absent, for test_config_defaults.

Needs transformers 5; the tests themselves only read what was written.

    make_config_defaults.py tests/golden/config_defaults.json

For each family the keys that a file must have ("required"), with the values of its class, and the whole of what the class makes
of a file with these keys alone ("complete").
"""
import json
import sys

import transformers

FAMILIES = ["qwen2_moe", "qwen3_moe", "olmoe", "mixtral", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5_moe_text",
            "deepseek_v4"]
REQUIRED = ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "moe_intermediate_size",
            "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"]
# Of what the class has no number for, or one that does not divide.
SET = {"deepseek_v2": dict(num_experts_per_tok=6), "glm4_moe": dict(head_dim=128)}
# What every configuration has, of whatever model; and layers for multi-token prediction: the files have them or not, and a decoder
# computes the same.
LEFT_OUT = set(transformers.PreTrainedConfig().to_dict()) - {"tie_word_embeddings"} | {"num_nextn_predict_layers"}


def of_family(family):
    given = SET.get(family, {})
    complete = transformers.AutoConfig.for_model(family, **given).to_dict()
    required = {key: complete[key] for key in REQUIRED if key in complete} | given
    return dict(required=required, complete=required | {key: value for key, value in complete.items() if key not in LEFT_OUT})


def main():
    with open(sys.argv[1], "w") as file:
        json.dump(dict(transformers=transformers.__version__, families={f: of_family(f) for f in FAMILIES}), file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
