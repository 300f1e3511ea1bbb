#!/usr/bin/env bash
# check_reference.sh - the KL reference of waybill-grpo: at the start the policy itself, later its files; of another shape than the
# policy's it works, of another vocabulary it is refused. usage: check_reference.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
for python in python3 /usr/bin/python3 ''; do
    [ -n "$python" ] || { echo "skipped: no python3"; exit 77; }
    "$python" -c 'import json' 2>/dev/null && break
done
loud=(--prompts 8 --samples 4 --updates 2 --lr 3e-4 --seed 5)
common=("${loud[@]}" --quiet)
run 1 --make-base base --warmup-steps 10 --quiet || fail "make-base"

# deepen FROM TO TIMES: every layer TIMES times, so that rows of routes are as much wider
cat >deepen.py <<'END'
import json, os, re, struct, sys
source, target, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = json.load(open(source + "/config.json"))
data = open(source + "/model.safetensors", "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header, start = json.loads(data[8 : 8 + size]), 8 + size
out, body = {}, b""
for name, entry in header.items():
    if name == "__metadata__":
        continue
    layer = re.match(r"(model\.layers\.)(\d+)(\..*)", name)
    for copy in range(times if layer else 1):
        new = layer.group(1) + str(int(layer.group(2)) + copy * config["num_hidden_layers"]) + layer.group(3) if layer else name
        begin, end = entry["data_offsets"]
        out[new] = dict(entry, data_offsets=[len(body), len(body) + end - begin])
        body += data[start + begin : start + end]
config["num_hidden_layers"] *= times
os.mkdir(target)
json.dump(config, open(target + "/config.json", "w"))
text = json.dumps(out).encode()
text += b" " * (-len(text) % 8)
open(target + "/model.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + body)
END
"$python" deepen.py base deep 5 || fail "deepen"

echo "== at the start the policy: a KL of exactly 0, and the files are read once"
run 2 --model base --out own "${common[@]}" --steps 1 --updates 1 --rollout-dtype f32 --kl-coef 0.1 >log 2>&1 || { cat log; fail "reference"; }
[ "$(field own/metrics.jsonl kl_reference)" = 0.0 ] || fail "the reference is not the policy: $(field own/metrics.jsonl kl_reference)"
if command -v strace >/dev/null; then
    strace -f -e trace=openat -o trace "$grpo" --model base --out traced "${common[@]}" --steps 1 --kl-coef 0.1 >log 2>&1
    [ "$(grep -c 'base/model.safetensors' trace)" -le 1 ] || fail "the weights were opened $(grep -c 'base/model.safetensors' trace) times"
fi

echo "== a run without one, resumed with one of another shape, in whose directory there is a file that is not the model's"
cp base/model.safetensors deep/old.safetensors
run 2 --model base --out other "${common[@]}" --steps 1 >log 2>&1 || { cat log; fail "first part"; }
run 2 --model deep --out other "${loud[@]}" --steps 3 --resume --kl-coef 0.1 >log 2>&1 || { cat log; fail "a reference of 5 times the layers"; }
[ "$(grep -c 'deep/old.safetensors: not of this model, ignored' log)" = 1 ] || { cat log; fail "nothing is said of the file that does not count"; }
field other/metrics.jsonl kl_reference | tail -n 1 | awk '{ exit !($1 > 0) }' || fail "a deeper reference: expected a KL above 0"

echo "== another vocabulary"
run 2 --model base --out words "${common[@]}" --steps 1 >log 2>&1 || { cat log; fail "first part"; }
if run 2 --model "$source/tests/golden/qwen3_moe" --out words "${common[@]}" --steps 3 --resume --kl-coef 0.1 >log 2>&1; then fail "another vocabulary was accepted"; fi
grep -q "as reference: expected the policy's vocabulary of 16, found" log || { cat log; fail "the two vocabularies are not named"; }
echo "all well"
