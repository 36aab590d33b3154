/* Reads export requests into columns: recognises spans like those it was told of, and leaves all others to the rules.
 * What is told, and why, is `decode.scanner`'s business. A scanner is used by one thread at a time. */
#include "cursor.h"
#include "table.h"

enum { POSITIONS = 512, KIND_BYTES = 8192, COUNTS = 8, UNITS = 5, TEXTS = 3, REST_WORDS = 9 };
enum { FEW_POSITIONS_MAX = 1 << 22, ITEMS_MAX = 1 << 20, ROWS_MAX = 1 << 26, ROWS_KEPT = 1 << 17, PLAIN_ID_MAX = 127 };
enum { TABLE_RESOURCE = 1, TABLE_SCOPE, TABLE_EDGE, TABLE_KIND, TABLE_OUTCOME, TABLE_NAME };
enum { LAYOUT_RULES, LAYOUT_IGNORED, LAYOUT_READ };
enum { REST_ODD, REST_NEW };  /* what is new may be learned; what is odd is for the rules, always */
enum { INPUT, OUTPUT, TOTAL, CACHE_READ, CACHE_WRITE, REASONING, CACHE_WRITE_5M, CACHE_WRITE_1H };
enum { INCLUDES_NO, INCLUDES_YES, INCLUDES_CHECKED };
static const i64 COUNT_MAX = (i64)1 << 53;

/* A place in the tree of attribute names; the edge taken last is tried before the table. */
typedef struct { u32 edge_place, edge_size; i32 edge_to, layout; } Node;

/* What stands where in spans with these names: positions of values in wire order, -1 where there is none. */
typedef struct {
    i32 state, graded;
    i32 counts[COUNTS], texts[TEXTS], response, run;
    i32 own_id_size;  /* response ids of this length may be made up by the emitter; 0 where it makes up none */
    i32 noted, noted_count, steps, steps_count;
    i32 last_kind, last_size;
    i64 last_place;
} Layout;

typedef struct { i32 readable, includes, bare, last_template; u64 last_signature; } Kind;

typedef struct {
    u8 trace_id[16], span_id[8], parent_span_id[8];
    u64 started, ended;
    i64 received, counts[UNITS];
    i32 template, request, number, names[TEXTS], service, response_end, run_end;
    u8 has_parent;
} Row;

typedef struct { u8 *bytes; size_t size, space; } Pool;

typedef struct {
    Table table;
    Node *nodes;
    Layout *layouts;
    Kind *kinds;
    i32 *noted;
    i64 *steps;
    size_t nodes_size, layouts_size, kinds_size, noted_size, steps_size;
    size_t nodes_space, layouts_space, kinds_space, noted_space, steps_space;
    u8 free_word[32];
    size_t free_word_size;
    Row *rows;
    i64 *rest;
    size_t rows_size, rows_space, rest_size, rest_space;
    Pool responses, runs;
} Scanner;

typedef struct { i64 earliest, spans_max, attributes_max, events_max, all_attributes_max, scopes_max; } Limits;

/* Of one request while it is read. */
typedef struct {
    Scanner *scanner;
    const Limits *limits;
    const u8 *body;
    i64 received;
    u64 latest;
    i32 request;
    i64 spans, ignored, events, attributes, scopes;
    Cursor resource, scope;
    i32 service, root;
} Reading;

/* Of one span while it is read. */
typedef struct {
    Cursor whole, trace_id, span_id, parent_span_id, name;
    u64 started, ended, status;
    i32 node;
    i32 count;
    bool odd;  /* an attribute is not written as a key and a value */
    Cursor values[POSITIONS];
} Span;

static const Cursor NOTHING = {(const u8 *)"", (const u8 *)""};

/* --- what was told ------------------------------------------------------------------------------------------------ */

static inline i32 find_code(const Scanner *scanner, u32 table, u32 id, Cursor key) {
    return ob_table_find(&scanner->table, (u64)table << 32 | id, key.at, ob_left(&key));
}

static inline i32 follow_edge(Scanner *scanner, i32 from, Cursor key) {
    Node *node = &scanner->nodes[from];
    size_t size = ob_left(&key);
    if (node->edge_to >= 0 && node->edge_size == size
        && ob_same(scanner->table.keys + node->edge_place, key.at, size)) return node->edge_to;
    const Entry *edge = ob_table_entry(&scanner->table, (u64)TABLE_EDGE << 32 | (u32)from, key.at, size);
    if (!edge) return -1;
    node->edge_place = edge->place;
    node->edge_size = edge->size;
    node->edge_to = edge->value;
    return edge->value;
}

