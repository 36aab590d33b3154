/* The one way to read a request: a cursor that never passes its end. Every function answers false for what is broken, or
 * has a tag that is not written the canonical way; the caller then leaves the request to the parser. */
#ifndef OB_CURSOR_H
#define OB_CURSOR_H

#include <stdbool.h>

#include "ob.h"

typedef struct { const u8 *at, *end; } Cursor;

enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_DELIMITED = 2, WIRE_FIXED32 = 5 };

static inline size_t ob_left(const Cursor *cursor) { return (size_t)(cursor->end - cursor->at); }

static inline bool ob_read_varint(Cursor *cursor, u64 *value) {
    if (cursor->at < cursor->end && *cursor->at < 0x80) { *value = *cursor->at++; return true; }
    u64 number = 0;
    for (int shift = 0; shift < 64 && cursor->at < cursor->end; shift += 7) {
        u8 byte = *cursor->at++;
        if (shift == 63 && byte > 1) return false;
        number |= (u64)(byte & 0x7F) << shift;
        if (byte < 0x80) { *value = number; return true; } /* written longer than it has to be, too: protobuf allows it */
    }
    return false;
}

/* Field number and wire type, of numbers up to 2047: OTLP has none above. */
static inline bool ob_read_tag(Cursor *cursor, u32 *tag) {
    if (cursor->at >= cursor->end) return false;
    u32 found = *cursor->at++;
    if (found >= 0x80) {
        if (cursor->at >= cursor->end || *cursor->at == 0 || *cursor->at >= 0x80) return false;
        found = (found & 0x7F) | (u32)*cursor->at++ << 7;
    }
    *tag = found;
    return found >= 8;
}

/* The parser takes lengths of five bytes at most, whatever they say. */
static inline bool ob_read_part(Cursor *cursor, Cursor *part) {
    const u8 *start = cursor->at;
    u64 size;
    if (!ob_read_varint(cursor, &size) || cursor->at - start > 5 || size > ob_left(cursor)) return false;
    part->at = cursor->at;
    part->end = cursor->at + size;
    cursor->at = part->end;
    return true;
}

static inline bool ob_read_fixed64(Cursor *cursor, u64 *value) {
    if (ob_left(cursor) < 8) return false;
    *value = ob_load64(cursor->at);
    cursor->at += 8;
    return true;
}

/* Past a field that nobody reads. `known` has the bits of the field numbers that the message knows: such a field with
 * another wire type is for the parser to judge. */
static inline bool ob_skip(Cursor *cursor, u32 tag, u32 known) {
    u32 number = tag >> 3;
    u64 value;
    Cursor part;
    if (number < 32 && (known >> number & 1)) return false;
    switch (tag & 7) {
    case WIRE_VARINT: return ob_read_varint(cursor, &value);
    case WIRE_FIXED64: return ob_read_fixed64(cursor, &value);
    case WIRE_DELIMITED: return ob_read_part(cursor, &part);
    case WIRE_FIXED32:
        if (ob_left(cursor) < 4) return false;
        cursor->at += 4;
        return true;
    default: return false;
    }
}

static inline bool ob_is_ascii(Cursor text) {
    u8 all = 0;
    for (; ob_left(&text) >= 8; text.at += 8) {
        if (ob_load64(text.at) & 0x8080808080808080ull) return false;
    }
    for (; text.at < text.end; text.at++) all |= *text.at;
    return all < 0x80;
}

/* UTF-8 as RFC 3629 has it: no surrogates, nothing written too long, nothing above U+10FFFF. */
static inline bool ob_is_utf8(Cursor text) {
    if (ob_is_ascii(text)) return true;
    while (text.at < text.end) {
        u32 first = *text.at++, low = 0x80, high = 0xBF;
        int more;
        if (first < 0x80) continue;
        if (first >= 0xC2 && first <= 0xDF) more = 1;
        else if (first >= 0xE0 && first <= 0xEF) more = 2;
        else if (first >= 0xF0 && first <= 0xF4) more = 3;
        else return false;
        if (first == 0xE0) low = 0xA0;
        if (first == 0xED) high = 0x9F;
        if (first == 0xF0) low = 0x90;
        if (first == 0xF4) high = 0x8F;
        for (; more; more--, low = 0x80, high = 0xBF) {
            if (text.at >= text.end || *text.at < low || *text.at > high) return false;
            text.at++;
        }
    }
    return true;
}

#endif
