/* python_abi.c - what the Python package must know of the C interface: names and values of enums, where the
 * fields of structs lie, and signatures of functions, as one text that it reads when it is imported.
 *
 * Each line of the lists below is used twice, as a declaration and as text. So the compiler refuses one that
 * does not agree with the public headers, and Python has no layout and no signature of its own that could
 * drift from the library it has loaded. Fields that Python does not use are left out: it fills the gaps.
 * Refuses: anything but describing; behaviour is the library's. */
#include "python_abi.h"

/* A second declaration of each function: an error where it is not the one of its header. */
#define DECLARE(result, name, parameters) result name parameters;
WB_PYTHON_FUNCTIONS(DECLARE)
#undef DECLARE

/* A pointer to the field has to be a pointer to the type that is said. */
#define NOTHING(type)
#define FIELD_IS(struct_type, type, field)                                                    \
    _Static_assert(_Generic(&((struct_type *)0)->field, __typeof__(type) * : 1, default : 0), \
                   #struct_type "." #field " is no " #type);
WB_PYTHON_STRUCTS(NOTHING, FIELD_IS)
#undef FIELD_IS

/* One line of the text: what it is (status, enum, struct, field or function), its name or C text, numbers. */
typedef struct line {
    const char *kind, *name, *text;
    long long first, second;
} line;

#define STATUS_LINE(name, value, meaning) {"status", #name, meaning, value, 0},
#define ENUM_LINE(type, value) {"enum", #value, #type, (long long)(value), 0},
#define STRUCT_LINE(type) {"struct", #type, "", (long long)sizeof(type), 0},
#define FIELD_LINE(type, c_type, field)                                    \
    {"field", #type "." #field, #c_type, (long long)offsetof(type, field), \
     (long long)sizeof(((type *)0)->field)},
#define FUNCTION_LINE(result, name, parameters) {"function", #name, #result "|" #parameters, 0, 0},

static const line lines[] = {WB_STATUS_LIST(STATUS_LINE) WB_PYTHON_ENUMS(ENUM_LINE) WB_PYTHON_STRUCTS(
    STRUCT_LINE, FIELD_LINE) WB_PYTHON_FUNCTIONS(FUNCTION_LINE)};
enum { N_LINES = sizeof lines / sizeof lines[0] };

bool wb_python_abi_line(int i, const char **kind_out, const char **name_out, const char **text_out,
                        long long *first_out, long long *second_out) {
    if (i < 0 || i >= N_LINES) return false;
    *kind_out = lines[i].kind;
    *name_out = lines[i].name;
    *text_out = lines[i].text;
    *first_out = lines[i].first;
    *second_out = lines[i].second;
    return true;
}