/* --- output ------------------------------------------------------------------------------------------------------- */

static bool leave_span(Reading *reading, const Span *span, i64 reason) {
    Scanner *scanner = reading->scanner;
    if (!ob_reserve((void **)&scanner->rest, &scanner->rest_space, scanner->rest_size + REST_WORDS, sizeof(i64), ROWS_MAX)) return false;
    i64 *word = scanner->rest + scanner->rest_size;
    Cursor parts[] = {span->whole, reading->resource, reading->scope};
    *word++ = reading->request;
    *word++ = reading->spans;
    *word++ = reason;
    for (int part = 0; part < 3; part++) {
        size_t size = ob_left(&parts[part]);
        *word++ = size ? parts[part].at - reading->body : 0;
        *word++ = (i64)size;
    }
    scanner->rest_size += REST_WORDS;
    return true;
}

static bool pool_text(Pool *pool, Cursor text) {
    size_t size = ob_left(&text);
    if (!ob_reserve((void **)&pool->bytes, &pool->space, pool->size + size, 1, INT32_MAX)) return false;
    if (size) memcpy(pool->bytes + pool->size, text.at, size);
    pool->size += size;
    return true;
}

/* --- one span ----------------------------------------------------------------------------------------------------- */

static inline bool is_trace_id(Cursor id) { return ob_left(&id) == 16 && (ob_load64(id.at) | ob_load64(id.at + 8)); }

static inline bool is_span_id(Cursor id) { return ob_left(&id) == 8 && ob_load64(id.at); }

/* The high bit of every byte that is not printable ASCII or is `@`. Where a byte has its own high bit, it is in. */
static inline u64 find_bad(u64 text) {
    const u64 ones = 0x0101010101010101ull;
    u64 bad = text | ~(text + ones * (0x80 - 0x21)) | (text + ones) | ~((text ^ ones * '@') + ones * 0x7F);
    return bad & ones * 0x80;
}

/* A short encoded text of printable ASCII without `@`: what `clean_id` leaves as it is. */
static inline bool read_plain_id(Cursor value, Cursor *text) {
    size_t size = ob_left(&value);
    if (size < 3 || size > 2 + PLAIN_ID_MAX || value.at[0] != 0x0A || value.at[1] != size - 2) return false;
    text->at = value.at + 2;
    text->end = value.end;
    const u8 *at = text->at;
    u64 bad = 0;
    if (ob_left(text) < 8) {
        for (; at < text->end; at++) bad |= find_bad(*at | 0x2121212121212100ull);
        return !bad;
    }
    for (; at + 8 < text->end; at += 8) bad |= find_bad(ob_load64(at));
    return !(bad | find_bad(ob_load64(text->end - 8)));
}

static inline bool read_count(Cursor value, i64 *count) {
    u64 number;
    if (ob_left(&value) < 2 || *value.at++ != 0x18) return false;
    if (!ob_read_varint(&value, &number) || value.at != value.end || number > (u64)COUNT_MAX) return false;
    *count = (i64)number;
    return true;
}

/* Whether the name may be that of a request that costs nothing; such names are ASCII and hold the word in any case. */
static bool may_be_free(const Scanner *scanner, Cursor name) {
    size_t size = scanner->free_word_size;
    if (!ob_is_ascii(name)) return true;
    for (; ob_left(&name) >= size; name.at++) {
        size_t at = 0;
        while (at < size && (name.at[at] | 0x20) == scanner->free_word[at]) at++;
        if (at == size) return true;
    }
    return false;
}

