#!/usr/bin/env bash
# The page of `waybill report` in a browser without a window: all its parts are there, no word of a fault, drawn in light and dark.
# usage: check_report_in_browser.sh BUILD_DIR SOURCE_DIR
. "$(dirname "$0")/../command_checks.sh"
for name in chromium chromium-browser google-chrome ''; do command -v "$name" >/dev/null && break; done
[ -n "$name" ] || { echo "skipped: no chromium here"; exit 77; }
look() { timeout 100 "$name" --headless --no-sandbox --disable-gpu --user-data-dir="$scratch/profile" "$@" 2>"$scratch/said"; }
page=$scratch/page.html
expect 0 "$waybill" report "$golden/good_u8.wbr" --against "$golden/good_u8.wbr" -o "$page"
look --enable-logging=stderr --dump-dom "file://$page" >"$scratch/dom" || { echo "skipped: $name does not run here"; exit 77; }
grep -q 'CONSOLE' "$scratch/said" && fault "the browser says: $(grep -m 1 CONSOLE "$scratch/said")"
for part in 'Load of the experts' Balancedness Mismatch; do
    grep -q "<h2[^>]*>$part" "$scratch/dom" || fault "no part $part in what the browser shows"
done
for scheme in 0 1; do # dark, light
    look --window-size=900,1200 --blink-settings=preferredColorScheme=$scheme --screenshot="$scratch/$scheme.png" "file://$page" ||
        fault "no picture in scheme $scheme"
    # A page of one colour takes a few KiB.
    [ "$(stat -c %s "$scratch/$scheme.png")" -gt 20000 ] || fault "scheme $scheme: the page is empty"
done
cmp -s "$scratch/0.png" "$scratch/1.png" && fault "light and dark are the same"
finish "a report is shown by a browser, in light and dark"
