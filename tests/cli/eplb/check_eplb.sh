#!/usr/bin/env bash
# `waybill eplb` on golden dumps and on synthetic loads: tables, JSON, charts, saved placements, wrong usages, 4,096 ranks.
# usage: check_eplb.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
waybill_eplb() { "$waybill" eplb "$@"; }
# judge CODE : Python that reads the JSON of $scratch/out as `run` and its rows as `rows`
judge() {
    python "
import json, sys
run = json.load(open(sys.argv[1]))
rows = {r['placement']: r for r in run['rows']}
$1" "$scratch/out" || fault "JSON: $1"
}

small=(--synthetic zipf --experts 32 --layers 3 --tokens 4096 --ranks 8 --slots 48 --nodes 2)

# ---- the command line
expect 0 waybill_eplb --help
out_has "usage: waybill eplb"
for option in ranks slots nodes dead step-records micro-batches synthetic experts layers top-k tokens steps skew noise \
    seed algorithm dispatch init groups trials max-changes target horizon threads token-us expert-us token-bytes \
    expert-bytes hidden expert-width node-gbps network-gbps json chart save; do
    out_has "--$option "
done
err_is_empty
# refused TEXT ARGUMENT... : the command line is at fault, and says TEXT
refused() {
    local text=$1
    shift
    expect 2 waybill_eplb "$@"
    err_has "$text"
    err_has "usage: waybill eplb"
    out_is_empty
}
dump=$golden/good_u8.wbr
refused "a DUMP or --synthetic is needed" --ranks 4 --slots 8
refused "not both" --synthetic zipf "$dump" --ranks 4 --slots 8
refused "found pareto" --synthetic pareto --ranks 4 --slots 8
refused "--ranks is needed" "$dump" --slots 8
refused "--slots is needed" "$dump" --ranks 4
refused "--ranks: expected 1..65536, found 0" "$dump" --ranks 0 --slots 8
refused "--ranks: expected a number, found many" "$dump" --ranks many --slots 8
refused "--ranks: expected 1..65536, found -4" "$dump" --ranks -4 --slots 8
refused "--ranks: expected a number, found -4x" "$dump" --ranks -4x --slots 8
refused "--nodes: expected 1..65536, found 70000" "$dump" --ranks 4 --slots 8 --nodes 70000
refused "n_nodes: expected 1..4 (the ranks), found 5" "$dump" --ranks 4 --slots 8 --nodes 5
refused "8 experts" "$dump" --ranks 4 --slots 7
refused "--save: expected a path" "$dump" --ranks 4 --slots 8 --algorithm balanced --save ""
refused "no option --frobnicate" "$dump" --ranks 4 --slots 8 --frobnicate
refused "--slots needs an argument" "$dump" --ranks 4 --slots
refused "--json takes no argument" "$dump" --ranks 4 --slots 8 --json=yes
refused "frobnicate" "$dump" --ranks 4 --slots 8 --algorithm balanced,frobnicate
refused "balanced twice" "$dump" --ranks 4 --slots 8 --algorithm balanced,balanced
refused "commas between" "$dump" --ranks 4 --slots 8 --algorithm balanced,
refused "--algorithm: expected text, found none" "$dump" --ranks 4 --slots 8 --algorithm ""
refused "frobnicate" "$dump" --ranks 4 --slots 8 --dispatch frobnicate
refused "expected ranks 0..3" "$dump" --ranks 4 --slots 8 --dead 4
refused "expected ranks 0..3" "$dump" --ranks 4 --slots 8 --dead 1,x
refused "commas between" "$dump" --ranks 4 --slots 8 --dead 1,,2
refused "--save: expected one algorithm" "$dump" --ranks 4 --slots 8 --save "$scratch/p.json"
refused "--experts is of --synthetic" "$dump" --ranks 4 --slots 8 --experts 8
refused "--skew is of --synthetic" "$dump" --ranks 4 --slots 8 --skew 1
refused "--step-records is of a DUMP" "${small[@]}" --step-records 1
refused "--skew: expected a number, found nan" "${small[@]}" --skew nan
refused "--skew: expected a number, found 0x1p3 " "${small[@]}" --skew "0x1p3 "
refused "--network-gbps: expected a number above 0" "${small[@]}" --network-gbps 0
refused "--network-gbps: expected a number above 0 and at most 1e+09, found -1" "${small[@]}" --network-gbps -1
for option in skew:1000 horizon:1e+18 token-us:1e+18; do
    for value in -1 -0.5 -0 1e400 -1e400; do
        refused "--${option%:*}: expected a number of at least 0 and at most ${option#*:}, found $value" "${small[@]}" \
            "--${option%:*}" "$value"
    done