static i32 find_kind(Scanner *scanner, Layout *layout, const Span *span, u32 layout_id) {
    u8 key[KIND_BYTES];
    u32 status = (u32)span->status;
    size_t size = sizeof status;
    memcpy(key, &status, sizeof status);
    for (i32 index = 0; index < layout->noted_count; index++) {
        Cursor value = span->values[scanner->noted[layout->noted + index]];
        size_t left = ob_left(&value);
        u32 written = (u32)left;
        if (left + sizeof written > KIND_BYTES - size) return OB_MISSING;
        memcpy(key + size, &written, sizeof written);
        memcpy(key + size + sizeof written, value.at, left);
        size += sizeof written + left;
    }
    if (layout->last_kind >= 0 && (size_t)layout->last_size == size
        && ob_same(scanner->table.keys + layout->last_place, key, size)) return layout->last_kind;
    const Entry *entry = ob_table_entry(&scanner->table, (u64)TABLE_KIND << 32 | layout_id, key, size);
    if (!entry) return OB_MISSING;
    layout->last_kind = entry->value;
    layout->last_size = (i32)entry->size;
    layout->last_place = entry->place;
    return entry->value;
}

static inline u64 grade(const Scanner *scanner, const Layout *layout, i64 count) {
    u64 passed = 0;
    for (i32 index = 0; index < layout->steps_count; index++) passed += scanner->steps[layout->steps + index] <= count;
    return passed;
}

/* What `sums` makes of counts: the disjoint quantities and the signature. False where a sum cannot be, or has no column. */
static bool split_counts(const Scanner *scanner, const Layout *layout, const Kind *kind, const Span *span, i64 *units, u64 *signature) {
    i64 counts[COUNTS] = {0};
    for (int fact = 0; fact < COUNTS; fact++) {
        i32 at = layout->counts[fact];
        if (at >= 0 && !read_count(span->values[at], &counts[fact])) return false;
    }
    i64 given = counts[INPUT], output = counts[OUTPUT], reasoning = counts[REASONING];
    i64 apart_writes = counts[CACHE_WRITE_5M] + counts[CACHE_WRITE_1H];
    i64 written = counts[CACHE_WRITE] > apart_writes ? counts[CACHE_WRITE] : apart_writes;
    if (counts[CACHE_WRITE_1H] || written > COUNT_MAX) return false;
    i64 cached = counts[CACHE_READ] + written;
    bool includes = kind->includes == INCLUDES_YES;
    if (kind->includes == INCLUDES_CHECKED) {
        bool apart = layout->counts[TOTAL] >= 0 && counts[TOTAL] == given + cached + output;
        includes = cached <= given && (cached == 0 || !apart);
    }
    i64 uncached = includes ? given - cached : given;
    if (uncached < 0 || reasoning > output) return false;
    units[0] = uncached;
    units[1] = counts[CACHE_READ];
    units[2] = written;
    units[3] = output;
    units[4] = reasoning;
    u64 bits = 0;
    for (int fact = INPUT; fact < COUNTS; fact++) bits |= (u64)(counts[fact] > 0) << (1 + fact);
    if (layout->graded) {
        i64 told = counts[CACHE_READ] + counts[CACHE_WRITE], all = kind->includes == INCLUDES_NO ? given + told : given;
        bits |= grade(scanner, layout, given) << 16 | grade(scanner, layout, all) << 24 | grade(scanner, layout, all - told) << 32;
    }
    *signature |= bits;
    return true;
}

static i32 find_template(const Scanner *scanner, Kind *kind, u32 kind_id, u64 signature) {
    if (kind->last_template >= 0 && kind->last_signature == signature) return kind->last_template;
    Cursor key = {(const u8 *)&signature, (const u8 *)&signature + sizeof signature};
    i32 found = find_code(scanner, TABLE_OUTCOME, kind_id, key);
    if (found != OB_MISSING) {
        kind->last_signature = signature;
        kind->last_template = found;
    }
    return found;
}

