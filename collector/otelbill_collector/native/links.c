/* How spans find each other by claim keys: the filter over stored keys, and runs of entries in the order of their keys.
 * Keys are digests: the first eight bytes of one serve as its hash. */
#include "ob.h"

/* ---- the filters of ledger/key_filters.py: seven bits of one cache line for each key ---- */

#define PROBES 7
#define LINE_BITS 512
#define SLICE_BITS 9
#define AHEAD 16 /* keys whose lines are fetched before the first of them is looked at */

static inline u64 load_key(const u8 *keys, i64 stride, i64 n) { return ob_load64(keys + stride * n); }
static inline u64 line_place(u64 lines, u64 key) { return (((key >> 32) * lines) >> 32) * (LINE_BITS / 64); }

static inline unsigned choose_bit(u64 mixed, int probe) {
    return (unsigned)(mixed >> (64 - SLICE_BITS * (probe + 1))) & (LINE_BITS - 1);
}

static inline void add_key(u64 *line, u64 key) {
    u64 mixed = key * 0x9E3779B97F4A7C15ull;
    for (int probe = 0; probe < PROBES; probe++) {
        unsigned bit = choose_bit(mixed, probe);
        line[bit >> 6] |= 1ull << (bit & 63);
    }
}

static inline int has_key(const u64 *line, u64 key) {
    u64 mixed = key * 0x9E3779B97F4A7C15ull;
    for (int probe = 0; probe < PROBES; probe++) {
        unsigned bit = choose_bit(mixed, probe);
        if (!(line[bit >> 6] >> (bit & 63) & 1)) return 0;
    }
    return 1;
}

/* `keys` are `stride` bytes apart; `bits` holds `lines` lines. */
OB_API void ob_filter_add(u64 *bits, u64 lines, const u8 *keys, i64 stride, i64 count) {
    for (i64 n = 0; n < count; n++) {
        if (n + AHEAD < count) __builtin_prefetch(bits + line_place(lines, load_key(keys, stride, n + AHEAD)), 1);
        u64 key = load_key(keys, stride, n);
        add_key(bits + line_place(lines, key), key);
    }
}

/* Sets found[n] to 1 where the n-th key may have been added; leaves the others as they are. */
OB_API void ob_filter_find(const u64 *bits, u64 lines, const u8 *keys, i64 stride, i64 count, u8 *found) {
    for (i64 n = 0; n < count; n++) {
        if (n + AHEAD < count) __builtin_prefetch(bits + line_place(lines, load_key(keys, stride, n + AHEAD)), 0);
        u64 key = load_key(keys, stride, n);
        if (has_key(bits + line_place(lines, key), key)) found[n] = 1;
    }
}

/* The same for many filters, whose bits stand at the given addresses: a row of `found` for each. */
OB_API void ob_filters_find(i64 filters, const u64 *addresses, const u64 *lines, const u8 *keys, i64 stride, i64 count, u8 *found) {
    for (i64 n = 0; n < filters; n++)
        ob_filter_find((const u64 *)(uintptr_t)addresses[n], lines[n], keys, stride, count, found + n * count);
}

/* ---- runs of ledger/claim_runs.py: entries of 16 bytes, in the order of a signed key ---- */

typedef struct { u64 key, place; } entry;

#define DIGIT_BITS 11
#define DIGITS 6 /* 6 x 11 bits cover 64 */
#define SIGN 0x8000000000000000ull

/* Order entries by key, equal ones as they came: a pass over the entries for every digit, from the lowest up, whatever
 * the keys are. `spare` has room for as many; the result stands in `entries`. */
OB_API int ob_sort_entries(entry *entries, entry *spare, i64 count) {
    u32 *counts = calloc((size_t)DIGITS << DIGIT_BITS, sizeof *counts);
    if (!counts) return -2;
    const u64 mask = (1u << DIGIT_BITS) - 1;
    for (i64 n = 0; n < count; n++) {
        u64 key = entries[n].key ^ SIGN;
        for (int digit = 0; digit < DIGITS; digit++) counts[(digit << DIGIT_BITS) + ((key >> (digit * DIGIT_BITS)) & mask)]++;
    }
    entry *from = entries, *to = spare;
    for (int digit = 0; digit < DIGITS; digit++) {
        u32 *starts = counts + (digit << DIGIT_BITS), sum = 0;
        for (u64 value = 0; value <= mask; value++) {
            u32 here = starts[value];
            starts[value] = sum;
            sum += here;
        }
        for (i64 n = 0; n < count; n++) {
            u64 value = ((from[n].key ^ SIGN) >> (digit * DIGIT_BITS)) & mask;
            to[starts[value]++] = from[n];
        }
        entry *other = from;
        from = to, to = other;
    }
    free(counts); /* an even number of passes: the result is where it began */
    return 0;
}

