"""The folder of a run: its config and its dataset's description."""

import hashlib
import os
import pathlib
import shutil
from collections.abc import Sequence

import ml_collections

from mixmo_jax import config as config_lib
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.errors import (
    InputError,
    expand,
    format_value,
    is_count,
    is_number,
    read_json,
    read_text,
    reading,
    warn,
    write_json,
    write_text,
    writing,
)
from mixmo_jax.runs.metric_writer import METRICS, RESULTS

CONFIG, DATASET = "config.json", "dataset.json"
CHECKPOINTS, BEST = "checkpoints", "best_checkpoint"
LOGITS = "logits.npz"
ENSEMBLE, ENSEMBLE_LOGITS = "ensemble.json", "ensemble_logits.npz"
WEIGHTS = "model.safetensors"  # of a pretrained network, which is no run
ENSEMBLE_CORRUPTIONS = "ensemble_corruptions.json"

_LONGEST_SIDE = 10_000  # of an image, in pixels

# Fields that may differ between the sessions of one run: they do not change what is computed.
NEUTRAL_FIELDS = {
    "dataset.data_dir",
    "dataset.cache_dir",
    "dataset.max_file_bytes",
    "dataset.max_image_pixels",
    "dataset.placement",
    "steps_per_call",
    "compilation_cache",
    "checkpoint_every_epochs",
    "evaluation.batch_size",
}


def split_paths(text: str) -> list[str]:
    """Returns the folders or addresses that a command line names: A,B,C."""
    paths = [part for part in text.split(",") if part]
    if not paths:
        raise InputError("workdir: missing; expected the folder of a finished run")
    return paths


def split_folders(text: str) -> list[pathlib.Path]:
    """Returns the folders of the runs that a command line names: A,B,C."""
    return [expand(path) for path in split_paths(text)]


