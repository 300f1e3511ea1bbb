#!/usr/bin/env bash
# `waybill convert`: answers of other systems into a dump; what is refused leaves nothing behind.
# usage: check_convert.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
answers=$source/tests/golden/import
run=$scratch/run.wbr

# convert LAYOUT MODEL ANSWERS [OPTION...]: in $run
convert() {
    local layout=$1 model=$2 file=$3
    shift 3
    "$waybill" convert --from "$layout" --model "$answers/$model" "$file" -o "$run" "$@"
}

# refused CODE MESSAGE COMMAND... : and no file is left
refused() {
    local code=$1 message=$2
    shift 2
    expect "$code" "$@"
    err_has "$message"
    out_is_empty
    [ ! -e "$run" ] || fault "$*: a file is left behind"
    [ -z "$(find "$scratch" -name "*.tmp")" ] || fault "$*: a temporary file is left"
    rm -f "$run"
}

expect 0 "$waybill" convert --help
out_has "usage: waybill convert --from LAYOUT --model DIR"
err_is_empty

# ---- what is read is a dump as any other, of the model that the library would open
expect 0 convert vllm narrow "$answers/good_vllm_u1.jsonl"
out_has "1 records, 7 tokens, 6 rows, 0 missing, 0 skipped"
err_is_empty
expect 0 "$waybill" verify "$run"
expect 0 "$waybill" cat --routes "$run"
out_has '{"rid":"cmpl-1","group":0,"sample":0,"prompt_len":4,"n_tokens":7,"finish":"stop"'
expect 0 "$waybill" inspect "$run"
out_has "3 MoE layers of 4"
cp "$run" "$scratch/before.wbr"
refused_over() {
    expect 1 convert vllm narrow "$answers/good_vllm_u2.jsonl"
    cmp -s "$run" "$scratch/before.wbr" || fault "a dump that was there is another now"
}
refused_over
err_has "expected a path where nothing is, found a file (--force replaces it)"
expect 0 convert nemo-rl narrow "$answers/good_nemo-rl_int16.jsonl" --force
cmp -s "$run" "$scratch/before.wbr" && fault "--force left the dump that was there"
expect 0 "$waybill" verify "$run"
rm "$run"

# ---- a dump appears at its path when it is whole: one whose command was killed is not there
# A good request, and refusals that nobody reads: the command waits at them, with the dump begun, until it is killed.
{
    cat "$answers/good_vllm_u1.jsonl"
    for _ in {1..2000}; do cat "$answers/bad_vllm_cpu_zeros.jsonl"; done
} >"$scratch/many.jsonl"
mkfifo "$scratch/unread"
exec 9<>"$scratch/unread"
"$waybill" convert --from vllm --model "$answers/narrow" "$scratch/many.jsonl" -o "$run" --skip-bad 2>&9 >"$scratch/out" 9>&- &
killed=$!
for _ in {1..100}; do
    [ ! -e "$run.$killed.tmp" ] && [ ! -e "$run" ] || break
    sleep 0.1
done
[ -e "$run.$killed.tmp" ] || fault "no dump was begun beside its path"
kill -KILL $killed
wait $killed 2>/dev/null
exec 9>&-
[ ! -e "$run" ] || fault "a dump that is not whole is at its path"
rm -f "$run.$killed.tmp"

"$waybill" convert --from vllm --model "$answers/narrow" "$answers/good_vllm_u1.jsonl" -o - 2>"$scratch/err" >"$scratch/piped.wbr" ||
    fault "to standard output: exit code $?"
err_has "1 records, 7 tokens, 6 rows"
expect 0 "$waybill" verify "$scratch/piped.wbr"
"$waybill" convert --to vllm "$scratch/piped.wbr" -o - 2>"$scratch/err" >"$scratch/piped.jsonl" || fault "--to: exit code $?"
err_has "1 records"
expect 0 convert vllm narrow "$scratch/piped.jsonl"
expect 1 "$waybill" convert --to vllm "$run" -o "$scratch/piped.jsonl"
err_has "found a file (--force replaces it)"
expect 0 "$waybill" convert --to vllm "$run" -o "$scratch/piped.jsonl" --force
rm "$run"

