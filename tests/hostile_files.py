"""Files that would harm whoever trusts them: images, pickles, arrays, texts."""

import gzip
import io
import os
import pathlib
import pickle
import struct
import zipfile
import zlib

import numpy as np
from hostile_archives import DAMAGED, IMAGE, PIXELS, encode
from PIL import Image

from mixmo_jax.errors import InputError


def png_header(width: int, height: int) -> bytes:
    """A picture of so many gray pixels, of which none follows."""
    chunk = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    end = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + end


def bmp_header(width: int, height: int) -> bytes:
    fields = struct.pack("<LLLLllHHLLLLLL", 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + fields[:52]


EMF = b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60)
WMF = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhh", 0, 0, 8, 8) + bytes(40)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
GIF = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\1\0\0;"
TIFF = encode(Image.fromarray(PIXELS), "TIFF").replace(
    struct.pack("<HHLL", 277, 3, 1, 3), struct.pack("<HHLL", 277, 3, 1, 2048)
)
NOT, MANY = "not an image$", "more than dataset.max_image_pixels=50331648$"
# Content of a file named x.png, and what the error says.
IMAGES = {
    "EPS": (EPS, NOT),
    "EPS in DOS": (b"\xc5\xd0\xd3\xc6" + struct.pack("<LL", 30, len(EPS)) + bytes(18) + EPS, NOT),
    "EMF": (EMF, NOT),
    "WMF": (WMF, NOT),
    "SVG": (SVG, NOT),
    "PDF": (b"%PDF-1.4\n", NOT),
    "script": (b"#!/bin/sh\ntouch marker\n", NOT),
    "pickle": (pickle.dumps([1]), NOT),
    "gzip": (gzip.compress(IMAGE), NOT),
    "empty": (b"", NOT),
    "header only": (IMAGE[:8], NOT),
    "PNG of no size": (png_header(0, 0), f"{NOT}|{DAMAGED}"),
    "PNG of 2**62 pixels": (png_header(2**31 - 1, 2**31 - 1), MANY),
    "PNG of 178 megapixels": (png_header(13_000, 13_700), MANY),
    "PNG of 51 megapixels": (png_header(8192, 6145), f"is 8192x6145, {MANY}"),
    "BMP of 2**60 pixels": (bmp_header(2**30, 2**30), MANY),
    "GIF of 4 gigapixels": (GIF, MANY),
    "PPM of 10**18 pixels": (b"P6 999999999 999999999 255\n", MANY),
    "TIFF of 2048 samples": (TIFF, NOT),
    "PPM of a long number": (b"P6 " + b"9" * 5000 + b" 8 255\n", f"{NOT}|{DAMAGED}"),
    **{
        f"{kind} cut off": (encode(Image.fromarray(PIXELS), kind)[:-40], f"{DAMAGED}|{NOT}")
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
    },
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


# Odd images that are decoded all the same.
ODD_IMAGES = {
    "16 bits": encode(Image.fromarray(np.full((8, 8), 40_000, np.uint16))),
    "16 bits TIFF": encode(Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "TIFF"),
    "CMYK": encode(Image.new("CMYK", (8, 8)), "JPEG"),
    "CMYK TIFF": encode(Image.new("CMYK", (8, 8)), "TIFF"),
    "animated GIF": animation("GIF"),
    "animated WebP": animation("WEBP"),
    "animated PNG": animation("PNG"),
    "several JPEGs": animation("MPO"),
    "palette": encode(Image.new("P", (8, 8))),
    "palette with alpha": encode(Image.new("P", (8, 8)), transparency=bytes(3)),
    "black and white": encode(Image.new("1", (8, 8))),
    "unknown orientation": encode(Image.fromarray(PIXELS), exif=exif(99)),
    "one pixel": encode(Image.new("RGB", (1, 1))),
    "narrow": encode(Image.new("RGB", (1, 5000))),
    "long text": encode(Image.fromarray(PIXELS)) + b"trailing" * 1000,
}


class Call:
    """Pickled so that loading it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickles(marker: pathlib.Path) -> dict[str, bytes]:
    """Pickles in place of CIFAR's; those with a call would write the marker."""
    calls = {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "getattr": Call(getattr, "x", "upper"),
        "np.memmap": Call(np.memmap, str(marker), "u1", "w+", 0, (1,)),
        "objects in an array": np.array([Call(os.system, f"touch {marker}")], object),
    }
    key = b"\x80\x02}q\0"  # an empty dictionary
    label = b"}(U\x04data" + pickle.dumps(np.zeros((1, 3072), np.uint8), 2)[2:-1]
    return {
        **{name: pickle.dumps({b"data": call}, 2) for name, call in calls.items()},
        "objects of a dtype": pickle.dumps({b"data": np.array([{}], object)}, 2),
        "PUT 2**28": key + b"r\0\0\0\x10.",
        "PUT 2**32 - 1": key + b"r\xff\xff\xff\xff.",
        "PUT in digits": b"}p268435456\n.",
        "bytes of 2**62": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
        "integer of 2**31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "frame of 2**62": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"}.",
        "many lists": b"\x80\x02" + b"]" * 200_000 + b".",
        "nested lists": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
        "nested tuples as a key": b"\x80\x02})" + b"\x85" * 60_000 + b"Ns.",
        "call of bytes": b"\x80\x02}U\x04datac__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85Rs.",
        "change of a function": b"\x80\x02c__builtin__\nbytes\n}U\x03keyNsb.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pid\n.",
        "label of 400 digits": label + b"U\x0bfine_labels(I" + b"9" * 400 + b"\nltu.",
        "label of 4 million digits": label
        + b"U\x0bfine_labels(\x8b\0\0\x10\0"
        + b"\x7f" * 2**20
        + b"ltu.",
        "label of 2**31": label + b"U\x0bfine_labels(\x8a\x05\0\0\0\x80\0ltu.",
        "label -1": label + b"U\x0bfine_labels(J\xff\xff\xff\xffltu.",
        "label 0.5": label + b"U\x0bfine_labels(G?\xe0\0\0\0\0\0\0ltu.",
        "array of 10**400": pickle.dumps({b"data": np.zeros(7, np.uint8)}, 0).replace(
            b"(I7\nt", b"(L" + b"9" * 400 + b"L\nt"
        ),
        "no end": b"\x80\x02}",
        "unknown opcode": b"\x80\x02\xff.",
        "empty": b"",
    }


