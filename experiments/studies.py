"""The tables and studies of the paper, and some of our own, as comparisons with several seeds.

    python experiments/studies.py cifar100 --dry_run
    python experiments/studies.py blocks --config=digits --seeds=5 --scale=0.5
    python experiments/studies.py few_images --images=50,145,580 --widths=1,2
    python experiments/studies.py robustness --config=cifar10 --corruptions=CIFAR-10-C

Every study varies one thing and leaves the rest as the config says. `--scale` shrinks the number of
epochs and the schedule of the learning rate together; those of the patches and of unmixing are
fractions of the run anyway. There is one table for each of the `--widths` and `--images`. All else
is as in compare.py, which writes the files. docs/experiments.md lists the studies.
"""

import argparse
import sys
from typing import NamedTuple

from compare import add_arguments, execute
from variants import Comparison, Variant, merge, parse_numbers, parse_seeds, scaled

from mixmo_jax import config as config_lib
from mixmo_jax.commands import parse_with_fields, run_command
from mixmo_jax.configs.common import METHODS
from mixmo_jax.errors import InputError, unknown
from mixmo_jax.input_pipeline.batch import steps_per_epoch
from mixmo_jax.mixing import MASKS


class Study(NamedTuple):
    """A table, or one for each width.

    Attributes:
      variants: Its rows.
      config: The config, if none is given.
      widths: The widths, if none are given.
      overrides: Fields of all rows.
    """

    variants: list[Variant]
    config: str = "digits"
    widths: str = ""
    overrides: tuple[str, ...] = ()


def _methods(*names: str) -> list[Variant]:
    return [Variant(name, name) for name in names]


def _vary(field: str, values, method: str = "cut_mixmo", name: str = "") -> list[Variant]:
    """A row for each value of a field."""
    name = name or field
    return [Variant(f"{name} = {value}", method, (f"{field}={value}",)) for value in values]


def _by_width(*widths: int) -> list[Variant]:
    """Two rows for each width, the second of which is tested against the first."""
    rows = []
    for width in widths:
        plain, fields = f"vanilla, w = {width}", (f"model.width={width}",)
        rows.append(Variant(plain, "vanilla", fields, against=plain))
        rows.append(Variant(f"cut_mixmo, w = {width}", "cut_mixmo", fields, against=plain))
    return rows


def _with_augmix(*methods: str) -> list[Variant]:
    """Two rows for each method, the second of which is tested against the first."""
    rows = []
    for method in methods:
        rows.append(Variant(method, method, against=method))
        label = f"{method}, AugMix"
        rows.append(Variant(label, method, ("augment.augmix=True",), against=method))
    return rows


def _ensembles(*methods: str) -> list[Variant]:
    """Rows for one, two and three networks of each method, made of the same runs."""
    rows = _methods(*methods)
    for method in methods:
        for count in (2, 3):
            label = f"{method}, N = {count}"
            rows.append(Variant(label, method, against=label, networks=count, runs_of=method))
    return sorted(rows, key=lambda row: methods.index(row.method))


def _unmix(label: str, *fields: str) -> Variant:
    """A row of `few_images` with unmixing."""
    return Variant(label, "cut_mixmo", (_B2, "mixmo.unmix=True", *fields), against=_LONGER)