/* A row for a span whose layout is known; or the span is left to the rules. False only where memory is short. */
static bool take_span(Reading *reading, const Span *span, i32 layout_id) {
    Scanner *scanner = reading->scanner;
    Layout *layout = &scanner->layouts[layout_id];
    Cursor response = NOTHING, run = NOTHING;
    if (!is_trace_id(span->trace_id) || !is_span_id(span->span_id)) return leave_span(reading, span, REST_ODD);
    size_t parent_size = ob_left(&span->parent_span_id);
    if (parent_size != 0 && parent_size != 8) return leave_span(reading, span, REST_ODD);
    if (span->started > INT64_MAX || span->ended > reading->latest) return leave_span(reading, span, REST_ODD);
    if (span->ended < (u64)reading->limits->earliest || may_be_free(scanner, span->name)) return leave_span(reading, span, REST_ODD);
    if (layout->response >= 0 && !read_plain_id(span->values[layout->response], &response)) return leave_span(reading, span, REST_ODD);
    if (layout->own_id_size && ob_left(&response) == (size_t)layout->own_id_size) return leave_span(reading, span, REST_ODD);
    if (layout->run >= 0 && !read_plain_id(span->values[layout->run], &run)) return leave_span(reading, span, REST_ODD);
    i32 kind_id = find_kind(scanner, layout, span, (u32)layout_id);
    if (kind_id == OB_MISSING) return leave_span(reading, span, REST_NEW);
    Kind *kind = &scanner->kinds[kind_id];
    if (!kind->readable) return leave_span(reading, span, REST_ODD);
    if (!ob_reserve((void **)&scanner->rows, &scanner->rows_space, scanner->rows_size + 1, sizeof(Row), ROWS_MAX)) return false;
    Row *row = &scanner->rows[scanner->rows_size];
    u64 signature = layout->response < 0;
    if (kind->bare) memset(row->counts, 0, sizeof row->counts);
    else if (!split_counts(scanner, layout, kind, span, row->counts, &signature)) return leave_span(reading, span, REST_ODD);
    row->template = find_template(scanner, kind, (u32)kind_id, signature);
    if (row->template == OB_MISSING || reading->service == OB_MISSING) return leave_span(reading, span, REST_NEW);
    for (int text = 0; text < TEXTS; text++) {
        i32 at = layout->texts[text];
        row->names[text] = at < 0 ? -1 : find_code(scanner, TABLE_NAME, 0, span->values[at]);
        if (row->names[text] == OB_MISSING) return leave_span(reading, span, REST_NEW);
    }
    if (!pool_text(&scanner->responses, response) || !pool_text(&scanner->runs, run)) return false;
    memcpy(row->trace_id, span->trace_id.at, 16);
    memcpy(row->span_id, span->span_id.at, 8);
    if (parent_size) memcpy(row->parent_span_id, span->parent_span_id.at, 8);
    else memset(row->parent_span_id, 0, 8);
    row->has_parent = parent_size != 0;
    row->started = span->started;
    row->ended = span->ended;
    row->received = reading->received;
    row->request = reading->request;
    row->number = (i32)reading->spans;
    row->service = reading->service;
    row->response_end = (i32)scanner->responses.size;
    row->run_end = (i32)scanner->runs.size;
    scanner->rows_size++;
    return true;
}

/* Key and value of an attribute. What has them in another order, twice or not at all is odd, what has other fields broken. */
static inline __attribute__((always_inline)) bool read_pair(Cursor pair, Cursor *key, Cursor *value, bool *odd) {
    u32 tag;
    *key = *value = NOTHING;
    bool plain = ob_read_tag(&pair, &tag) && tag == 0x0A && ob_read_part(&pair, key)
                 && ob_read_tag(&pair, &tag) && tag == 0x12 && ob_read_part(&pair, value);
    return plain ? pair.at == pair.end : (*odd = true, false);
}

static bool check_pair(Cursor pair, bool *odd) {
    Cursor given = pair, key, value, part;
    bool unread = false;
    u32 tag;
    if (read_pair(given, &key, &value, &unread)) return ob_is_utf8(key);
    *odd = true;
    while (pair.at < pair.end) {
        if (!ob_read_tag(&pair, &tag) || (tag != 0x0A && tag != 0x12) || !ob_read_part(&pair, &part)) return false;
        if (tag == 0x0A && !ob_is_utf8(part)) return false;
    }
    return true;
}

static inline bool read_attribute(Reading *reading, Span *span, Cursor pair) {
    Cursor key, value;
    bool odd = false;
    reading->attributes++;
    i32 at = span->count++;
    if (!read_pair(pair, &key, &value, &odd)) {
        span->odd = true;
        return check_pair(pair, &odd);
    }
    if (at >= POSITIONS) { span->odd = true; return ob_is_utf8(key); }
    span->values[at].at = value.at;  /* not as a whole: both halves were just stored one by one, and would be waited for */
    span->values[at].end = value.end;
    if (span->node >= 0) span->node = follow_edge(reading->scanner, span->node, key);
    return span->node >= 0 || ob_is_utf8(key);  /* a name that was told is one that the parser took */
}

