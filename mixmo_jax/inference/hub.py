"""Pretrained networks on the Hugging Face Hub, with the Hub's own tools."""

import contextlib
import pathlib
import re
import tempfile
import types
from collections.abc import Iterator

import mixmo_jax
from mixmo_jax.errors import InputError, invalid, shortened
from mixmo_jax.inference.model import Model
from mixmo_jax.inference.pretrained import save_pretrained
from mixmo_jax.inference.pretrained_config import CONFIG
from mixmo_jax.runs.workdir import WEIGHTS

_SCHEME = "hf://"
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def push(
    model: Model, repo_id: str, *, private: bool | None = None, license: str | None = None
) -> str:
    """Uploads a model as one commit; the repository is made if there is none.

    Args:
      model: The model.
      repo_id: The repository, "owner/name".
      private: Whether a new repository is private; None for what the owner has set.
      license: See `pretrained.save_pretrained`.

    Returns:
      The address, which `load` takes.

    Raises:
      InputError: if huggingface_hub is not installed, the Hub refuses or cannot be reached, or the
        model cannot be saved.
    """
    if not _REPO.fullmatch(repo_id):
        raise invalid("repo_id", repo_id, "owner/name")
    address = f"{_SCHEME}{repo_id}"
    hub = _import_hub(address)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, license=license, address=address)
        with _naming(address, hub):
            hub.create_repo(repo_id, private=private, exist_ok=True)
            hub.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Upload a network of mixmo_jax {mixmo_jax.__version__}",
            )
    return address


def is_address(path: object) -> bool:
    """Returns whether a path is the address of a network on the Hub."""
    return isinstance(path, str) and path.startswith(_SCHEME)


def download(address: str) -> pathlib.Path:
    """Downloads a network, or finds it in the Hub's cache.

    Args:
      address: "hf://owner/name", or "hf://owner/name@revision" for a branch, tag or commit.

    Returns:
      The folder.

    Raises:
      InputError: if huggingface_hub is not installed, or there is no such network.
    """
    repo_id, at, revision = address.removeprefix(_SCHEME).partition("@")
    if not _REPO.fullmatch(repo_id) or bool(at) != bool(revision):
        raise InputError(f"{address}: expected hf://owner/name or hf://owner/name@revision")
    hub = _import_hub(address)
    with _naming(address, hub):
        folder = hub.snapshot_download(
            repo_id, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]
        )
    return pathlib.Path(folder)


def _import_hub(address: str) -> types.ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        reason = "needs huggingface_hub: pip install huggingface_hub"
        raise InputError(f"{address}: {reason}") from None
    return huggingface_hub


@contextlib.contextmanager
def _naming(address: str, hub: types.ModuleType) -> Iterator[None]:
    """Names the address in what the Hub refuses, and if it cannot be reached."""
    try:
        yield
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        detail = shortened(" ".join(str(error).split()))
        raise InputError(f"{address}: {type(error).__name__}: {detail}") from error
