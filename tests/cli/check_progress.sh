#!/usr/bin/env bash
# Progress on standard error: nothing of a short command, lines where no terminal is, one line of 60 columns on a terminal,
# which is taken off at the end and at an interrupt. A library before libc's lets seconds pass between two looks at the clock.
# usage: check_progress.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/command_checks.sh"
[ -z "${WB_SANITIZE:-}" ] || { echo "skip: a sanitizer does not go with a preloaded library"; exit 77; }
cat >"$scratch/clock.c" <<'END'
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    static long seconds;
    (void)id;
    *t = (struct timespec){.tv_sec = seconds += atoi(getenv("CLOCK_STEP"))};
    return 0;
}
END
${CC:-cc} -shared -fPIC -o "$scratch/clock.so" "$scratch/clock.c" || { echo "skip: no compiler"; exit 77; }
mkdir "$scratch/empty"

# slow SECONDS COMMAND... : each look at the clock is SECONDS after the one before
slow() { CLOCK_STEP=$1 LD_PRELOAD=$scratch/clock.so "${@:2}"; }

dump=$golden/good_u8.wbr
for command in inspect verify cat stats "eplb --ranks 4 --slots 12"; do
    expect 0 "$waybill" $command "$dump"
    err_is_empty
    expect 0 slow 0 "$waybill" $command "$dump"
    err_is_empty
done
for command in verify cat stats; do
    expect 0 slow 6 "$waybill" $command "$dump"
    grep -qE '^[123] of 3 records(, [0-9]+ tokens)?(, [0-9]+s left)?$' "$scratch/err" || fault "$command: no progress"
    [ "$(wc -l <"$scratch/err")" -le 3 ] || fault "$command: more lines than records"
    ! grep -q $'\r' "$scratch/err" || fault "$command: a terminal's line in a log"
done
# What only the model can tell is looked at in the same reading of the dump.
indexed=$golden/../import/indexed
expect 0 "$waybill" convert --from sglang --model "$indexed" "$indexed/../good_sglang_indexer.jsonl" -o "$scratch/rate.wbr"
expect 0 slow 12 "$waybill" verify --model "$indexed" "$scratch/rate.wbr"
[ "$(grep -oE '^[0-9] of [0-9] records' "$scratch/err")" = $'1 of 2 records\n2 of 2 records' ] ||
    fault "verify --model: expected progress of one reading"
expect 0 slow 6 "$waybill" stats "$dump"
grep -qE '^[12] of 3 records, [0-9]+ tokens, [0-9]+s left$' "$scratch/err" || fault "stats: no time left"
expect 0 slow 6 "$waybill" eplb --ranks 4 --slots 12 "$dump"
grep -qE '^step 1 of 1, [0-3] of 3 records' "$scratch/err" || fault "eplb: no progress of reading"
grep -qE '^step 1 of 1, [a-z]+, layer [0-9] of 2$' "$scratch/err" || fault "eplb: no progress of solving"
[ -z "$(awk 'length($0) > 60' "$scratch/err")" ] || fault "eplb: a line of more than 60 columns"

expect 0 slow 6 "$waybill" report "$golden/versions" --force -o /dev/null
grep -qE '^version [12] of 2, [0-9]+ of [0-9]+ records' "$scratch/err" || fault "report: no progress of reading versions"
grep -qE '^[24] ranks, [a-z]+, layer [0-9] of [0-9]' "$scratch/err" || fault "report: no progress of solving"
[ -z "$(awk 'length($0) > 60' "$scratch/err")" ] || fault "report: a line of more than 60 columns"

# ---- on a terminal
python3 -c 'import pty' 2>/dev/null || finish "progress is told where it is to be told"
cat >"$scratch/terminal.py" <<'END'
"""usage: terminal.py SIGNAL COMMAND... : prints what the command writes to its terminal, and how it ended; with a signal's
number it is sent when the first line of progress is there"""
import os, pty, sys
number, command = int(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    os.execvp(command[0], command)
text = b""
while True:
    try:
        got = os.read(terminal, 4096)
    except OSError:
        break
    if not got:
        break
    text += got
    if number and b"left" in text:
        os.kill(pid, number)
        number = 0
status = os.waitpid(pid, 0)[1]
sys.stdout.write(repr(text.decode()) + "\n")
print("signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else print("exit", os.WEXITSTATUS(status))
END
expect 0 slow 3 python3 "$scratch/terminal.py" 0 "$waybill" stats "$dump"
out_has "exit 0"
python 'import ast, sys
text = ast.literal_eval(open(sys.argv[1]).readline())
lines = text.split("\r")
assert any("records" in l and "tokens" in l and "left" in l for l in lines), lines
assert all(len(l) <= 60 for l in lines), lines
assert text.endswith("\r" + " " * 60 + "\r") and "\n" not in text, text' "$scratch/out" || fault "stats on a terminal"
expect 0 python3 "$scratch/terminal.py" 0 "$waybill" stats "$dump"
[ "$(head -n 1 "$scratch/out")" = "''" ] || fault "a short stats writes to the terminal"

# An interrupted command ends by the signal, its line taken off. Hours of work: the signal comes in time.
endless=(eplb --synthetic zipf --ranks 64 --slots 512 --steps 65536 --algorithm microbatch)
for signal in 2 15; do
    expect 0 timeout 100 python3 "$scratch/terminal.py" $signal "$waybill" "${endless[@]}"
    out_has "signal $signal"
    python 'import ast, sys
text = ast.literal_eval(open(sys.argv[1]).readline())
assert text.endswith("\r" + " " * 60 + "\r"), text[-200:]' "$scratch/out" || fault "signal $signal: the line is left"
done
finish "progress is told where it is to be told"
