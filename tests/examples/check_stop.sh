#!/usr/bin/env bash
# check_stop.sh - waybill-grpo is asked to stop, at any moment and by a signal to one rank or to all: it says what it dropped, leaves a
# checkpoint, and the run that resumes comes to the same bits; prompts that do not fit and stop tokens are known before it starts.
# usage: check_stop.sh BUILD_DIR SOURCE_DIR [SEED]
. "$(dirname "$0")/grpo_checks.sh"
seeded "${3:-}"

run 2 --make-base base --warmup-steps 10 --quiet || fail "make-base"
common=(--prompts 32 --samples 4 --updates 4 --lr 3e-4 --max-running 12 --seed 5)

echo "== stopped at any moment, resumed, the same bits"
steps=0
for round in 1 2 3 4 5 6; do
    "${mpi[@]}" -n 2 "$grpo" --model base --out stopped "${common[@]}" --steps 100000 --checkpoint-every 0 --resume >log 2>&1 &
    job=$!
    until_so '[ -n "$(ranks_below $job)" ] && [ -s log ]'
    sleep "1.$((RANDOM % 10))"
    if [ $((round % 3)) = 1 ]; then
        kill -USR1 $job
        expected=138
    elif [ $((round % 3)) = 0 ]; then
        kill -INT "$(ranks_below $job | head -n 1)"
        expected=130
    else
        kill -TERM "$(ranks_below $job | shuf -n 1 --random-source=<(yes "$RANDOM"))"
        expected=143
    fi
    wait $job
    found=$?
    [ $found = $expected ] || { cat log; fail "exit status: expected $expected, found $found"; }
    grep "stopped by signal" log || { cat log; fail "nothing is said of the stop"; }
    ! grep -q "no step is done" log || continue
    steps=$(sed -n 's/.*"step": \([0-9]*\).*/\1/p' stopped/checkpoint/trainer/state.json)
    grep -q "checkpoint after step $steps in" log || { cat log; fail "the checkpoint is of step $steps"; }
done
[ "$steps" -gt 0 ] || fail "no round came to a checkpoint"
run 2 --model base --out whole "${common[@]}" --steps "$steps" --quiet >/dev/null || fail "the uninterrupted run"
# The options of the two runs differ by the steps that they were to make, and by --checkpoint-every.
for out in whole stopped; do
    sed -Ei 's/"--(steps|checkpoint-every)": "[^"]*"/"--\1": "1"/g' $out/checkpoint/trainer/state.json
done
diff -r whole/checkpoint stopped/checkpoint || fail "stopping changed the bits, $steps steps"
run 2 --model base --out stopped "${common[@]}" --steps $((steps + 1)) --resume --quiet >/dev/null || fail "one step more"
"$waybill" verify stopped/dump >log 2>&1 || { cat log; fail "the dump"; }

echo "== --make-base: nothing is left behind, and what was there stays"
mkdir there
for round in "INT 130 new" "TERM 143 there" "USR1 138 new"; do
    read -r name expected folder <<<"$round"
    "${mpi[@]}" -n 2 "$grpo" --make-base "$folder" --warmup-steps 1000000 >log 2>&1 &
    job=$!
    until_so '[ -e "$folder/waybill-grpo.lock" ]'
    sleep "0.$((RANDOM % 10))"
    kill "-$name" "$(ranks_below $job | shuf -n 1 --random-source=<(yes "$RANDOM"))"
    wait $job
    found=$?
    [ $found = "$expected" ] || { cat log; fail "--make-base: exit status: expected $expected, found $found"; }
    grep "stopped by signal" log || { cat log; fail "--make-base: nothing is said of the stop"; }
    [ ! -e new ] || fail "left behind: $(find new)"
    [ -d there ] && [ -z "$(ls -A there)" ] || fail "a folder that was there: expected it, and nothing in it"
done

echo "== the second signal ends at once"
# A step of seconds; where the first signal comes between two steps, the run may end before the second.
ended_by=first
for try in 1 2 3 4 5; do
    "${mpi[@]}" -n 1 "$grpo" --model base --out "twice_$try" --steps 100000 --samples 512 --max-tokens 64 --stop-token none \
        --max-running 1000000 --max-batch-tokens 1000000 --kv-blocks 300000 >log 2>&1 &
    job=$!
    until_so '[ -s log ]'
    rank=$(ranks_below $job)
    sleep "1.$try"
    kill -TERM "$rank" && sleep 0.05 && kill -TERM "$rank"
    start=$SECONDS
    wait $job && fail "it ended well"
    [ $((SECONDS - start)) -le 5 ] || fail "it took $((SECONDS - start)) s"
    grep -q "stopped by signal" log || { ended_by=second; break; }
done
[ $ended_by = second ] || { cat log; fail "the first signal was enough, five times"; }

echo "== the queue of groups: any number of ranks generates the same samples"
for ranks in 1 2 4; do
    run $ranks --model base --out "queue_$ranks" "${common[@]}" --steps 1 --quiet >/dev/null || fail "$ranks ranks"
    "$waybill" cat "queue_$ranks/dump" --tokens --routes | sort >"samples_$ranks"
    cmp samples_1 "samples_$ranks" || fail "$ranks ranks generate other samples"
done
[ "$(wc -l <samples_1)" = 128 ] || fail "expected 128 samples"

echo "== the ends of the table do not overlap"
for steps in 1 3 5; do
    run 2 --model base --out "table_$steps" "${common[@]}" --steps $steps --quiet >log 2>&1 || { cat log; fail "$steps steps"; }
    grep -q "reward (mean of $((steps / 2 > 0 ? steps / 2 : 1)) step" log || { cat log; fail "the table of $steps steps"; }
