"""Datasets made of files: where they are looked for, how they are checked, and their loader."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np

from mixmo_jax.datasets import archives, cache
from mixmo_jax.datasets.dataset import Split
from mixmo_jax.datasets.download import download
from mixmo_jax.errors import InputError, expand, invalid, open_file, reading, warn


@dataclasses.dataclass(frozen=True)
class Official:
    """Size in bytes and digest (MD5 or SHA-256, hexadecimal) of an archive as it was published."""

    size: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset made of files; calling it loads the dataset.

    Attributes:
      build: A function `build(path, config, arrays)` that decodes what lies at a path: it creates
        `train_images`, `train_labels` and perhaps the same of `test` and `validation`, and sets
        `class_names` in `arrays.meta`.
      candidates: The names under which it may lie in `dataset.data_dir`, the best first.
      markers: The files by which a folder is known to be the dataset itself.
      archived: The files that together identify an archive under another name, a tuple for each
        published form.
      url: The address of the official archive, saved under the last part of the address. None
        means that `data_dir` itself is the dataset.
      official: The archives whose digests are known.
      options: The fields of `config.dataset` that change what is built.
    """

    build: Callable[[pathlib.Path, ml_collections.ConfigDict, cache.Arrays], None]
    candidates: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    archived: tuple[tuple[str, ...], ...] = ()
    url: str | None = None
    official: tuple[Official, ...] = ()
    options: tuple[str, ...] = ()

    def __call__(self, config: ml_collections.ConfigDict) -> tuple[dict[str, Split], list[str]]:
        """Loads the dataset, from its cache if it has been decoded before.

        Args:
          config: The fields of `config.dataset`.

        Returns:
          The splits by name, with images [N, H, W, C] uint8, memory-mapped, and labels [N] int32;
          and the class names.

        Raises:
          InputError: if the files are missing or damaged, or if the cache cannot be written.
        """
        path = self.locate(config.data_dir)
        options = {name: config[name] for name in self.options}
        folder = (path if path.is_dir() else path.parent) / ".mixmo_jax"
        where = path.name  # a cache beside the source may be moved along with it
        if config.cache_dir:
            folder = expand(config.cache_dir)
            where = str(path.absolute())

        def build(arrays: cache.Arrays) -> None:
            self.verify(path)
            self.build(path, config, arrays)

        arrays, meta = cache.load(
            folder,
            f"{config.name}-{cache.key(where, options)}",
            {"path": where, "fingerprint": archives.fingerprint(path), **options},
            build,
        )
        names = sorted({name.partition("_")[0] for name in arrays})
        with reading(folder, KeyError, TypeError, advice="remove this folder"):
            splits = {
                k: Split(arrays[f"{k}_images"], np.array(arrays[f"{k}_labels"])) for k in names
            }
            return splits, list(meta["class_names"])

    def locate(self, data_dir: str) -> pathlib.Path:
        """Returns where the dataset lies; downloads it if it is not there.

        Args:
          data_dir: The folder in which it lies, the dataset's own folder or archive, or "" for the
            folder that tensorflow-datasets uses.

        Raises:
          InputError: if `data_dir` does not exist, or if the download fails.
        """
        folder = self._data_folder(data_dir)
        with reading(folder):
            itself = folder.is_file() or any((folder / name).is_file() for name in self.markers)
            if itself or self.url is None:
                return folder
            found = self._find(folder)
        return found or self._download(folder)

    def verify(self, path: pathlib.Path) -> None:
        """Raises `InputError` if an archive has the size of an official one but not its content."""
        for official in self.official:
            if not path.is_file() or path.stat().st_size != official.size:
                continue
            method = {32: "md5", 64: "sha256"}[len(official.digest)]
            with reading(path), open_file(path) as file:
                digest = hashlib.file_digest(file, method).hexdigest()
            if digest != official.digest:
                message = f"{method} is {digest}, expected {official.digest}"
                raise InputError(f"{path}: damaged: {message}; download it again")

    def _data_folder(self, data_dir):
        if not data_dir and self.url is None:
            raise invalid("dataset.data_dir", data_dir, "a folder or an archive")
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        if "://" in (data_dir or default):
            given = ("dataset.data_dir", data_dir) if data_dir else ("TFDS_DATA_DIR", default)
            raise invalid(*given, "a local folder, set by --config.dataset.data_dir")
        folder = expand(data_dir or default)
        if data_dir:
            with reading(
                f"dataset.data_dir={data_dir!r}", advice="expected a folder or an archive"
            ):
                if not folder.is_dir():
                    open_file(folder).close()
        return folder

    def _find(self, folder):
        """Returns the first candidate, or else the first archive that holds the dataset's files."""
        places = (folder, folder / "downloads" / "manual")
        for place in places:
            for name in self.candidates:
                if (place / name).exists():
                    return place / name
        for place in places:
            for path in sorted(place.iterdir()) if place.is_dir() else []:
                named = path.name.lower().endswith(archives.ENDINGS)
                if named and path.is_file() and self._is_in(path):
                    return path
        return None

    def _is_in(self, archive):
        """Whether an archive holds all files of one of the published forms in one folder."""
        try:
            names = set(archives.archive_names(archive))
        except InputError as error:
            warn(f"{error}; ignored")  # it may be something else
            return False
        roots = {name.rpartition("/")[0] for name in names}
        return any(
            all(f"{root}/{file}".lstrip("/") in names for file in files)
            for root in roots
            for files in self.archived
        )

    def _download(self, folder):
        archive = folder / self.url.rpartition("/")[2]
        try:
            download(self.url, archive)
            self._check_download(archive)
        except InputError as error:
            raise InputError(
                f"dataset.data_dir={str(folder)!r}: put {archive.name} there, or set another "
                f"folder with --config.dataset.data_dir (downloading failed: {error})"
            ) from None
        return archive

    def _check_download(self, archive):
        """Deletes a download, and raises `InputError`, if it is not an official archive."""
        size = archive.stat().st_size
        try:
            if self.official and size not in {official.size for official in self.official}:
                raise InputError(f"{self.url}: not the official file: {size:,} bytes")
            self.verify(archive)
        except InputError:
            archive.unlink()
            raise