# ---- from standard input, by all its names, and in a pipe
for name in - /dev/stdin; do
    "$waybill" convert --from nemo-rl --model "$answers/narrow" -o "$run" "$name" \
        <"$answers/good_nemo-rl_int16.jsonl" >"$scratch/out" 2>"$scratch/err" || fault "$name: exit code $?"
    out_has "1 records"
    rm "$run"
    cat "$answers/good_verl_batch.npz" | "$waybill" convert --from=verl --model "$answers/narrow" --output "$run" "$name" \
        >"$scratch/out" 2>"$scratch/err" || fault "a pipe as $name: exit code $?"
    out_has "2 records, 14 tokens, 12 rows"
    rm "$run"
done

# ---- routes alone are said to be that
expect 0 convert slime narrow "$answers/good_slime_batch_alone.npy"
err_has "good_slime_batch_alone.npy has routes without tokens"
expect 0 "$waybill" stats "$run"
rm "$run"

# ---- what cannot be: the first one ends it, or is left out and said
refused 1 "request cmpl-1: every id of all 6 rows is zero" convert vllm narrow "$answers/bad_vllm_cpu_zeros.jsonl"
cat "$answers"/{bad_vllm_cpu_zeros,good_vllm_outputs,bad_vllm_layers}.jsonl >"$scratch/mixed.jsonl"
refused 1 "mixed.jsonl: line 1: request cmpl-1: " convert vllm narrow "$scratch/mixed.jsonl"
expect 0 convert vllm narrow "$scratch/mixed.jsonl" --skip-bad
out_has "1 records, 7 tokens, 6 rows, 0 missing, 2 skipped"
err_has "waybill: skipped: $scratch/mixed.jsonl: line 1: request cmpl-1: every id"
err_has "waybill: skipped: $scratch/mixed.jsonl: line 3: request cmpl-1: layers: expected"
rm "$run"
refused 1 "expected requests, found none that can be taken" convert vllm narrow "$answers/bad_vllm_cpu_zeros.jsonl" --skip-bad
cat "$answers/good_vllm_u1.jsonl" "$answers/good_vllm_u1.jsonl" >"$scratch/twice.jsonl"
refused 1 "twice.jsonl: line 2: request cmpl-1: expected an id of its own, found that of an earlier request, number 0" convert vllm narrow "$scratch/twice.jsonl"
grep -q "\.tmp" "$scratch/err" && fault "a temporary name is said"
: >"$scratch/empty"
refused 1 "expected requests, found none" convert vllm narrow "$scratch/empty"
refused 1 "nothing.jsonl" convert vllm narrow "$scratch/nothing.jsonl"
refused 1 "experts 0..299, found uint8" convert vllm wide "$answers/bad_vllm_u1_of_300.jsonl"

# ---- a model that the engine does not run, by its config.json; tokens that the model does not have
mkdir "$scratch/qwen2_moe"
sed 's/"qwen3_moe"/"qwen2_moe"/' "$answers/narrow/config.json" >"$scratch/qwen2_moe/config.json"
expect 0 "$waybill" convert --from vllm --model "$scratch/qwen2_moe" "$answers/good_vllm_u1.jsonl" -o "$run"
expect 0 "$waybill" inspect "$run"
out_has "qwen2_moe"
rm "$run"
mkdir "$scratch/few"
sed 's/"vocab_size": 128/"vocab_size": 2/' "$answers/narrow/config.json" >"$scratch/few/config.json"
refused 1 "position 0: expected a token of the model's, 0..1, found" "$waybill" convert --from vllm --model "$scratch/few" \
    "$answers/good_vllm_u1.jsonl" -o "$run"

# ---- command lines
refused 2 "--from or --to is needed" "$waybill" convert --model "$answers/narrow" "$answers/good_vllm_u1.jsonl" -o "$run"
refused 2 "--model is needed" "$waybill" convert --from vllm "$answers/good_vllm_u1.jsonl" -o "$run"
refused 2 "--output is needed" "$waybill" convert --from vllm --model "$answers/narrow" "$answers/good_vllm_u1.jsonl"
refused 2 "--output needs an argument" "$waybill" convert --from vllm --model "$answers/narrow" "$answers/good_vllm_u1.jsonl" -o
refused 2 "ANSWERS or DUMP is needed" "$waybill" convert --to npz -o "$run"
refused 2 "no option -x" "$waybill" convert -x
refused 2 "expected one of vllm sglang" convert vlm narrow "$answers/good_vllm_u1.jsonl"
refused 1 "config.json" convert vllm nothing "$answers/good_vllm_u1.jsonl"
refused 1 "narrow/config.json/config.json: expected a directory before the last /, found a file" convert vllm narrow/config.json \
    "$answers/good_vllm_u1.jsonl"