static bool check_event(Reading *reading, Cursor event) {
    Cursor part;
    u32 tag, seen = 0;
    bool odd = false;
    reading->events++;
    while (event.at < event.end) {
        if (!ob_read_tag(&event, &tag)) return false;
        if (tag == 0x12) {
            if (seen++ || !ob_read_part(&event, &part) || !ob_is_utf8(part)) return false;
        } else if (tag == 0x1A) {
            reading->attributes++;
            if (!ob_read_part(&event, &part) || !check_pair(part, &odd)) return false;
        } else if (!ob_skip(&event, tag, 1 << 2 | 1 << 3)) return false;
    }
    return true;
}

static bool read_status(Cursor status, u64 *code) {
    u32 tag;
    bool seen = false;
    while (status.at < status.end) {
        if (!ob_read_tag(&status, &tag)) return false;
        if (tag == 0x18) {
            if (seen || !ob_read_varint(&status, code) || *code > INT32_MAX) return false;
            seen = true;
        } else if (!ob_skip(&status, tag, 1 << 3)) return false;
    }
    return true;
}

/* The fields of a span. False where it is broken, or has a field twice that may stand once. */
static bool read_fields(Reading *reading, Span *span) {
    static const u32 known = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 15;
    Cursor cursor = span->whole, part;
    u32 tag, seen = 0;
    u64 kind;
    while (cursor.at < cursor.end) {
        if (!ob_read_tag(&cursor, &tag)) return false;
        if (tag == 0x4A) {
            if (!ob_read_part(&cursor, &part) || !read_attribute(reading, span, part)) return false;
            continue;
        }
        if (tag == 0x5A) {
            if (!ob_read_part(&cursor, &part) || !check_event(reading, part)) return false;
            continue;
        }
        u32 field = tag >> 3 < 32 && (known >> (tag >> 3) & 1) ? 1u << (tag >> 3) : 0;
        if (seen & field) return false;
        seen |= field;
        bool read;
        switch (tag) {
        case 0x0A: read = ob_read_part(&cursor, &span->trace_id); break;
        case 0x12: read = ob_read_part(&cursor, &span->span_id); break;
        case 0x22: read = ob_read_part(&cursor, &span->parent_span_id); break;
        case 0x2A: read = ob_read_part(&cursor, &span->name) && ob_is_utf8(span->name); break;
        case 0x30: read = ob_read_varint(&cursor, &kind); break;
        case 0x39: read = ob_read_fixed64(&cursor, &span->started); break;
        case 0x41: read = ob_read_fixed64(&cursor, &span->ended); break;
        case 0x7A: read = ob_read_part(&cursor, &part) && read_status(part, &span->status); break;
        default: read = ob_skip(&cursor, tag, known);
        }
        if (!read) return false;
    }
    return true;
}

static bool read_span(Reading *reading, Cursor whole) {
    Span span;
    span.whole = whole;
    span.trace_id = span.span_id = span.parent_span_id = span.name = NOTHING;
    span.started = span.ended = span.status = 0;
    span.node = reading->root == OB_MISSING ? -1 : reading->root;
    span.count = 0;
    span.odd = false;
    if (!read_fields(reading, &span)) return false;
    bool read;
    i32 layout = span.node < 0 ? -1 : reading->scanner->nodes[span.node].layout;
    i32 state = layout < 0 ? LAYOUT_RULES : reading->scanner->layouts[layout].state;
    if (span.odd || span.count > reading->limits->attributes_max) read = leave_span(reading, &span, REST_ODD);
    else if (layout < 0) read = leave_span(reading, &span, REST_NEW);
    else if (state == LAYOUT_IGNORED) { reading->ignored++; read = true; }
    else if (state == LAYOUT_RULES) read = leave_span(reading, &span, REST_ODD);
    else read = take_span(reading, &span, layout);
    reading->spans++;
    return read && reading->spans <= reading->limits->spans_max;
}

/* --- one request -------------------------------------------------------------------------------------------------- */

static bool check_resource(Reading *reading) {
    Cursor cursor = reading->resource, part;
    u32 tag;
    bool odd = false;
    while (cursor.at < cursor.end) {
        if (!ob_read_tag(&cursor, &tag)) return false;
        if (tag == 0x0A) {
            reading->attributes++;
            if (!ob_read_part(&cursor, &part) || !check_pair(part, &odd)) return false;
        } else if (!ob_skip(&cursor, tag, 1 << 1)) return false;
    }
    reading->service = find_code(reading->scanner, TABLE_RESOURCE, 0, reading->resource);
    return true;
}

