"""Measures training, the network alone and inference, without a dataset on the disk.

    python experiments/benchmark.py --config=cifar100:cut_mixmo+cutmix --output=bench.json

The images are random uint8 of the dataset's number and shape. What is compared is measured in turns
within one process, and a ratio is taken turn by turn. Any field can be set, such as
`--config.model.width=2`. With `--blocks` it measures only what each mixing block costs in training,
against linear mixing. For a TPU that is not there, see tpu_estimate.py.
"""

import argparse
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flops import model_flops
from jax.experimental.compilation_cache import compilation_cache

from mixmo_jax import config as config_lib
from mixmo_jax import distributed
from mixmo_jax.commands import parse_with_fields, run_command
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.errors import expand, write_json
from mixmo_jax.inference.model import Model
from mixmo_jax.inference.network import TrainedNetwork
from mixmo_jax.input_pipeline.augment import normalize
from mixmo_jax.input_pipeline.streaming import create_feed
from mixmo_jax.mixing import MASKS
from mixmo_jax.models import create_model
from mixmo_jax.runs.provenance import describe_environment
from mixmo_jax.training.loop import Trainer
from mixmo_jax.training.step import make_update_fn

# Number of training images, their shape, number of classes.
DATASETS = {
    "digits": (1_437, (8, 8, 1), 10),
    "cifar10": (50_000, (32, 32, 3), 10),
    "cifar100": (50_000, (32, 32, 3), 100),
    "tiny_imagenet": (100_000, (64, 64, 3), 200),
}
# Peak of products in bfloat16 in FLOP/s, by the vendors' data sheets (without sparsity).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
Work = Callable[[float], float]  # runs for about so many seconds; returns images per second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar100:cut_mixmo+cutmix", help="%(default)s")
    parser.add_argument("--output", type=expand, help="JSON file for all numbers")
    parser.add_argument("--turns", type=int, default=7, help="%(default)s by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, %(default)s each")
    parser.add_argument("--blocks", action="store_true", help="measure the mixing blocks instead")
    arguments, overrides = parse_with_fields(parser)
    _, config = config_lib.parse(arguments.config, overrides)
    chosen = measure_blocks if arguments.blocks else measure
    report = chosen(config, arguments.turns, arguments.seconds)
    print(format_report(report))
    if arguments.output:
        write_json(arguments.output, report)


