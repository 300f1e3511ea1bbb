/* page_indexer.c - see page_indexer.h. */
#include "report_page/page_indexer.h"
#include "report_page/page_text.h"

#include <inttypes.h>

static void print_head(FILE *out, bool compared) {
    static const char *const columns[] = {"layer", "rows",      "of none",       "listed",
                                          "span",  "overlap@K", "same positions"};
    fputs("<thead><tr>", out);
    for (size_t c = 0; c < (compared ? 7 : 5); c++) fprintf(out, "<th scope=\"col\">%s</th>", columns[c]);
    fputs("</tr></thead>\n<tbody>\n", out);
}

static void print_row(FILE *out, const stats *s, const diff *d, uint32_t column) {
    const stats_indexer *i = &s->indexers[column];
    fprintf(out, "<tr><th scope=\"row\">%" PRIu32 "</th><td>%" PRIu64 "</td><td>%" PRIu64 "</td>",
            stats_indexer_layer(s, column), i->rows, i->empty);
    page_number_cell(out, stats_mean_listed(i));
    page_number_cell(out, stats_mean_span(i));
    if (d) {
        page_number_cell(out, diff_mean(d->indexers[column].overlap, d->indexers[column].rows));
        page_number_cell(out, diff_share(d->indexers[column].same, d->indexers[column].rows));
    }
    fputs("</tr>\n", out);
}

void page_indexer(FILE *out, const stats *s, const diff *d) {
    page_section_begin(out, "indexers", "What indexers chose");
    fprintf(out,
            "<p class=\"note\">Recorded in %" PRIu64
            " records: how many positions a row lists, and how far it "
            "is from the first to the last.",
            s->with_indexer);
    if (d)
        fprintf(out, " %" PRIu64 " rows are in both dumps, %" PRIu64 " only in A, %" PRIu64 " only in B.",
                d->indexer_rows, d->indexer_only_a, d->indexer_only_b);
    fputs("</p>\n", out);
    page_table_begin(out, "choices of each indexer");
    print_head(out, d != NULL);
    for (uint32_t column = 0; column < s->n_indexers; column++) print_row(out, s, d, column);
    fputs("</tbody>\n", out);
    page_table_end(out);
    page_section_end(out);
}
