/* Entries of the files of identifiers: 32 mixed bits of a value above the number of its segment. The formula is that of
 * `ledger.identifiers`, where it must not change: files that were written by it are read for years. */
#include "ob.h"

#define HASHED_MAX 256

static inline u64 mix(u64 value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ull;
    value = (value ^ value >> 27) * 0x94D049BB133111EBull;
    return value ^ value >> 31;
}

/* One entry for each known value that is not empty, in order; returns how many. `offsets` are those of an Arrow binary
 * array, or NULL for values of `width` bytes. `known` is a validity bitmap from bit `first` on, or NULL. */
OB_API i64 ob_make_entries(const u8 *data, const i32 *offsets, i64 width, const u8 *known, i64 first, i64 count, u64 segment,
                           u64 *entries) {
    i64 made = 0;
    for (i64 row = 0; row < count; row++) {
        i64 bit = first + row;
        if (known && !(known[bit >> 3] >> (bit & 7) & 1)) continue;
        i64 start = offsets ? offsets[row] : row * width, size = offsets ? offsets[row + 1] - start : width;
        if (!size) continue;
        const u8 *at = data + start;
        u64 state = mix((u64)size);
        if (size > HASHED_MAX) size = HASHED_MAX;
        for (; size >= 8; at += 8, size -= 8) state = mix(state ^ ob_load64(at));
        if (size) {
            u64 word = 0;
            memcpy(&word, at, (size_t)size);
            state = mix(state ^ word);
        }
        entries[made++] = (state >> 32) << 32 | segment;
    }
    return made;
}

#define DIGIT_BITS 11
#define DIGITS 6
#define VALUES (1 << DIGIT_BITS)

/* Sort entries and drop equal ones, in place; `scratch` is as large. Returns how many are left, -1 without memory. By digits,
 * the least first; a digit that is the same everywhere, as most of the segment's are, costs nothing. */
OB_API i64 ob_sort_ids(u64 *entries, u64 *scratch, i64 count) {
    i64 *places = calloc((size_t)DIGITS * VALUES, sizeof *places);
    u64 *from = entries, *into = scratch;
    if (!places) return -1;
    for (i64 row = 0; row < count; row++)
        for (int digit = 0; digit < DIGITS; digit++)
            places[digit * VALUES + (entries[row] >> digit * DIGIT_BITS & (VALUES - 1))]++;
    for (int digit = 0; digit < DIGITS && count; digit++) {
        i64 *place = places + digit * VALUES, next = 0;
        int shift = digit * DIGIT_BITS;
        if (place[from[0] >> shift & (VALUES - 1)] == count) continue;
        for (int value = 0; value < VALUES; value++) {
            i64 size = place[value];
            place[value] = next;
            next += size;
        }
        for (i64 row = 0; row < count; row++) into[place[from[row] >> shift & (VALUES - 1)]++] = from[row];
        u64 *other = from;
        from = into;
        into = other;
    }
    free(places);
    i64 left = 0;
    u64 last = 0;
    for (i64 row = 0; row < count; row++) {
        u64 entry = from[row];
        if (row && entry == last) continue;
        last = entries[left++] = entry; /* never ahead of the row that is read */
    }
    return left;
}
