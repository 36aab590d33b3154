"""Compressed bodies, within a bound. Owns the refusal of bombs: it stops inflating at the limit, not after it."""

from __future__ import annotations

import zlib


class TooLarge(ValueError):
    """A body is larger than its limit, as sent or decompressed."""


class UnknownEncoding(ValueError):
    """A Content-Encoding that is not understood."""


def inflate_body(body: bytes, encoding: str, limit: int) -> bytes:
    """The decompressed body. Raises TooLarge past `limit` bytes, UnknownEncoding, or ValueError for broken data."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise UnknownEncoding(f"Content-Encoding {encoding!r} is not understood; send gzip, deflate or identity")
    plain = bytearray()
    while body:  # gzip allows several members after another, and all of them are the body
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib header, whichever is there
        try:
            plain += inflater.decompress(body, limit + 1 - len(plain))
        except zlib.error as error:
            raise ValueError(f"the body is not valid {encoding}: {error}") from error
        if len(plain) > limit:
            raise TooLarge(f"the body decompresses to more than {limit} bytes; send smaller batches")
        if not inflater.eof:
            raise ValueError(f"the {encoding} body is cut off")
        body = inflater.unused_data
    return bytes(plain)