done

echo "== progress in 60 columns, in a log too"
"${mpi[@]}" -n 2 "$grpo" --model base --out slow --steps 1 --prompts 64 --samples 256 --max-tokens 60 --stop-token none --updates 1 >log 2>&1 &
job=$!
until_so 'grep -q left log || ! kill -0 $job 2>/dev/null'
kill -USR1 $job
wait $job
grep -qE '^step 1/1 [a-z ]+ [0-9]+% [0-9.kM]+ tok/s [0-9:]+ left' log || { cat log; fail "no line of progress"; }
[ "$(grep ' left' log | awk '{ print length }' | sort -n | tail -n 1)" -le 60 ] || fail "progress is wider than 60 columns"

echo "== prompts and stop tokens are looked at before the start"
printf '%s\n' '{"prompt":[1,10,2,11]}' '{"prompt":[4,10,4,11,1,1,1,1,1,1,1,1,1,1,1,1]}' '{"prompt":[7,10,2,11]}' >task.jsonl
own=(--model base "${common[@]}" --steps 1 --task jsonl:task.jsonl --reward-cmd 'while read -r line; do echo 0.5; done' --kv-blocks 1 --max-tokens 6)
refused "line 2: a prompt of 16 tokens" --out bad "${own[@]}"
[ ! -e bad/dump ] || fail "something was generated before the prompts were looked at"
run 2 --out skip "${own[@]}" --long-prompts skip >/dev/null 2>log || { cat log; fail "skip"; }
grep -q "1 prompts of more than 11 tokens: left out" log || { cat log; fail "skip is not said"; }
grep -q '"long_prompts":1,' skip/metrics.jsonl || fail "skip is not counted"
"$waybill" cat skip/dump --tokens | grep -q '"tokens":\[4,10' && fail "skip: a long prompt was generated from"
run 2 --out cut "${own[@]}" --long-prompts cut >/dev/null 2>log || { cat log; fail "cut"; }
grep -q "their beginning is left out" log || { cat log; fail "cut is not said"; }
"$waybill" cat cut/dump --tokens | grep -q '"prompt_len":11' || fail "cut: expected prompts of 11 tokens"
# A micro-batch holds a sample whole: a longer one is refused, or left out, before anything is generated.
refused "line 2: a prompt of 16 tokens: with --max-tokens, the KV cache and --micro-batch-tokens at most 15 fit" --out bad "${own[@]}" \
    --kv-blocks 64 --micro-batch-tokens 20
run 2 --out whole_batch "${own[@]}" --kv-blocks 64 --micro-batch-tokens 21 >/dev/null 2>log || { cat log; fail "a sample as long as a micro-batch"; }
refused "the 5 of --micro-batch-tokens" --out bad "${own[@]}" --kv-blocks 64 --micro-batch-tokens 5
refused "prompts of up to 6 tokens: with --max-tokens, the KV cache and --micro-batch-tokens at most 3 fit" --model base --out bad \
    "${common[@]}" --max-tokens 8 --micro-batch-tokens 10
[ ! -e bad ] || fail "a refused run left something"
refused "/dev/zero: expected a regular file or a pipe" --out bad "${own[@]}" --task jsonl:/dev/zero
refused ".: expected a regular file or a pipe" --out bad "${own[@]}" --task jsonl:.
truncate -s 100M endless.jsonl
refused "endless.jsonl: line 1: expected at most 67108864 bytes" --out bad "${own[@]}" --task jsonl:endless.jsonl
cp -r base large && truncate -s 100M large/generation_config.json
refused "large/generation_config.json: " --out bad "${own[@]}" --model large --long-prompts skip
run 1 --out piped "${own[@]}" --task jsonl:/dev/stdin --long-prompts skip <task.jsonl >/dev/null 2>log || { cat log; fail "prompts from a pipe"; }
refused "expected less than the model's" --out bad "${own[@]}" --max-tokens 100000
# The end of a sample: what the checkpoint says, several tokens, or none.
cp -r base eos
for ids in '"15"' 1.5 true '{"id":15}' '[15,"3"]' '[[15]]'; do
    echo "{\"eos_token_id\": $ids}" >eos/generation_config.json
    refused "eos/generation_config.json: eos_token_id: expected a token id, a list of them or null, found $ids" --out bad "${own[@]}" --model eos
done
echo '{"eos_token_id": [3, 7]}' >eos/generation_config.json
run 2 --out eos_run "${own[@]}" --model eos --long-prompts skip >/dev/null 2>log || { cat log; fail "eos"; }
grep -q "samples end at token 3, and others (generation_config.json)" log || { cat log; fail "eos is not said"; }
run 2 --out none "${own[@]}" --stop-token none --long-prompts skip >/dev/null 2>log || { cat log; fail "none"; }
grep -q "no token ends a sample" log || { cat log; fail "none is not said"; }
"$waybill" cat none/dump | grep -q '"finish":"stop"' && fail "a sample stopped at no token"
run 2 --out several "${own[@]}" --stop-token 1,2,4,5 --long-prompts skip >/dev/null 2>log || { cat log; fail "several"; }
"$waybill" cat several/dump | grep -q '"finish":"stop"' || fail "no sample stopped"
for list in x 1,,2 99 -1 1,; do refused "--stop-token" --out bad "${own[@]}" --long-prompts skip --stop-token "$list"; done
echo "all well"
