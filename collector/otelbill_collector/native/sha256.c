/* SHA-256 (FIPS 180-4): a portable version, and one with the SHA extensions of x86, chosen at the first call. */
#include "sha256.h"

static const u32 K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static const u32 START[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline u32 turn(u32 x, int by) { return x >> by | x << (32 - by); }
static inline u32 load_big(const u8 *at) { return __builtin_bswap32(ob_load32(at)); }
static inline void save_big(u8 *at, u32 value) { value = __builtin_bswap32(value); memcpy(at, &value, 4); }

static void compress_portably(u32 *state, const u8 *message, size_t blocks) {
    for (; blocks; blocks--, message += 64) {
        u32 w[64], s[8];
        for (int i = 0; i < 16; i++) w[i] = load_big(message + 4 * i);
        for (int i = 16; i < 64; i++) {
            u32 a = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
            u32 b = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + a + w[i - 7] + b;
        }
        memcpy(s, state, sizeof s);
        for (int i = 0; i < 64; i++) {
            u32 e = turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25);
            u32 one = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
            u32 a = turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22);
            u32 two = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + one;
            s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = one + two;
        }
        for (int i = 0; i < 8; i++) state[i] += s[i];
    }
}

static void digest_portably(const u8 *const *messages, int count, size_t blocks, u32 (*states)[8]) {
    for (int lane = 0; lane < count; lane++) {
        memcpy(states[lane], START, sizeof START);
        compress_portably(states[lane], messages[lane], blocks);
    }
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#include <immintrin.h>
#define HAS_EXTENSIONS 1
#define EXTENDED __attribute__((target("sha,sse4.1,ssse3")))

/* Four rounds of each lane: `w[i & 3]` are the words of these rounds, and become those of sixteen rounds later. */
#define ROUNDS(i, lane)                                                                                               \
    do {                                                                                                              \
        __m128i *w = words[lane];                                                                                     \
        __m128i sum = _mm_add_epi32(w[(i) & 3], _mm_loadu_si128((const __m128i *)(K + 4 * (i))));                     \
        cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], sum);                                              \
        abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(sum, 0x0E));                     \
        if ((i) < 12) {                                                                                               \
            __m128i next = _mm_sha256msg1_epu32(w[(i) & 3], w[((i) + 1) & 3]);                                        \
            next = _mm_add_epi32(next, _mm_alignr_epi8(w[((i) + 3) & 3], w[((i) + 2) & 3], 4));                       \
            w[(i) & 3] = _mm_sha256msg2_epu32(next, w[((i) + 3) & 3]);                                                \
        }                                                                                                             \
    } while (0)

EXTENDED static inline __attribute__((always_inline)) void digest_lanes(
    const u8 *const *messages, const int count, size_t blocks, u32 (*states)[8]) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bull, 0x0405060700010203ull);
    __m128i abef[2], cdgh[2], words[2][4];
    for (int lane = 0; lane < count; lane++) {
        abef[lane] = _mm_set_epi32((int)START[0], (int)START[1], (int)START[4], (int)START[5]);
        cdgh[lane] = _mm_set_epi32((int)START[2], (int)START[3], (int)START[6], (int)START[7]);
    }
    for (size_t block = 0; block < blocks; block++) {
        __m128i abef_before[2], cdgh_before[2];
        for (int lane = 0; lane < count; lane++) {
            const u8 *at = messages[lane] + 64 * block;
            abef_before[lane] = abef[lane], cdgh_before[lane] = cdgh[lane];
            for (int i = 0; i < 4; i++)
                words[lane][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(at + 16 * i)), order);
        }
#define BOTH(i) ROUNDS(i, 0); if (count > 1) ROUNDS(i, 1)
        BOTH(0); BOTH(1); BOTH(2); BOTH(3); BOTH(4); BOTH(5); BOTH(6); BOTH(7);
        BOTH(8); BOTH(9); BOTH(10); BOTH(11); BOTH(12); BOTH(13); BOTH(14); BOTH(15);
        for (int lane = 0; lane < count; lane++) {
            abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
            cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
        }
    }
    for (int lane = 0; lane < count; lane++) {
        u32 upper[4], lower[4]; /* f e b a, h g d c */
        _mm_storeu_si128((__m128i *)upper, abef[lane]);
        _mm_storeu_si128((__m128i *)lower, cdgh[lane]);
        u32 *s = states[lane];
        s[0] = upper[3], s[1] = upper[2], s[4] = upper[1], s[5] = upper[0];
        s[2] = lower[3], s[3] = lower[2], s[6] = lower[1], s[7] = lower[0];
    }
}

EXTENDED static void digest_extended(const u8 *const *messages, int count, size_t blocks, u32 (*states)[8]) {
    if (count == 1) digest_lanes(messages, 1, blocks, states);
    else digest_lanes(messages, 2, blocks, states);
}

