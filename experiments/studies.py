"""The tables and studies of the paper, and some of our own, as comparisons with several seeds.

    python experiments/studies.py cifar100 --dry_run
    python experiments/studies.py blocks --config=digits --seeds=5 --scale=0.5
    python experiments/studies.py few_images --images=50,145,580 --widths=1,2
    python experiments/studies.py robustness --config=cifar10 --corruptions=CIFAR-10-C

Every study varies one thing. `--scale` shrinks the number of epochs and the schedule of the
learning rate together. There is one table for each of the `--widths` and `--images`. All else is as
in compare.py, which writes the files. docs/results.md shows recorded results.
"""

import argparse
import dataclasses

from compare import (
    Comparison,
    Variant,
    add_arguments,
    command_line,
    execute,
    parse_arguments,
    parse_seeds,
    scaled,
    with_fields,
)

import mixmo_jax
from mixmo_jax.configs.common import METHODS
from mixmo_jax.errors import InputError, unknown
from mixmo_jax.input_pipeline.plan import steps_per_epoch
from mixmo_jax.mixing import MASKS


@dataclasses.dataclass(frozen=True)
class Study:
    """A table, or one for each width.

    Attributes:
      variants: Its rows.
      config: The config, unless one is given.
      widths: The widths, unless some are given.
      fields: Fields of all rows.
    """

    variants: list[Variant]
    config: str = "digits"
    widths: str = ""
    fields: dict[str, object] = dataclasses.field(default_factory=dict)


def _methods(*names: str) -> list[Variant]:
    return [Variant(name, name) for name in names]


def _vary(field: str, values, method: str = "cut_mixmo", name: str = "") -> list[Variant]:
    """Returns a row for each value of a field."""
    return [Variant(f"{name or field} = {value}", method, {field: value}) for value in values]


def _in_pairs(names, labels: tuple[str, str], rows) -> list[Variant]:
    """Returns two rows for each name; the second is tested against the first."""
    variants = []
    for name in names:
        first = labels[0].format(name)
        for label, (method, fields) in zip(labels, rows(name), strict=True):
            variants.append(Variant(label.format(name), method, fields, against=first))
    return variants


def _ensembles(*methods: str) -> list[Variant]:
    """Returns rows for one, two and three networks of each method, made of the same runs."""
    rows = []
    for method in methods:
        rows.append(Variant(method, method))
        for count in (2, 3):
            label = f"{method}, N = {count}"
            rows.append(Variant(label, method, against=label, networks=count, runs_of=method))
    return rows


_PLAIN = Variant("vanilla", "vanilla")
_B = METHODS["cut_mixmo"]["batch_repetitions"]
_B2 = {"batch_repetitions": 2}
_LONGER = "vanilla, epochs x 3"
# For `few_images`: a tenth of the digits; the rest scores the last epoch.
_IMAGES = 145
_FEW_IMAGES = {
    "num_epochs": 60,
    "batch_size": 32,
    "dataset.validation_fraction": 0.9,
    "evaluation.every_epochs": 60,
    "checkpoint_every_epochs": 60,
    "optimizer.warmup_steps": 8,
    "optimizer.decay_epochs": (40, 54),
}


def _few(label: str, method: str = "cut_mixmo", **fields: object) -> Variant:
    """Returns a row of `few_images`, tested against a plain network that trains as long."""
    fields = {f"mixmo.{name}": value for name, value in fields.items()}
    return Variant(label, method, {**_B2, **fields}, against=_LONGER)


