"""Archives that would harm whoever trusts them: the content of each, and what the error says."""

import io
import pathlib
import stat
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
REFUSED, DAMAGED, LARGE = "refused: ", "damaged: ", "expected at most dataset.max_file_bytes="


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


IMAGE = encode(Image.fromarray(PIXELS))


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def tar_of(*entries: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive of an image and of headers, after which no content comes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tar_entry("owl/good.png", size=len(IMAGE)), io.BytesIO(IMAGE))
    end = len(out.getvalue().rstrip(b"\0")) + 511 & ~511
    headers = b"".join(entry.tobuf(format) for entry in entries)
    return out.getvalue()[:end] + headers + bytes(1024)


def raw_header(name: str, kind: bytes, size: bytes) -> bytes:
    """A header whose size is written as the bytes say."""
    header = bytearray(tar_entry(name, kind).tobuf(tarfile.USTAR_FORMAT)[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(**fields: str) -> bytes:
    """The headers of a file with fields that pax allows to be of any length."""
    return tar_entry("owl/x.png", pax_headers=fields).tobuf(tarfile.PAX_FORMAT)


def sparse(size: int) -> bytes:
    return pax(**{"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(size)})


def zip_of(*entries: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in (("owl/good.png", IMAGE), *entries):
            archive.writestr(entry, content)
    return out.getvalue()


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def patched(content: bytes, offset: int, value: bytes, places: int = 1) -> bytes:
    """A zip in whose last entry of the directory, or last entries, bytes are changed."""
    changed, start = bytearray(content), len(content)
    for _ in range(places):
        start = content.rindex(b"PK\x01\x02", 0, start)
        changed[start + offset : start + offset + len(value)] = value
    return bytes(changed)


def bzip2ed() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("owl/x.png", bytes(2**20))
    return out.getvalue()


def wrong_checksum() -> bytes:
    return patched(zip_of(("owl/x.png", b"x")), 16, b"\1\2\3\4")


ESCAPES = {"up": "../x.png", "inside": "owl/../../x.png", "absolute": "/tmp/x.png"}
OUTSIDE = REFUSED + "its entry '.*' lies outside of the archive"
SPECIAL = {"pipe": tarfile.FIFOTYPE, "character": tarfile.CHRTYPE, "block": tarfile.BLKTYPE}
TAR_SIZES = {"5 GB": b"45401006000\0", "1 PB": b"\x80" + (2**50).to_bytes(11, "big")}

# Content of a tar archive, and what the error says.
TARS = {
    **{f"entry {k}": (tar_of(tar_entry(v)), OUTSIDE) for k, v in ESCAPES.items()},
    **{f"{k} special": (tar_of(tar_entry("x", v)), "a pipe or a dev") for k, v in SPECIAL.items()},
    "symbolic link": (tar_of(tar_entry("x.png", tarfile.SYMTYPE, linkname="/etc/x")), "is a link"),
    "hard link": (tar_of(tar_entry("x.png", tarfile.LNKTYPE, linkname="owl/g")), "is a link"),
    "declares 5 GB": (tar_of()[:1024] + raw_header("x.png", b"0", TAR_SIZES["5 GB"]), DAMAGED),
    "declares 1 PB": (tar_of()[:1024] + raw_header("x.png", b"0", TAR_SIZES["1 PB"]), ""),
    "negative size": (tar_of()[:1024] + raw_header("x.png", b"0", b"\xff" * 12), DAMAGED),
    "negative pax": (tar_of()[:1024] + raw_header("x", b"x", b"\xff" * 12), DAMAGED),
    "long name of 8 GB": (tar_of()[:1024] + raw_header("x", b"L", b"77777777777\0"), DAMAGED),
    "pax of 8 GB": (tar_of()[:1024] + raw_header("x", b"x", b"77777777777\0"), DAMAGED),
    "pax in pax": (tar_of()[:1024] + raw_header("x", b"x", b"0" * 11 + b"\0") * 1500, DAMAGED),
    "long name": (tar_of(tar_entry("x" * 10_000)), DAMAGED),
    "size of 400 digits": (tar_of()[:1024] + pax(size="9" * 400) + bytes(1024), DAMAGED),
    "sparse of 5 GB": (tar_of()[:1024] + sparse(5 * 10**9) + bytes(1024), "is a sparse file"),
    "sparse of 1 PB": (tar_of()[:1024] + sparse(2**50) + bytes(1024), "is a sparse file"),
    "sparse map": (tar_of()[:1024] + pax(**{"GNU.sparse.map": "1,x"}) + bytes(1024), DAMAGED),
    "no end": (tar_of()[:1024], DAMAGED),
    "garbage after a file": (tar_of()[:1024] + b"x" * 1024, DAMAGED),
    "empty": (b"", DAMAGED),
    **{f"{i} quarters": (tar_of()[: i * 1024 // 4 - 7], DAMAGED) for i in (1, 2, 3, 4)},
}
# The same for a zip archive.
TWO = zip_of(("owl/x.png", b"x" * 1000))
LINK = zip_entry("x", stat.S_IFLNK | 0o777)
ZIPS = {
    **{f"entry {k}": (zip_of((v, b"x")), OUTSIDE) for k, v in ESCAPES.items()},
    "link": (zip_of((LINK, b"/etc/passwd")), "is a link"),
    "pipe": (zip_of((zip_entry("x", stat.S_IFIFO | 0o644), b"x")), "a pipe or a device"),
    "device": (zip_of((zip_entry("x", stat.S_IFCHR | 0o644), b"x")), "a pipe or a device"),
    "declares 4 GB": (patched(TWO, 24, b"\xfe" * 4), LARGE),
    "declares less": (patched(TWO, 24, struct.pack("<L", 10)), DAMAGED),
    "encrypted": (patched(TWO, 8, b"\1"), DAMAGED + ".*encrypted"),
    "wrong checksum": (wrong_checksum(), DAMAGED + ".*CRC"),
    "wrong offset": (patched(TWO, 42, b"\xff\xff\xff\x7f"), DAMAGED),
    "bzip2": (bzip2ed(), "neither stored nor deflated"),
    "unknown method": (patched(TWO, 10, b"\x63"), DAMAGED),
    "future version": (patched(TWO, 6, b"\xff"), DAMAGED),
    "empty": (b"", DAMAGED),
    **{f"{i} quarters": (TWO[: i * len(TWO) // 4 - 7], DAMAGED) for i in (1, 2, 3, 4)},
}


def pack(path: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes a sound archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            archive.addfile(tar_entry(name, size=len(content)), io.BytesIO(content))
