"""Files of datasets: finding and downloading them, folders and archives, decoding, the cache.

Nothing in these files is executed: archives are read in place, images are decoded by a list of
formats, arrays are loaded without pickles, and downloads have a known hash.
"""

import hashlib
import io
import json
import logging
import lzma
import os
import pathlib
import re
import shutil
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import filelock
import ml_collections
import numpy as np
import tqdm

from mixmo_jax.datasets.dataset import Split
from mixmo_jax.errors import InputError, expand, invalid, reading

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # EPS would start Ghostscript
_CHUNK = 256  # images that a thread decodes at a time
_CACHE_VERSION = 4  # to be raised when the same files give other arrays
_TIMEOUT = (4, 60)  # seconds to connect, and without a byte

# Exceptions of damaged or foreign content, beside `OSError`.
DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError)
_DAMAGED_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, RuntimeError)
_DAMAGED_IMAGE = (SyntaxError, struct.error, zlib.error)

# Pillow would print details of a damaged file beside the error.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def is_image(name: str) -> bool:
    """Whether a file counts as an image, by its ending."""
    return name.lower().endswith(ENDINGS)


def _is_hidden(name):
    """Whether a part of a path is hidden, or was added to an archive by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class Files:
    """The files of a folder, or of a zip or tar archive, without the hidden ones.

    An archive is read in place. A compressed tar has no index and is read into memory.

    Attributes:
      path: The folder or archive.
      names: The names of all files, relative to the root, with "/", sorted folder by folder.
    """

    def __init__(self, path: pathlib.Path):
        """Lists the files; `InputError` if they cannot be read, here and in `read`."""
        self.path = path
        with self._reading():
            if path.is_dir():
                entries = {e: path / e for e in _list_folder(path)}
                self._read_entry = pathlib.Path.read_bytes
            elif path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
                archive = zipfile.ZipFile(path)
                entries = {e.filename: e for e in archive.infolist()}
                self._read_entry = archive.read
            else:
                entries, self._read_entry = _open_tar(path)
        # The names of folders end in "/".
        entries = {name.removeprefix("./"): entry for name, entry in entries.items()}
        self._entries = {k: entry for k, entry in entries.items() if k and not _is_hidden(k)}
        names = [name for name in self._entries if not name.endswith("/")]
        self.names = sorted(names, key=lambda name: name.split("/"))

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        if name not in self._entries:
            raise InputError(f"{self.path}: lacks the file {name}")
        with self._reading():
            return self._read_entry(self._entries[name])

    def read_lines(self, name: str) -> list[str]:
        """Returns the lines of a text file that are not empty."""
        lines = self.read(name).decode(errors="replace").split("\n")
        return [line.rstrip("\r") for line in lines if line.strip()]

    def folder_of(self, name: str) -> str:
        """Returns the uppermost folder that holds a file: "" or "…/"; "" if there is none."""
        found = [n for n in self.names if n == name or n.endswith(f"/{name}")]
        return min(found, key=len, default=name).removesuffix(name)

    def folders(self, parent: str = "") -> list[str]:
        """Returns the names of the folders in a folder ("" or "…/"), in alphabetical order."""
        below = [e.removeprefix(parent) for e in self._entries if e.startswith(parent)]
        return sorted({entry.partition("/")[0] for entry in below if "/" in entry})

    def _reading(self):
        advice = "expected a folder or a complete zip or tar archive"
        return reading(self.path, *DAMAGED, *_DAMAGED_ARCHIVE, advice=advice)


def _list_folder(path):
    """Returns the names of all files and folders ("…/") in a folder, also of linked ones."""

    def fail(error):
        raise error

    entries = []
    for folder, folders, files in os.walk(path, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        inside = pathlib.PurePath(folder).relative_to(path)
        entries += [f"{(inside / name).as_posix()}/" for name in folders]
        entries += [(inside / name).as_posix() for name in files]
    return entries


def _open_tar(path):
    """Returns the entries of a tar archive by name, and a function that reads one."""
    with path.open("rb") as file:
        is_compressed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7")  # gzip, bzip2, xz
    entries = {}
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isdir():
                entries[f"{entry.name}/"] = None
            elif content := archive.extractfile(entry):  # of a file, or of a link to one
                entries[entry.name] = content.read() if is_compressed else entry
        # tarfile accepts an archive without its end; gzip compares a checksum there.
        if len(archive.fileobj.read()) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")

    def read(entry: tarfile.TarInfo) -> bytes:
        with tarfile.open(path, "r:") as archive:
            return archive.extractfile(entry).read()

    return entries, bytes if is_compressed else read


def find_images(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    """Lists image files: files as they are given, and the images in folders, sorted.

    Raises:
      InputError: if a path does not exist, or if a folder holds no images.
    """
    found = []
    for path in map(expand, paths):
        inside = [path]
        if path.is_dir():
            inside = [path / name for name in Files(path).names if is_image(name)]
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if not inside:
            raise InputError(f"{path}: no images ({', '.join(ENDINGS)})")
        found += inside
    return found


def read_images(paths: Sequence[str | pathlib.Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Reads N image files of any size into an array [N, *shape] uint8, see `decode_images`."""
    images = np.zeros((len(paths), *shape), np.uint8)
    decode_images(pathlib.Path.read_bytes, [expand(path) for path in paths], images)
    return images