STUDIES = {
    "cifar100": Study(_methods(*METHODS), config="cifar100"),
    "cifar10": Study(_methods(*METHODS), config="cifar10"),
    "tiny_imagenet": Study(
        _methods("vanilla", "linear_mixmo", "cut_mixmo"), config="tiny_imagenet", widths="1,2,3"
    ),
    "methods": Study(_methods(*METHODS)),
    "blocks": Study([_PLAIN, *_vary("mixmo.block", MASKS, name="block")]),
    "repetitions": Study([_PLAIN, *_vary("batch_repetitions", (1, 2, 4, 8), name="b")]),
    "members": Study([_PLAIN, *_vary("model.num_members", (2, 3, 4, 5), name="M")]),
    "patch_prob": Study(_vary("mixmo.patch_prob", (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0), name="p")),
    "weight_root": Study(
        _vary("mixmo.weight_root", (1.0, 2.0, 3.0, 4.0, 5.0, float("inf")), name="r")
    ),
    "alpha": Study(_vary("mixmo.alpha", (0.0, 0.5, 1.0, 2.0, 4.0), name="alpha")),
    "input_repetition": Study(_vary("input_repetition", (0.0, 0.25, 0.5, 1.0), "mimo", "rho")),
    "width": Study(
        _in_pairs(
            (1, 2, 3, 4, 5, 7, 10),
            ("vanilla, w = {}", "cut_mixmo, w = {}"),
            lambda w: [("vanilla", {"model.width": w}), ("cut_mixmo", {"model.width": w})],
        )
    ),
    "robustness": Study(
        _in_pairs(
            ("vanilla", "cutmix", "linear_mixmo", "cut_mixmo"),
            ("{}", "{}, AugMix"),
            lambda method: [(method, {}), (method, {"augment.augmix": True})],
        )
    ),
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
            _few("mimo", "mimo"),
            _few("linear_mixmo", "linear_mixmo"),
            _few("cut_mixmo"),
            _few("unmix", unmix=True),
            _few("unmix until 2/3", unmix=True, unmix_until=0.6666667),
            _few("unmix normalized", unmix=True, unmix_normalize=True),
            _few("unmix nearest", unmix=True, unmix_resize="nearest"),
        ],
        fields=_FEW_IMAGES,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help=", ".join(STUDIES))
    parser.add_argument("--config", help="digits by default, or that of the study's name")
    parser.add_argument("--widths", default="", help="A,B: one table for each width")
    parser.add_argument("--images", default="", help="for few_images: one table for each number")
    parser.add_argument("--row", action="append", metavar="LABEL", help="only this row; repeatable")
    parser.add_argument("--scale", type=float, default=1.0, help="of the training, %(default)s")
    add_arguments(parser, seeds="3", output="runs/studies")
    arguments, fields = parse_arguments(parser)
    execute(create_comparisons(arguments, fields), arguments)


def create_comparisons(
    arguments: argparse.Namespace, fields: dict[str, object]
) -> list[Comparison]:
    """Returns the comparisons of a study, one for each width and number of images.

    Raises:
      InputError: if there is no such study, or an argument does not fit it.
    """
    name, few = arguments.study, arguments.study == "few_images"
    if name not in STUDIES:
        raise unknown("study", name, STUDIES, where="--help")
    if arguments.images and not few:
        raise InputError(f"images={arguments.images}: only for few_images")
    if name == "robustness" and arguments.corruptions is None:
        raise InputError("corruptions: missing; expected a folder in the layout of CIFAR-10-C")
    study = STUDIES[name]
    config = arguments.config or study.config
    labels = [variant.label for variant in study.variants]
    for label in arguments.row or ():
        if label not in labels:
            raise unknown("row", label, labels, where=", ".join(labels))
    kept = [v for v in study.variants if v.label in (arguments.row or labels)]
    variants = [dataclasses.replace(v, length=v.length * arguments.scale) for v in kept]
    fields = {**study.fields, **fields}
    comparisons = []
    for width in (arguments.widths or study.widths).split(","):
        chosen = {**fields, "model.width": int(width)} if width else fields
        for images in arguments.images.split(","):
            rows = variants
            if images:
                rows = [_with_images(v, config, chosen, int(images)) for v in variants]
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


def _with_images(variant: Variant, spec: str, fields: dict[str, object], images: int) -> Variant:
    """Returns a row that trains on about so many images, for about as many steps as on _IMAGES."""
    from benchmark import num_images  # slow to import

    spec, fields = f"{spec}:{variant.method}", {**fields, **variant.fields}
    config = with_fields(mixmo_jax.get_config(spec), fields)
    usual, own = (steps_per_epoch(config, count) for count in (_IMAGES, images))
    total = num_images(config)
    if not own or images >= total:
        raise InputError(f"images={images}: expected a batch or more, and fewer than {total}")
    apart = {"dataset.validation_fraction": round(1 - images / total, 3)}
    length = usual / own
    return dataclasses.replace(
        variant, fields={**variant.fields, **apart, **scaled(spec, fields, length)}
    )


if __name__ == "__main__":
    command_line(main)
