"""Files that would fill the memory. Run as a program, it writes one, reads it, and says what for.

python tests/hostile_bombs.py NAME FOLDER  # {"error": …, "megabytes": …}
"""

import gzip
import io
import json
import lzma
import pathlib
import resource
import sys
import tarfile
import zipfile

import numpy as np
from hostile_archives import IMAGE, patched, raw_header, tar_entry
from PIL import Image

from mixmo_jax import config as config_lib
from mixmo_jax import datasets
from mixmo_jax.errors import InputError
from mixmo_jax.inference import torch_checkpoints

SIZE = 15 * 10**8
GOOD = ("ant/a.png", "ant/b.png", "owl/a.png", "owl/b.png")
LARGE = r"expected at most dataset\.max_file_bytes=268435456$"
# After the good images of an archive comes what the pieces say: names and sizes of files of zeros.
TARS = {
    "unneeded member": ([("notes.txt", SIZE)], ""),
    "needed member": ([("owl/x.png", SIZE)], LARGE),
    "many members": ([(f"owl/{i}.png", 2 * 10**8) for i in range(8)], "expands beyond"),
}
HEADERS = {
    "long name": (b"L", b"26264057000\0"),
    "pax header": (b"x", b"26264057000\0"),
    "global header": (b"g", b"26264057000\0"),
}


class Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def write_tar(path: pathlib.Path, members: list[tuple[str, int]]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in GOOD:
            archive.addfile(tar_entry(name, size=len(IMAGE)), io.BytesIO(IMAGE))
        for name, size in members:
            archive.addfile(tar_entry(name, size=size), Zeros())


def write_header(path: pathlib.Path, kind: bytes, size: bytes) -> None:
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(raw_header("x", kind, size))
        for _ in range(1500):
            out.write(bytes(10**6))


def write_sparse_map(path: pathlib.Path) -> None:
    """Its map, of a billion numbers, has no end."""
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "owl/x.png"}
    entry = tar_entry("x", pax_headers=fields, size=SIZE)
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(entry.tobuf(tarfile.PAX_FORMAT) + b"1000000000\n")
        for _ in range(150):
            out.write(b"1\n" * 10**6)


def write_zip(path: pathlib.Path, name: str, size: int, line: bytes = b"\0") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for good in GOOD:
            archive.writestr(good, IMAGE)
        archive.writestr("wnids.txt", "ant\nowl\n")
        with archive.open(name, "w", force_zip64=True) as out:
            for _ in range(size // 10**6):
                out.write(line * (10**6 // len(line)))


def write_lying_zip(path: pathlib.Path) -> None:
    """Its directory declares a small size."""
    write_zip(path, "owl/x.png", SIZE)
    path.write_bytes(patched(path.read_bytes(), 24, b"\x10\0\0\0"))


def write_pickle(path: pathlib.Path, content: bytes) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, pickled in {"meta": content, "train": b"}.", "test": b"}."}.items():
            archive.addfile(tar_entry(name, size=len(pickled)), io.BytesIO(pickled))


def write_images(folder: pathlib.Path, kind: str, mode: str, side: int, **options) -> None:
    image = Image.new(mode, (side, side))
    for name in GOOD:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, kind, **options)


def write_npz(path: pathlib.Path) -> None:
    fields = {"descr": "<f4", "fortran_order": False, "shape": (SIZE // 4,)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("bn1.weight.npy", "w", force_zip64=True) as out,
    ):
        np.lib.format.write_array_header_1_0(out, fields)
        for _ in range(1500):
            out.write(bytes(10**6))


def write_xz(path: pathlib.Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    with lzma.open(path, "wb", filters=filters) as out:
        out.write(raw_header("x", b"L", b"26264057000\0"))
        for _ in range(1500):
            out.write(bytes(10**6))


# How each is written, the dataset that it is taken for, and the error; "" if it is read.
BOMBS = {
    **{
        f"tar.gz: {name}": (lambda path, m=members: write_tar(path, m), "image_folder", error)
        for name, (members, error) in TARS.items()
    },
    **{
        f"tar.gz: {name}": (lambda path, h=header: write_header(path, *h), "image_folder", "damag")
        for name, header in HEADERS.items()
    },
    "tar.gz: sparse map": (write_sparse_map, "image_folder", "damaged"),
    "tar.xz: long name": (write_xz, "image_folder", "damaged"),
    "zip: image": (lambda p: write_zip(p, "owl/x.png", SIZE), "image_folder", LARGE),
    "zip: words.txt": (lambda p: write_zip(p, "words.txt", SIZE), "tiny_imagenet", LARGE),
    "zip: lines": (
        lambda p: write_zip(p, "words.txt", 2 * 10**8, b"\n"),
        "tiny_imagenet",
        "200000000 bytes, expected at most 8,388,608",
    ),
    "zip: false size": (write_lying_zip, "image_folder", "damaged"),
    "pickle: PUT": (lambda p: write_pickle(p, b"}r\0\0\0\x10."), "cifar100", "damaged"),
    "pickle: lists": (
        lambda p: write_pickle(p, b"]" * (2 * 10**8) + b"."),
        "cifar100",
        "damaged",
    ),
    "PNG: 178 megapixels": (
        lambda p: write_images(p, "PNG", "L", 13_377),
        "image_folder",
        r"is 13377x13377, more than dataset\.max_image_pixels=50331648$",
    ),
    **{
        f"{kind} {mode}: 50 megapixels": (
            lambda p, k=kind, m=mode, o=options: write_images(p, k, m, 7094, **o),
            "image_folder",
            "is flat$",  # all black, as it finds after decoding
        )
        for kind, mode, options in (
            ("PNG", "RGBA", {"compress_level": 1}),
            ("PNG", "I;16", {"compress_level": 1}),
            ("JPEG", "RGB", {"progressive": True}),
            ("JPEG", "CMYK", {}),
            ("WEBP", "RGB", {"lossless": True, "method": 0}),
            ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
        )
    },
    "npz: zeros": (write_npz, "checkpoint", "decompressed: 1500000"),
}


def read(path: pathlib.Path, name: str) -> None:
    if name == "checkpoint":
        torch_checkpoints.from_torch(path)
    else:
        flag = f"--config.dataset.data_dir={path}"
        datasets.load_dataset(config_lib.parse(name, [flag])[1].dataset)


def main(name: str, folder: pathlib.Path, step: str) -> None:
    write, dataset, _ = BOMBS[name]
    path = folder / ("x.npz" if dataset == "checkpoint" else "x.zip" if "zip" in name else "x")
    if step == "write":  # in a process of its own, the memory of which does not count
        write(path)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(path, dataset)
        error = ""
    except InputError as caught:
        error = str(caught)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"error": error, "megabytes": (after - before) // 1024}))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])
