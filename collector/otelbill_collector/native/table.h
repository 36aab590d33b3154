/* A map from (tag, bytes) to a number, and arrays that grow to a bound. The map finds by hash and decides by comparing
 * the bytes, which it keeps. What is full says so, and is emptied as a whole by its owner. */
#ifndef OB_TABLE_H
#define OB_TABLE_H

#include <stdbool.h>

#include "ob.h"

#define OB_MISSING INT32_MIN

typedef struct { u64 hash, tag; u32 place, size; i32 value; u32 used; } Entry;

typedef struct {
    Entry *entries;
    u8 *keys;  /* of all entries, one behind the other */
    size_t slots, count, count_max, keys_size, keys_space, keys_max;
} Table;

/* Room for `wanted` items of `size` bytes, at most `most`. False where there is none; what stood there still does. */
static inline bool ob_reserve(void **items, size_t *space, size_t wanted, size_t size, size_t most) {
    if (wanted <= *space) return true;
    if (wanted > most) return false;
    size_t larger = *space ? *space : 64;
    while (larger < wanted) larger *= 2;
    if (larger > most) larger = most;
    void *moved = realloc(*items, larger * size);
    if (!moved) return false;
    *items = moved;
    *space = larger;
    return true;
}

/* Most keys are of 8 to 40 bytes: no call, no copy of a tail; the last bytes are read once more where they overlap. */
static inline u64 ob_table_hash(u64 tag, const u8 *key, size_t size) {
    u64 first, last, state = tag * 0x9FB21C651E98DF25ull + size;
    if (size < 8) {
        first = size >= 4 ? ob_load32(key) : 0;
        last = size >= 4 ? ob_load32(key + size - 4) : size ? (u64)key[0] << 16 | (u64)key[size / 2] << 8 | key[size - 1] : 0;
        return ob_mix(first << 32 ^ last ^ 0xA0761D6478BD642Full, state ^ 0xE7037ED1A0B428DBull);
    }
    for (; size > 16; key += 16, size -= 16) {
        state = ob_mix(ob_load64(key) ^ 0xA0761D6478BD642Full, ob_load64(key + 8) ^ state);
        if (size < 24) { key -= 8; size += 8; }  /* eight bytes at least are left for the end */
    }
    first = ob_load64(key);
    last = ob_load64(key + size - 8);
    return ob_mix(first ^ 0xE7037ED1A0B428DBull, last ^ state) ^ ob_mix(state, 0x8EBC6AF09C88C6E3ull);
}

static inline bool ob_same(const u8 *one, const u8 *other, size_t size) {
    if (size < 8) {
        for (size_t at = 0; at < size; at++) if (one[at] != other[at]) return false;
        return true;
    }
    for (size_t at = 0; at + 8 < size; at += 8) if (ob_load64(one + at) != ob_load64(other + at)) return false;
    return ob_load64(one + size - 8) == ob_load64(other + size - 8);
}

static inline Entry *ob_table_slot(const Table *table, u64 tag, const u8 *key, size_t size, u64 hash) {
    for (size_t at = hash & (table->slots - 1);; at = (at + 1) & (table->slots - 1)) {
        Entry *entry = &table->entries[at];
        if (!entry->used) return entry;
        if (entry->hash == hash && entry->tag == tag && entry->size == size
            && ob_same(table->keys + entry->place, key, size)) return entry;
    }
}

/* The entry of a key; NULL where there is none. */
static inline const Entry *ob_table_entry(const Table *table, u64 tag, const u8 *key, size_t size) {
    if (!table->slots) return NULL;
    const Entry *entry = ob_table_slot(table, tag, key, size, ob_table_hash(tag, key, size));
    return entry->used ? entry : NULL;
}

static inline i32 ob_table_find(const Table *table, u64 tag, const u8 *key, size_t size) {
    const Entry *entry = ob_table_entry(table, tag, key, size);
    return entry ? entry->value : OB_MISSING;
}

static inline bool ob_table_grow(Table *table) {
    size_t slots = table->slots ? table->slots * 2 : 1024;
    Entry *old = table->entries, *entries = calloc(slots, sizeof *entries);
    if (!entries) return false;
    for (size_t at = 0; at < table->slots; at++) {
        if (!old[at].used) continue;
        size_t to = old[at].hash & (slots - 1);
        while (entries[to].used) to = (to + 1) & (slots - 1);
        entries[to] = old[at];
    }
    free(old);
    table->entries = entries;
    table->slots = slots;
    return true;
}

/* The place of the key's bytes among `keys`, with its value set; -1 when the table is full. */
static inline i64 ob_table_keep(Table *table, u64 tag, const u8 *key, size_t size, i32 value) {
    if (2 * (table->count + 1) > table->slots && !ob_table_grow(table)) return -1;
    u64 hash = ob_table_hash(tag, key, size);
    Entry *entry = ob_table_slot(table, tag, key, size, hash);
    if (!entry->used) {
        if (table->count >= table->count_max || size > table->keys_max) return -1;
        if (!ob_reserve((void **)&table->keys, &table->keys_space, table->keys_size + size + 1, 1, table->keys_max)) return -1;
        if (size) memcpy(table->keys + table->keys_size, key, size);
        *entry = (Entry){hash, tag, (u32)table->keys_size, (u32)size, value, 1};
        table->keys_size += size;
        table->count++;
    }
    entry->value = value;
    return entry->place;
}

static inline void ob_table_forget(Table *table) {
    if (table->slots) memset(table->entries, 0, table->slots * sizeof *table->entries);
    table->count = table->keys_size = 0;
}

static inline void ob_table_free(Table *table) { free(table->entries); free(table->keys); }

#endif