cp "$answers/good_vllm_u1.jsonl" "$scratch/answers.jsonl"
expect 2 "$waybill" convert --from vllm --model "$answers/narrow" "$scratch/answers.jsonl" -o "$scratch/answers.jsonl"
cmp -s "$answers/good_vllm_u1.jsonl" "$scratch/answers.jsonl" || fault "the answers were written over"
expect 2 "$waybill" convert --from vllm --to vllm "$scratch/answers.jsonl" -o "$scratch/x"
expect 2 "$waybill" convert --to vllm --model "$answers/narrow" "$golden/good_u8.wbr" -o "$scratch/x"
err_has "--model goes with --from"
expect 2 "$waybill" convert --from vLLM --model "$answers/narrow" "$scratch/answers.jsonl" -o "$scratch/x"
err_has "vLLM"
expect 2 "$waybill" convert --to vlm "$golden/good_u8.wbr" -o "$scratch/x"
err_has "expected one of npz sglang vllm verl slime"

# ---- and back: what is written out and read again is the same dump but for its file
expect 0 convert verl narrow "$answers/good_verl_batch.npz"
expect 0 "$waybill" cat --tokens --routes "$run"
cp "$scratch/out" "$scratch/first"
for layout in sglang vllm verl slime; do
    expect 0 "$waybill" convert --to $layout "$run" --force -o "$scratch/exported"
    out_has "2 records, 0 skipped"
    expect 0 "$waybill" convert --from $layout --model "$answers/narrow" "$scratch/exported" -o "$scratch/again.wbr"
    expect 0 "$waybill" cat --tokens --routes "$scratch/again.wbr"
    cmp -s "$scratch/first" "$scratch/out" || fault "$layout: another dump after export and import"
    rm "$scratch/again.wbr"
done
expect 1 "$waybill" convert --to vllm "$golden/good_u8_valid.wbr" -o "$scratch/refused"
err_has "expected a row, which vLLM's layout has for each"
[ ! -e "$scratch/refused" ] || fault "a refused export left a file"
expect 1 "$waybill" convert --to vllm --skip-bad "$golden/good_u8_valid.wbr" -o "$scratch/refused"
err_has "waybill: skipped: record "
err_has "expected records that can be written, found none"
[ ! -e "$scratch/refused" ] || fault "an export of nothing left a file"
expect 0 "$waybill" convert --from sglang --model "$answers/narrow" "$answers/good_sglang_aborted.jsonl" -o "$scratch/aborted.wbr"
expect 1 "$waybill" convert --to verl "$scratch/aborted.wbr" -o "$scratch/refused"
err_has "record sg-1: expected rows, found none"
expect 0 "$waybill" convert --to verl --skip-bad "$scratch/aborted.wbr" -o "$scratch/without"
out_has "1 records, 1 skipped"
err_has "waybill: skipped: record sg-1: expected rows, found none"
expect 0 "$waybill" convert --from verl --model "$answers/narrow" "$scratch/without" -o "$scratch/without.wbr"
out_has "1 records, 7 tokens"
# ---- what indexers chose: of a config.json that says which layers have one, and back where the layout has a place
expect 0 "$waybill" convert --from sglang --model "$answers/indexed" "$answers/good_sglang_indexer.jsonl" -o "$scratch/indexed.wbr"
err_is_empty
expect 0 "$waybill" verify "$scratch/indexed.wbr"
"$waybill" cat --json "$scratch/indexed.wbr" >"$scratch/indexed"
python 'import json, sys
manifest = json.load(open(sys.argv[1] + "/manifest.json"))
truth = [t for t in manifest["truth"] if t["model"] == "indexed"]
for line, t in zip(open(sys.argv[2]), truth):
    assert json.loads(line)["indexer"] == {"start": 0, "rows": t["indexer"]}, t' "$answers" "$scratch/indexed" || fault "another choice of indexers"