static bool check_scope(Reading *reading) {
    Cursor cursor = reading->scope, part;
    u32 tag, seen = 0;
    while (cursor.at < cursor.end) {
        if (!ob_read_tag(&cursor, &tag)) return false;
        if (tag == 0x0A || tag == 0x12) {
            if (seen & tag >> 3) return false;
            seen |= tag >> 3;
            if (!ob_read_part(&cursor, &part) || !ob_is_utf8(part)) return false;
        } else if (!ob_skip(&cursor, tag, 1 << 1 | 1 << 2)) return false;
    }
    reading->root = find_code(reading->scanner, TABLE_SCOPE, 0, reading->scope);
    return true;
}

/* The first field, where it is there, stands before all of the second: then what it says holds for what follows. */
static bool read_scope_spans(Reading *reading, Cursor cursor) {
    Cursor part;
    u32 tag;
    bool begun = false;
    reading->scope = NOTHING;
    if (!check_scope(reading)) return false;
    while (cursor.at < cursor.end) {
        if (!ob_read_tag(&cursor, &tag)) return false;
        if (tag == 0x12) {
            begun = true;
            if (!ob_read_part(&cursor, &part) || !read_span(reading, part)) return false;
        } else if (tag == 0x0A) {
            if (begun || !ob_read_part(&cursor, &reading->scope) || !check_scope(reading)) return false;
            begun = true;
        } else if (!ob_skip(&cursor, tag, 1 << 1 | 1 << 2)) return false;
    }
    return true;
}

static bool read_resource_spans(Reading *reading, Cursor cursor) {
    Cursor part;
    u32 tag, seen = 0;
    reading->resource = NOTHING;
    if (!check_resource(reading)) return false;
    while (cursor.at < cursor.end) {
        if (!ob_read_tag(&cursor, &tag)) return false;
        if (tag == 0x12) {
            seen = 2;
            reading->scopes++;
            if (!ob_read_part(&cursor, &part) || !read_scope_spans(reading, part)) return false;
        } else if (tag == 0x0A) {
            if (seen || !ob_read_part(&cursor, &reading->resource) || !check_resource(reading)) return false;
            seen = 1;
        } else if (!ob_skip(&cursor, tag, 1 << 1 | 1 << 2)) return false;
    }
    return true;
}

static bool read_request(Reading *reading, Cursor cursor) {
    const Limits *limits = reading->limits;
    Cursor part;
    u32 tag;
    while (cursor.at < cursor.end) {
        if (!ob_read_tag(&cursor, &tag)) return false;
        if (tag == 0x0A) {
            reading->scopes++;
            if (!ob_read_part(&cursor, &part) || !read_resource_spans(reading, part)) return false;
        } else if (!ob_skip(&cursor, tag, 1 << 1)) return false;
    }
    return reading->events <= limits->events_max && reading->attributes <= limits->all_attributes_max
           && reading->scopes <= limits->scopes_max;
}

/* --- the interface ------------------------------------------------------------------------------------------------ */

OB_API void *ob_scanner_make(const u8 *free_word, i64 free_word_size, i64 entries_max, i64 bytes_max) {
    Scanner *scanner = calloc(1, sizeof *scanner);
    if (!scanner) return NULL;
    if (free_word_size < 1 || (size_t)free_word_size > sizeof scanner->free_word) { free(scanner); return NULL; }
    memcpy(scanner->free_word, free_word, (size_t)free_word_size);
    scanner->free_word_size = (size_t)free_word_size;
    scanner->table.count_max = (size_t)entries_max;
    scanner->table.keys_max = (size_t)bytes_max;
    return scanner;
}

OB_API void ob_scanner_free(Scanner *scanner) {
    ob_table_free(&scanner->table);
    void *held[] = {scanner->nodes, scanner->layouts, scanner->kinds, scanner->noted, scanner->steps, scanner->rows,
                    scanner->rest, scanner->responses.bytes, scanner->runs.bytes, scanner};
    for (size_t at = 0; at < sizeof held / sizeof *held; at++) free(held[at]);
}

/* A burst leaves no memory behind: what grew past `kept` begins anew. */
static void release(void **items, size_t *space, size_t kept) {
    if (*space <= kept) return;
    free(*items);
    *items = NULL;
    *space = 0;
}

