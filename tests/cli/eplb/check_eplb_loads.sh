#!/usr/bin/env bash
# `waybill eplb` on files of counts and with maps of other engines: figures, layers without counts, MoE layers, sums over ranks,
# one rank's view, layouts in and out, wrong usages. usage: check_eplb_loads.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
waybill_eplb() { "$waybill" eplb "$@"; }
judge() {
    python "
import json, sys
run = json.load(open(sys.argv[1]))
rows = {r['placement']: r for r in run['rows']}
near = lambda a, b: abs(a - b) <= 1e-6
$1" "$scratch/out" || fault "JSON: $1"
}
published=$source/tests/golden/loads/deepseek_v3_shape.json
torch=$source/tests/golden/torch
decode=(--ranks 32 --slots 288)

# ---- figures: 61 rows of which three are zero. The placements of deepseek are eplb.py's, byte for byte, on these counts:
# make_eplb_oracle.py eplb.py DIR --loads deepseek_v3_shape.json, then eplb_oracle DIR
expect 0 waybill_eplb --loads "$published" "${decode[@]}" --algorithm deepseek,balanced --json
err_is_empty
judge 'assert run["skipped_layers"] == [0, 1, 2] and run["one_rank_layers"] == [], run["skipped_layers"]
assert list(rows) == ["none", "deepseek", "balanced", "fake"]
t = run["traffic"]
assert [t["layers"], t["experts"], t["top_k"], t["steps"], t["micro_batches"], t["passes"]] == [61, 256, None, 1, 1, 1], t
d, b = rows["deepseek"], rows["balanced"]
assert near(d["max_over_mean"], 1.00686492) and near(d["max_over_mean_worst"], 1.013936), d
assert near(d["balancedness"], 0.993188473) and near(d["min_layer"], 1 / 1.013936), d
assert b["max_over_mean_worst"] < 1.0003 and b["changed_slots"] <= 58 * 288, b
assert rows["fake"]["max_over_mean"] is None and rows["fake"]["balancedness"] > 0.999'
expect 0 waybill_eplb --loads "$published" "${decode[@]}" --nodes 4 --groups 8 --algorithm deepseek --json
judge 'd = rows["deepseek"]
assert near(d["max_over_mean"], 1.18382247) and near(d["max_over_mean_worst"], 2.098519), d'
expect 0 waybill_eplb --loads "$published" --ranks 64 --slots 320 --nodes 8 --groups 8 --algorithm deepseek --json
judge 'd = rows["deepseek"]
assert near(d["max_over_mean"], 1.92897701) and near(d["max_over_mean_worst"], 3.91389685), d'
# Balancedness does not depend on the dispatch: replicas share evenly.
for dispatch in static dynamic quota; do
    expect 0 waybill_eplb --loads "$published" "${decode[@]}" --algorithm deepseek --dispatch $dispatch --json
    judge 'assert near(rows["deepseek"]["balancedness"], 0.993188473), rows["deepseek"]'
done
expect 0 waybill_eplb --loads "$published" "${decode[@]}" --algorithm deepseek,balanced
out_has "no counts, and so no figures and no change, in layers 0-2"
out_has "deepseek 1.0069 (1.0139), balanced 1.0002"
expect 0 waybill_eplb --loads "$published" --ranks 4096 --slots 8192 --nodes 512 --algorithm deepseek --json
judge 'assert rows["deepseek"]["balancedness"] > 3 * rows["none"]["balancedness"]'

# ---- layers without counts keep the placement to start from
for algorithm in deepseek balanced incremental microbatch; do
    expect 0 waybill_eplb --loads "$published" "${decode[@]}" --algorithm $algorithm --trials 1000 --save "$scratch/p.json"
    python 'import json, sys
m = json.load(open(sys.argv[1]))["physical_to_logical_map"]
trivial = [i % 256 for i in range(288)]
assert [row == trivial for row in m] == [True] * 3 + [False] * 58' "$scratch/p.json" || fault "$algorithm: rows of zeros"
done

# ---- which rows are MoE layers
expect 0 waybill_eplb --loads "$published" --moe-layers 3-60 "${decode[@]}" --algorithm deepseek --json --save "$scratch/t.json" \
    --save-as trtllm
