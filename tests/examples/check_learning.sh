#!/usr/bin/env bash
# check_learning.sh - training learns: the reward of a short run rises, and a run with the sign of its advantages turned is caught by
# the same check; the table that the quickstart ends with says what the quickstart is there to show.
# usage: check_learning.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/grpo_checks.sh"
negated=$build/tests/waybill-grpo-negated
rank=("${mpi[@]}" -n 2)
above() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a + 0 > b + 0) }'; }
# row "words at its beginning": the last two columns of a line of the table on standard input, without %
row() { awk -v words="$1" 'index($0, words) == 1 { print $(NF - 1), $NF }' | tr -d %; }

# learns PROGRAM OUT: whether the reward rises by a margin that chance does not reach. From 0.12 it comes to about 0.4.
learns() {
    "${rank[@]}" "$1" --model base --out "$2" --steps 30 --lr 6e-4 --seed 3 --quiet --no-dump --compare-every 0 >"$2.log" 2>&1 ||
        { cat "$2.log"; fail "$1 ended with a failure"; }
    read -r start end < <(row reward <"$2.log")
    echo "$2: reward $start to $end"
    above "$end" "$(awk -v s="$start" 'BEGIN { print s + 0.15 }')"
}

echo "== a run learns, and one that unlearns is caught"
"${rank[@]}" "$grpo" --make-base base --warmup-steps 40 --quiet || fail "make-base"
learns "$grpo" right || fail "the reward does not rise"
learns "$negated" wrong && fail "a run with negated advantages passes"

echo "== a second quickstart leaves the first one's files alone"
mkdir -p twice/build
for run in 1 2 3; do
    (cd twice && eval "$(grep -E '^(out=|while |rm |mkdir )' "$source/examples/quickstart.sh")" && echo $run >"$out/file") || fail "quickstart $run: its folder"
done
[ "$(cat twice/build/quickstart/file twice/build/quickstart-2/file twice/build/quickstart-3/file | tr -d '\n')" = 123 ] || fail "an earlier quickstart's files are gone"

echo "== the quickstart's own commands and table"
out=$work/quickstart
mkdir "$out"
commands=$(sed -n '/^"${rank\[@\]}" /{:more /\\$/{N;b more};p}' "$source/examples/quickstart.sh" | sed "s|build/bin/|$build/bin/|")
[ "$(grep -c waybill-grpo <<<"$commands")" = 2 ] || fail "quickstart.sh: expected two runs of waybill-grpo, found: $commands"
eval "$commands" >table 2>log || { cat log; fail "the quickstart's commands"; }
cat table
read -r start end < <(row reward <table)
read -r kl_off kl_on < <(row KL <table)
read -r differ_off differ_on < <(row "tokens routed differently" <table)
above "$end" "$(awk -v s="$start" 'BEGIN { print s + 0.3 }')" || fail "reward: expected a rise of 0.3 at least, found $start to $end"
above "$kl_on" 0 && above "$kl_off" "$(awk -v on="$kl_on" 'BEGIN { print 2 * on }')" || fail "KL: expected replay to halve it at least, found $kl_off and $kl_on"
[ "$differ_on" = 0.00 ] || fail "routed differently under replay: expected 0.00 %, found $differ_on"
above "$differ_off" 1 || fail "routed differently without replay: expected more than 1 %, found $differ_off"
echo "all well"
