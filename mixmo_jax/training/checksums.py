"""Checksums of all files in a folder, by which damage to any of them is found."""

import os
import pathlib

from mixmo_jax.errors import InputError, digest_of, read_text, reading

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: pathlib.Path) -> None:
    """Writes a list of the files in a folder with their checksums, as `sha256sum` does."""
    lines = [f"{digest_of(folder / name)}  {name}\n" for name in _names(folder)]
    with (folder / CHECKSUMS).open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def verify_checksums(folder: pathlib.Path) -> None:
    """Checks that a folder has just the files that it was written with.

    Raises:
      InputError: if a file is missing, was added or holds something else, or cannot be read.
    """
    if not (folder / CHECKSUMS).exists():
        raise InputError(f"{folder}: damaged: {CHECKSUMS} is missing")
    with reading(folder, ValueError):
        lines = read_text(folder / CHECKSUMS).splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        names = _names(folder)
        for name in sorted(expected.keys() ^ set(names)):
            state = "is missing" if name in expected else "is not in its list of files"
            raise InputError(f"{folder}: damaged: {name} {state}")
        for name in names:
            if digest_of(folder / name) != expected[name]:
                raise InputError(f"{folder}: damaged: {name} is not as it was written")


def _names(folder: pathlib.Path) -> list[str]:
    """The files in a folder and its subfolders, without their list."""
    files = (file for file in folder.rglob("*") if not file.is_dir())
    return sorted(file.relative_to(folder).as_posix() for file in files if file.name != CHECKSUMS)
