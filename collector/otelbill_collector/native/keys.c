/* Identifiers, claim keys and content digests of spans in columns. The formulas stand in domain/ids.py, decode/claims.py,
 * decode/twins.py and domain/records.py; whatever is a span's template or name alone comes as bytes rendered there. */
#include "sha256.h"

#define REFUSED (-1)   /* a code that points nowhere, or a count out of range: not what a scanner makes */
#define NO_MEMORY (-2)
#define KEYS_MAX 10    /* of a span: trace, response, four buckets of numbers, four of the gap */
#define ID_LENGTH_MIN 10
#define COUNT_MAX ((i64)1 << 53)
#define SECOND_NANOS 1000000000ll
#define BUCKET_NANOS (2 * SECOND_NANOS)
#define EDGE_NANOS (SECOND_NANOS / 4)

typedef struct { const u8 *pool; const i32 *starts; i64 count; } pieces; /* starts [count + 1] */

static inline size_t piece_size(const pieces *from, i64 n) { return (size_t)(from->starts[n + 1] - from->starts[n]); }

static inline u8 *put(u8 *at, const void *from, size_t size) { memcpy(at, from, size); return at + size; }
static inline u8 *put_piece(u8 *at, const pieces *from, i64 n) {
    return put(at, from->pool + from->starts[n], piece_size(from, n));
}
static inline u8 *put_size(u8 *at, u64 size) { size = __builtin_bswap64(size); return put(at, &size, 8); }
#define PUT(at, text) put(at, text, sizeof text - 1)

static const char PAIRS[] =
    "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960"
    "616263646566676869707172737475767778798081828384858687888990919293949596979899";

/* Decimal, as Python writes an integer: at most 20 characters. */
static inline u8 *put_number(u8 *at, i64 value) {
    u8 digits[24];
    int first = 24;
    u64 rest = value < 0 ? 0 - (u64)value : (u64)value;
    for (; rest >= 100; rest /= 100) first -= 2, memcpy(digits + first, PAIRS + 2 * (rest % 100), 2);
    if (rest >= 10) first -= 2, memcpy(digits + first, PAIRS + 2 * rest, 2);
    else digits[--first] = (u8)('0' + rest);
    if (value < 0) digits[--first] = '-';
    return put(at, digits + first, (size_t)(24 - first));
}

/* The number with its length before it, as digest_parts has every part. */
static inline u8 *put_number_part(u8 *at, i64 value) {
    u8 *end = put_number(at + 8, value);
    put_size(at, (u64)(end - at - 8));
    return end;
}

/* ---- event and record ids ---- */

OB_API int ob_event_ids(i64 count, const u8 *traces, const u8 *spans, u8 *out) {
    ob_hasher hasher;
    if (ob_hasher_open(&hasher, 128)) return NO_MEMORY;
    for (i64 row = 0; row < count; row++) {
        u8 *at = put_size(PUT(hasher.spare, "otelbill.span-event.v1"), 16);
        at = put_size(put(at, traces + 16 * row, 16), 8);
        at = put(at, spans + 8 * row, 8);
        ob_hasher_take(&hasher, (size_t)(at - hasher.spare), out + 16 * row, 0xFF, 0);
    }
    ob_hasher_close(&hasher);
    return 0;
}

OB_API int ob_record_ids(i64 count, const u8 *events, const i64 *revisions, const u8 *reversals, u8 *out) {
    ob_hasher hasher;
    if (ob_hasher_open(&hasher, 128)) return NO_MEMORY;
    for (i64 row = 0; row < count; row++) {
        u8 *at = put_size(PUT(hasher.spare, "otelbill.record.v1"), 32);
        for (int i = 0; i < 16; i++) {
            u8 byte = events[16 * row + i];
            *at++ = (u8)"0123456789abcdef"[byte >> 4];
            *at++ = (u8)"0123456789abcdef"[byte & 15];
        }
        at = put_number_part(at, revisions[row]);
        at = reversals[row] ? PUT(put_size(at, 8), "reversal") : PUT(put_size(at, 5), "usage");
        ob_hasher_take(&hasher, (size_t)(at - hasher.spare), out + 16 * row, 0xFF, 0);
    }
    ob_hasher_close(&hasher);
    return 0;
}

/* ---- claim keys ---- */

enum { IS_CALL = 1, HAS_TWINS = 2, HAS_FAILED = 4, HAS_TRACES_APART = 8, IS_KNOWN = 16, HAS_COUNTS = 32 };

static inline i64 find_bucket(i64 instant, i64 by) { /* rounded down, and no instant overflows */
    i64 bucket = instant / BUCKET_NANOS, rest = instant % BUCKET_NANOS;
    if (rest < 0) bucket--, rest += BUCKET_NANOS;
    rest += by;
    return rest < 0 ? bucket - 1 : rest >= BUCKET_NANOS ? bucket + 1 : bucket;
}