judge 'assert run["skipped_layers"] == [] and run["traffic"]["layers"] == 58
assert near(rows["deepseek"]["max_over_mean"], 1.00686492), rows["deepseek"]'
python 'import json, sys
m = json.load(open(sys.argv[1]))["initial_global_assignments"]
assert list(m) == [str(l) for l in range(3, 61)] and all(len(r) == 288 for r in m.values())' "$scratch/t.json" || fault "layer ids"
expect 0 waybill_eplb --loads "$published" --moe-layers 2,3-60 "${decode[@]}" --algorithm none --json
judge 'assert run["skipped_layers"] == [2], run["skipped_layers"]'
rows_of() { # N ROW... : a file of rows
    printf '[%s]' "$(printf '%s,' "$@" | sed 's/,$//')" >"$scratch/rows.json"
}
zeros='[0,0,0,0,0,0,0,0]' some='[9,1,2,3,4,5,6,7]'
small=(--ranks 4 --slots 12 --algorithm balanced)
rows_of $zeros $some $zeros $some
expect 0 waybill_eplb --loads "$scratch/rows.json" --moe-layers 1,3 "${small[@]}" --json
judge 'assert run["traffic"]["layers"] == 2 and run["skipped_layers"] == []'
expect 1 waybill_eplb --loads "$scratch/rows.json" --moe-layers 0,1 "${small[@]}"
err_has "rows.json: expected no counts in hidden layer 3, which is no MoE layer"
expect 1 waybill_eplb --loads "$scratch/rows.json" --moe-layers 1-5 "${small[@]}"
err_has "rows.json: expected a row for each of 5 MoE layers or of all hidden layers"
# A model says the same: its layer 1 of 4 is dense, 8 experts, 2 chosen.
model=$source/tests/golden/oracles/qwen3_moe_dense_list
rows_of $some $zeros $some
expect 0 waybill_eplb --loads "$scratch/rows.json" --model "$model" "${small[@]}" --json
judge 't, c = run["traffic"], run["cost"]
assert t["layers"] < 3 and t["top_k"] and run["skipped_layers"] == [] and not c["sizes_assumed"], (t, c)'
rows_of '[1,2]' '[0,0]' '[3,4]'
expect 1 waybill_eplb --loads "$scratch/rows.json" --model "$model" "${small[@]}"
err_has "experts of --model, found 2"
expect 1 waybill_eplb --loads "$published" --model "$scratch/nothing" "${small[@]}"
err_has "nothing"

# A pipe is told apart from a file that is wrong, and not waited for.
mkfifo "$scratch/pipe"
expect 1 waybill_eplb --loads "$scratch/pipe" "${small[@]}"
err_has "--loads: $scratch/pipe: expected a regular file, whose size is known before it is read, found a pipe: write it to a file first"
expect 1 waybill_eplb --loads "$published" "${decode[@]}" --init "$scratch/pipe"
err_has "--init: $scratch/pipe: expected a regular file"

# ---- SGLang's recorder files: read without torch, summed over ranks, a pass a step
recorder=(--loads "$torch/good_recorder.pt" --loads "$torch/good_recorder_rank1.pt" --ranks 4 --slots 12 --algorithm balanced)
expect 0 waybill_eplb "${recorder[@]}" --json
err_is_empty
judge 't = run["traffic"]
assert t["steps"] == t["passes"] == 3 and t["micro_batches"] == 1 and len(t["files"]) == 2, t
assert t["name"] == "SGLang recorder, logical_count" and near(t["pass_tokens"], 3 * sum(100 + 15 + e for e in range(8))), t
assert len(rows["balanced"]["steps"]) == 3 and rows["balanced"]["steps"][1]["balancedness_stale"]'
expect 0 waybill_eplb "${recorder[@]}" --micro-batches 2 --json
judge 'assert run["traffic"]["steps"] == 2 and run["traffic"]["micro_batches"] == 2, run["traffic"]'
expect 0 waybill_eplb "${recorder[@]}" --micro-batches 3 --json
judge 'assert run["traffic"]["steps"] == 1, run["traffic"]'
expect 0 waybill_eplb "${recorder[@]}"
out_has "SGLang recorder, logical_count: 4 MoE layers, 8 experts, 3 steps of 1 micro-batch"
out_has "and 1 more, summed: 3 passes"
expect 0 waybill_eplb --loads "$torch/good_tensor.pt" --ranks 4 --slots 12 --algorithm none --json
judge 'assert run["traffic"]["name"] == "PyTorch tensor"'
expect 1 waybill_eplb --loads "$torch/good_recorder.pt" --loads "$torch/good_one_pass.pt" "${small[@]}"
err_has "good_one_pass.pt: expected 3 passes"
expect 1 waybill_eplb --loads "$torch/bad_code.pt" "${small[@]}"
err_has "bad_code.pt: pickle byte"
err_has "system"
[ ! -e waybill-ran-a-pickle ] || fault "a pickle was run"
for file in "$torch"/bad_*.pt; do
    expect 1 waybill_eplb --loads "$file" "${small[@]}"
    err_has "${file##*/}"
    out_is_empty
