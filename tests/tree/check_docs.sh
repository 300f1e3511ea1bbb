#!/usr/bin/env bash
# The pages for people do not rot: every path that they name exists, all rules are in docs/rules.md, every test that it names
# exists and is run, and a rule without a test says what is missing. usage: check_docs.sh BUILD_DIR SOURCE_DIR
set -uo pipefail
export LC_ALL=C
build=$1 source=$2
n_rules=39
cd "$source" || exit 1
faults=0
fault() {
    echo "FAULT: $*"
    faults=$((faults + 1))
}

# ---- paths -------------------------------------------------------------------------------------------------------
pages=(README.md CONTRIBUTING.md CHANGELOG.md docs/*.md tests/bench/README.md)
# File names that belong to others, or that a recipe makes.
foreign=' eplb.py mpi.h nccl.h inttypes.h '

# named PAGE : what looks like a path of this tree, one a line: anything below a top-level folder, the targets of links, and file
# names in backticks. A path that goes on with <placeholder> counts up to its last folder.
named() {
    perl -ne '
        while (m{(?<![\w/.<>-])(?:\./)?((?:base|formats|comm|kernels|eplb|model|replay|train_hooks|rollout|cli|examples|tests|docs)
                 /[\w./*-]*)(<?)}gx) {
            my ($path, $placeholder) = ($1, $2);
            $path =~ s{[^/]*$}{} if $placeholder;
            $path =~ s/\.+$//;
            print "tree $path\n";
        }
        while (/\]\(([^)#\s]+)/g) { my $to = $1; print "link $to\n" unless $to =~ /^\w+:/ }
        while (/`([\w.-]+\.(?:c|h|cu|sh|py|md))`/g) { print "file $1\n" }
    ' "$1" | sort -u
}

names=$(find . -type d \( -name 'build*' -o -name '.?*' \) -prune -o -type f -printf '%f\n' | sort -u)
n_paths=0
for page in "${pages[@]}"; do
    [ -e "$page" ] || { fault "$page: is missing"; continue; }
    while read -r kind path; do
        n_paths=$((n_paths + 1))
        case $kind in # compgen finds any path that ends with a slash
        tree) compgen -G "${path%/}" >/dev/null || fault "$page names $path, which is not there" ;;
        link) [ -e "$(dirname "$page")/$path" ] || fault "$page links to $path, which is not there" ;;
        file) [[ $foreign == *" $path "* ]] || grep -qxF -- "$path" <<<"$names" || fault "$page names $path: no file is called so" ;;
        esac
    done < <(named "$page")
    grep -nE '/(home|root|work|tmp)/' "$page" | grep . && fault "$page: names a folder of somebody's machine"
done
[ $n_paths -ge 50 ] || fault "expected 50 paths and more in the pages, found $n_paths: this check looks at nothing"

# ---- rules -------------------------------------------------------------------------------------------------------
# Read, not asked of `ctest -N`, which would overwrite the log of the ctest that runs this.
registered=$(sed -nE 's/^ *add_test\((\[=*\[)?"?([A-Za-z0-9_]+).*/\2/p' "$build/tests/CTestTestfile.cmake")
[ -n "$registered" ] || fault "no tests in $build/tests/CTestTestfile.cmake"
is_test() { # NAME : a test, or a program of several ranks
    grep -qxE -- "$1(_[0-9]+)?" <<<"$registered" && return
    case $1 in mpi_*) ! grep -q '^mpi_' <<<"$registered" && compgen -G "tests/*/$1.c" >/dev/null ;; *) false ;; esac # no MPI here
}

grep -E '^## [0-9]+\. ' docs/rules.md | sed -E 's/^## ([0-9]+)\..*/\1/' | diff - <(seq $n_rules) >/dev/null ||
    fault "docs/rules.md: expected the headings '## 1. ' to '## $n_rules. ', once each and in order"

