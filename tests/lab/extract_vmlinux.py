"""Takes the kernel's ELF image out of a bzImage (Linux x86 boot protocol, Documentation/arch/x86/boot.rst).

Usage: extract_vmlinux.py BZIMAGE OUTPUT. Understands xz, gzip, bzip2 and lzma payloads; others are an error, and the caller starts the
bzImage itself. The input is a Debian package's file, yet every offset is checked: a truncated download must be a message.
"""

import bz2
import gzip
import lzma
import struct
import sys
import zlib
from pathlib import Path

HEADER_MAGIC_AT = 0x202
SETUP_SECTORS_AT = 0x1F1
PAYLOAD_OFFSET_AT = 0x248
DECOMPRESSORS = [
    (b"\xfd7zXZ\x00", lambda data: lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(data)),
    (b"\x1f\x8b", lambda data: zlib.decompressobj(wbits=31).decompress(data)),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data)),
    (b"\x5d\x00\x00", lambda data: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE).decompress(data)),
]


def extract(image: bytes) -> bytes:
    """Returns the ELF image inside a bzImage; raises ValueError saying what is wrong."""
    if len(image) < PAYLOAD_OFFSET_AT + 8 or image[HEADER_MAGIC_AT : HEADER_MAGIC_AT + 4] != b"HdrS":
        raise ValueError("not a bzImage")
    protected_mode = ((image[SETUP_SECTORS_AT] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET_AT)
    payload = image[protected_mode + offset : protected_mode + offset + length]
    if len(payload) != length or not length:
        raise ValueError("truncated")
    for magic, decompress in DECOMPRESSORS:
        if payload.startswith(magic):
            # The decompressors stop at the end of the stream: four bytes with the unpacked size follow it.
            elf = decompress(payload)
            if not elf.startswith(b"\x7fELF"):
                raise ValueError("the payload is not an ELF file")
            return elf
    raise ValueError(f"unknown compression (starts with {payload[:4].hex()})")


def main() -> int:
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        output.write_bytes(extract(source.read_bytes()))
    except (OSError, ValueError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        print(f"extract_vmlinux: {source}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
