/* page_text.h - text and tables of a page that is HTML and well-formed XML at once. */
#ifndef WB_CLI_PAGE_TEXT_H
#define WB_CLI_PAGE_TEXT_H

#include "wb_base.h"

#include <stdio.h>

/* Writes text from outside, a path or a name, so that it is text in an element and in an attribute: markup is
 * escaped, and what XML cannot hold becomes U+FFFD. */
void page_text(FILE *out, const char *text);

/* An empty cell for NAN. */
void page_number_cell(FILE *out, double value);

/* A table that is folded away until it is asked for; it scrolls in itself, with the arrow keys too. */
void page_table_begin(FILE *out, const char *what);
void page_table_end(FILE *out);

/* The document from its first line to the end of its style sheet; the title is DUMP's path. */
void page_begin(FILE *out, const char *dump);
void page_end(FILE *out);

/* A section that the list at the top of the page names. */
void page_section_begin(FILE *out, const char *id, const char *title);
void page_section_end(FILE *out);

#endif