def check_run(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Checks that the folder is new, or that it holds a run that this config continues.

    That is a run of this config, perhaps with fewer epochs. A run that never reached a checkpoint
    makes room for another config.

    Raises:
      InputError: if the folder holds a run of another config, or something else.
    """
    with reading(f"workdir={folder}"):
        if has_checkpoint(folder):
            _compare(folder, read_config(folder), config)
        elif (folder / RESULTS).exists():
            raise InputError(f"workdir={folder}: holds results, but its checkpoints are missing")
        elif (folder / CONFIG).exists():
            read_config(folder)  # a damaged one is left for its owner to look at
        elif folder.exists() and any(f.name[0] != "." for f in folder.iterdir()):
            raise InputError(f"workdir={folder}: expected a run or an empty folder")


def has_checkpoint(folder: pathlib.Path, name: str = CHECKPOINTS) -> bool:
    """Returns whether the run in a folder has reached a checkpoint, or with `BEST` a best one."""
    return any(step.name.isdigit() for step in (folder / name).glob("*"))


def open_run(folder: pathlib.Path, config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    """Makes the folder a run's, or checks that it is this run's already.

    Raises:
      InputError: if the folder cannot be written, or see `check_run`.
    """
    check_run(folder, config)
    dataset_info = {
        "image_shape": dataset.image_shape,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
        "num_images": dataset.num_images,
        **{f"{name}_digest": split.digest() for name, split in dataset.splits.items()},
    }
    with writing(f"workdir={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, config_lib.to_json(config))
    if not has_checkpoint(folder):  # else as the run began
        shutil.rmtree(folder / BEST, ignore_errors=True)  # an abandoned run's
        write_json(folder / DATASET, dataset_info)


def check_place(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Checks that a run's pictures do not become a class of the images that it trains on.

    Raises:
      InputError: if they would.
    """
    if config.dataset.name != "image_folder" or not config.dataset.data_dir:
        return
    data, place = (pathlib.Path(os.path.realpath(p)) for p in (config.dataset.data_dir, folder))
    if not data.is_dir() or (data / "train").is_dir() or not place.is_relative_to(data):
        return
    if not any(part.startswith(".") for part in place.relative_to(data).parts):
        reason = f"lies in dataset.data_dir={data}, each folder in which is a class"
        raise InputError(f"workdir={folder}: {reason}; choose another workdir")


def restore_statistics(folder: pathlib.Path, dataset: Dataset, *, exact: bool = False) -> Dataset:
    """Returns the dataset with the mean and standard deviation that its run began with.

    Args:
      folder: The folder of the run.
      dataset: The dataset, as it is loaded now.
      exact: Whether other images or labels of a split are an error and not a warning; images that
        are decoded may differ a little between versions of the decoders.

    Raises:
      InputError: if the run began with images of another shape or number, or with other classes.
    """
    if not has_checkpoint(folder):
        return dataset
    info = read_dataset_info(folder)
    for name in ("image_shape", "class_names"):
        began, now = info[name], tuple(getattr(dataset, name))
        if began != now:
            same = name == "class_names" and sorted(began) == sorted(now)
            # Version 0.1 numbered the classes of Tiny ImageNet in the order of wnids.txt.
            reason = "the same classes in another order" if same else f"data of another {name}"
            raise InputError(f"workdir={folder}: its run began with {reason}")
    if info["num_images"] != dataset.num_images:
        began, now = (_counts(n) for n in (info["num_images"], dataset.num_images))
        raise InputError(f"workdir={folder}: its run began with {began} images, now {now}")
    for name, split in dataset.splits.items():
        if name == "test" and not exact:
            warn_of_other_test_images(folder, split)
        elif info[f"{name}_digest"] not in (None, split.digest()):
            message = f"workdir={folder}: its run began with other {name} images or labels"
            if exact:
                raise InputError(f"{message}; choose another workdir")
            warn(message)
    return dataset.replace(mean=info["mean"], std=info["std"])


def warn_of_other_test_images(folder: pathlib.Path, test: Split) -> None:
    """Warns if a run began with other test images: of another split, or decoded differently."""
    if read_dataset_info(folder)["test_digest"] not in (None, test.digest()):
        reason = "it may have been trained on images that it is now tested on"
        warn(f"workdir={folder}: its run began with other test images: {reason}")


def training_digest(folder: pathlib.Path) -> str:
    """A digest of a run's metrics, times included: another run in the folder has another one.

    Imported variables have no metrics; it is that of their checkpoint.
    """
    file = folder / METRICS
    if not file.exists():
        kept = [f for f in (folder / CHECKPOINTS).glob("*/SHA256SUMS") if f.parent.name.isdigit()]
        if not kept:  # versions before 0.2 wrote none
            return ""
        file = max(kept, key=lambda f: int(f.parent.name))
    with reading(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_dataset_info(folder: pathlib.Path) -> dict:
    """Reads the description of a run's dataset.

    Returns:
      `image_shape`, `class_names`, `mean` and `std` as tuples, `num_images` of each split, and
      `train_digest`, `validation_digest` and `test_digest`, each of which may be None.

    Raises:
      InputError: if the description is missing or damaged.
    """
    with reading(folder / DATASET, ValueError):
        info = read_json(folder / DATASET)
        for name, is_valid in DATASET_RULES.items():
            if not is_valid(info.get(name)):
                raise ValueError(f"{name}={format_value(info.get(name))}")
        kept = {name: tuple(info[name]) for name in ("image_shape", "class_names", "mean", "std")}
        channels = kept["image_shape"][2]
        if not len(kept["mean"]) == len(kept["std"]) == channels:
            raise ValueError(f"expected {channels} means and standard deviations")
    digests = {name: info.get(name) for name in _DIGESTS}
    return {**kept, **digests, "num_images": info["num_images"]}


def _list_of(is_valid):
    return lambda values: isinstance(values, list) and values and all(map(is_valid, values))


_DIGESTS = ("train_digest", "validation_digest", "test_digest")  # see `Split.digest`

# What the fields of a dataset's description are.
DATASET_RULES = {
    "image_shape": lambda shape: (
        _list_of(is_count)(shape) and len(shape) == 3 and max(shape) <= _LONGEST_SIDE
    ),
    "class_names": _list_of(lambda name: isinstance(name, str)),
    "mean": _list_of(is_number),
    "std": _list_of(lambda value: is_number(value) and value > 0),
    "num_images": lambda counts: (
        isinstance(counts, dict)
        and {"train", "test"} <= counts.keys()
        and all(map(is_count, counts.values()))
    ),
    # Not in runs of an older version, or without such a split.
    **dict.fromkeys(_DIGESTS, lambda digest: digest is None or isinstance(digest, str)),
}


def read_config(folder: pathlib.Path, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads the config of the run in a folder.

    Args:
      folder: The folder of the run.
      overrides: `--config.FIELD=VALUE` flags, for fields that do not change what is computed, such
        as the place of the data.

    Raises:
      InputError: if there is no run, its config is damaged, or another field is set.
    """
    if not (folder / CONFIG).exists():
        raise InputError(f"workdir={folder}: holds no run: it has no {CONFIG}")
    if (folder / WEIGHTS).exists():
        reason = "it can predict and be exported, not trained or evaluated"
        raise InputError(f"workdir={folder}: holds a pretrained network: {reason}")
    with reading(folder / CONFIG):
        text = read_text(folder / CONFIG, errors="replace")
    try:
        config = config_lib.from_json(text)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    for field in config_lib.override(config, overrides):
        if field not in NEUTRAL_FIELDS:
            able = ", ".join(sorted(NEUTRAL_FIELDS))
            raise InputError(f"{field}: the config is that of the run; only {able} can be set")
    return config


def _counts(num_images: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in num_images.items())


def _compare(folder, old, new):
    old, new = config_lib.flatten(old), config_lib.flatten(new)
    allowed = {*NEUTRAL_FIELDS, *(["num_epochs"] if new["num_epochs"] > old["num_epochs"] else [])}
    changed = [k for k in old if old[k] != new[k] and k not in allowed]
    if changed:
        differences = ", ".join(
            f"{k}={format_value(old[k])} (now {format_value(new[k])})" for k in changed
        )
        raise InputError(
            f"workdir={folder}: holds a run of another config: {differences}; "
            "choose another workdir"
        )