/* ---- keys held in memory by ledger/recent_keys.py: which span of which batch has them ---- */

/* Chosen anew for every process, so that nobody can send keys that all lie in one place of a table. */
static u64 SEED;
__attribute__((constructor)) static void choose_seed(void) {
    int here;
    SEED = ob_mix((u64)(uintptr_t)&here ^ 0x9E3779B97F4A7C15ull, (u64)(uintptr_t)&choose_seed | 1);
}

static inline u64 hash_key(const u8 *key) { return ob_mix(ob_load64(key) ^ SEED, ob_load64(key + 8) ^ 0xA0761D6478BD642Full); }
static inline int are_equal(const u8 *one, const u8 *other) {
    return ob_load64(one) == ob_load64(other) && ob_load64(one + 8) == ob_load64(other + 8);
}

#define EMPTY 0u
#define UNKNOWN 0xFFFFFFFEu /* a batch that never was: stands for spans of a key that are not held any more */
#define TAKEN 0xFFFFFFFFu /* its spans are held elsewhere */

/* place: of the key in its batch, of the last of its spans. emitter: of all its spans, where only another's would be company
 * to them; such keys begin with a set bit. */
typedef struct { u8 key[16]; u32 batch, place, emitter, unused; } slot;

static inline int is_twin(const u8 *key) { return key[0] >= 0x80; }
static inline int is_held(const slot *at) { return at->batch != EMPTY && at->batch != TAKEN; }
static inline u64 point_to(const slot *at) { return (u64)at->batch << 32 | at->place; }

/* The slot of a key, or the empty one where it would stand. A table is never full. */
static inline slot *find_slot(slot *slots, u64 mask, const u8 *key) {
    for (u64 at = hash_key(key) & mask;; at = (at + 1) & mask)
        if (slots[at].batch == EMPTY || are_equal(slots[at].key, key)) return slots + at;
}

static inline void fetch_slot(const slot *slots, u64 mask, const u8 *keys, i64 n, i64 count) {
    if (n + AHEAD < count) __builtin_prefetch(slots + (hash_key(keys + 16 * (n + AHEAD)) & mask), 1);
}

/* Enter the keys of a batch. before[n] becomes the pointer (batch and place) to the span before it that has the n-th key,
 * 0 where there is none: the spans of a key are a chain, and its slot has the last. What the older table holds of a key
 * is taken over. emitters[n] is that of the n-th key's span; met[n] is 1 where the key was seen before, here or elsewhere.
 * Returns how many slots were filled. */
OB_API i64 ob_recent_add(slot *slots, u64 mask, slot *older, u64 older_mask, const u8 *keys, i64 count, u32 batch,
                         const i32 *emitters, const u8 *met, u64 *before) {
    i64 filled = 0;
    for (i64 n = 0; n < count; n++) {
        fetch_slot(slots, mask, keys, n, count);
        const u8 *key = keys + 16 * n;
        slot *here = find_slot(slots, mask, key);
        before[n] = is_held(here) ? point_to(here) : 0;
        if (here->batch == EMPTY) {
            slot *there = find_slot(older, older_mask, key);
            if (is_held(there)) {
                before[n] = point_to(there);
                there->batch = TAKEN;
            } else if (met[n]) {
                before[n] = (u64)UNKNOWN << 32;
            }
            filled++;
        }
        memcpy(here->key, key, 16);
        here->batch = batch;
        here->place = (u32)n;
        here->emitter = (u32)emitters[n];
    }
    return filled;
}

/* Of keys that are met (in the ledger, by the filter) unmarks those whose spans are all held here and need not be looked
 * at: of twin keys those that only spans of the same emitter have; of the first key of each span, which is that of its
 * trace, last[row] becomes the pointer to the last span that has it. Other rows' are 0. */
