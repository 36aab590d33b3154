/* Rows with equal keys as numbered groups, and exact sums over groups. Sums are kept in 128 bits, and amounts of 128 bits
 * in two of them: 2^63 rows do not overflow either. `known` is an Arrow validity bitmap from bit `first` on, or NULL. */
#include "ob.h"

typedef i128 __attribute__((aligned(8))) wide; /* numpy promises eight bytes */

static inline int is_known(const u8 *known, i64 bit) { return !known || (known[bit >> 3] >> (bit & 7) & 1); }

static inline u64 spread(u64 key) { return ob_mix(key ^ 0xA0761D6478BD642Full, 0xE7037ED1A0B428DBull); }

/* Number the groups by first occurrence: a number per row and the first row of each group. Returns how many groups there
 * are, -1 without memory. `firsts` has room for a row each. */
OB_API i64 ob_group_keys(const u64 *keys, i64 count, u32 *groups, i64 *firsts) {
    u64 slots = 4096;
    u32 *table = calloc(slots, sizeof *table); /* number of a group + 1 */
    i64 found = 0;
    if (!table) return -1;
    for (i64 row = 0; row < count; row++) {
        u64 key = keys[row], slot = spread(key) & (slots - 1);
        while (table[slot] && keys[firsts[table[slot] - 1]] != key) slot = (slot + 1) & (slots - 1);
        if (table[slot]) {
            groups[row] = table[slot] - 1;
            continue;
        }
        firsts[found] = row;
        groups[row] = (u32)found;
        table[slot] = (u32)++found;
        if ((u64)found * 2 <= slots) continue;
        free(table);
        slots *= 4;
        table = calloc(slots, sizeof *table);
        if (!table) return -1;
        for (i64 group = 0; group < found; group++) {
            slot = spread(keys[firsts[group]]) & (slots - 1);
            while (table[slot]) slot = (slot + 1) & (slots - 1);
            table[slot] = (u32)group + 1;
        }
    }
    free(table);
    return found;
}

/* Per group the sum of sign x value; of sign alone without values. */
OB_API void ob_sum_integers(const i64 *values, const u8 *known, i64 first, const i8 *signs, const u32 *groups, i64 count,
                            void *sums) {
    wide *total = sums;
    for (i64 row = 0; row < count; row++) {
        if (!is_known(known, first + row)) continue;
        i128 value = values ? values[row] : 1;
        total[groups[row]] += signs[row] < 0 ? -value : value;
    }
}

/* Per group two sums: of sign x low word, read without a sign, and of sign x high word. */
OB_API void ob_sum_amounts(const u64 *words, const u8 *known, i64 first, const i8 *signs, const u32 *groups, i64 count,
                           void *sums) {
    wide *total = sums;
    for (i64 row = 0; row < count; row++) {
        if (!is_known(known, first + row)) continue;
        i128 low = words[2 * row], high = (i64)words[2 * row + 1];
        wide *into = total + 2 * (u64)groups[row];
        into[0] += signs[row] < 0 ? -low : low;
        into[1] += signs[row] < 0 ? -high : high;
    }
}

/* Per group the largest value; every group has a row, and `largest` starts at the smallest integer. */
OB_API void ob_find_largest(const i64 *values, const u32 *groups, i64 count, i64 *largest) {
    for (i64 row = 0; row < count; row++)
        if (values[row] > largest[groups[row]]) largest[groups[row]] = values[row];
}