/* The buckets around two instants, ascending and each once; returns how many. */
static int list_buckets(i64 started, i64 ended, i64 *buckets) {
    i64 first = find_bucket(started, -EDGE_NANOS), last = find_bucket(ended, EDGE_NANOS);
    buckets[0] = first;
    if (first == last && started <= ended) return 1;
    i64 found[4] = {first, find_bucket(started, EDGE_NANOS), find_bucket(ended, -EDGE_NANOS), last};
    int count = 0;
    for (int i = 0; i < 4; i++) {
        int place = count;
        while (place > 0 && buckets[place - 1] > found[i]) place--;
        if (place > 0 && buckets[place - 1] == found[i]) continue;
        for (int k = count; k > place; k--) buckets[k] = buckets[k - 1];
        buckets[place] = found[i];
        count++;
    }
    return count;
}

static int is_claim_id(const u8 *text, size_t size) {
    if (size < ID_LENGTH_MIN) return 0;
    for (size_t i = 0; i < size; i++)
        if (text[i] < '0' || text[i] > '9') return 1;
    return 0;
}

typedef struct {
    i64 count;
    const i32 *template;
    const u8 *trace_id;
    const i64 *started, *ended, *counts;
    pieces responses;
    i64 templates;
    const u8 *flags;   /* of each template */
    const i32 *family; /* of each template, into families; -1 is none */
    pieces families;
} keyed_spans;

static u8 *take_twin_keys(ob_hasher *hasher, const keyed_spans *spans, i64 row, int has_claim_id, u8 *out) {
    u8 flags = spans->flags[spans->template[row]];
    const i64 *counts = spans->counts + row;
    i64 started = spans->started[row], buckets[4], asked = 0, answered = 0;
    if ((flags & HAS_COUNTS) && (flags & IS_KNOWN)) {
        asked = counts[0] + counts[spans->count] + counts[2 * spans->count];
        answered = counts[3 * spans->count];
    }
    int has_tokens = asked || answered;
    if (has_tokens && ((flags & HAS_TWINS) || !has_claim_id)) {
        int found = list_buckets(started, spans->ended[row], buckets);
        for (int i = 0; i < found; i++, out += 16) {
            u8 *at = PUT(hasher->spare, "otelbill.claim-twin.v1");
            at = put_number_part(put_number_part(put_number_part(at, asked), answered), buckets[i]);
            ob_hasher_take(hasher, (size_t)(at - hasher->spare), out, 0xFF, 0x80);
        }
    }
    i64 family = spans->family[spans->template[row]];
    if (!(flags & HAS_TWINS) || (flags & HAS_FAILED) || has_tokens != !!(flags & HAS_TRACES_APART) || family < 0) return out;
    int found = 1;
    if (has_tokens) buckets[0] = find_bucket(started, 0);
    else found = list_buckets(started, started, buckets);
    for (int i = 0; i < found; i++, out += 16) {
        u8 *at = put_size(PUT(hasher->spare, "otelbill.claim-gap.v1"), piece_size(&spans->families, family));
        at = put_number_part(put_piece(at, &spans->families, family), buckets[i]);
        ob_hasher_take(hasher, (size_t)(at - hasher->spare), out, 0xFF, 0x80);
    }
    return out;
}

static int are_pieces(const pieces *texts, size_t *size_max) {
    for (i64 n = 0; n < texts->count; n++) {
        if (texts->starts[n] < 0 || texts->starts[n + 1] < texts->starts[n]) return 0;
        if (piece_size(texts, n) > *size_max) *size_max = piece_size(texts, n);
    }
    return 1;
}

static int are_keyed_well(const keyed_spans *spans, size_t *size_max) {
    if (!are_pieces(&spans->responses, size_max) || !are_pieces(&spans->families, size_max)) return 0;
    for (i64 template = 0; template < spans->templates; template++)
        if (spans->family[template] >= spans->families.count) return 0;
    for (i64 row = 0; row < spans->count; row++)
        if (spans->template[row] < 0 || spans->template[row] >= spans->templates) return 0;
    for (i64 place = 0; place < 4 * spans->count; place++)
        if (spans->counts[place] < 0 || spans->counts[place] > COUNT_MAX) return 0;
    return 1;
}

