"""What a data set of files is read from, and where it is looked for."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

import ml_collections

from mixmo_jax.datasets.cache import Arrays
from mixmo_jax.datasets.download import download
from mixmo_jax.errors import InputError, invalid


@dataclasses.dataclass(frozen=True)
class Official:
    """Size and digest (MD5 or SHA-256, in hexadecimal) of an archive as it was published."""

    size: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of files.

    Attributes:
      build: `build(path, config, arrays)` decodes what is at a path: it creates `train_images`,
        `train_labels` and perhaps the same of `test` and `validation`, and sets `class_names` in
        `arrays.meta`.
      candidates: names under which it may lie in `dataset.data_dir`, the best first.
      markers: files by which a folder is known to be the data set itself.
      url: of the official archive, saved as the last part of the address. None: `data_dir` itself
        is the data set.
      official: the archives whose digests are known.
      options: fields of `config.dataset` that change what is built.
    """

    build: Callable[[pathlib.Path, ml_collections.ConfigDict, Arrays], None]
    candidates: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    url: str | None = None
    official: tuple[Official, ...] = ()
    options: tuple[str, ...] = ()

    def locate(self, data_dir: str) -> pathlib.Path:
        """Returns where the data set lies; downloads it if it is not there.

        Args:
          data_dir: a folder with it, the folder or archive itself, or "" for the folder that
            tensorflow-datasets uses.

        Raises:
          InputError: if it is not there and cannot be downloaded.
        """
        if self.url is None:
            if not data_dir:
                allowed = "a folder with one folder of images per class"
                raise invalid("dataset.data_dir", data_dir, allowed)
            folder = pathlib.Path(data_dir).expanduser()
            if not folder.exists():
                raise InputError(f"dataset.data_dir={data_dir!r}: no such folder")
            return folder
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        folder = pathlib.Path(data_dir or default).expanduser()
        if folder.is_file() or any((folder / marker).is_file() for marker in self.markers):
            return folder
        for base in (folder, folder / "downloads" / "manual"):
            for name in self.candidates:
                if (base / name).exists():
                    return base / name
        archive = folder / self.url.rpartition("/")[2]
        try:
            download(self.url, archive)
        except InputError as error:
            raise InputError(
                f"dataset.data_dir={str(folder)!r}: put {archive.name} there, or set another "
                f"folder with --config.dataset.data_dir (downloading failed: {error})"
            ) from None
        return archive

    def verify(self, path: pathlib.Path) -> None:
        """Raises `InputError` if an archive has the size of an official one but not its content."""
        if not path.is_file():
            return
        for official in self.official:
            if path.stat().st_size == official.size:
                method = {32: "md5", 64: "sha256"}[len(official.digest)]
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, method).hexdigest()
                if digest != official.digest:
                    message = f"{method} is {digest}, expected {official.digest}"
                    raise InputError(f"{path}: corrupt: {message}; download it again")
