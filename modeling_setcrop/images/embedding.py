"""Give an image file another XMP packet without touching its pixels or anything else in it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KEYWORD = b"XML:com.adobe.xmp"
# Flags of WebP's VP8X chunk.
_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10


class EmbeddingError(ValueError):
    """A file into which no packet can be put; the message says why."""


def with_xmp(content: bytes, packet: bytes) -> bytes:
    """Return a JPEG, PNG or WebP file with a packet in place of any that it had.

    Raises:
        EmbeddingError: It is none of these or broken, or the packet is too long for it.
    """
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content, packet)
    if content.startswith(_PNG_MAGIC):
        return _png(content, packet)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content, packet)
    raise EmbeddingError("only JPEG, PNG and WebP files take a packet")


def _jpeg(content: bytes, packet: bytes) -> bytes:
    segment = _JPEG_XMP + packet
    if len(segment) > 65533:
        raise EmbeddingError(f"XMP of {len(packet)} bytes is too long for a JPEG file")
    new = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    parts, at, after = [content[:2]], 2, 1
    while True:
        if at + 4 > len(content) or content[at] != 0xFF:
            raise EmbeddingError("broken JPEG file")
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA or not (marker == 0xFE or 0xC0 <= marker <= 0xEF):
            break
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        old = marker == 0xE1 and content[at + 4 : at + 4 + len(_JPEG_XMP)] == _JPEG_XMP
        if not old:
            parts.append(content[at:end])
            # Behind JFIF and EXIF, which some readers expect first.
            if marker in (0xE0, 0xE1) and after == len(parts) - 1:
                after = len(parts)
        at = end
    parts.insert(after, new)
    return b"".join([*parts, content[at:]])


def _png(content: bytes, packet: bytes) -> bytes:
    data = _PNG_KEYWORD + b"\0\0\0\0\0" + packet
    new = struct.pack(">I", len(data)) + b"iTXt" + data + struct.pack(">I", zlib.crc32(b"iTXt" + data))
    parts = [_PNG_MAGIC]
    for kind, chunk in _png_chunks(content):
        if kind == b"iTXt" and chunk[8 : 8 + len(_PNG_KEYWORD)] == _PNG_KEYWORD:
            continue
        parts.append(chunk)
        if kind == b"IHDR":
            parts.append(new)
    return b"".join(parts)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each chunk, length and sum included."""
    at, kind = len(_PNG_MAGIC), b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise EmbeddingError("broken PNG file")
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        yield kind, content[at:end]
        at = end


def _webp(content: bytes, packet: bytes) -> bytes:
    chunks = [chunk for chunk in _webp_chunks(content) if chunk[0] != b"XMP "]
    if not chunks:
        raise EmbeddingError("broken WebP file")
    if chunks[0][0] == b"VP8X":
        head = bytearray(chunks[0][1])
        head[0] |= _WEBP_XMP
        chunks[0] = (b"VP8X", bytes(head))
    else:
        chunks.insert(0, (b"VP8X", _webp_head(*chunks[0])))
    body = b"WEBP"
    for kind, data in [*chunks, (b"XMP ", packet)]:
        body += kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(content):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        if at + 8 + length > len(content):
            raise EmbeddingError("broken WebP file")
        yield content[at : at + 4], content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _webp_head(kind: bytes, data: bytes) -> bytes:
    """Return the VP8X chunk of a file that had none, from its image's own head."""
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", data[6:10]))
        flags = _WEBP_XMP
    elif kind == b"VP8L" and data[:1] == b"\x2f":
        bits = int.from_bytes(data[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = _WEBP_XMP | (_WEBP_ALPHA if bits >> 28 & 1 else 0)
    else:
        raise EmbeddingError("broken WebP file")
    return bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