/* `out` has room for KEYS_MAX keys a span, `key_starts` for count + 1. Returns how many keys there are. */
OB_API i64 ob_claim_keys(
    i64 count, const i32 *template, const u8 *trace_id, const i64 *started, const i64 *ended, const i64 *counts,
    const u8 *response_pool, const i32 *response_starts, i64 templates, const u8 *flags, const i32 *family,
    const u8 *family_pool, const i32 *family_starts, i64 families, u8 *out, i32 *key_starts) {
    keyed_spans spans = {
        count, template, trace_id, started, ended, counts, {response_pool, response_starts, count},
        templates, flags, family, {family_pool, family_starts, families},
    };
    size_t text_max = 0;
    if (!are_keyed_well(&spans, &text_max)) return REFUSED;
    ob_hasher hasher;
    if (ob_hasher_open(&hasher, 192 + text_max)) return NO_MEMORY;
    u8 *next = out;
    key_starts[0] = 0;
    for (i64 row = 0; row < count; row++) {
        u8 *at = put(put_size(PUT(hasher.spare, "otelbill.claim-trace.v1"), 16), trace_id + 16 * row, 16);
        ob_hasher_take(&hasher, (size_t)(at - hasher.spare), next, 0x7F, 0);
        next += 16;
        if (flags[template[row]] & IS_CALL) {
            size_t size = piece_size(&spans.responses, row);
            int has_claim_id = is_claim_id(response_pool + response_starts[row], size);
            if (has_claim_id) {
                at = put_size(PUT(hasher.spare, "otelbill.claim-response.v1"), size);
                at = put_piece(at, &spans.responses, row);
                ob_hasher_take(&hasher, (size_t)(at - hasher.spare), next, 0x7F, 0);
                next += 16;
            }
            if (!has_claim_id || (flags[template[row]] & HAS_TWINS))
                next = take_twin_keys(&hasher, &spans, row, has_claim_id, next);
        }
        key_starts[row + 1] = (i32)((next - out) / 16);
    }
    ob_hasher_close(&hasher);
    return (next - out) / 16;
}

/* ---- content digests ---- */

/* How Python's repr writes a byte of `bytes`: its characters, and how many. */
static u8 ESCAPED[256][4], ESCAPED_SIZE[256];

/* Runs when the library is loaded, before any thread can call it. */
__attribute__((constructor)) static void fill_escapes(void) {
    for (int byte = 0; byte < 256; byte++) {
        u8 *at = ESCAPED[byte];
        u8 short_form = byte == '\t' ? 't' : byte == '\n' ? 'n' : byte == '\r' ? 'r' : byte == '\\' ? '\\' : 0;
        at[0] = '\\';
        if (short_form) {
            at[1] = short_form;
            ESCAPED_SIZE[byte] = 2;
        } else if (byte < 0x20 || byte >= 0x7F) {
            at[1] = 'x', at[2] = (u8)"0123456789abcdef"[byte >> 4], at[3] = (u8)"0123456789abcdef"[byte & 15];
            ESCAPED_SIZE[byte] = 4;
        } else {
            at[0] = (u8)byte;
            ESCAPED_SIZE[byte] = 1;
        }
    }
}

/* The repr without the letter before it, of bytes or of ASCII text. Writes up to three bytes past its end. */
static inline u8 *put_quoted(u8 *at, const u8 *from, size_t size) {
    const u8 *single = memchr(from, '\'', size);
    if (!single) {
        *at++ = '\'';
        for (size_t i = 0; i < size; i++) memcpy(at, ESCAPED[from[i]], 4), at += ESCAPED_SIZE[from[i]];
        *at++ = '\'';
        return at;
    }
    int is_double = !memchr(from, '"', size);
    u8 quote = is_double ? '"' : '\'';
    *at++ = quote;
    for (size_t i = 0; i < size; i++) {
        if (from[i] == '\'' && !is_double) *at++ = '\\', *at++ = '\'';
        else memcpy(at, ESCAPED[from[i]], 4), at += ESCAPED_SIZE[from[i]];
    }
    *at++ = quote;
    return at;
}

static inline u8 *put_id(u8 *at, const u8 *id, size_t size) {
    *at++ = 'b';
    at = put_quoted(at, id, size);
    *at++ = 0x1F;
    return at;
}

static inline u8 *put_text(u8 *at, const pieces *texts, i64 row) {
    size_t size = piece_size(texts, row);
    return size ? put_quoted(at, texts->pool + texts->starts[row], size) : PUT(at, "None");
}

enum { NAMES, TIER, VERDICT, EMITTER, TRAITS, RUNS }; /* the runs of a template's text */

typedef struct {
    i64 count;
    const i32 *template;
    const u8 *trace_id, *span_id, *parent_id, *has_parent;
    const i64 *started, *ended, *counts;
    const i32 *customer, *project, *step, *service;
    pieces responses, run_ids;
    i64 templates;
    const u8 *flags;
    pieces runs;  /* RUNS of each template */
    pieces names; /* the repr of each name, behind that of None */
} told_spans;