done

# ---- a recording that is a ring is zero where it was not written: no perfect steps, but none (rule 33)
pass_a="[$some,[7,0,3,1,0,0,2,9]]" pass_b="[[1,2,30,4,5,6,7,8],[0,9,9,0,0,1,1,1]]" empty="[$zeros,$zeros]"
rows_of "$pass_a" "$pass_b"
full_args=(--ranks 4 --slots 12 --algorithm deepseek,balanced)
expect 0 waybill_eplb --loads "$scratch/rows.json" "${full_args[@]}" --json --chart "$scratch/full.svg"
cp "$scratch/out" "$scratch/full"
judge 'assert run["skipped_passes"] == [], run["skipped_passes"]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${full_args[@]}"
out_lacks "without counts"
rows_of "$empty" "$pass_a" "$empty" "$pass_b" $(for _ in $(seq 96); do echo "$empty"; done)
expect 0 waybill_eplb --loads "$scratch/rows.json" "${full_args[@]}" --json --chart "$scratch/ring.svg"
judge 'full = json.load(open("'"$scratch/full"'"))
assert run["skipped_passes"] == [0, 2] + list(range(4, 100)), run["skipped_passes"]
assert run["traffic"]["pass_tokens"] == full["traffic"]["pass_tokens"]
for a, b in zip(run["rows"], full["rows"]):
    for key in a:
        if key not in ("steps", "solve_seconds"): assert a[key] == b[key], (a["placement"], key, a[key], b[key])
    for step, figures in enumerate(a["steps"]):
        if step in (1, 3): assert figures["balancedness"] == b["steps"][step // 2]["balancedness"], figures
        else: assert set(figures.values()) == {None}, figures
    assert a["steps"][1]["balancedness_stale"] is None and a["steps"][3]["balancedness_stale"] > 0, a["steps"][:4]'
cmp -s "$scratch/full.svg" "$scratch/ring.svg" || fault "the chart is not that of the last step with tokens"
expect 0 waybill_eplb --loads "$scratch/rows.json" "${full_args[@]}" --micro-batches 2 --json
judge 'assert len(rows["none"]["steps"]) == 50 and rows["none"]["steps"][1]["seconds"] > 0 and rows["none"]["steps"][2]["seconds"] is None'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${full_args[@]}"
out_has "98 of 100 passes without counts, which are in no figure"

# ---- counts of one rank alone are named
rows_of '[0,0,5,6,0,0,0,0]' $some '[0,0,1,0,0,0,0,0]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}" --json
err_has "warning: in 2 of 3 layers all counts lie in the experts of one rank (layer 0: rank 1 of 4)"
judge 'assert run["one_rank_layers"] == [{"layer": 0, "rank": 1}, {"layer": 2, "rank": 1}], run["one_rank_layers"]'
cp "$scratch/rows.json" "$scratch/rank1.json"
rows_of '[3,0,0,0,0,0,0,0]' $zeros '[0,0,0,0,0,0,0,1]'
expect 0 waybill_eplb --loads "$scratch/rank1.json" --loads "$scratch/rows.json" "${small[@]}"
err_is_empty
# Of an engine of other ranks: experts 3 to 5 of 8 are no block of 1, 2, 4 or 8 ranks.
rows_of '[0,0,0,5,6,0,0,0]' '[0,0,0,0,6,1,0,0]' $zeros
for ranks in 1 2 4 8; do
    expect 0 waybill_eplb --loads "$scratch/rows.json" --ranks $ranks --slots 16 --algorithm balanced --json
    err_has "warning: in 2 of 3 layers all counts lie in 3 of 8 experts, from 3 on, as one rank of the engine that counted has them"
    judge 'assert run["one_rank_experts"] == {"first": 3, "experts": 3, "layers": 2}, run["one_rank_experts"]'
done
expect 0 waybill_eplb --loads "$published" "${decode[@]}" --algorithm none --json
judge 'assert run["one_rank_experts"] is None'
# More than a dispatch can send, no whole numbers, and nothing.
rows_of '[3e9,0,0,0,0,0,0,1]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}" --json
cp "$scratch/out" "$scratch/first"
rows_of '[3e12,0,0,0,0,0,0,1000]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}" --json --chart "$scratch/c.svg"
judge 'other = {r["placement"]: r for r in json.load(open("'"$scratch/first"'"))["rows"]}
for name in rows:
    a, b = rows[name], other[name]
    assert near(a["balancedness"], b["balancedness"]) and abs(a["seconds"] / b["seconds"] - 1000) < 0.01, (a, b)
    assert abs(a["bound_seconds"] / b["bound_seconds"] - 1000) < 0.01, (a, b)'
rows_of $zeros $zeros
expect 1 waybill_eplb --loads "$scratch/rows.json" "${small[@]}"
err_has "rows.json: expected counts, found none in 2 layers"
# Shares of a layer's choices are as many choices: all figures are those of the counts.
rows_of '[0.4,0.2,0.1,0.1,0.05,0.05,0.05,0.05]' '[0.3,0.2,0.25,0.0625,0.0625,0.0625,0.03125,0.03125]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}" --json
err_has "waybill eplb: warning: --loads $scratch/rows.json: loads are shares, no counts of tokens: seconds and bytes are told as of 1048576 choices"
cp "$scratch/out" "$scratch/first"
cp "$scratch/rows.json" "$scratch/shares.json"
rows_of '[419430.4,209715.2,104857.6,104857.6,52428.8,52428.8,52428.8,52428.8]' '[314572.8,209715.2,262144,65536,65536,65536,32768,32768]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}" --json
err_is_empty
judge 'other = {r["placement"]: r for r in json.load(open("'"$scratch/first"'"))["rows"]}
assert rows["none"]["ratio_to_bound"] > 1.1, rows["none"]
for name in rows:
    a, b = rows[name], other[name]
    for key in ("balancedness", "seconds", "bound_seconds", "ratio_to_bound", "min_layer"):
        assert a[key] > 0 and a[key] == b[key], (name, key, a[key], b[key])'
expect 0 waybill_eplb --loads "$scratch/shares.json" --loads "$scratch/shares.json" "${small[@]}"
err_has "as of 2097152 choices"
rows_of '[0.49,0.3,0.4,0.2,0.49,0.1,0.3,0.4]' # relative in another way: of no sum
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}" --json
err_has "loads are shares"
judge 'assert rows["none"]["seconds"] > 0 and rows["none"]["ratio_to_bound"] > 1, rows["none"]'
rows_of '[1,0,0,0,0,0,0,0]' '[0,0,0,1,0,0,0,0]' # a token is no share
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}"
! grep -q "are shares" "$scratch/err" || fault "a token is taken for a share"
rows_of '[0.25,0.5,0.125,1,1,1,1,1]'
expect 0 waybill_eplb --loads "$scratch/rows.json" "${small[@]}"
err_is_empty