OB_API void ob_recent_meet(const slot *slots, u64 mask, const u8 *keys, i64 rows, const i32 *key_starts, const i32 *emitters,
                           u8 *met, u64 *last) {
    for (i64 row = 0; row < rows; row++) {
        for (i64 n = key_starts[row]; n < key_starts[row + 1]; n++) {
            if (!met[n]) continue;
            const slot *here = find_slot((slot *)slots, mask, keys + 16 * n);
            if (!is_held(here)) continue;
            if (n == key_starts[row]) {
                last[row] = point_to(here);
                met[n] = 0;
            } else if (is_twin(keys + 16 * n) && here->emitter == (u32)emitters[row]) {
                met[n] = 0;
            }
        }
    }
}

/* Walks the chains that begin at the pointers `starts`. befores[batch - low] is the address of the pointers that
 * ob_recent_add gave for a batch, 0 where that is forgotten: then whole[chain] becomes 0, and nothing of it may be used.
 * chain[], batch[], place[] take what is found, at most `room`; returns how many, or -1 where there is more. */
OB_API i64 ob_recent_walk(i64 count, const u64 *starts, i64 low, i64 batches, const u64 *befores, i64 room, i32 *chain,
                          u32 *batch, i32 *place, u8 *whole) {
    i64 found = 0;
    for (i64 n = 0; n < count; n++) {
        whole[n] = 1;
        for (u64 at = starts[n]; at;) {
            i64 number = (i64)(at >> 32) - low;
            if (number < 0 || number >= batches || !befores[number]) { whole[n] = 0; break; }
            if (found >= room) return -1;
            chain[found] = (i32)n;
            batch[found] = (u32)(at >> 32);
            place[found] = (i32)(at & 0xFFFFFFFF);
            at = ((const u64 *)(uintptr_t)befores[number])[at & 0xFFFFFFFF];
            found++;
        }
    }
    return found;
}

/* Sets found[n] to 1 where the n-th key is held; leaves the others as they are. */
OB_API void ob_recent_find(slot *slots, u64 mask, const u8 *keys, i64 count, u8 *found) {
    for (i64 n = 0; n < count; n++) {
        fetch_slot(slots, mask, keys, n, count);
        if (is_held(find_slot(slots, mask, keys + 16 * n))) found[n] = 1;
    }
}

/* Mark a key as held elsewhere from now on; returns its batch and the place there of the last of its spans, or 0. */
OB_API u64 ob_recent_take(slot *slots, u64 mask, const u8 *key) {
    slot *here = find_slot(slots, mask, key);
    if (!is_held(here)) return 0;
    u64 found = point_to(here);
    here->batch = TAKEN;
    return found;
}

/* Enter what one table holds into a larger one, which is empty. Returns how many slots were filled. */
OB_API i64 ob_recent_move(const slot *from, i64 size, slot *to, u64 mask) {
    i64 filled = 0;
    for (i64 n = 0; n < size; n++) {
        if (!is_held(from + n)) continue;
        *find_slot(to, mask, from[n].key) = from[n];
        filled++;
    }
    return filled;
}

/* ---- who has company ---- */

enum { SHARED = 1, MET = 2, IN_COMPANY = 4 }; /* of a key: by spans of this batch; by spans elsewhere; one of its spans is */

/* Tell which spans have company that only rules can judge: company[row] becomes 1 where a key of the span, or of another
 * span of its trace in this batch, is `met` already (by place) or stands among `others`, or where a key that is not that
 * of a trace is shared by two spans of the batch: of a twin key, by two emitters. The first key of a span is that of its
 * trace. company[row] may be 1 beforehand, for spans that must not stand alone. Returns -2 without memory. */