done
refused "--skew: expected a number, found -x" "${small[@]}" --skew -x
refused "--skew: expected a number, found -" "${small[@]}" --skew -
refused "--skew: expected a number, found -inf" "${small[@]}" --skew -inf
refused "--target: expected a number above 0 and at most 1" "${small[@]}" --target 1.5
refused "--top-k: expected at most the 32" "${small[@]}" --top-k 33
refused "--threads: expected at most $(getconf _NPROCESSORS_ONLN), the cores of this host, found 60000" "${small[@]}" --threads 60000
refused "expected at most 2^31" "${small[@]}" --tokens 2147483648

# ---- data at fault
# broken TEXT ARGUMENT... : exit code 1, nothing on stdout
broken() {
    local text=$1
    shift
    expect 1 waybill_eplb "$@"
    err_has "$text"
    out_is_empty
}
broken "nothing.wbr" "$scratch/nothing.wbr" --ranks 4 --slots 8
broken "version 2" "$golden/bad_version_2.wbr" --ranks 4 --slots 8
broken "expert 8" "$golden/bad_id_out_of_range.wbr" --ranks 4 --slots 8
broken "nothing.json" "${small[@]}" --init "$scratch/nothing.json"
# What cannot be written is refused before anything is solved.
touch "$scratch/file"
for at in no/x file/x "" file/; do
    broken "--chart: $scratch/$at" "${small[@]}" --algorithm none --chart "$scratch/$at"
    broken "--save: $scratch/$at" "${small[@]}" --algorithm balanced --save "$scratch/$at"
done
broken "--save: $scratch/no/x" "${small[@]}" --algorithm balanced --chart "$scratch/chart.svg" --save "$scratch/no/x"
[ ! -e "$scratch/chart.svg" ] || fault "a command that was refused wrote a chart"
# A pipe is opened once: a reader of it takes what comes first for the whole.
mkfifo "$scratch/pipe"
cat "$scratch/pipe" >"$scratch/read" &
expect 0 waybill_eplb "${small[@]}" --algorithm balanced --save "$scratch/pipe"
wait $!
[ -s "$scratch/read" ] || fault "the reader of a pipe got nothing"

# ---- dumps
for file in "$golden"/good_*.wbr; do
    experts=$("$waybill" inspect "$file" | sed -n 's/^experts .* chosen of \([0-9]*\),.*/\1/p')
    expect 0 waybill_eplb "$file" --ranks 4 --slots $((experts + 2)) --nodes 2
    err_is_empty
    out_has "3 records with"
    for name in none balanced incremental microbatch fake bound; do
        grep -qE "^$name +[0-9-]" "$scratch/out" || fault "$file: no row $name"
    done
    grep -qE "^deepseek +refused: .*" "$scratch/out" || fault "$file: deepseek takes a shape that it must refuse"
    expect 0 waybill_eplb "$file" --ranks 4 --slots $((experts + 4)) --json --step-records 1 --micro-batches 2
    judge 'assert run["traffic"]["steps"] == 3 and run["traffic"]["records"] == 3, run["traffic"]
