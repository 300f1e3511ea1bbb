#!/usr/bin/env bash
# check_one_run.sh - a folder has one run of waybill-grpo at a time: a second start, at the same moment or while the first still runs,
# is refused with the process that is in it, and the first one's metrics stay. usage: check_one_run.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
tiny=(--prompts 4 --samples 2 --updates 2 --max-tokens 4)
# starts NAME arguments... : in the background, its log in NAME.log; the job's number is in $job
trap '[ -z "$(jobs -p)" ] || kill $(jobs -p); wait; rm -rf "$work"' EXIT
starts() {
    "${mpi[@]}" -n 2 "$grpo" "${@:2}" >"$1.log" 2>&1 &
    job=$!
}
# one_of CODE CODE LOG LOG : one start was well, the other ended with 1 and was told of the first
one_of() {
    [ "$1 $2" = "0 1" ] || [ "$1 $2" = "1 0" ] || { cat "$3" "$4"; fail "expected one to end with 0 and one with 1, found $1 and $2"; }
    grep -hE "is in use by process [0-9]+ on |is there " "$3" "$4" | grep -q . || { cat "$3" "$4"; fail "the second is not told of the first"; }
}

echo "== two --make-base at the same moment"
starts a --make-base base --warmup-steps 60 && a=$job
starts b --make-base base --warmup-steps 60 && b=$job
wait "$a"; a=$?
wait "$b"; b=$?
one_of $a $b a.log b.log
[ ! -e base/waybill-grpo.lock ] || fail "the lock stayed in the base"

echo "== two starts at the same moment"
starts a --model base --out both --steps 60 "${tiny[@]}" && a=$job
starts b --model base --out both --steps 60 "${tiny[@]}" && b=$job
wait "$a"; a=$?
wait "$b"; b=$?
one_of $a $b a.log b.log
[ "$(wc -l <both/metrics.jsonl)" = 60 ] || fail "expected 60 lines of metrics, found $(wc -l <both/metrics.jsonl)"

echo "== a start and a --resume while the first still runs, and after it was killed"
starts a --model base --out run --steps 1000000 --checkpoint-every 5 "${tiny[@]}" && a=$job
until_so '[ -e run/checkpoint/trainer/state.json ]'
holder=$(sed -n 's/process \([0-9]*\) on .*/\1/p' run/waybill-grpo.lock)
[[ " $(ranks_below "$a" | tr '\n' ' ')" = *" $holder "* ]] || fail "the lock names process $holder, not a rank of the run"
for how in --resume --quiet; do
    refused "run is in use by process $holder on $(hostname) " --model base --out run --steps 1000000 "${tiny[@]}" $how
    sed 's/.*"step":\([0-9]*\).*/\1/' run/metrics.jsonl | head -n 5 | cmp -s - <(seq 0 4) || fail "the metrics are not the first one's"
done
# shellcheck disable=SC2046
kill -9 $(ranks_below "$a")
wait "$a"
steps=$(($(sed -n 's/.*"step": \([0-9]*\).*/\1/p' run/checkpoint/trainer/state.json) + 1))
run 2 --out run --steps $steps --resume --quiet >log 2>&1 || { cat log; fail "resumed after a kill"; }
[ ! -e run/waybill-grpo.lock ] || fail "the lock stayed"
[ "$(wc -l <run/metrics.jsonl)" = $steps ] || fail "expected $steps lines of metrics"
echo "all well"