OB_API void ob_scanner_forget(Scanner *scanner) {
    ob_table_forget(&scanner->table);
    scanner->nodes_size = scanner->layouts_size = scanner->kinds_size = scanner->noted_size = scanner->steps_size = 0;
}

/* Read requests one after the other. `spans` and `ignored` get a number each; `spans` -1 where the request is for the
 * parser as a whole. `sizes` gets the numbers of rows, of words of `rest`, and of bytes of both pools. */
OB_API void ob_scanner_scan(Scanner *scanner, i32 count, const u8 *const *bodies, const i64 *body_sizes, const i64 *received,
                            const u64 *latest, const i64 *bounds, i64 *spans, i64 *ignored, i64 *sizes) {
    const Limits limits = {bounds[0], bounds[1], bounds[2], bounds[3], bounds[4], bounds[5]};
    release((void **)&scanner->rows, &scanner->rows_space, ROWS_KEPT);
    release((void **)&scanner->rest, &scanner->rest_space, ROWS_KEPT * REST_WORDS);
    release((void **)&scanner->responses.bytes, &scanner->responses.space, ROWS_KEPT * PLAIN_ID_MAX);
    release((void **)&scanner->runs.bytes, &scanner->runs.space, ROWS_KEPT * PLAIN_ID_MAX);
    scanner->rows_size = scanner->rest_size = scanner->responses.size = scanner->runs.size = 0;
    for (i32 request = 0; request < count; request++) {
        Reading reading = {.scanner = scanner, .limits = &limits, .body = bodies[request], .request = request,
                           .received = received[request], .latest = latest[request]};
        Cursor cursor = {bodies[request], bodies[request] + body_sizes[request]};
        size_t rows = scanner->rows_size, rest = scanner->rest_size;
        size_t responses = scanner->responses.size, runs = scanner->runs.size;
        if (body_sizes[request] <= INT32_MAX && read_request(&reading, cursor)) {
            spans[request] = reading.spans;
            ignored[request] = reading.ignored;
        } else {
            spans[request] = -1;
            ignored[request] = 0;
            scanner->rows_size = rows;
            scanner->rest_size = rest;
            scanner->responses.size = responses;
            scanner->runs.size = runs;
        }
    }
    sizes[0] = (i64)scanner->rows_size;
    sizes[1] = (i64)scanner->rest_size;
    sizes[2] = (i64)scanner->responses.size;
    sizes[3] = (i64)scanner->runs.size;
}

/* Where the columns of the last scan go; every array has as many entries as there are rows, unless it says otherwise. */
typedef struct {
    i32 *template, *request, *number, *customer, *project, *step, *service;
    u8 *trace_id, *span_id, *parent_span_id, *has_parent;
    i64 *started, *ended, *received, *counts;
    u8 *response_pool;
    i32 *response_starts;  /* one more */
    u8 *run_pool;
    i32 *run_starts;  /* one more */
    i64 *rest;
} Columns;

OB_API void ob_scanner_take(const Scanner *scanner, const Columns *out) {
    size_t count = scanner->rows_size;
    out->response_starts[0] = out->run_starts[0] = 0;
    for (size_t at = 0; at < count; at++) {
        const Row *row = &scanner->rows[at];
        out->template[at] = row->template;
        out->request[at] = row->request;
        out->number[at] = row->number;
        out->customer[at] = row->names[0];
        out->project[at] = row->names[1];
        out->step[at] = row->names[2];
        out->service[at] = row->service;
        memcpy(out->trace_id + 16 * at, row->trace_id, 16);
        memcpy(out->span_id + 8 * at, row->span_id, 8);
        memcpy(out->parent_span_id + 8 * at, row->parent_span_id, 8);
        out->has_parent[at] = row->has_parent;
        out->started[at] = (i64)row->started;
        out->ended[at] = (i64)row->ended;
        out->received[at] = row->received;
        for (size_t unit = 0; unit < UNITS; unit++) out->counts[unit * count + at] = row->counts[unit];
        out->response_starts[at + 1] = row->response_end;
        out->run_starts[at + 1] = row->run_end;
    }
    if (scanner->responses.size) memcpy(out->response_pool, scanner->responses.bytes, scanner->responses.size);
    if (scanner->runs.size) memcpy(out->run_pool, scanner->runs.bytes, scanner->runs.size);
    if (scanner->rest_size) memcpy(out->rest, scanner->rest, scanner->rest_size * sizeof *out->rest);
}

