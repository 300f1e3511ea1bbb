"""Time and memory of every subcommand of `waybill` that reads a dump.

usage: dump_commands.py WAYBILL DUMP SCRATCH

DUMP is written by `bench_eplb_dump DUMP 2048`; SCRATCH is a new directory, which is removed at the end and needs room for
2.4 times the dump. Prints for each command seconds of wall clock and of processor time, the most memory of its own (RssAnon) and with what was mapped of the
dump (VmHWM), and how much it printed.
"""
import json
import os
import resource
import shutil
import subprocess
import sys
import time

COMMANDS = """inspect DUMP
verify DUMP
verify --tokens DUMP
stats --ranks 16 DUMP
diff DUMP DUMP
cat DUMP
cat --json DUMP
merge SCRATCH/merged.wbr DUMP
split --records 100 DUMP SCRATCH/split
salvage DUMP SCRATCH/salvaged.wbr
convert --to npz DUMP -o SCRATCH/arrays.npz
convert --to vllm DUMP -o SCRATCH/kept.jsonl
convert --from vllm --model SCRATCH/model SCRATCH/kept.jsonl -o SCRATCH/imported.wbr
report DUMP -o SCRATCH/report.html
eplb --ranks 16 --slots 144 --algorithm deepseek DUMP"""

# Whose routes those of DUMP are, as answers have to be told.
MODEL = {
    "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936, "norm_topk_prob": True, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "moe_intermediate_size": 768, "intermediate_size": 6144, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
KEPT = ("model", "kept.jsonl")


def kibibytes(pid, key):
    with open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) for line in status if line.startswith(key)), 0)


def run(arguments):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    count = subprocess.Popen(["wc", "-c"], stdin=process.stdout, stdout=subprocess.PIPE)
    process.stdout.close()
    own = most = 0
    while process.poll() is None:
        try:
            own, most = max(own, kibibytes(process.pid, "RssAnon")), max(most, kibibytes(process.pid, "VmHWM"))
        except OSError:
            break
        time.sleep(0.01)
    process.wait()
    wall, printed = time.monotonic() - start, int(count.communicate()[0])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return process.returncode, wall, cpu, own / 1024, most / 1024, printed / 1e6


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    waybill, dump, scratch = sys.argv[1:]
    os.makedirs(os.path.join(scratch, "model"))
    with open(os.path.join(scratch, "model", "config.json"), "w") as file:
        json.dump(MODEL, file)
    print("| command | wall, s | processor, s | own, MiB | with the pages of files, MiB | printed, MB |\n|---|---|---|---|---|---|")
    for command in COMMANDS.splitlines():
        words = command.replace("DUMP", dump).replace("SCRATCH", scratch).split()
        code, wall, cpu, own, most, printed = run([waybill, *words])
        failed = "" if code == 0 else f" (exit status {code})"
        print(f"| {command.replace('SCRATCH/', '')}{failed} | {wall:.1f} | {cpu:.2f} | {own:.1f} | {most:.1f} | {printed:.1f} |", flush=True)
        for name in set(os.listdir(scratch)) - set(KEPT):
            path = os.path.join(scratch, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    shutil.rmtree(scratch)