def decode_images(
    read: Callable[[object], bytes],
    names: Sequence[object],
    out: np.ndarray,
    where: pathlib.Path | None = None,
) -> None:
    """Decodes image files into an array, in parallel.

    Images become RGB (C = 3) or gray (C = 1), and are scaled and center-cropped to H x W. An image
    of that size keeps its pixels.

    Args:
      read: A function from a name to the content of the file; it is called in several threads.
      names: The names of N files.
      out: [N, H, W, C] uint8 to be filled in.
      where: The folder or archive of the files, for messages.

    Raises:
      InputError: if a file cannot be read, is no image, or is damaged or too large.
    """

    def decode(start: int) -> int:
        """Decodes a chunk; returns the number of its images."""
        chunk = names[start : start + _CHUNK]
        for i, name in enumerate(chunk, start):
            what = f"{where}: {name}" if where else name
            with reading(what):
                content = read(name)
            out[i] = _decode(content, out.shape[1:], what)
        return len(chunk)

    title = f"decoding {where.name if where else 'images'}"
    bar = tqdm.tqdm(total=len(names), desc=title, unit=" images", disable=None)
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        warnings.filterwarnings("ignore", module="PIL")  # odd files are read all the same
        try:
            for done in pool.map(decode, range(0, len(names), _CHUNK)):
                bar.update(done)
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(content, shape, what):
    """Returns an image [H, W, C] uint8."""
    from PIL import Image, ImageOps, UnidentifiedImageError  # only where images are decoded

    height, width, channels = shape
    with reading(what, *DAMAGED, *_DAMAGED_IMAGE, Image.DecompressionBombError):
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError:  # its message is an address in memory
            raise InputError(f"{what}: not an image") from None
        ImageOps.exif_transpose(image, in_place=True)
        # Pillow would clip 16 bits at 255. A PPM of 16 bits has the mode I.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            allowed = "8 bits, or 16 without a sign"
            raise InputError(f"{what}: has the mode {image.mode}, expected {allowed}")
        image = image.convert("RGB" if channels == 3 else "L")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(shape)