assert run["traffic"]["valid_rows"] > 0
assert list(rows) == ["none", "deepseek", "balanced", "incremental", "microbatch", "fake"], list(rows)
for r in run["rows"]:
    assert len(r["steps"]) == 3 and r["steps"][0]["balancedness_stale"] is None
    for s in r["steps"] + [r]:
        assert 0 < s["balancedness"] <= 1 and 0 < s["balancedness_time"] <= 1, s
        assert 0 < s["bound_seconds"] <= s["seconds"] * (1 + 1e-9), s
        assert s["min_layer"] <= s["balancedness"] + 1e-9, s'
done
expect 1 waybill_eplb "$golden/good_u8.wbr" --ranks 4 --slots 10 --algorithm deepseek
err_has "deepseek"
out_is_empty

# ---- the steps of a dump: by weight version where records have one, whatever file they are in; else by file
eplb_steps=(--ranks 2 --slots 10 --micro-batches 1 --algorithm balanced)
expect 0 waybill_eplb "$golden/versions" "${eplb_steps[@]}" --json
judge 't, f = run["traffic"], rows["balanced"]
assert t["steps_by"] == "weight version 5..9" and t["steps"] == 2 and t["records"] == 8, t
assert t["valid_rows"] == 8 * 39 and t["records_skipped"] == 1, t
# Each step goes to other experts than the one before, so that its placement is of no use for the next.
assert f["steps"][1]["balancedness"] > 0.95 and f["steps"][1]["balancedness_stale"] < 0.8, f'
expect 0 waybill_eplb "$golden/versions" "${eplb_steps[@]}"
out_has "2 steps of 1 micro-batch"
out_has "8 records with 312 valid rows, steps by weight version 5..9"
out_has "skipped: 1 record without valid rows"
expect 0 waybill_eplb "$golden/files" "${eplb_steps[@]}" --json
judge 't, f = run["traffic"], rows["balanced"]
assert t["steps_by"] == "file" and t["steps"] == 2 and t["records"] == 8, t
assert f["steps"][1]["balancedness_stale"] > 0.95, f'
expect 0 waybill_eplb "$golden/files" "${eplb_steps[@]}" --step-records 3 --json
judge 't = run["traffic"]
assert t["steps_by"] == "--step-records 3" and t["steps"] == 3, t'
expect 0 waybill_eplb "$golden/versions/part-0.wbr" "${eplb_steps[@]}" --json
judge 'assert run["traffic"]["steps"] == 2, run["traffic"]'
expect 0 waybill_eplb "$golden/files/part-0.wbr" "${eplb_steps[@]}" --json
judge 'assert run["traffic"]["steps"] == 1, run["traffic"]'