OB_API int ob_find_company(i64 rows, const u8 *keys, const i32 *key_starts, const i32 *emitters, const u8 *met,
                           i64 others_count, const u8 *others, u8 *company) {
    i64 count = key_starts[rows];
    u64 size = 16;
    while (size < 2 * (u64)count) size <<= 1;
    u64 mask = size - 1;
    u32 *table = calloc(size, sizeof *table); /* place + 1 of the first key of its value */
    u32 *first = malloc(((size_t)count + 1) * sizeof *first);
    i32 *of = malloc(((size_t)count + 1) * sizeof *of); /* emitter of the first span of each value */
    u8 *marks = calloc((size_t)count + 1, 1); /* of the first key of each value */
    int failed = !table || !first || !of || !marks;
    for (i64 row = 0; row < rows && !failed; row++) {
        for (i64 n = key_starts[row]; n < key_starts[row + 1]; n++) {
            u64 at = hash_key(keys + 16 * n) & mask;
            while (table[at] && !are_equal(keys + 16 * (i64)(table[at] - 1), keys + 16 * n)) at = (at + 1) & mask;
            if (!table[at]) {
                table[at] = (u32)n + 1;
                of[n] = emitters[row];
            }
            first[n] = table[at] - 1;
            int apart = is_twin(keys + 16 * n) && of[first[n]] == emitters[row];
            if (first[n] < (u32)key_starts[row] && !apart) marks[first[n]] |= SHARED;
            if (met[n]) marks[first[n]] |= MET;
        }
    }
    for (i64 n = 0; n < others_count && !failed; n++) {
        u64 at = hash_key(others + 16 * n) & mask;
        while (table[at] && !are_equal(keys + 16 * (i64)(table[at] - 1), others + 16 * n)) at = (at + 1) & mask;
        if (table[at]) marks[table[at] - 1] |= MET;
    }
    for (i64 row = 0; row < rows && !failed; row++) {
        i64 start = key_starts[row];
        for (i64 n = start; n < key_starts[row + 1]; n++) {
            u8 mark = marks[first[n]];
            if ((mark & MET) || ((mark & SHARED) && n > start)) company[row] = 1;
        }
        if (company[row] && start < key_starts[row + 1]) marks[first[start]] |= IN_COMPANY;
    }
    for (i64 row = 0; row < rows && !failed; row++)
        if (key_starts[row] < key_starts[row + 1] && (marks[first[key_starts[row]]] & IN_COMPANY)) company[row] = 1;
    free(table);
    free(first);
    free(of);
    free(marks);
    return failed ? -2 : 0;
}

/* ---- emitters of twin keys, for longer than their spans are held ---- */

#define MIXED 0xFFFFFFFFu

/* By the first eight bytes of a key: the filter knows no more of it either. emitter 0 is an empty slot. */
typedef struct { u64 prefix; u32 emitter, unused; } twin;

static inline twin *find_twin(twin *slots, u64 mask, u64 prefix) {
    for (u64 at = ob_mix(prefix ^ SEED, 0x9E3779B97F4A7C15ull) & mask;; at = (at + 1) & mask)
        if (!slots[at].emitter || slots[at].prefix == prefix) return slots + at;
}

/* Unmarks `met` twin keys that, as far back as they were ever seen, only the span's own emitter had. */
OB_API void ob_twins_meet(twin *slots, u64 mask, const u8 *keys, i64 rows, const i32 *key_starts, const i32 *emitters, u8 *met) {
    for (i64 row = 0; row < rows; row++)
        for (i64 n = key_starts[row]; n < key_starts[row + 1]; n++)
            if (met[n] && is_twin(keys + 16 * n) &&
                find_twin(slots, mask, ob_load64(keys + 16 * n))->emitter == (u32)emitters[row])
                met[n] = 0;
}

/* Notes the emitters of twin keys. One that is not known is entered where it was never seen before (met[n] is 0), so that
 * an entry knows of every span its key ever had. Returns how many were entered; `most` slots may be in use. */
OB_API i64 ob_twins_note(twin *slots, u64 mask, const u8 *keys, i64 count, const i32 *emitters, const u8 *met, i64 most) {
    i64 entered = 0;
    for (i64 n = 0; n < count; n++) {
        const u8 *key = keys + 16 * n;
        if (!is_twin(key)) continue;
        twin *here = find_twin(slots, mask, ob_load64(key));
        if (here->emitter) {
            if (here->emitter != (u32)emitters[n]) here->emitter = MIXED;
        } else if (!met[n] && entered < most) {
            here->prefix = ob_load64(key);
            here->emitter = (u32)emitters[n];
            entered++;
        }
    }
    return entered;
}

OB_API void ob_twins_move(const twin *from, i64 size, twin *to, u64 mask) {
    for (i64 n = 0; n < size; n++)
        if (from[n].emitter) *find_twin(to, mask, from[n].prefix) = from[n];
}
