/* page_text.c - see page_text.h. Refuses: scripts, fonts and anything from elsewhere, which the page's own
 * policy forbids too. */
#include "report_page/page_text.h"
#include "wb_text.h"

#include <math.h>
#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd"

/* U+FFFE and U+FFFF are characters of UTF-8 and none of XML. */
static bool is_no_character(const unsigned char *s) {
    return s[0] == 0xef && s[1] == 0xbf && s[2] >= 0xbe;
}

/* What stands for a byte of text; NULL: itself. */
static const char *escape_of(unsigned char c) {
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    default:
        return c < 0x20 || c == 0x7f ? REPLACEMENT : NULL;
    }
}

void page_text(FILE *out, const char *text) {
    const bool utf8 = wb_text_ok(text, strlen(text));
    for (const unsigned char *s = (const unsigned char *)text; *s; s++) {
        const bool skip = utf8 && is_no_character(s);
        const char *escape = skip || (*s >= 0x80 && !utf8) ? REPLACEMENT : escape_of(*s);
        escape ? fputs(escape, out) : fputc(*s, out);
        if (skip) s += 2;
    }
}

void page_number_cell(FILE *out, double value) {
    if (isnan(value))
        fputs("<td></td>", out);
    else
        fprintf(out, "<td>%.6g</td>", value);
}

void page_table_begin(FILE *out, const char *what) {
    fprintf(out, "<details><summary>As a table: %s</summary>\n", what);
    fprintf(out, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Table: %s\"><table>\n",
            what);
}

void page_table_end(FILE *out) {
    fputs("</table></div></details>\n", out);
}

/* Bins of the heat map go from b0, never chosen, over b3, just below the mean, to b6; s0.. are the lines of a
 * plot, which differ in their dashes too. */
static const char style[] =
    ":root{color-scheme:light dark;--page:#fff;--text:#1d2327;--dim:#5b6770;--rule:#d5dbe0;--focus:#0b62c4;"
    "--b0:#fff;--b1:#e3eff7;--b2:#bcd9ea;--b3:#86b7d6;--b4:#f4c690;--b5:#e08445;--b6:#b3341b;"
    "--s0:#1b6aa5;--s1:#b8461f;--s2:#3c7a2d;--s3:#7a4fb0;--s4:#6b6b6b}\n"
    "@media (prefers-color-scheme:dark){:root{--page:#14181b;--text:#e4e9ec;--dim:#9fabb3;--rule:#39434a;"
    "--focus:#7db8ff;--b0:#14181b;--b1:#1c2f3c;--b2:#234a63;--b3:#31709a;--b4:#7d5420;--b5:#c9702f;--b6:#"
    "ffb38c;"
    "--s0:#6fb7ea;--s1:#f0905f;--s2:#8ecb7c;--s3:#c1a0ee;--s4:#b0b0b0}}\n"
    "body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--page);color:var(--text);"
    "font:1rem/1.5 system-ui,sans-serif}\n"
    "h1{font-size:1.5rem;overflow-wrap:anywhere}h2{margin-top:2.5rem}a{color:var(--focus)}\n"
    ":focus-visible{outline:3px solid var(--focus);outline-offset:2px}\n"
    "svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--text)}\n"
    ".scroll{overflow:auto;max-height:30rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "\n"
    "th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}\n"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{color:var(--dim)}"
    "dd{margin:0;overflow-wrap:anywhere}summary{cursor:pointer}p.note{color:var(--dim)}\n"
    ".grid{stroke:var(--rule)}.axis{stroke:var(--dim)}.cell{stroke:var(--rule);stroke-width:.4}\n"
    ".b0{fill:var(--b0)}.b1{fill:var(--b1)}.b2{fill:var(--b2)}.b3{fill:var(--b3)}.b4{fill:var(--b4)}"
    ".b5{fill:var(--b5)}.b6{fill:var(--b6)}\n"
    ".line{fill:none;stroke-width:2}.s0{stroke:var(--s0)}.s1{stroke:var(--s1);stroke-dasharray:9 4}"
    ".s2{stroke:var(--s2);stroke-dasharray:3 3}.s3{stroke:var(--s3);stroke-dasharray:12 3 3 3}"
    ".s4{stroke:var(--s4);stroke-dasharray:1 4}\n"
    ".dot{stroke:none}.dot.s0{fill:var(--s0)}.dot.s1{fill:var(--s1)}.dot.s2{fill:var(--s2)}"
    ".dot.s3{fill:var(--s3)}.dot.s4{fill:var(--s4)}\n"
    "@media print{details{display:none}}\n";

void page_begin(FILE *out, const char *dump) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n"
          "<meta charset=\"utf-8\"/>\n"
          "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
          "'unsafe-inline'\"/>\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
          "<meta name=\"color-scheme\" content=\"light dark\"/>\n",
          out);
    fprintf(out, "<meta name=\"generator\" content=\"waybill %s\"/>\n<title>Routes of ", wb_version());
    page_text(out, dump);
    fprintf(out, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>Routes of ", style);
    page_text(out, dump);
    fputs("</h1>\n", out);
}

void page_end(FILE *out) {
    fputs("</main>\n</body>\n</html>\n", out);
}

void page_section_begin(FILE *out, const char *id, const char *title) {
    fprintf(out, "<section id=\"%s\" aria-labelledby=\"%s-title\">\n<h2 id=\"%s-title\">%s</h2>\n", id, id,
            id, title);
}

void page_section_end(FILE *out) {
    fputs("</section>\n", out);
}