_PLAIN = Variant("vanilla", "vanilla")
_B = METHODS["cut_mixmo"]["batch_repetitions"]
_B2 = "batch_repetitions=2"
_LONGER = "vanilla, epochs x 3"
# For `few_images`: a tenth of the digits, and the rest to score the last epoch.
_IMAGES = 145
_FEW_IMAGES = (
    "num_epochs=60",
    "batch_size=32",
    "dataset.validation_fraction=0.9",
    "evaluation.every_epochs=60",
    "checkpoint_every_epochs=60",
    "optimizer.warmup_steps=8",
    "optimizer.decay_epochs=(40,54)",
)
_THREE = _methods("vanilla", "linear_mixmo", "cut_mixmo")
STUDIES = {
    "cifar100": Study(_methods(*METHODS), config="cifar100"),
    "cifar10": Study(_methods(*METHODS), config="cifar10"),
    "tiny_imagenet": Study(_THREE, config="tiny_imagenet", widths="1,2,3"),
    "methods": Study(_methods(*METHODS)),
    "blocks": Study([_PLAIN, *_vary("mixmo.block", MASKS, name="block")]),
    "repetitions": Study([_PLAIN, *_vary("batch_repetitions", (1, 2, 4, 8), name="b")]),
    "members": Study([_PLAIN, *_vary("model.num_members", (2, 3, 4, 5), name="M")]),
    "patch_prob": Study(_vary("mixmo.patch_prob", (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0), name="p")),
    "weight_root": Study(_vary("mixmo.weight_root", (1.0, 2.0, 3.0, 4.0, 5.0, "inf"), name="r")),
    "alpha": Study(_vary("mixmo.alpha", (0.0, 0.5, 1.0, 2.0, 4.0), name="alpha")),
    "input_repetition": Study(_vary("input_repetition", (0.0, 0.25, 0.5, 1.0), "mimo", "rho")),
    "width": Study(_by_width(1, 2, 3, 4, 5, 7, 10)),
    "robustness": Study(_with_augmix("vanilla", "cutmix", "linear_mixmo", "cut_mixmo")),
    "ensembles": Study(_ensembles("vanilla", "cutmix", "cut_mixmo", "cut_mixmo+cutmix")),
    "equal_time": Study(
        [
            _PLAIN,
            Variant(f"vanilla, epochs x {_B}", "vanilla", length=_B),
            Variant(f"cut_mixmo, epochs / {_B}", "cut_mixmo", length=1 / _B),
            Variant("cut_mixmo", "cut_mixmo", against=f"vanilla, epochs x {_B}"),
        ]
    ),
    "few_images": Study(
        [
            _PLAIN,
            # With b = 2 the others take two to three times as many steps.
            Variant(_LONGER, "vanilla", length=3),
            Variant("cutmix, epochs x 3", "cutmix", length=3, against=_LONGER),
            Variant("mimo", "mimo", (_B2,), against=_LONGER),
            Variant("linear_mixmo", "linear_mixmo", (_B2,), against=_LONGER),
            Variant("cut_mixmo", "cut_mixmo", (_B2,), against=_LONGER),
            _unmix("unmix"),
            _unmix("unmix until 2/3", "mixmo.unmix_until=0.6666667"),
            _unmix("unmix normalized", "mixmo.unmix_normalize=True"),
            _unmix("unmix nearest", "mixmo.unmix_resize=nearest"),
        ],
        overrides=_FEW_IMAGES,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help=", ".join(STUDIES))
    parser.add_argument("--config", help="digits by default, or that of the study's name")
    parser.add_argument("--widths", default="", help="separated by commas: one table for each")
    parser.add_argument("--images", default="", help="for few_images: one table for each number")
    parser.add_argument(
        "--row",
        action="append",
        metavar="LABEL",
        help="only this row; name the row that it is tested against, too; repeatable",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the training, %(default)s")
    add_arguments(parser, seeds="3", output="runs/studies")
    arguments, overrides = parse_with_fields(parser)
    execute(create_comparisons(arguments, overrides), arguments)


def create_comparisons(arguments: argparse.Namespace, overrides: list[str]) -> list[Comparison]:
    """The comparisons of a study, one for each width and number of images.

    Raises:
      InputError: if there is no such study, or an argument does not fit it.
    """
    name = arguments.study
    if name not in STUDIES:
        raise unknown("study", name, STUDIES, where="--help")
    study, few = STUDIES[name], name == "few_images"
    if arguments.scale <= 0:
        raise InputError(f"scale={arguments.scale}: expected a number > 0")
    if arguments.images and not few:
        raise InputError(f"images={arguments.images}: only for few_images")
    if name == "robustness" and arguments.corruptions is None:
        raise InputError("corruptions: missing; expected a folder in the layout of CIFAR-10-C")
    config = arguments.config or study.config
    labels = [variant.label for variant in study.variants]
    for label in arguments.row or ():
        if label not in labels:
            raise unknown("row", label, labels, where=f"--dry_run of {name}")
    kept = [v for v in study.variants if v.label in (arguments.row or labels)]
    variants = [v._replace(length=v.length * arguments.scale) for v in kept]
    if labels[0] not in (v.label for v in kept):  # no other row becomes the baseline
        variants = [v._replace(against=v.against or v.label) for v in variants]
    overrides = merge(merge([], study.overrides) + overrides, ())
    comparisons = []
    for width in (arguments.widths or study.widths).split(","):
        fields = (f"model.width={parse_numbers('widths', width)[0]}",) if width else ()
        chosen = merge(overrides, fields)
        for images in arguments.images.split(","):
            rows = variants
            if images:
                count = parse_numbers("images", images)[0]
                rows = [_with_images(v, config, chosen, count) for v in variants]
            parts = [name, images and f"n{images}", width and f"w{width}"]
            comparisons.append(
                Comparison(
                    config,
                    rows,
                    parse_seeds(arguments.seeds),
                    arguments.output / "-".join(filter(None, parts)),
                    chosen,
                    validation=few,
                    corruptions=arguments.corruptions,
                    own_split=few,
                )
            )
    return comparisons


def _with_images(variant: Variant, config: str, overrides: list[str], images: int) -> Variant:
    """A row that learns from about so many images, in about as many steps as from _IMAGES."""
    from cost import num_images  # Orbax takes time to import

    spec, flags = f"{config}:{variant.method}", merge(overrides, variant.fields)
    fields = config_lib.parse(spec, flags)[1]
    usual, own = (steps_per_epoch(fields, count) for count in (_IMAGES, images))
    total = num_images(fields)
    if not own or images >= total:
        least = -(-fields.batch_size // fields.batch_repetitions)
        raise InputError(f"images={images}: expected {least} to {total - 1}")
    fraction = round(1 - images / total, 3)
    if abs(total * (1 - fraction) - images) > images / 50:  # of many images a few
        fraction = 1 - images / total
    apart = f"dataset.validation_fraction={fraction:g}"
    return variant._replace(
        fields=(*variant.fields, apart, *scaled(spec, flags, epochs=usual / own))
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