def npy(header: str | bytes, content: bytes = b"") -> bytes:
    """An array file with a header of one's own."""
    header = header.encode() if isinstance(header, str) else header
    return b"\x93NUMPY\x02\0" + struct.pack("<L", len(header)) + header + content


def array(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def described(shape: str = "(5,)", dtype: str = "'<i8'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n"


def objects(marker: pathlib.Path) -> bytes:
    return npy(described(dtype="'|O'"), pickle.dumps(Call(os.system, f"touch {marker}")))


# Files in place of labels.npy [5] or an array of a checkpoint, and what the error may say.
ARRAYS = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "version 9": b"\x93NUMPY\x09\0\0\0",
    "no header": npy(""),
    "header of 1 GB": b"\x93NUMPY\x02\0\0\0\0\x40",
    "code as header": npy("__import__('os').system('true')"),
    "nested header": npy("(" * 9000),
    "nested minus": npy("-" * 9000 + "1"),
    "unclosed header": npy("{('\n"),
    "binary header": npy(bytes(range(1, 100))),
    "keys": npy("{'descr': '<i8'}"),
    "shape of text": npy(described("'x'")),
    "shape of 10**400": npy(described(f"({'9' * 400},)")),
    "shape of 2**62": npy(described("(4611686018427387904,)")),
    "shape of 2**40": npy(described("(1099511627776,)")),
    "negative shape": npy(described("(-5,)")),
    "dtype of nothing": npy(described(dtype="'x9'"), bytes(40)),
    "dtype of None": npy(described(dtype="None")),
    "dtype of a nested list": npy(described(dtype="[" * 60 + "]" * 60)),
    "content cut off": array(np.zeros(5, np.int64))[:-1],
    "objects": array(np.zeros(5, np.int64)).replace(b"<i8", b"|O "),
    "times": array(np.zeros(5, "m8[s]")),
    "text": array(np.full(5, "x")),
    "records": array(np.zeros(5, "i4,i4")),
    "booleans": array(np.zeros(5, bool)),
    "complex": array(np.zeros(5, np.complex64)),
}
# Labels of classes 0 to 9 in arrays that are sound.
LABELS = {
    "not numbers": np.full(5, np.nan),
    "infinite": np.full(5, np.inf),
    "fractions": np.full(5, 0.5),
    "negative": np.full(5, -1),
    "beyond": np.full(5, 10),
    "far beyond": np.full(5, 2**63 + 3, np.uint64),
    "none": np.zeros(0, int),
    "scalar": np.int64(3),
    "of 2 dimensions": np.zeros((5, 1), int),
}
# Texts that are no usable JSON.
JSONS = {
    "nested": b"[" * 100_000,
    "nested dictionaries": b'{"a":' * 100_000,
    "number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[1]",
    "cut off": b'{"a": ',
    "empty": b"",
}


def torch_zip(content: bytes) -> bytes:
    """A file as torch.save writes it, with a pickle of one's own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


def torch_calls(marker: pathlib.Path) -> bytes:
    return pickle.dumps({"bn1.bias": Call(os.system, f"touch {marker}")}, 2)


# Checkpoints by the name of what is wrong with them, as functions of the marker.
TORCH = {
    "os.system": lambda marker: torch_zip(torch_calls(marker)),
    "os.system in a plain pickle": torch_calls,
    "eval": lambda marker: torch_zip(pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')"), 2)),
    "no dictionary": lambda marker: torch_zip(pickle.dumps([1], 2)),
    "nested": lambda marker: torch_zip(b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b"."),
    "cut off": lambda marker: torch_zip(torch_calls(marker))[:-50],
    "empty": lambda marker: b"",
}


def no_network(url: str, file: pathlib.Path) -> None:
    """Stands in for a download."""
    raise InputError("no network")
