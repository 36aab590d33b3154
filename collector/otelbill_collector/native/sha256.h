/* SHA-256 of messages that are built in place, two at a time where the processor has the instructions. */
#ifndef OB_SHA256_H
#define OB_SHA256_H

#include "ob.h"

/* Bytes that a message of `size` takes with its padding: whole blocks of 64. */
static inline size_t ob_sha256_room(size_t size) { return (size + 9 + 63) & ~(size_t)63; }

/* Pad the message at `at` (of `size` bytes, room for ob_sha256_room(size)); returns how many blocks it has. */
size_t ob_sha256_pad(u8 *at, size_t size);

/* The first 16 bytes of the digest of a padded message. */
void ob_sha256_one(const u8 *message, size_t blocks, u8 *out);

/* The same of two messages of equally many blocks, which share the processor's pipeline. */
void ob_sha256_two(const u8 *one, const u8 *other, size_t blocks, u8 *out_one, u8 *out_other);

/* Messages wait here for another of as many blocks. All must have room for `capacity` bytes, padding included. */
#define OB_WAITING_BLOCKS 32
typedef struct {
    u8 *memory;
    size_t capacity;
    u8 *spare; /* where the next message is built */
    struct { u8 *message, *out; u8 keep, set; } waiting[OB_WAITING_BLOCKS];
} ob_hasher;

int ob_hasher_open(ob_hasher *hasher, size_t message_max); /* -1 without memory */
/* Digest the message in `spare`; 16 bytes come to `out` before the hasher is closed, the first with bits kept and set. */
void ob_hasher_take(ob_hasher *hasher, size_t size, u8 *out, u8 keep, u8 set);
void ob_hasher_close(ob_hasher *hasher);

#endif
