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