/* What follows tells the scanner something. Numbers are answered; -1 when it is full: forget, and tell again. */

OB_API i32 ob_scanner_keep(Scanner *scanner, i32 table, i32 id, const u8 *key, i64 size, i32 value) {
    return ob_table_keep(&scanner->table, (u64)(u32)table << 32 | (u32)id, key, (size_t)size, value) < 0 ? -1 : 0;
}

static i32 add_node(Scanner *scanner) {
    if (!ob_reserve((void **)&scanner->nodes, &scanner->nodes_space, scanner->nodes_size + 1, sizeof(Node), ITEMS_MAX)) return -1;
    scanner->nodes[scanner->nodes_size] = (Node){0, 0, -1, -1};
    return (i32)scanner->nodes_size++;
}

/* The root of the names of a scope, given by its bytes. */
OB_API i32 ob_scanner_add_scope(Scanner *scanner, const u8 *key, i64 size) {
    Cursor scope = {key, key + size};
    i32 found = find_code(scanner, TABLE_SCOPE, 0, scope);
    if (found != OB_MISSING) return found;
    i32 root = add_node(scanner);
    return root < 0 || ob_scanner_keep(scanner, TABLE_SCOPE, 0, key, size, root) < 0 ? -1 : root;
}

/* The layout of names below a root, given one behind the other. It replaces the one of before. */
OB_API i32 ob_scanner_add_layout(Scanner *scanner, i32 root, const u8 *names, const i32 *name_sizes, i32 names_count,
                                 const Layout *given, const i32 *noted, const i64 *steps) {
    i32 node = root;
    for (i32 at = 0; at < names_count; names += name_sizes[at++]) {
        Cursor name = {names, names + name_sizes[at]};
        i32 next = find_code(scanner, TABLE_EDGE, (u32)node, name);
        if (next == OB_MISSING) {
            next = add_node(scanner);
            if (next < 0 || ob_scanner_keep(scanner, TABLE_EDGE, node, names, name_sizes[at], next) < 0) return -1;
        }
        node = next;
    }
    size_t noted_count = (size_t)given->noted_count, steps_count = (size_t)given->steps_count;
    if (!ob_reserve((void **)&scanner->layouts, &scanner->layouts_space, scanner->layouts_size + 1, sizeof(Layout), ITEMS_MAX)) return -1;
    if (!ob_reserve((void **)&scanner->noted, &scanner->noted_space, scanner->noted_size + noted_count + 1, sizeof(i32), FEW_POSITIONS_MAX)) return -1;
    if (!ob_reserve((void **)&scanner->steps, &scanner->steps_space, scanner->steps_size + steps_count + 1, sizeof(i64), FEW_POSITIONS_MAX)) return -1;
    if (noted_count) memcpy(scanner->noted + scanner->noted_size, noted, noted_count * sizeof *noted);
    if (steps_count) memcpy(scanner->steps + scanner->steps_size, steps, steps_count * sizeof *steps);
    Layout *layout = &scanner->layouts[scanner->layouts_size];
    *layout = *given;
    layout->noted = (i32)scanner->noted_size;
    layout->steps = (i32)scanner->steps_size;
    layout->last_kind = -1;
    scanner->noted_size += noted_count;
    scanner->steps_size += steps_count;
    scanner->nodes[node].layout = (i32)scanner->layouts_size;
    return (i32)scanner->layouts_size++;
}

/* A kind of a layout, by status and noted values as `find_kind` puts them together. */
OB_API i32 ob_scanner_add_kind(Scanner *scanner, i32 layout, const u8 *key, i64 size, i32 readable, i32 includes, i32 bare) {
    Cursor cursor = {key, key + size};
    i32 found = find_code(scanner, TABLE_KIND, (u32)layout, cursor);
    if (found == OB_MISSING) {
        if (!ob_reserve((void **)&scanner->kinds, &scanner->kinds_space, scanner->kinds_size + 1, sizeof(Kind), ITEMS_MAX)) return -1;
        found = (i32)scanner->kinds_size;
        if (ob_scanner_keep(scanner, TABLE_KIND, layout, key, size, found) < 0) return -1;
        scanner->kinds_size++;
    }
    scanner->kinds[found] = (Kind){readable, includes, bare, -1, 0};
    return found;
}
