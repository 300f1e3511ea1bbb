#!/usr/bin/env bash
# compare_model.sh - bench_model beside transformers: the same checkpoint, shapes and threads, in turns, case by case.
#
#   compare_model.sh BENCH_MODEL PYTHON [THREADS [REPEATS [CASE...]]]
#
# VLLM=PYTHON: vLLM too (vllm_model.py), by the Python that has it; its start takes a minute and more, and it has no training.
# CLOCK=cpu divides by CPU time instead of the wall's: with one thread, a busy machine shows what an idle one would do.
# Prints medians of REPEATS (5), ranges and ratios, and the largest difference of what the two computed. Both programs stay
# loaded; while one runs the other sleeps. Cases that the peer lacks (capture off) run in the same turns.
set -euo pipefail
usage="usage: compare_model.sh BENCH_MODEL PYTHON [THREADS [REPEATS [CASE...]]]"
if [ "${1:-}" = --help ]; then echo "$usage"; exit 0; fi
if [ $# -lt 2 ] || [[ $1 == -* ]]; then echo "$usage" >&2; exit 2; fi
bench=$1 python=$2 threads=${3:-$(nproc)} repeats=${4:-5}
shift $(($# < 4 ? $# : 4))
cases=${*:-prefill prefill_bf16 decode_1 decode_1_no_routes decode_16 decode_16_bf16 decode_16_no_routes decode_64 decode_64_bf16 decode_64_no_routes train train_kept}
clock=${CLOCK:-wall}
clock_option=
if [ "$clock" = cpu ]; then clock_option=--cpu-time; fi
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'exec 3>&- 5>&- 7>&-; wait; rm -rf "$work"' EXIT

# Their threads must be asleep, not spinning, while the other is timed.
export OMP_NUM_THREADS=$threads OMP_PROC_BIND=${OMP_PROC_BIND:-false}
"$bench" --threads "$threads" --save "$work/model"
mkfifo "$work/a_in" "$work/a_out" "$work/b_in" "$work/b_out"
"$bench" --threads "$threads" $clock_option - <"$work/a_in" >"$work/a_out" &
"$python" "$here/hf_model.py" "$work/model" --threads "$threads" $clock_option <"$work/b_in" >"$work/b_out" &
exec 3>"$work/a_in" 4<"$work/a_out" 5>"$work/b_in" 6<"$work/b_out"
if [ -n "${VLLM:-}" ]; then
    mkfifo "$work/c_in" "$work/c_out"
    "$VLLM" "$here/vllm_model.py" "$work/model" --threads "$threads" $clock_option <"$work/c_in" >"$work/c_out" &
    exec 7>"$work/c_in" 8<"$work/c_out"
fi

ask() { # ask WHO CASE ROUND: one run; round 0 is the warm-up
    local reply
    case $1 in
    waybill) echo "$2" >&3 && read -r reply <&4 ;;
    transformers) echo "$2" >&5 && read -r reply <&6 ;;
    vllm) echo "$2" >&7 && read -r reply <&8 ;;
    esac
    if [ "$3" -gt 0 ]; then echo "$1 $reply" >>"$work/results"; fi
}

for round in $(seq 0 "$repeats"); do
    for case in $cases; do
        ask waybill "$case" "$round"
        case $case in
        *_no_routes) ;;
        *) ask transformers "$case" "$round" ;;
        esac
        case ${VLLM:+$case} in
        prefill | decode_1 | decode_16 | decode_64) ask vllm "$case" "$round" ;;
        esac
    done
done

echo "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1), $(nproc --all) cores, $threads threads, $clock time; load $(cut -d' ' -f1 /proc/loadavg)"
sort -k1,1 -k2,2 -k3,3g "$work/results" | awk -v cases="$cases" '
    { key = $1 " " $2; rate[key, n[key]++] = $3; check[key] = $4 }
    function median(k) { return n[k] % 2 ? rate[k, (n[k] - 1) / 2] : (rate[k, n[k] / 2 - 1] + rate[k, n[k] / 2]) / 2 }
    function show(k) { return sprintf("%9.1f (%8.1f - %8.1f)", median(k), rate[k, 0], rate[k, n[k] - 1]) }
    END {
        printf "%-20s %32s %32s %7s %9s\n", "tokens/s", "waybill", "transformers", "ratio", "checks"
        count = split(cases, name, " ")
        for (i = 1; i <= count; i++) {
            a = "waybill " name[i]; b = "transformers " name[i]
            if (n[b] > 0) {
                difference = check[a] - check[b]
                printf "%-20s %32s %32s %7.2f %9.1e\n", name[i], show(a), show(b), median(a) / median(b), difference < 0 ? -difference : difference
            } else
                printf "%-20s %32s\n", name[i], show(a)
            v = "vllm " name[i]
            if (n[v] > 0) printf "%-20s %32s %32s %7.2f\n", name[i] ", vllm", "", show(v), median(a) / median(v)
        }
        for (i = 1; i <= count; i++)
            if (n["waybill " name[i] "_no_routes"] > 0)
                printf "capture on %s: %+.1f %%\n", name[i], 100 * (median("waybill " name[i] "_no_routes") / median("waybill " name[i]) - 1)
    }'