# ---- maps in each layout, out and in: the same figures; the layout is said
given=(--loads "$published" --moe-layers 3-60 "${decode[@]}")
for layout in sglang vllm trtllm ascend; do
    expect 0 waybill_eplb "${given[@]}" --algorithm balanced --json --save "$scratch/map.$layout" --save-as $layout
    [ $layout != trtllm ] || grep -q '^  3: \[[0-9,]*\]$' "$scratch/map.trtllm" || fault "trtllm: no YAML with numbers for keys"
    cp "$scratch/out" "$scratch/first"
    expect 0 waybill_eplb "${given[@]}" --algorithm none --json --init "$scratch/map.$layout"
    judge 'other = {r["placement"]: r for r in json.load(open("'"$scratch/first"'"))["rows"]}
assert near(rows["none"]["balancedness"], other["balanced"]["balancedness"]), rows["none"]
assert run["init"]["solved_by"] is None and run["init"]["path"].endswith("map.'$layout'"), run["init"]'
    expect 0 waybill_eplb "${given[@]}" --algorithm none --init "$scratch/map.$layout"
    case $layout in
    sglang) out_has "map.sglang: SGLang, physical_to_logical_map" ;;
    vllm) out_has "map.vllm: vLLM, bare array" ;;
    trtllm) out_has "map.trtllm: TensorRT-LLM, initial_global_assignments" ;;
    ascend) out_has "map.ascend: Ascend, layer_list" ;;
    esac