def measure(config: ml_collections.ConfigDict, turns: int, seconds: float) -> dict:
    """Measures everything; a rate or ratio has a median, minimum and maximum over the turns."""
    trainer = Trainer(config, random_dataset(config))
    flops_per_step = model_flops(trainer)
    plain_config = config.copy_and_resolve_references()
    plain_config.model.num_members = 1
    plain = Trainer(plain_config, trainer.dataset)
    compilation = measure_compilation(trainer)
    network = create_network(trainer)
    folded = Model([network]).fold()
    images = trainer.dataset.test.images
    works = {
        "training": training(trainer),
        "model": model_alone(trainer),
        "plain_model": model_alone(plain),
        "inference": inference(Model([network]), images),
        "folded": inference(folded, images),
        "plain": inference(Model([create_network(plain)]), images),
        "evaluation": evaluation(trainer),
        "forward": forward_alone(trainer),
        "one_image": inference(folded, images[:1]),
    }
    if config.augment.augmix:
        without = config.copy_and_resolve_references()
        without.augment.augmix = False
        works["without_augmix"] = training(Trainer(without, trainer.dataset))
    rates = measure_in_turns(works, turns, seconds)
    flops = flops_per_step * rates["training"] / config.batch_size
    values = {
        "train_images_per_second": rates["training"],
        "model_images_per_second": rates["model"],
        "pipeline_efficiency": rates["training"] / rates["model"],
        "multi_input_cost": rates["plain_model"] / rates["model"],
        "inference_images_per_second": rates["inference"],
        "fold_cost": rates["plain"] / rates["folded"],
        "evaluation_cost": rates["forward"] / rates["evaluation"],
        "latency_of_one_image_ms": 1e3 / rates["one_image"],
        "flops_per_second": flops,
    }
    if config.augment.augmix:
        values["augmix_cost"] = rates["without_augmix"] / rates["training"]
    if peak := peak_flops():
        values["share_of_peak"] = flops / peak
    return {
        "config": config.to_dict(),
        "environment": describe_environment(),
        **compilation,
        "flops_per_step": flops_per_step,
        **{name: summarize(value) for name, value in values.items()},
        "peak_device_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def measure_blocks(config: ml_collections.ConfigDict, turns: int, seconds: float) -> dict:
    """Seconds of a step with each block, which mixes every batch / those with linear mixing."""
    dataset, works = random_dataset(config), {}
    for block in MASKS:
        mixed = config.copy_and_resolve_references()
        mixed.mixmo.update(block=block, patch_prob=1.0)
        works[block] = training(Trainer(mixed, dataset))
    rates = measure_in_turns(works, turns, seconds)
    costs = {f"cost_of_{block}": rates["linear"] / rates[block] for block in MASKS}
    return {
        "config": config.to_dict(),
        "environment": describe_environment(),
        "train_images_per_second_with_linear": summarize(rates["linear"]),
        **{name: summarize(cost) for name, cost in costs.items()},
    }


def random_dataset(config: ml_collections.ConfigDict, num_images: int = 0) -> Dataset:
    """Random images of the shape of the config's dataset, and of its number or another one."""
    side = config.dataset.image_size
    count, shape, num_classes = DATASETS.get(config.dataset.name, (10_000, (side, side, 3), 100))
    count = num_images or count
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = rng.integers(0, num_classes, count).astype(np.int32)
        return Split(rng.integers(0, 256, (count, *shape), np.uint8), labels)

    names, channels = tuple(map(str, range(num_classes))), shape[2]
    return Dataset(split(count), split(2_000), None, names, (0.5,) * channels, (0.25,) * channels)


def create_network(trainer: Trainer) -> TrainedNetwork:
    """The network before training, which is as fast as afterwards."""
    dataset = trainer.dataset
    return TrainedNetwork(
        module=create_model(trainer.config.model, dataset.num_classes),
        variables=trainer.create_state().variables,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=trainer.config.evaluation.batch_size,
    )


def create_feed_of(trainer: Trainer):
    """The feed as `Trainer.train` creates it."""
    config, split = trainer.config, trainer.dataset.train
    placement, steps = config.dataset.placement, config.steps_per_call
    return create_feed(placement, trainer.plan_fn, split, trainer.steps_per_epoch, steps)


def create_update(trainer: Trainer, fetch: Callable, make_batch: Callable) -> Callable:
    """The update function of a trainer with the data side given."""
    return make_update_fn(trainer.create_train_step(fetch, make_batch), trainer.plan_fn)


def training(trainer: Trainer) -> Work:
    """Training as `main` does it: loop, feed and data side."""
    feed = create_feed_of(trainer)
    update = create_update(trainer, feed.fetch, trainer.batch_fn)
    state = trainer.create_state()
    key, epochs = state.key, itertools.count(1)
    state = distributed.replicate_for_pmap(state)

    def work(seconds: float) -> float:
        nonlocal state
        start, steps = time.perf_counter(), 0

        def is_over() -> bool:
            return time.perf_counter() - start > seconds

        while not is_over():
            calls = feed.calls(key, next(epochs))
            state, progress = trainer.run_calls(update, state, calls, stop=is_over)
            steps += len(progress.losses)
        return steps * trainer.config.batch_size / (time.perf_counter() - start)

    return work


def model_alone(trainer: Trainer) -> Work:
    """Forward pass, backward pass and update, on the same ready-made batch in each step."""

    def fetch(resident, streamed, plan):
        index = jax.lax.axis_index(distributed.AXIS)
        return jax.tree.map(lambda x: x[index], resident)

    update = create_update(trainer, fetch, lambda raw, plan: raw)
    call = next(iter(create_feed_of(trainer).calls(jax.random.key(0), 1)))
    batch = distributed.replicate(ready_batch(trainer))
    state = distributed.replicate_for_pmap(trainer.create_state())

    def work(seconds: float) -> float:
        nonlocal state
        start, steps, previous = time.perf_counter(), 0, None
        while time.perf_counter() - start < seconds:
            state, losses = update(state, batch, None, call.order, call.num_steps)
            jax.block_until_ready(previous)  # one call stays in flight
            previous, steps = losses, steps + call.num_steps
        jax.block_until_ready(previous)
        return steps * trainer.config.batch_size / (time.perf_counter() - start)

    return work


def ready_batch(trainer: Trainer):
    """The first batch, cut for the devices: [devices, M, B / devices, …]."""
    count = jax.local_device_count()
    batch = jax.jit(trainer.batch_fn)(*trainer.first_batch(jax.random.key(0)))

    def cut(array: jax.Array) -> jax.Array:
        if not array.ndim:
            return jnp.broadcast_to(array, count)
        members, size, *rest = array.shape
        return jnp.moveaxis(array.reshape(members, count, size // count, *rest), 1, 0)

    return jax.tree.map(cut, batch)


def inference(model: Model, images: np.ndarray) -> Work:
    """The logits of all members, from uint8 images on the host."""

    def work(seconds: float) -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            model.logits(images)
            done += len(images)
        return done / (time.perf_counter() - start)

    return work


def evaluation(trainer: Trainer) -> Work:
    """The evaluation after an epoch: from uint8 images on the host to metrics."""
    state = trainer.create_state()

    def work(seconds: float) -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            trainer.evaluate(state)
            done += len(trainer.dataset.test)
        return done / (time.perf_counter() - start)

    return work


def forward_alone(trainer: Trainer) -> Work:
    """The logits of the same batches, which are on the devices already and normalized."""
    dataset, size = trainer.dataset, trainer.config.evaluation.batch_size
    model = create_model(trainer.config.model, dataset.num_classes)
    forward = jax.jit(functools.partial(model.apply, train=False))
    variables = distributed.replicate(trainer.create_state().variables)
    images = normalize(jnp.asarray(dataset.test.images), dataset.mean, dataset.std)
    starts = range(0, len(images) // size * size, size) or (0,)
    batches = [distributed.shard(np.asarray(images[start : start + size])) for start in starts]

    def work(seconds: float) -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            logits = None
            for batch in batches:
                jax.block_until_ready(logits)  # one batch stays in flight
                logits = forward(variables, batch)
                done += len(batch)
            jax.block_until_ready(logits)
        return done / (time.perf_counter() - start)

    return work


def measure_in_turns(works: dict[str, Work], turns: int, seconds: float) -> dict[str, np.ndarray]:
    """Compiles all, then runs them in turns: [turns] images per second each."""
    for work in works.values():
        work(0.01)
    rates = [{name: work(seconds) for name, work in works.items()} for _ in range(turns)]
    return {name: np.array([rate[name] for rate in rates]) for name in works}


def measure_compilation(trainer: Trainer) -> dict[str, float]:
    """Seconds to compile the training program, without and with JAX's persistent cache."""
    feed = create_feed_of(trainer)
    update = create_update(trainer, feed.fetch, trainer.batch_fn)
    call = next(iter(feed.calls(jax.random.key(0), 1)))
    state = distributed.replicate_for_pmap(trainer.create_state())
    report, before = {}, jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        for name in ("cold", "cached"):
            jax.clear_caches()
            compilation_cache.reset_cache()
            start = time.perf_counter()
            compiled = update.lower(state, *call).compile()
            report[f"compile_seconds_{name}"] = time.perf_counter() - start
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()  # else the old folder stays in use
    memory = compiled.memory_analysis()
    report["program_bytes"] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return report


def peak_flops() -> float:
    """The peak of all devices together, 0 if it is not known."""
    kind = jax.devices()[0].device_kind
    return jax.device_count() * next((p for name, p in PEAKS.items() if kind.startswith(name)), 0)


def summarize(values: np.ndarray) -> dict[str, float]:
    return {name: float(getattr(np, name)(values)) for name in ("median", "min", "max")}


def format_report(report: dict) -> str:
    """A table of all numbers, a line each."""
    lines = [f"{'':<30}{'median':>14}{'min':>14}{'max':>14}"]
    for name, value in report.items():
        values = value.values() if isinstance(value, dict) and "median" in value else [value]
        if all(isinstance(v, (int, float)) for v in values):
            cells = "".join(f"{v:>14,.4g}" for v in values)
            lines.append(f"{name.replace('_', ' '):<30}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
