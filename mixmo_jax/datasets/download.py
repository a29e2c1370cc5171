"""Downloads that fail within seconds where there is no network."""

import contextlib
import http.client
import pathlib
import secrets
import threading
import urllib.request

import tqdm

from mixmo_jax.errors import InputError

_CONNECT_SECONDS = 4
_STALL_SECONDS = 60  # without a byte
_BLOCK = 1 << 20


def download(url: str, file: pathlib.Path) -> None:
    """Downloads a file, which gets its name once it is complete.

    Args:
      url: The address.
      file: The file to write; its folder is created.

    Raises:
      InputError: if there is no answer within seconds, if the transfer breaks off or stalls, or if
        the file cannot be written.
    """
    response = _connect(url)
    length = response.headers.get("Content-Length") or ""
    size = int(length) if length.isdigit() else 0
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written: {error.strerror}") from None
    try:
        with (
            response,
            part.open("wb") as out,
            tqdm.tqdm(total=size, desc=file.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := response.read(_BLOCK):
                out.write(block)
                bar.update(len(block))
        if size and part.stat().st_size != size:
            raise InputError(f"{url}: broke off after {part.stat().st_size:,} of {size:,} bytes")
        part.rename(file)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{url}: broke off: {error}") from None
    finally:
        with contextlib.suppress(OSError):  # of a file system that is read-only
            part.unlink()


def _connect(url):
    """Opens a URL in a thread, as a name lookup may hang for longer than any timeout."""
    result, given_up = [], threading.Event()

    def connect():
        try:
            response = urllib.request.urlopen(url, timeout=_STALL_SECONDS)
        except (OSError, ValueError, http.client.HTTPException) as error:
            result.append(error)
        else:
            if given_up.is_set():
                response.close()
            else:
                result.append(response)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    given_up.set()
    answer = result[0] if result else TimeoutError("no answer")
    if isinstance(answer, Exception):
        reason = " ".join(str(getattr(answer, "reason", None) or answer).split())
        raise InputError(f"{url}: {reason}")
    return answer