def data_folder(data_dir: str) -> pathlib.Path:
    """Returns the folder `dataset.data_dir`; "" is the folder of tensorflow-datasets."""
    return expand(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def locate(
    data_dir: str,
    names: Sequence[str] = (),
    markers: Sequence[str] = (),
    url: str = "",
    known_hash: str = "",
) -> pathlib.Path:
    """Returns the folder or archive of a dataset; downloads the archive if it is not there.

    Args:
      data_dir: The folder to search, and its `downloads/manual`; or the dataset's own folder or
        archive; or "" for the folder of tensorflow-datasets.
      names: The names under which the dataset may lie in the folder, the best first.
      markers: Files that identify the dataset's own folder.
      url: The address of the official archive. Without it, `data_dir` is the dataset itself.
      known_hash: The hash of that archive, "md5:…" or "sha256:…".

    Raises:
      InputError: if `data_dir` does not exist, or if the download fails.
    """
    folder = data_folder(data_dir)
    if not (folder.exists() if data_dir else url):
        raise invalid("dataset.data_dir", data_dir, "an existing folder or archive")
    if not url or folder.is_file() or any((folder / marker).is_file() for marker in markers):
        return folder
    for place in (folder, folder / "downloads" / "manual"):
        for name in names:
            if (place / name).exists():
                return place / name
    return _download(url, known_hash, folder)


def _download(url, known_hash, folder):
    """Downloads a file into a folder; offline, it fails at once."""
    import pooch  # takes a moment

    name = url.rpartition("/")[2]
    bar = sys.stderr.isatty()
    downloader = pooch.HTTPDownloader(progressbar=bar, timeout=_TIMEOUT, chunk_size=2**20)
    try:
        return pathlib.Path(pooch.retrieve(url, known_hash, name, folder, downloader=downloader))
    except (OSError, ValueError) as error:  # ValueError: another hash
        is_other = isinstance(error, ValueError)
        reason = "not the official file" if is_other else error.strerror or type(error).__name__
        raise InputError(
            f"dataset.data_dir={str(folder)!r}: put {name} there, or set another folder with "
            f"--config.dataset.data_dir (downloading {url} failed: {reason})"
        ) from error


def load_cached(
    path: pathlib.Path,
    config: ml_collections.ConfigDict,
    decode: Callable[..., Sequence[str]],
    **options: object,
) -> tuple[dict[str, Split], list[str]]:
    """Returns the decoded dataset, memory-mapped; decodes it first if it is not cached.

    The cache lies beside the data, or in `dataset.cache_dir`. It is replaced when a file of the
    dataset changes. One process decodes; others that need the same cache wait for it.

    Args:
      path: The folder or archive of the dataset.
      config: The fields of `config.dataset`.
      decode: A function `decode(path, folder, **options)` that fills the folder by `create_split`
        and returns the class names.
      **options: Values that change the arrays, such as the size of the images.

    Returns:
      What a loader of `DATASETS` returns.

    Raises:
      InputError: if the dataset cannot be read, or if the cache cannot be written.
    """
    folder, where = (path if path.is_dir() else path.parent) / ".mixmo_jax", path.name
    if config.cache_dir:
        folder, where = expand(config.cache_dir), str(path.absolute())
    key = hashlib.sha256(repr((where, options)).encode()).hexdigest()[:12]
    cache = folder / f"{re.sub('[/:]', '-', config.name)}-{key}"
    source = {"version": _CACHE_VERSION, "files": _fingerprint(path)}
    cached = _open_cache(cache, source)
    if cached is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / f".{cache.name}.lock"):
                cached = _open_cache(cache, source)  # perhaps another process built it meanwhile
                if cached is None:
                    _build_cache(cache, source, lambda part: decode(path, part, **options))
                    cached = _open_cache(cache, source)
        except OSError as error:
            raise InputError(
                f"{cache}: cannot keep the decoded images: {error.strerror or error}; "
                "free some space or choose another folder with --config.dataset.cache_dir"
            ) from error
    return cached


def _build_cache(cache, source, decode):
    """Builds a cache beside its place, which it takes once it is complete."""
    part = cache.with_name(f".{cache.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        class_names = list(decode(part))
        splits = [file.stem.removesuffix("_images") for file in part.glob("*_images.npy")]
        meta = {"source": source, "class_names": class_names, "splits": sorted(splits)}
        (part / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(cache, ignore_errors=True)
        part.rename(cache)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def create_split(
    folder: pathlib.Path, name: str, labels: Sequence[int], image_shape: tuple[int, int, int]
) -> np.ndarray:
    """Writes the labels of a split to a cache.

    Returns:
      The images [N, H, W, C] uint8, memory-mapped, to be filled in.
    """
    np.save(folder / f"{name}_labels.npy", np.asarray(labels, np.int32))
    file = folder / f"{name}_images.npy"
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (len(labels), *image_shape))
    if hasattr(os, "posix_fallocate"):  # on a full disk, writing to the memory would kill
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return images


def _open_cache(cache, source):
    """Returns splits and class names; None if the cache is missing, outdated or damaged."""
    try:
        meta = json.loads((cache / "meta.json").read_text())
        if meta["source"] != source:
            return None
        splits = {}
        for name in meta["splits"]:
            images = np.load(cache / f"{name}_images.npy", mmap_mode="r", allow_pickle=False)
            splits[name] = Split(images, np.load(cache / f"{name}_labels.npy", allow_pickle=False))
        return splits, meta["class_names"]
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _fingerprint(path):
    """Returns a string that changes with the names, sizes and times of the files at a path."""
    digest = hashlib.sha256()
    with reading(path):
        names = sorted(_list_folder(path)) if path.is_dir() else [""]
    for name in names:
        if not name.endswith("/") and not _is_hidden(name):
            with reading(path / name):
                status = (path / name).stat()
            digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()