static int find_extensions(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 9) || !(c & 1u << 19)) return 0; /* SSSE3, SSE4.1 */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);
}
#else
#define HAS_EXTENSIONS 0
#endif

typedef void (*digest_function)(const u8 *const *, int, size_t, u32 (*)[8]);

static digest_function choose_digest(void) {
#if HAS_EXTENSIONS
    if (find_extensions()) return digest_extended;
#endif
    return digest_portably;
}

/* Several threads may choose at once: all choose the same. */
static digest_function volatile chosen;

static inline void digest(const u8 *const *messages, int count, size_t blocks, u32 (*states)[8]) {
    digest_function function = chosen;
    if (!function) chosen = function = choose_digest();
    function(messages, count, blocks, states);
}

size_t ob_sha256_pad(u8 *at, size_t size) {
    size_t room = ob_sha256_room(size);
    at[size] = 0x80;
    memset(at + size + 1, 0, room - size - 9);
    u64 bits = __builtin_bswap64((u64)size << 3);
    memcpy(at + room - 8, &bits, 8);
    return room / 64;
}

static inline void save_half(u8 *out, const u32 *state) {
    for (int i = 0; i < 4; i++) save_big(out + 4 * i, state[i]);
}

void ob_sha256_one(const u8 *message, size_t blocks, u8 *out) {
    u32 state[1][8];
    digest(&message, 1, blocks, state);
    save_half(out, state[0]);
}

void ob_sha256_two(const u8 *one, const u8 *other, size_t blocks, u8 *out_one, u8 *out_other) {
    const u8 *messages[2] = {one, other};
    u32 states[2][8];
    digest(messages, 2, blocks, states);
    save_half(out_one, states[0]);
    save_half(out_other, states[1]);
}

int ob_hasher_open(ob_hasher *hasher, size_t message_max) {
    memset(hasher, 0, sizeof *hasher);
    hasher->capacity = ob_sha256_room(message_max);
    hasher->memory = malloc(hasher->capacity * (OB_WAITING_BLOCKS + 1));
    if (!hasher->memory) return -1;
    hasher->spare = hasher->memory;
    for (int i = 0; i < OB_WAITING_BLOCKS; i++) hasher->waiting[i].message = hasher->memory + hasher->capacity * (size_t)(i + 1);
    return 0;
}

static inline void mark(u8 *out, u8 keep, u8 set) { out[0] = (u8)((out[0] & keep) | set); }

void ob_hasher_take(ob_hasher *hasher, size_t size, u8 *out, u8 keep, u8 set) {
    size_t blocks = ob_sha256_pad(hasher->spare, size);
    if (blocks >= OB_WAITING_BLOCKS) {
        ob_sha256_one(hasher->spare, blocks, out);
        mark(out, keep, set);
        return;
    }
    u8 *message = hasher->waiting[blocks].message, *first = hasher->waiting[blocks].out;
    if (first) {
        ob_sha256_two(message, hasher->spare, blocks, first, out);
        mark(first, hasher->waiting[blocks].keep, hasher->waiting[blocks].set);
        mark(out, keep, set);
        hasher->waiting[blocks].out = NULL;
        return;
    }
    hasher->waiting[blocks].message = hasher->spare;
    hasher->waiting[blocks].out = out;
    hasher->waiting[blocks].keep = keep;
    hasher->waiting[blocks].set = set;
    hasher->spare = message;
}

void ob_hasher_close(ob_hasher *hasher) {
    for (size_t blocks = 0; blocks < OB_WAITING_BLOCKS; blocks++) {
        u8 *out = hasher->waiting[blocks].out;
        if (!out) continue;
        ob_sha256_one(hasher->waiting[blocks].message, blocks, out);
        mark(out, hasher->waiting[blocks].keep, hasher->waiting[blocks].set);
    }
    free(hasher->memory);
}

/* For tests: the whole digest of any message, by the version chosen, alone or as one of two, or the portable one. Returns
 * whether the processor has the extensions, -1 without memory. */
OB_API int ob_sha256(const u8 *message, i64 size, int lanes, u8 *out) {
    u8 *padded = malloc(ob_sha256_room((size_t)size));
    if (!padded) return -1;
    memcpy(padded, message, (size_t)size);
    size_t blocks = ob_sha256_pad(padded, (size_t)size);
    const u8 *messages[2] = {padded, padded};
    u32 states[2][8];
    if (lanes) digest(messages, lanes, blocks, states);
    else digest_portably(messages, 1, blocks, states);
    for (int i = 0; i < 8; i++) save_big(out + 4 * i, states[lanes > 1][i]);
    free(padded);
    return choose_digest() != digest_portably;
}
