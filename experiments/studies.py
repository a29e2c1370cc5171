"""The studies of the paper, and some of our own, as comparisons with several seeds.

    python experiments/studies.py few_images
    python experiments/studies.py blocks --config=digits --seeds=5 --scale=0.5 --dry_run

Every study varies one thing and leaves the rest as the config says. `--scale` shrinks the number of
epochs and the schedule of the learning rate together; that of the patches is a fraction of the run
anyway. `--dry_run` lists the runs. Everything else is as in compare.py, which writes the files.
"""

import argparse
import pathlib
import sys

from compare import Variant, compare, merge, parse_seeds

from mixmo_jax import config as config_lib
from mixmo_jax.commands import run_command
from mixmo_jax.configs.common import METHODS
from mixmo_jax.errors import unknown
from mixmo_jax.mixing import MASKS

# For `few_images`: a tenth of the digits, 145 images, and the rest to score the last epoch.
_FEW_IMAGES = (
    "num_epochs=60",
    "batch_size=32",
    "dataset.validation_fraction=0.9",
    "evaluation.every_epochs=60",
    "checkpoint_every_epochs=60",
    "optimizer.warmup_steps=8",
    "optimizer.decay_epochs=(40,54)",
)
_B2 = "batch_repetitions=2"
_UNMIX = (_B2, "mixmo.unmix=True")


def _vary(field: str, values, method: str = "cut_mixmo", name: str = "") -> list[Variant]:
    """A row for each value of a field."""
    name = name or field
    return [Variant(f"{name} = {value}", method, (f"{field}={value}",)) for value in values]


_PLAIN = Variant("vanilla", "vanilla")
STUDIES = {
    "methods": [Variant(method, method) for method in METHODS],
    "blocks": [_PLAIN, *_vary("mixmo.block", MASKS, name="block")],
    "repetitions": [_PLAIN, *_vary("batch_repetitions", (1, 2, 4, 8), name="b")],
    "members": [_PLAIN, *_vary("model.num_members", (2, 3, 4, 5), name="M")],
    "patch_prob": _vary("mixmo.patch_prob", (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0), name="p"),
    "weight_root": _vary("mixmo.weight_root", (1.0, 2.0, 3.0, 4.0, 5.0, "inf"), name="r"),
    "alpha": _vary("mixmo.alpha", (0.0, 0.5, 1.0, 2.0, 4.0), name="alpha"),
    "input_repetition": _vary("input_repetition", (0.0, 0.25, 0.5, 1.0), "mimo", "rho"),
    "few_images": [
        _PLAIN,
        Variant("mimo", "mimo", (_B2,)),
        Variant("linear_mixmo", "linear_mixmo", (_B2,)),
        Variant("cut_mixmo", "cut_mixmo", (_B2,)),
        Variant("unmix", "cut_mixmo", _UNMIX),
        Variant("unmix until 2/3", "cut_mixmo", (*_UNMIX, "mixmo.unmix_until=0.6666667")),
        Variant("unmix normalized", "cut_mixmo", (*_UNMIX, "mixmo.unmix_normalize=True")),
        Variant("unmix nearest", "cut_mixmo", (*_UNMIX, "mixmo.unmix_resize=nearest")),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help=", ".join(STUDIES))
    parser.add_argument("--config", default="digits", help="%(default)s by default")
    parser.add_argument("--widths", default="", help="separated by commas: one table for each")
    parser.add_argument("--seeds", default="3", help="their number, or 0,1,4; %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="of the training, %(default)s")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/studies"))
    parser.add_argument("--dry_run", action="store_true")
    arguments, overrides = parser.parse_known_args()
    if arguments.study not in STUDIES:
        raise unknown("study", arguments.study, STUDIES, where="--help")
    variants, seeds = STUDIES[arguments.study], parse_seeds(arguments.seeds)
    few = arguments.study == "few_images"
    if few:
        overrides = merge([], _FEW_IMAGES) + overrides
    overrides = merge(overrides, scaled(arguments.config, overrides, arguments.scale))
    for width in filter(None, arguments.widths.split(",")) if arguments.widths else [""]:
        chosen = merge(overrides, (f"model.width={width}",) if width else ())
        output = arguments.output / "-".join(filter(None, [arguments.study, width and f"w{width}"]))
        if arguments.dry_run:
            for variant in variants:
                _list(arguments.config, variant, seeds, output, chosen)
        else:
            compare(arguments.config, variants, seeds, output, chosen, validation=few)


def scaled(config: str, overrides: list[str], scale: float) -> tuple[str, ...]:
    """Fields by which a config's training is `scale` times as long, all parts in proportion."""
    if scale == 1:
        return ()
    fields = config_lib.parse(config, overrides)[1]
    optimizer = fields.optimizer
    values = {
        "num_epochs": max(1, round(fields.num_epochs * scale)),
        "optimizer.warmup_steps": round(optimizer.warmup_steps * scale),
        "optimizer.warmup_epochs": optimizer.warmup_epochs * scale,
        # An epoch counts from 1: the learning rate falls after the same part of the run.
        "optimizer.decay_epochs": tuple(
            dict.fromkeys(max(1, round((e - 1) * scale) + 1) for e in optimizer.decay_epochs)
        ),
    }
    return tuple(f"{name}={value}" for name, value in values.items())


def _list(config, variant, seeds, output, overrides) -> None:
    flags = merge(overrides, variant.fields)
    fields = config_lib.parse(f"{config}:{variant.method}", flags)[1]
    for seed in seeds:
        cost = f"{fields.num_epochs} epochs, b = {fields.batch_repetitions}"
        print(f"{variant.folder(output, seed)}: {cost}, {' '.join(flags)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
