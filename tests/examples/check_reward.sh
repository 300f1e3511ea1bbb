#!/usr/bin/env bash
# check_reward.sh - reward programs of the user's: started once and kept, bounded in time, and whatever one does wrong is said with the
# request where it happened, when the batch is in the dump already. usage: check_reward.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"

run 2 --make-base base --warmup-steps 10 --quiet || fail "make-base"
printf '%s\n' '{"prompt":[1,10,2,11],"answer":3}' '{"prompt":[4,10,4,11],"answer":8}' >task.jsonl
common=(--model base --steps 3 --prompts 4 --samples 4 --updates 2 --lr 3e-4 --seed 5 --task jsonl:task.jsonl)
n=0
# faulty SECONDS "what the message must say" COMMAND arguments... : on two ranks, each of 8 samples
faulty() {
    local limit=$1 part=$2 command=$3 start=$SECONDS
    n=$((n + 1))
    if run 2 --out "bad$n" "${common[@]}" --quiet --reward-cmd "$command" "${@:4}" >log 2>&1; then fail "accepted: $command"; fi
    grep -F -- "--reward-cmd '" log | grep -qF -- "$part" || { cat log; fail "no '$part' in the message of: $command"; }
    for rank in 0 1; do # a rank that only hears of it may be ended before it says so
        [ "$(grep -c "^waybill-grpo: rank $rank: " log)" -le 1 ] || { cat log; fail "rank $rank said it more than once: $command"; }
    done
    [ $((SECONDS - start)) -le "$limit" ] || fail "it took $((SECONDS - start)) s: $command"
    grep -qF "(the batch's records are in bad$n/dump)" log || { cat log; fail "where the batch is, is not said: $command"; }
    [ "$("$waybill" cat "bad$n/dump" | wc -l)" -ge 16 ] || fail "the batch is not in the dump: $command"
}

echo "== started once on each rank, asked in every step, ended"
cat >count.sh <<'END'
echo started >>starts
while read -r line; do
    case "$line" in *'"item":'*) echo 0.5 ;; *) echo none ;; esac
    echo line >>lines
done
echo ended >>ends
echo "said to stderr" >&2
END
run 2 --out kept "${common[@]}" --reward-cmd "sh $work/count.sh" >/dev/null 2>log || { cat log; fail "a program that is kept"; }
[ "$(wc -l <starts) $(wc -l <ends) $(wc -l <lines)" = "2 2 48" ] || fail "expected 2 starts, 2 ends, 48 lines, found $(wc -l <starts) $(wc -l <ends) $(wc -l <lines)"
[ "$(field kept/metrics.jsonl reward | sort -u)" = 0.5 ] || fail "rewards of the program"
grep -q "said to stderr" log || fail "its standard error is gone"
! pgrep -f "$work/count.sh" >/dev/null || fail "a program outlived the run"
run 2 --out python "${common[@]}" --task "jsonl:$source/examples/prompts.jsonl" --reward-cmd "$source/examples/reward.py" >/dev/null 2>log ||
    { cat log; fail "examples/reward.py"; }
run 2 --out late "${common[@]}" --reward-cmd 'while read -r line; do echo 1; done; exit 7' >/dev/null 2>log || { cat log; fail "a bad end after the last step"; }
grep -q "after the last step: --reward-cmd .* ended with exit status 7" log || { cat log; fail "a bad end is not said"; }
run 2 --out late1 "${common[@]}" --quiet --reward-cmd 'while read -r l; do echo 1; done; [ $OMPI_COMM_WORLD_RANK = 0 ] || exit 7' >/dev/null 2>log ||
    { cat log; fail "a bad end on rank 1"; }
grep -q "rank 1: after the last step: --reward-cmd .* ended with exit status 7" log || { cat log; fail "a bad end on rank 1 is not said"; }
run 1 --out bye "${common[@]}" --steps 1 --reward-cmd 'while read -r l; do echo 1; done; echo 2' >/dev/null 2>log || { cat log; fail "a line at its end"; }
grep -q "after the last step: --reward-cmd .* found more: '2'" log || { cat log; fail "a line at its end is not said"; }

echo "== large lines both ways block nobody"
awk 'BEGIN { printf "{\"prompt\":[1,10,2,11],\"note\":\""; for (i = 0; i < 300000; i++) printf "x"; print "\"}" }' >large.jsonl
run 2 --out large "${common[@]}" --task jsonl:large.jsonl \
    --reward-cmd 'while read -r line; do printf "%4000s\n" 1; done' >/dev/null 2>log || { cat log; fail "large lines"; }

echo "== whatever it does wrong"
faulty 20 "ended with exit status 3; expected 8 lines, found 0" 'exit 3'
faulty 20 "was killed by signal 9" 'kill -9 $$'
faulty 20 "ended with exit status 0 (it is started once and kept over all steps); expected 8 lines, found 2: none for line 3 (request s0-g" \
    'read -r a; echo 1; read -r a; echo 1'
