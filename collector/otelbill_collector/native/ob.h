/* What every file of the native library shares. All functions work on memory that the caller owns, keep no pointer to it
 * after they return, and never write past the capacities they are given; a scanner alone has memory of its own. Integers are little-endian, as on the wire. */
#ifndef OB_H
#define OB_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OB_API __attribute__((visibility("default")))

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t i32;
typedef uint64_t u64;
typedef int64_t i64;
typedef __int128 i128;
typedef unsigned __int128 u128;

static inline u64 ob_load64(const u8 *at) { u64 value; memcpy(&value, at, 8); return value; }
static inline u32 ob_load32(const u8 *at) { u32 value; memcpy(&value, at, 4); return value; }

/* A fast hash of bytes (multiply and fold). Never stored and never trusted: whoever finds by it compares the bytes. */
static inline u64 ob_mix(u64 a, u64 b) { u128 product = (u128)a * b; return (u64)product ^ (u64)(product >> 64); }

static inline u64 ob_hash(const u8 *at, size_t size, u64 seed) {
    u64 state = seed ^ 0x9E3779B97F4A7C15ull ^ size;
    for (; size >= 16; at += 16, size -= 16) state = ob_mix(ob_load64(at) ^ 0xA0761D6478BD642Full, ob_load64(at + 8) ^ state);
    u8 tail[16] = {0};
    memcpy(tail, at, size);
    return ob_mix(ob_load64(tail) ^ 0xE7037ED1A0B428DBull, ob_load64(tail + 8) ^ state) ^ ob_mix(state, 0x8EBC6AF09C88C6E3ull);
}

#endif
