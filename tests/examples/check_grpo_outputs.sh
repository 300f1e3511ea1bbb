#!/usr/bin/env bash
# check_grpo_outputs.sh - what waybill-grpo finds in its way is left alone and named, a run that resumes has the prompts and the
# reference that it began with, and docs/metrics.md has the keys that are written. usage: check_grpo_outputs.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
faults=0
fault() { echo "FAULT: $*"; faults=$((faults + 1)); }
run() { "${mpi[@]}" -n "$1" "$grpo" "${@:2}" >log 2>&1; }
says() { grep -qF -- "$1" log || { cat log; fault "no '$1' in the message of: ${*:2}"; }; }
# refused "what the message must say" RANKS arguments...
refused() {
    local part=$1
    shift
    if run "$@"; then fault "accepted: $*"; fi
    says "$part" "$*"
}
tiny=(--prompts 4 --samples 2 --updates 2 --max-tokens 4)
run 1 --make-base base --warmup-steps 1 --quiet || { cat log; fault "make-base"; }
run 1 --make-base other --warmup-steps 1 --seed 2 --quiet || { cat log; fault "make-base other"; }

echo "== whether OUT may be used is said before a model is opened, and a run that cannot start leaves no OUT"
# none OUT : nothing is there
none() { [ ! -e "$1" ] || fault "an OUT was left behind: $(find "$1")"; }
for model in base nope; do
    mkdir -p left/dump && touch left/dump/step000002-rank1.wbr
    refused "left/dump/step000002-rank1.wbr is there already, but no checkpoint" 2 --model $model --out left --steps 1 "${tiny[@]}"
    [ "$(find left)" = "left
left/dump
left/dump/step000002-rank1.wbr" ] || fault "another run's dump was touched: $(find left)"
    touch file && mkdir -p held/dump && echo '{"step":0}' >held/metrics.jsonl
    refused "held/metrics.jsonl is there already, but no checkpoint" 1 --model $model --out held "${tiny[@]}"
    refused "--out file/out: expected a folder, or a name for one, but file is not a folder" 2 --model $model --out file/out
    refused "--out file: expected a folder" 1 --model $model --out file
done
rm -r left held
refused "nope" 2 --model nope --out r5/deep --steps 1 "${tiny[@]}"
none r5
refused "there is no checkpoint to resume from" 2 --out r6 --resume
none r6
refused "missing.jsonl" 2 --model base --out r7 "${tiny[@]}" --task jsonl:missing.jsonl --reward-cmd true
none r7
mkdir -p kept_left/dump && touch kept_left/dump/step000000-rank0.wbr.note # not of our names: no run's
run 1 --model base --out kept_left --steps 1 "${tiny[@]}" || { cat log; fault "a file of another name was taken for a dump"; }
cp -r base base_kept
refused "--out new/../base is --model" 1 --model base --out new/../base --steps 1 "${tiny[@]}"
refused "--out base/deep/out is in --model base" 2 --model base --out base/deep/out --steps 1 "${tiny[@]}"
diff -r base base_kept || fault "--model was written into"
rm -r base_kept

echo "== weights that are no numbers are named before anything is generated"
poison() { # FILE VALUE : the file's last weight, in octal
    # shellcheck disable=SC2059
    printf "$2" | dd of="$1" bs=1 seek=$(($(stat -c %s "$1") - 4)) conv=notrunc status=none
}
file=$(find base -name '*.safetensors' | sort | tail -n 1)
for value in '\0\0\300\177' '\0\0\200\377'; do # NaN, -infinity
    cp -r base poisoned
    poison "poisoned/${file#base/}" "$value"
    for ranks in 1 2; do
        dtype=$([ $ranks = 1 ] && echo f32 || echo bf16)
        refused "weight: expected finite weights, found a NaN or an infinity" $ranks --model poisoned --out r8 --steps 1 --dtype $dtype "${tiny[@]}"
        says "poisoned: "
        none r8
    done
    rm -r poisoned
done

echo "== a new run leaves another's metrics and folders alone"
run 1 --model base --out first --steps 2 --no-dump "${tiny[@]}" || { cat log; fault "first"; }
rm -rf first/checkpoint
cp first/metrics.jsonl kept
refused "first/metrics.jsonl is there already" 1 --model base --out first --steps 1 --no-dump "${tiny[@]}"
cmp kept first/metrics.jsonl || fault "metrics were written over"
for suffix in new old; do
    mkdir -p "out_$suffix/checkpoint.$suffix/trainer_notes" && echo mine >"out_$suffix/checkpoint.$suffix/trainer_notes/a"
    refused "checkpoint.$suffix: expected" 2 --model base --out "out_$suffix" --steps 1 "${tiny[@]}"
    [ "$(cat "out_$suffix/checkpoint.$suffix/trainer_notes/a")" = mine ] || fault "another's checkpoint.$suffix is gone"
done
cp -r base inside && mkdir -p holds && ln -s ../inside holds/checkpoint.old && mkdir inside/trainer # by a link, and with our mark
refused "holds/checkpoint.old, which the run replaces" 2 --model inside --out holds --steps 1 "${tiny[@]}"
[ -e inside/config.json ] || fault "the model is gone"

echo "== docs/metrics.md lists the keys of metrics.jsonl, each once"
run 2 --model base --out keys --steps 2 --no-dump --compare-every 2 --kl-coef 0.1 --eval-task arithmetic \
    "${tiny[@]}" || { cat log; fault "keys"; }
keys() { grep -oE '"[a-z0-9_]+":' | tr -d '":' | sort; }
listed() { awk -v heading="## $1" '/^## / { on = $0 == heading } on && /^\| `/ { gsub("`", "", $2); print $2 }' "$source/docs/metrics.md" | sort; }
top() { sed -n "$1p" keys/metrics.jsonl | sed 's/:{[^}]*}/:0/g' | keys; }
diff <(listed "A line" | grep -vx evaluation) <(top 1) || fault "listed (<) and written (>) keys of a line differ"
diff <(listed "A line" | grep -vx fidelity_replay_off) <(top 2) || fault "listed (<) and written (>) keys without a comparison differ"
for object in fidelity fidelity_replay_off evaluation; do
    diff <(listed "${object%_replay_off}") <(grep -oE "\"$object\":\{[^}]*\}" keys/metrics.jsonl | head -n 1 | sed "s/\"$object\"://" | keys) ||
        fault "listed (<) and written (>) keys of $object differ"
done

echo "== what a killed save leaves is no obstacle"
run 2 --model base --out run --steps 1 "${tiny[@]}" || { cat log; fault "run"; }
for left in "" /trainer /trainer/optimizer-0.safetensors.1.tmp; do # nothing yet; shards are being written; the moments are
    rm -rf run/checkpoint.new && mkdir -p "run/checkpoint.new$left"
    [ -z "$left" ] || touch run/checkpoint.new/model-00001-of-00002.safetensors.1.tmp
    touch run/metrics.jsonl.1.tmp
    run 1 --model base --out run --steps $((${steps:=1} + 1)) "${tiny[@]}" --resume || { cat log; fault "beside checkpoint.new$left"; }
    steps=$((steps + 1))
    [ ! -e run/checkpoint.new ] || fault "checkpoint.new stayed"
    [ ! -e run/metrics.jsonl.1.tmp ] || fault "metrics.jsonl.1.tmp stayed"
done

echo "== a disk that is gone is not a run without a checkpoint"
mkdir -p gone disk && ln -s ../disk/there gone/checkpoint
run 2 --model base --out gone --steps 2 --checkpoint-every 1 "${tiny[@]}" || { cat log; fault "a link"; }
mv disk unmounted && cp -r gone kept_gone
refused "gone/checkpoint is a link to what is not there" 2 --model base --out gone --steps 3 "${tiny[@]}" --resume
diff -r kept_gone/dump gone/dump && cmp kept_gone/metrics.jsonl gone/metrics.jsonl || fault "a run was lost with its disk"
mv unmounted disk
run 1 --out gone --steps 3 --resume || { cat log; fault "the disk is back"; }
mkdir -p early && ln -s ../disk/early early/checkpoint # killed before its first checkpoint
echo '{"prompt":[1,10,2,11]}' >task1.jsonl
if run 1 --model base --out early --steps 1 "${tiny[@]}" --task jsonl:task1.jsonl --reward-cmd 'exit 3'; then fault "no reward"; fi
echo '{"step":0}' >>early/metrics.jsonl
run 1 --model base --out early --steps 1 "${tiny[@]}" --resume || { cat log; fault "resume before the first checkpoint"; }

echo "== a run that has had a checkpoint does not start again without it, one that has not says so"
says "early: no checkpoint: starts again with step 1, removes 1 steps" "a run that starts again"
run 1 --model base --out had --steps 4 "${tiny[@]}" --checkpoint-every 2 --keep-last 2 || { cat log; fault "4 steps"; }
run 1 --out had --resume || { cat log; fault "a bare resume"; }
says "has 4 of 4 steps" "a bare resume, which has the --steps of its run"
rm -r had/checkpoint && cp -r had kept_had
refused "had/checkpoint.step000002 is of a run that has had a checkpoint" 2 --model base --out had --steps 4 "${tiny[@]}" --resume
rm -r had/checkpoint.step000002 kept_had/checkpoint.step000002
refused "has 4 steps, more than --checkpoint-every 2" 2 --model base --out had --steps 4 "${tiny[@]}" --checkpoint-every 2 --resume
diff -r kept_had had || fault "a run was lost with its checkpoint"
mkdir -p had/checkpoint.new/trainer had/checkpoint.best.new/trainer # of saves that were killed
run 1 --model base --out had --steps 1 "${tiny[@]}" --checkpoint-every 0 --resume || { cat log; fault "started again"; }
[ ! -e had/checkpoint.new ] && [ ! -e had/checkpoint.best.new ] || fault "parts of a checkpoint stay"

echo "== a prompt that is too long is of the option that has it"
echo '{"prompt":[1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2]}' >long.jsonl
refused "--eval-task: line 1: a prompt of 20 tokens" 1 --model base --out long --steps 1 --prompts 4 --samples 2 --updates 2 --max-tokens 4 \
    --micro-batch-tokens 12 --eval-task jsonl:long.jsonl --reward-cmd cat

echo "== steps that are done are not undone"
cp run/dump/step000003-rank0.wbr run/dump/step000005-rank0.wbr # of a run that was killed before its next checkpoint
cp run/metrics.jsonl kept
run 2 --model base --out run --steps 4 "${tiny[@]}" --resume || { cat log; fault "nothing to do"; }
says "has 4 of 4 steps" "a run that is done"
says "run/dump/step000005-rank0.wbr is of a step that was not trained on" "a run that is done, with a step more in its dump"
[ -e run/dump/step000005-rank0.wbr ] && cmp -s kept run/metrics.jsonl || fault "steps were removed that are not done again"

echo "== options of the checkpoint that cannot be"
state=run/checkpoint/trainer/state.json
cp $state whole
sed -i 's/"--lr": "[^"]*"/"--lr": "fast"/' $state
refused "run/checkpoint: options: --lr fast: expected a number" 1 --out run --steps 5 --resume
sed 's/"--seed": "1"/"--seed": 2/' whole >$state # silently the default, were it not refused
refused "run/checkpoint: options: --seed: expected a string" 2 --out run --steps 5 --resume
cp whole $state

echo "== the prompts are those of the run's beginning, and of all ranks"
printf '%s\n' '{"prompt":[1,10,2,11]}' '{"prompt":[4,10,4,11]}' >task.jsonl
user=(--model base "${tiny[@]}" --task jsonl:task.jsonl --reward-cmd 'while read -r line; do echo 1; done')
run 2 --out user --steps 1 "${user[@]}" || { cat log; fault "jsonl"; }
cp task.jsonl longer.jsonl && echo '{"prompt":[5,10,5,11]}' >>longer.jsonl
cp longer.jsonl task.jsonl
refused "task.jsonl: other prompts than" 2 --out user --steps 2 "${user[@]}" --resume
head -n 2 longer.jsonl >task.jsonl
run 1 --out user --steps 2 "${user[@]}" --resume || { cat log; fault "the same prompts again"; }
if "${mpi[@]}" -n 1 "$grpo" --out ranks --steps 1 "${user[@]}" : -n 1 "$grpo" --out ranks --steps 1 "${user[@]}" --task jsonl:longer.jsonl >log 2>&1; then
    fault "accepted: another task on rank 1"
fi
says "rank 1" "another task on rank 1"

echo "== the reference is that of the run's beginning"
run 2 --model base --out kl --steps 1 --kl-coef 0.1 "${tiny[@]}" || { cat log; fault "KL"; }
run 1 --model base --out kl --steps 2 --kl-coef 0.1 "${tiny[@]}" --resume || { cat log; fault "KL on another number of ranks"; }
refused "other weights than the reference" 2 --model other --out kl --steps 3 --kl-coef 0.1 "${tiny[@]}" --resume
mv base base_kept && cp -r other base
refused "other weights than the reference" 1 --model base --out kl --steps 3 --kl-coef 0.1 "${tiny[@]}" --resume
run 1 --model base --out kl --steps 3 --kl-coef 0 "${tiny[@]}" --resume || { cat log; fault "no reference any more"; }

echo "== --model of a run that resumes is of the checkpoint's kind, and stays what it was"
run 1 --make-base olmoe --family olmoe --warmup-steps 0 --quiet || { cat log; fault "make-base olmoe"; }
run 2 --model base --out kind --steps 1 "${tiny[@]}" || { cat log; fault "kind"; }
for model in olmoe "$source/tests/golden/qwen3_moe"; do
    refused "--model $model: another kind of model than that of the run, which began from base" 2 --model "$model" --out kind --steps 2 --resume
    grep -q '"--model": "base"' kind/checkpoint/trainer/state.json || fault "another model is on record"
done
refused "nope" 1 --model nope --out kind --steps 2 --resume
run 1 --model ./base --out kind --steps 2 --resume || { cat log; fault "the same model, by another name"; }
mv base gone_base
run 1 --out kind --steps 3 --resume || { cat log; fault "a model that is gone, and not needed"; }

[ $faults -eq 0 ] && echo "all well"
exit $((faults > 0))