static inline u8 *put_quantities(u8 *at, const told_spans *spans, i64 row, u8 flags) {
    const i64 *counts = spans->counts + row;
    u8 *start = at;
#define UNIT(number, name) at = PUT(put_number(PUT(at, "('" name "', "), counts[(number) * spans->count]), "), ")
    if (flags & HAS_COUNTS) { /* in the order of their names */
        if (counts[1 * spans->count]) UNIT(1, "cache_read_tokens");
        if (counts[2 * spans->count]) UNIT(2, "cache_write_tokens");
        UNIT(0, "input_tokens");
        UNIT(3, "output_tokens");
        if (counts[4 * spans->count]) UNIT(4, "reasoning_tokens");
    }
#undef UNIT
    if (flags & IS_CALL) at = PUT(at, "('requests', 1), ");
    return at == start ? at : at - 2;
}

static inline u8 *put_name(u8 *at, const pieces *names, i32 code) { return put_piece(at, names, code + 1); }

static size_t put_span(u8 *start, const told_spans *spans, i64 row) {
    i64 first = (i64)spans->template[row] * RUNS;
    u8 *at = put_id(start, spans->trace_id + 16 * row, 16);
    at = put_id(at, spans->span_id + 8 * row, 8);
    at = put_id(at, spans->parent_id + 8 * row, spans->has_parent[row] ? 8 : 0);
    at = PUT(put_number(at, spans->started[row]), "\x1f");
    at = put_number(at, spans->ended[row]);
    at = put_piece(at, &spans->runs, first + NAMES);
    at = put_text(at, &spans->responses, row);
    at = put_piece(at, &spans->runs, first + TIER);
    at = PUT(put_name(at, &spans->names, spans->customer[row]), "\x1f");
    at = PUT(put_name(at, &spans->names, spans->project[row]), "\x1f");
    at = PUT(put_text(at, &spans->run_ids, row), "\x1f");
    at = put_name(at, &spans->names, spans->step[row]);
    at = put_piece(at, &spans->runs, first + VERDICT);
    at = put_quantities(at, spans, row, spans->flags[spans->template[row]]);
    at = put_piece(at, &spans->runs, first + EMITTER);
    at = put_name(at, &spans->names, spans->service[row]);
    at = put_piece(at, &spans->runs, first + TRAITS);
    return (size_t)(at - start);
}

/* What put_span writes at most. */
static size_t measure_span(const told_spans *spans, i64 row) {
    i64 first = (i64)spans->template[row] * RUNS;
    size_t size = 3 * 8 + 4 * 32 + 2 * 21 + 6 * 48 + 16; /* ids, instants, quantities, separators */
    size += (size_t)(spans->runs.starts[first + RUNS] - spans->runs.starts[first]);
    size += 2 * (piece_size(&spans->responses, row) + piece_size(&spans->run_ids, row)) + 16;
    const i32 *columns[4] = {spans->customer, spans->project, spans->step, spans->service};
    for (int i = 0; i < 4; i++) size += piece_size(&spans->names, columns[i][row] + 1);
    return size;
}

static int are_told_well(const told_spans *spans, size_t *size_max) {
    i64 names = spans->names.count - 1;
    const i32 *columns[4] = {spans->customer, spans->project, spans->step, spans->service};
    size_t text_max = 0;
    if (!are_pieces(&spans->responses, &text_max) || !are_pieces(&spans->run_ids, &text_max)) return 0;
    for (i64 row = 0; row < spans->count; row++) {
        if (spans->template[row] < 0 || spans->template[row] >= spans->templates) return 0;
        for (int i = 0; i < 4; i++)
            if (columns[i][row] < -1 || columns[i][row] >= names) return 0;
        size_t size = measure_span(spans, row);
        if (size > *size_max) *size_max = size;
    }
    return 1;
}

OB_API int ob_content_digests(
    i64 count, const i32 *template, const u8 *trace_id, const u8 *span_id, const u8 *parent_id, const u8 *has_parent,
    const i64 *started, const i64 *ended, const i64 *counts, const i32 *customer, const i32 *project, const i32 *step,
    const i32 *service, const u8 *response_pool, const i32 *response_starts, const u8 *run_pool, const i32 *run_starts,
    i64 templates, const u8 *flags, const u8 *text_pool, const i32 *text_starts, const u8 *name_pool,
    const i32 *name_starts, i64 names, u8 *out) {
    told_spans spans = {
        count, template, trace_id, span_id, parent_id, has_parent, started, ended, counts, customer, project, step,
        service, {response_pool, response_starts, count}, {run_pool, run_starts, count}, templates, flags,
        {text_pool, text_starts, templates * RUNS}, {name_pool, name_starts, names},
    };
    size_t size_max = 0;
    if (!are_told_well(&spans, &size_max)) return REFUSED;
    ob_hasher hasher;
    if (ob_hasher_open(&hasher, size_max + 16)) return NO_MEMORY;
    for (i64 row = 0; row < count; row++)
        ob_hasher_take(&hasher, put_span(hasher.spare, &spans, row), out + 16 * row, 0xFF, 0);
    ob_hasher_close(&hasher);
    return 0;
}