# ---- records without rows have no tokens: they are counted, and decide neither what makes a step nor fail one
for kind in versions files; do
    mkdir "$scratch/$kind"
    cp "$golden/$kind"/*.wbr "$golden/unfed/part-2.wbr" "$scratch/$kind"
done
expect 0 waybill_eplb "$scratch/versions" "${eplb_steps[@]}" --json
judge 't = run["traffic"]
assert t["steps_by"] == "weight version 5..9" and t["steps"] == 2, t
assert t["records"] == 8 and t["valid_rows"] == 8 * 39 and t["records_skipped"] == 3, t'
expect 0 waybill_eplb "$scratch/files" "${eplb_steps[@]}" --json
judge 't = run["traffic"]
assert t["steps_by"] == "file" and t["steps"] == 2 and t["records"] == 8 and t["records_skipped"] == 3, t'
expect 0 waybill_eplb "$scratch/files" "${eplb_steps[@]}" --step-records 3 --json
judge 'assert run["traffic"]["steps"] == 3 and run["traffic"]["records"] == 8, run["traffic"]'
expect 0 waybill_eplb "$scratch/versions" "${eplb_steps[@]}"
out_has "skipped: 3 records without valid rows"
expect 0 waybill_eplb "$dump" "${eplb_steps[@]}"
out_lacks "skipped:"
broken "unfed: expected valid rows, found none in 2 records" "$golden/unfed" "${eplb_steps[@]}"

# ---- sizes of the experts: a dump does not say them
expect 0 waybill_eplb "$dump" --ranks 4 --slots 12
out_has "hidden size 7168, width 2048: assumed"
cp "$scratch/out" "$scratch/first"
expect 0 waybill_eplb "$dump" --ranks 4 --slots 12 --hidden 2048 --expert-width 768 --json
judge 'c = run["cost"]
assert [c["hidden"], c["expert_width"], c["sizes_assumed"]] == [2048, 768, False], c
assert [c["bytes_per_token"], c["expert_bytes"]] == [4096, 2 * 3 * 2048 * 768], c
assert abs(c["seconds_per_expert"] * 4.3e12 - c["expert_bytes"]) < 1, c'
expect 0 waybill_eplb "$dump" --ranks 4 --slots 12 --hidden 2048 --expert-width 768 --token-bytes 5 --json
judge 'assert run["cost"]["bytes_per_token"] == 5 and run["cost"]["expert_bytes"] == 2 * 3 * 2048 * 768, run["cost"]'
expect 0 waybill_eplb "$dump" --ranks 4 --slots 12 --hidden 2048 --expert-width 768
out_lacks assumed
refused "expected both or neither" "$dump" --ranks 4 --slots 12 --hidden 2048

# ---- shapes that solvers are not for are said: few tokens a slot, more slots on a rank than there are experts
expect 0 waybill_eplb "$golden/versions" --ranks 32 --slots 288
out_has "note: a slot gets"
out_has "note: a rank has more slots than the 8 experts"
expect 0 waybill_eplb "${small[@]}"
out_lacks "note: a rank has"
expect 0 waybill_eplb "${small[@]}" --tokens 65536
out_lacks "note:"

# ---- synthetic
for kind in zipf lognormal drift; do
    for dispatch in static dynamic quota fake; do
        expect 0 waybill_eplb "${small[@]}" --synthetic $kind --dispatch $dispatch --json
        err_is_empty
        judge "assert run['dispatch'] == '$dispatch' and run['traffic']['name'] == 'synthetic $kind'
for r in run['rows']: assert r['bound_seconds'] <= r['seconds'] * (1 + 1e-9)
assert rows['fake']['balancedness'] > 0.99
if '$dispatch' == 'quota':
    assert rows['balanced']['balancedness_time'] > rows['none']['balancedness_time']
    assert rows['microbatch']['balancedness_time'] >= rows['balanced']['balancedness_time'] - 0.01
    assert rows['balanced']['changed_slots'] > 0 and rows['balanced']['moved_bytes'] > 0
    assert rows['incremental']['changed_slots'] < rows['deepseek']['changed_slots']"
    done
done
cp "$scratch/out" "$scratch/first"
expect 0 waybill_eplb "${small[@]}" --synthetic drift --dispatch fake --json --threads 1
judge 'other = json.load(open("'"$scratch/first"'"))
def facts(r): return [(k, v) for k, v in r.items() if k not in ("solve_seconds", "steps")]
for a, b in zip(run["rows"], other["rows"]): assert facts(a) == facts(b), (a, b)'
# --threads limits all that the command does, solving and simulating. OpenMP says of each thread that it starts; 0 is ours.
many=(--synthetic zipf --ranks 64 --slots 640 --experts 600 --layers 3 --tokens 4096 --algorithm balanced --trials 10)
threads_of() {
    expect 0 env OMP_NUM_THREADS=3 OMP_DISPLAY_AFFINITY=TRUE OMP_AFFINITY_FORMAT='thread %n' "$waybill" eplb "${many[@]}" "$@"
    started=$(cat "$scratch/out" "$scratch/err" | grep -c '^thread [1-9]')
}
if ldd "$waybill" | grep -q libgomp; then
    threads_of
    [ "$started" -gt 0 ] || fault "expected threads beside the first, found none: this checks nothing"
    threads_of --threads 1
    [ "$started" -eq 0 ] || fault "--threads 1: $started threads were started beside the first"
fi
expect 0 waybill_eplb "${small[@]}" --token-us 1 --expert-us 2 --token-bytes 3 --expert-bytes 4 --node-gbps 5 --network-gbps .5 \
    --algorithm balanced --json
judge 'c = run["cost"]
assert [c["seconds_per_token"], c["seconds_per_expert"], c["bytes_per_token"], c["expert_bytes"]] == [1e-6, 2e-6, 3, 4], c
assert [c["node_bytes_per_second"], c["network_bytes_per_second"]] == [5e9, 5e8], c'
expect 0 waybill_eplb "${small[@]}" --steps 1
grep -qE "^balanced +[0-9.]+ +- " "$scratch/out" || fault "one step: a stale figure"
expect 0 waybill_eplb "${small[@]}" --slots 56 --dead 2,5 --json
judge 'assert run["shape"]["dead"] == [2, 5]
assert "dead" in rows["deepseek"]["refused"], rows["deepseek"]
assert rows["balanced"]["balancedness"] > 0.8'

# ---- ranks that fail: the placement of before is where the solvers start
expect 0 waybill_eplb "${small[@]}" --steps 1 --algorithm balanced --save "$scratch/before.json"
expect 0 waybill_eplb "${small[@]}" --steps 1 --dead 3 --init "$scratch/before.json" --algorithm incremental,microbatch --horizon 0 --json
judge 'f = rows["incremental"]
assert abs(f["balancedness"] - rows["none"]["balancedness"]) < 0.2 and f["changed_slots"] <= 18, f
assert rows["microbatch"]["changed_slots"] > f["changed_slots"]
assert rows["microbatch"]["bound_seconds"] == f["bound_seconds"] > rows["fake"]["bound_seconds"], rows["fake"]'

# ---- a placement from a dump
expect 0 waybill_eplb "$dump" --ranks 4 --slots 12 --init "$dump" --algorithm balanced --json
judge 'assert rows["none"]["balancedness"] == rows["balanced"]["balancedness"], rows'
broken "expected 3 of 32" "${small[@]}" --init "$dump"

# ---- placements saved and read again: the same figures
for name in p.json p.msgpack; do
    expect 0 waybill_eplb "${small[@]}" --steps 1 --algorithm balanced --json --save "$scratch/$name"
    cp "$scratch/out" "$scratch/first"
    expect 0 waybill_eplb "${small[@]}" --steps 1 --algorithm none --json --init "$scratch/$name"
    judge 'other = {r["placement"]: r for r in json.load(open("'"$scratch/first"'"))["rows"]}
for key in ("balancedness", "seconds", "min_layer"):
    assert abs(rows["none"][key] - other["balanced"][key]) <= 1e-12, (key, rows["none"], other["balanced"])'
done
broken "p.json" "${small[@]}" --slots 40 --init "$scratch/p.json"

# ---- charts
# chart RANKS : well-formed, drawn inside its frame, nothing from elsewhere
chart() {
    [ -s "$scratch/c.svg" ] || fault "no chart of $1 ranks"
    grep -qE 'href|url\(|<script|<image|<style' "$scratch/c.svg" && fault "the chart of $1 ranks refers to something"
    grep -qF 'after: balanced, balancedness' "$scratch/c.svg" || fault "the chart of $1 ranks has no legend"
    command -v python3 >/dev/null || return 0
    python3 - "$scratch/c.svg" "$1" 2>"$scratch/err" <<'PYTHON' || fault "the chart of $1 ranks"
import re, sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
n, tag = int(sys.argv[2]), "{http://www.w3.org/2000/svg}"
assert root.tag == tag + "svg"
width, height = int(root.get("width")), int(root.get("height"))
bars, paths = root.findall(f"{tag}g/{tag}rect"), root.findall(f"{tag}path")
assert (len(bars), len(paths)) == ((4 * n, 0) if n <= 64 else (0, 4)), (len(bars), len(paths))
for bar in bars:
    x, y, w, h = (float(bar.get(k)) for k in ("x", "y", "width", "height"))
    assert 0 <= x and x + w <= width and 0 <= y and y + h <= height and h >= 0
for path in paths:
    numbers = [float(v) for v in re.findall(r"[0-9.]+", path.get("d"))]
    assert len(numbers) > 300 and max(numbers) <= width
texts = [t.text for t in root.iter(tag + "text")]
assert texts.count("rank") == 2 and texts.count("tokens of a rank") == 2
PYTHON
}
expect 0 waybill_eplb "${small[@]}" --algorithm balanced --chart "$scratch/c.svg"
chart 8

# ---- 4,096 ranks: the time is generous, for loaded and instrumented machines; it takes seconds
rm "$scratch/c.svg"
timeout 400 "$waybill" eplb --synthetic zipf --experts 256 --layers 58 --ranks 4096 --slots 8192 --nodes 512 --steps 1 \
    --micro-batches 1 --algorithm balanced --trials 1000 --chart "$scratch/c.svg" --json >"$scratch/out" 2>"$scratch/err"
code=$?
[ $code -eq 0 ] || fault "4,096 ranks: expected exit code 0, found $code"
judge 'assert rows["balanced"]["balancedness"] > 5 * rows["none"]["balancedness"], rows'
chart 4096

# ---- output that cannot be written, which is seen only when it is: the figures are there
unwritable() {
    local text=$1
    shift
    expect 1 waybill_eplb "$@"
    err_has "$text"
    out_has "bound  "
}
if [ -w /dev/full ]; then
    "$waybill" eplb "${small[@]}" --algorithm none >/dev/full 2>"$scratch/err"
    [ $? -eq 1 ] || fault "to a full disk: expected exit code 1"
    [ -e "$scratch/full.svg" ] || ln -s /dev/full "$scratch/full.svg"
    unwritable "full.svg" "${small[@]}" --algorithm none --chart "$scratch/full.svg"
    # A device is written, not replaced; by a link, so that a fault here replaces the link.
    ln -s /dev/full "$scratch/full.json"
    unwritable "full.json" "${small[@]}" --algorithm balanced --save "$scratch/full.json"
    [ -L "$scratch/full.json" ] && [ -c "$scratch/full.json" ] || fault "--save to a device has replaced it"
fi

# ---- standard output as a file: what the log held and the report stay, the placement comes after them
echo precious >"$scratch/log"
"$waybill" eplb "${small[@]}" --algorithm balanced --save /dev/stdout >>"$scratch/log" 2>"$scratch/err" || fault "--save /dev/stdout: exit code $?"
[ "$(head -n 1 "$scratch/log")" = precious ] || fault "--save /dev/stdout has replaced the log"
grep -q balanced "$scratch/log" || fault "--save /dev/stdout has lost the report"
grep -qa physical_to_logical_map "$scratch/log" || fault "--save /dev/stdout: expected the placement in the log"

# ---- a placement goes to where a link points, and the link stays
echo old >"$scratch/target.json"
ln -s target.json "$scratch/link.json"
expect 0 waybill_eplb "${small[@]}" --algorithm balanced --save "$scratch/link.json"
[ -L "$scratch/link.json" ] || fault "--save has replaced a symbolic link"
grep -q physical_to_logical_map "$scratch/target.json" || fault "--save has not followed a symbolic link"

# Experts without weights take no slots, and are told of.
expect 0 waybill_eplb "$golden/good_layers_top_k.wbr" --ranks 2 --slots 10 --algorithm balanced
out_has "9 experts (and 3 without weights, which no slot holds)"

finish "the placements are compared as they should be"