# One line a rule: number, holds | part | not, and what its Tests name ("program:function" or "test").
rules=$(perl -0777 -ne '
    for my $section (split /^(?=##? )/m) {
        next unless $section =~ /^## (\d+)\. /;
        my $rule = $1;
        my $missing = $section =~ /\*\*Not yet:\*\* *\S/;
        my ($tests) = $section =~ /\*\*Tests:\*\*(.*?)(?:\n\*\*|\z)/s;
        my @named = defined $tests ? $tests =~ /`([^`]+)`/g : ();
        s/:\s+/:/ for @named;
        my $state = !@named ? ($missing ? "not" : "silent") : $missing ? "part" : "holds";
        print join(" ", $rule, $state, @named), "\n";
    }' docs/rules.md)
n_tests=0
check_named() { # WHOSE TEST... : each is "program:function" or a test
    local whose=$1 test program function
    shift
    for test in "$@"; do
        n_tests=$((n_tests + 1))
        program=${test%%:*} function=${test#*:}
        is_test "$program" || fault "docs/rules.md: $whose: $program is not a test"
        [ "$function" = "$test" ] && continue
        grep -qE "^static void $function\(void \*\*" tests/*/"$program".c 2>/dev/null ||
            fault "docs/rules.md: $whose: $program has no function $function"
    done
}
while read -r rule state named; do
    [ "$state" != silent ] || fault "docs/rules.md: rule $rule names no test and does not say what is missing"
    # shellcheck disable=SC2086 # one word a test
    check_named "rule $rule" $named
done <<<"$rules"

# The families of bugs of load balancing: each has tests, which are there.
families=$(perl -ne 'next unless /^\| (\d)\. .*\| ([^|]*) \|$/; my ($family, $tests) = ($1, $2);
    my @named = $tests =~ /`([^`]+)`/g; s/:\s+/:/ for @named; print join(" ", $family, @named), "\n"' docs/rules.md)
[ "$(cut -d" " -f1 <<<"$families" | tr -d "\n")" = 1234567 ] || fault "docs/rules.md: expected the families 1. to 7. in their order"
while read -r family named; do
    [ -n "$named" ] || fault "docs/rules.md: family $family names no test"
    # shellcheck disable=SC2086
    check_named "family $family" $named
done <<<"$families"
[ $n_tests -ge $n_rules ] || fault "docs/rules.md: expected $n_rules tests and more, found $n_tests"

# The table at the page's top says the same. Its rows: | ... | rules that hold | in part | not yet |
for column in 2:holds 3:part 4:not; do
    told=$(awk -F'|' -v column=$((${column%:*} + 1)) '/^\| *(routes|replay|placement|failure|later additions) *\|/ { print $column }' \
        docs/rules.md | tr -cs '0-9' '\n' | grep . | sort -n | tr '\n' ' ')
    found=$(awk -v state="${column#*:}" '$2 == state { print $1 }' <<<"$rules" | sort -n | tr '\n' ' ')
    [ "$told" = "$found" ] || fault "docs/rules.md: the table's column ${column#*:} has $told, the rules say $found"
done

# A test named after a rule is in that rule's list.
while read -r function; do
    rule=$(sed -E 's/^test_rule_([0-9]+)_.*/\1/' <<<"$function")
    grep -E "^$rule " <<<"$rules" | grep -qE ":$function( |$)" || fault "docs/rules.md: rule $rule does not name its test $function"
done < <(grep -hoE '^static void test_rule_[0-9]+_\w+' tests/*/*.c | sed 's/^static void //' | sort -u)

# ---- the version is typed once -------------------------------------------------------------------------------------
version=$(sed -nE 's/^project\(waybill VERSION ([0-9.]+).*/\1/p' CMakeLists.txt)
[ -n "$version" ] || fault "CMakeLists.txt: expected project(waybill VERSION ...)"
grep -qxF "## $version" CHANGELOG.md || fault "CHANGELOG.md: expected a part '## $version', the version of CMakeLists.txt"
again=$(find . -type d \( -name 'build*' -o -name '.?*' -o -name golden \) -prune -o \
    -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.sh' -o -name CMakeLists.txt \) -print |
    xargs grep -nF "$version" | grep -v '^./CMakeLists.txt:[0-9]*:project(')
[ -z "$again" ] || fault "the version is typed again: $again"

[ $faults -eq 0 ] && echo "$n_paths paths in ${#pages[@]} pages, $n_rules rules with $n_tests tests"
exit $((faults > 0))