for layout in sglang slime; do
    expect 0 "$waybill" convert --to $layout "$scratch/indexed.wbr" -o "$scratch/indexed.$layout"
    err_is_empty
    expect 0 "$waybill" convert --from $layout --model "$answers/indexed" "$scratch/indexed.$layout" -o "$scratch/again.wbr"
    "$waybill" cat --json "$scratch/again.wbr" | cmp -s "$scratch/indexed" - || fault "$layout: other indexer rows after export and import"
    rm "$scratch/again.wbr"
done
python 'import base64, json, struct, sys
for line, out in zip(open(sys.argv[1]), open(sys.argv[2])):
    rows, meta = json.loads(line)["indexer"]["rows"], json.loads(out)["meta_info"]
    topk = struct.unpack(f"<{len(rows) * 2 * 3}i", base64.b64decode(meta["indexer_topk"]))
    assert meta["indexer_topk_num_layers"] == 2
    assert list(topk) == [p for row in rows for cell in row for p in cell + [-1] * (3 - len(cell))], rows' \
    "$scratch/indexed" "$scratch/indexed.sglang" || fault "indexer_topk is not SGLang's"
for layout in npz vllm verl; do
    expect 0 "$waybill" convert --to $layout "$scratch/indexed.wbr" -o "$scratch/indexed.$layout"
    err_has "waybill: what indexers chose is left out: $layout has no place for it"
done
# A model without indexers: it is said that its records lack them.
sed 's/^  4/  0/' "$answers/indexed/config.json" >"$scratch/few/config.json"
expect 0 "$waybill" convert --from sglang --model "$scratch/few" "$answers/good_sglang_indexer.jsonl" -o "$scratch/unindexed.wbr"
err_has "waybill: what indexers chose in 2 requests is left out: by the config.json in $scratch/few the model has none"
expect 1 "$waybill" convert --from sglang --model "$answers/indexed" "$answers/bad_sglang_indexer_future.jsonl" -o "$scratch/refused"
err_has "bad_sglang_indexer_future.jsonl: line 1: request sg-4: record sg-4: indexer: position 10, model layer 3: expected positions below 2, found 2"
expect 1 "$waybill" convert --from sglang --model "$answers/indexed" "$answers/bad_sglang_indexer_missing_row.jsonl" -o "$scratch/refused"
err_has "request sg-4: record sg-4: indexer: position 17, model layer 1: expected a count of 3, found 0"

expect 1 "$waybill" convert --to npz "$golden/bad_version_2.wbr" -o "$scratch/refused"
[ ! -w /dev/full ] || { expect 1 "$waybill" convert --to npz "$run" -o /dev/full && err_has "/dev/full"; }

# numpy reads the archives
for python in python3 /usr/bin/python3 ''; do
    [ -z "$python" ] || ! "$python" -c 'import numpy' 2>/dev/null || break
done
if [ -n "$python" ]; then
    for layout in npz verl slime; do expect 0 "$waybill" convert --to $layout "$run" -o "$scratch/$layout.npz"; done
    "$python" -c 'import numpy, json, sys
npz, verl, slime = (numpy.load(sys.argv[1] + "/" + name + ".npz") for name in ("npz", "verl", "slime"))
for i, line in enumerate(open(sys.argv[1] + "/first")):
    r = json.loads(line)
    a, b = npz["offsets"][i:i + 2]
    assert npz["tokens"][a:b].tolist() == r["tokens"] and npz["rid"][i].decode() == r["rid"]
    rows = [row for run in r["routes"] for row in run["rows"]]
    assert npz["routes"][a:b - 1].tolist() == rows and npz["valid"][a:b].tolist() == [True] * len(rows) + [False]
    assert npz["logprobs"][a + r["prompt_len"]:b].tolist() == r["logprobs"]
    assert slime[f"rollout_routed_experts_{i}"][:, 1:].tolist() == rows and slime[f"rid_{i}"] == r["rid"].encode()
    mask = verl["attention_mask"][i] == 1
    assert verl["input_ids"][i][mask].tolist() == r["tokens"]
    assert verl["routed_experts"][i][mask][:-1, 1:].tolist() == rows
assert npz["moe_layers"].tolist() == [1, 2, 3] and i == 1' "$scratch" 2>"$scratch/err" || fault "numpy reads something else"
fi
finish "answers of other systems become dumps, and dumps answers"
