/* report_json.h - values as JSON text on stdout. */
#ifndef WB_CLI_REPORT_JSON_H
#define WB_CLI_REPORT_JSON_H

void json_text(const char *text);              /* a string with its quotes */
void json_number(double value);                /* null when it is not finite */
void json_pair(const char *key, double value); /* ,"key":value */

#endif
