/* report_json.c - see report_json.h. */
#include "report/report_json.h"

#include <math.h>
#include <stdio.h>

void json_text(const char *text) {
    putchar('"');
    for (const unsigned char *s = (const unsigned char *)text; *s; s++) {
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if (*s < 0x20 || *s == 0x7f)
            printf("\\u%04x", *s);
        else
            putchar(*s);
    }
    putchar('"');
}

void json_number(double value) {
    if (isfinite(value))
        printf("%.9g", value);
    else
        printf("null");
}

void json_pair(const char *key, double value) {
    printf(",\"%s\":", key);
    json_number(value);
}