faulty 20 "closed its output; expected 8 lines, found 0" 'exec >&-; sleep 100'
faulty 20 "ended with exit status 3; expected 8 lines, found 0" "sleep 1000.$$ & exit 3" # which holds its output open
# A line too many is the first here: each reward is of the line before. The surplus comes after the batch, before a checkpoint.
faulty 20 "found more: '1'" 'echo 0; while read -r line; do sleep 0.005; echo 1; done' --checkpoint-every 1
[ ! -e "bad$n/checkpoint" ] || fail "there is a checkpoint of rewards of other lines"
faulty 20 "found more" 'while read -r line; do echo 1; echo 2; done'
faulty 20 "found more" 'yes 1'
faulty 20 "found a line of 4096 bytes" 'tr "\n" " " </dev/zero'
faulty 20 "line 1 of 8 (request s0-g" 'while read -r line; do echo nan; done'
faulty 20 "expected a finite number, found 'none'" 'while read -r line; do echo none; done'
faulty 20 "expected a number of at most 3.4e+38 either way, found '-1e39'" 'while read -r line; do echo -1e39; done'
faulty 20 "line 1 of 8 (request s0-g" 'while read -r line; do printf "1\0002\n"; done'
faulty 20 "expected 8 lines, found 7" 'for i in 1 2 3 4 5 6 7; do read -r line; echo 1; done; printf 1'
faulty 20 "no answer to line 1 of 8 (request s0-g" 'cat >/dev/null; echo 1' --reward-timeout 1
faulty 20 "no answer to line 3 of 8 (request s0-g" 'read -r l; echo 1; read -r l; echo 1; '"sleep 1000.$$" --reward-timeout 1
grep -q "a program that first reads to the end of its input waits for ever" log || fail "what is expected is not said"
faulty 20 "request s0-g" ": $(printf 'x%.0s' {1..2000}); sleep 1000.$$" --reward-timeout 1 # a long command leaves room for what is wrong
! pgrep -f "sleep 1000.$$" >/dev/null || fail "what the program started outlived the run"
# The limit is of the next answer, not of the batch.
run 2 --out slow "${common[@]}" --steps 1 --reward-timeout 2 --reward-cmd 'while read -r line; do sleep 0.4; echo 1; done' >/dev/null 2>log ||
    { cat log; fail "eight answers of 0.4 s each in a limit of 2 s"; }
# A limit beyond what poll takes.
run 1 --out patient "${common[@]}" --steps 1 --reward-timeout 3000000 --reward-cmd 'while read -r line; do echo 1; done' >/dev/null 2>log ||
    { cat log; fail "a large limit"; }

echo "== a run that is stopped or killed does not wait for a program that hangs"
cat >hang.sh <<'END'
[ ! -e hangs ] || { echo started >>hanging; exec sleep 1000."$1"; }
while read -r line; do echo 1; [ ! -e hangs ] || { echo started >>hanging; exec sleep 1000."$1"; }; done
END
ranks_below() {
    for child in $(pgrep -P "$1"); do
        [ "$(cat "/proc/$child/comm" 2>/dev/null)" = waybill-grpo ] && echo "$child"
        ranks_below "$child"
    done
}
for signal in TERM KILL; do
    rm -f hangs hanging
    run 2 --out "stop_$signal" "${common[@]}" --steps 100000 --checkpoint-every 0 --reward-cmd "sh $work/hang.sh $$" >log 2>&1 &
    job=$!
    until_so 'grep -q "^step *2/" log'
    touch hangs
    until_so '[ "$(cat hanging 2>/dev/null | wc -l)" = 2 ]'
    start=$SECONDS
    # shellcheck disable=SC2046
    kill -$signal $(ranks_below $job) || fail "no rank to stop"
    wait $job
    found=$?
    [ $((SECONDS - start)) -le 8 ] || fail "SIG$signal: it went on for $((SECONDS - start)) s"
    for _ in $(seq 50); do pgrep -f "sleep 1000.$$" >/dev/null || break; sleep 0.1; done
    ! pgrep -f "sleep 1000.$$" >/dev/null || fail "SIG$signal: a program outlived the run"
    [ $signal = KILL ] && continue
    [ $found = 143 ] || { cat log; fail "exit status: expected 143, found $found"; }
    grep -q "stopped by signal 15 .* dropped, checkpoint after step" log || { cat log; fail "the dropped step is not said"; }
    rm hangs
    step=$(sed -n 's/.*"step": \([0-9]*\).*/\1/p' stop_TERM/checkpoint/trainer/state.json)
    run 1 --out stop_TERM "${common[@]}" --steps $((step + 1)) --resume --reward-cmd "sh $work/hang.sh $$" --quiet >/dev/null 2>log || { cat log; fail "resume"; }
    "$waybill" verify stop_TERM/dump >/dev/null || fail "the dump of a step that was dropped and done again"
    [ "$(wc -l <stop_TERM/metrics.jsonl) $("$waybill" cat stop_TERM/dump | wc -l)" = "$((step + 1)) $((16 * (step + 1)))" ] || fail "a step is missing or there twice"
done
echo "all well"
