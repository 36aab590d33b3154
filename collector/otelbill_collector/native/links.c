/* How spans find each other by claim keys: the filter over stored keys, and runs of entries in the order of their keys.
 * Keys are digests: the first eight bytes of one serve as its hash. */
#include "ob.h"

/* ---- the filter of ledger/known_keys.py: seven bits of one cache line for each key ---- */

#define PROBES 7
#define LINE_BITS 512
#define SLICE_BITS 9
#define AHEAD 16 /* keys whose lines are fetched before the first of them is looked at */

static inline u64 load_key(const u8 *keys, i64 stride, i64 n) { return ob_load64(keys + stride * n); }
static inline u64 *find_line(u64 *bits, u64 lines, u64 key) { return bits + (((key >> 32) * lines) >> 32) * (LINE_BITS / 64); }

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
        if (n + AHEAD < count) __builtin_prefetch(find_line(bits, lines, load_key(keys, stride, n + AHEAD)), 1);
        u64 key = load_key(keys, stride, n);
        add_key(find_line(bits, lines, key), key);
    }
}

/* Sets found[n] to 1 where the n-th key may have been added; leaves the others as they are. */
OB_API void ob_filter_find(u64 *bits, u64 lines, const u8 *keys, i64 stride, i64 count, u8 *found) {
    for (i64 n = 0; n < count; n++) {
        if (n + AHEAD < count) __builtin_prefetch(find_line(bits, lines, load_key(keys, stride, n + AHEAD)), 0);
        u64 key = load_key(keys, stride, n);
        if (has_key(find_line(bits, lines, key), key)) found[n] = 1;
    }
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