done
expect 1 waybill_eplb "${given[@]}" --slots 320 --algorithm none --init "$scratch/map.trtllm"
err_has "--init: $scratch/map.trtllm: initial_global_assignments.3 has 288 slots, expected 320"
expect 1 waybill_eplb --loads "$published" --moe-layers 0-60 "${decode[@]}" --algorithm none --init "$scratch/map.trtllm"
err_has "has 58 layers, expected 61"
expect 1 waybill_eplb "${given[@]}" --slots 320 --algorithm balanced --dead 2 --save "$scratch/dead" --save-as trtllm
err_has "slot 20 empty"

# ---- counts to start from are solved as was asked
hierarchical=(--nodes 4 --groups 8)
for algorithm in deepseek balanced incremental microbatch; do
    expect 0 waybill_eplb "${given[@]}" "${hierarchical[@]}" --algorithm $algorithm --init "$published" --json --trials 2000
    judge 'assert run["init"]["solved_by"] == "'$algorithm'" and run["init"]["layout"] == "logical_count", run["init"]
if "'$algorithm'" == "deepseek": assert near(rows["none"]["max_over_mean"], 1.18382247) and rows["deepseek"]["changed_slots"] == 0
if "'$algorithm'" == "balanced": assert rows["none"]["max_over_mean"] < 1.01, rows["none"]'
done
expect 0 waybill_eplb --loads "$published" "${decode[@]}" --algorithm none --init "$published"
out_has "deepseek_v3_shape.json: logical_count, solved by balanced"

# ---- the command line
refused() {
    local text=$1
    shift
    expect 2 waybill_eplb "$@"
    err_has "$text"
    err_has "usage: waybill eplb"
    out_is_empty
}
refused "not both" --loads "$published" --synthetic zipf "${decode[@]}"
refused "not both" --loads "$published" "$golden/good_u8.wbr" "${decode[@]}"
refused "--loads: expected a path, found none" --loads "" "${decode[@]}"
refused "--skew is of --synthetic" --loads "$published" "${decode[@]}" --skew 1
refused "--step-records is of a DUMP, and --loads has none" --loads "$published" "${decode[@]}" --step-records 1
refused "--moe-layers is of --loads" --synthetic zipf "${decode[@]}" --moe-layers 3-60
refused "--model is of --loads" "$golden/good_u8.wbr" "${decode[@]}" --model "$model"
refused "--moe-layers or --model, not both" --loads "$published" "${decode[@]}" --moe-layers 3-60 --model "$model"
for list in 3- -3 3-2 3,3 4,3 3,,4 3,4, x 3x 99999 1-65536 " 3"; do
    refused "--moe-layers: expected ascending numbers" --loads "$published" "${decode[@]}" --moe-layers "$list"
done
refused "--save-as: layout: expected one of sglang, vllm, trtllm, ascend, found yaml" --loads "$published" "${decode[@]}" \
    --algorithm balanced --save "$scratch/x" --save-as yaml
refused "--save-as is of --save" --loads "$published" "${decode[@]}" --save-as vllm
cp "$published" "$scratch/own.json"
refused "expected a file that is not read" --loads "$torch/good_recorder.pt" --loads "$scratch/own.json" "${small[@]}" \
    --save "$scratch/own.json"
cmp -s "$published" "$scratch/own.json" || fault "--save has written over a file of --loads"

finish "counts and maps of other engines are read and written as they should be"
