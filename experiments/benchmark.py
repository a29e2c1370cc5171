"""Measures training, the network alone and inference, without a dataset on the disk.

    python experiments/benchmark.py --config=cifar100:cut_mixmo+cutmix --output=bench.json

The images are random uint8 of the dataset's number and shape. Everything is measured in turns
within one process, and a ratio is taken turn by turn. Any field can be set, such as
`--config.model.width=2`. With `--blocks` it measures only the cost of each mixing block in
training, relative to linear mixing. For a TPU that is not there, see tpu_estimate.py.
"""

import argparse
import functools
import itertools
import tempfile
import time
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from compare import command_line, parse_arguments, with_fields
from jax.experimental.compilation_cache import compilation_cache

import mixmo_jax
from mixmo_jax import distributed
from mixmo_jax.datasets import Dataset, Split
from mixmo_jax.errors import InputError, expand, write_json
from mixmo_jax.inference.model import Model, TrainedNetwork
from mixmo_jax.input_pipeline.augment import normalize
from mixmo_jax.input_pipeline.feed import create_feed
from mixmo_jax.input_pipeline.plan import make_plan_fn, steps_per_epoch
from mixmo_jax.mixing import MASKS
from mixmo_jax.models import create_model
from mixmo_jax.runs.workdir import describe_environment
from mixmo_jax.training.losses import weighted_cross_entropy
from mixmo_jax.training.optimizers import create_optimizer
from mixmo_jax.training.step import create_train_state, make_train_step, make_update_fn
from mixmo_jax.training.train import make_evaluate_fn

# Number of training images, shape, number of classes.
DATASETS = {
    "digits": (1_437, (8, 8, 1), 10),
    "cifar10": (50_000, (32, 32, 3), 10),
    "cifar100": (50_000, (32, 32, 3), 100),
    "tiny_imagenet": (100_000, (64, 64, 3), 200),
}
# Peak of bfloat16 products in FLOP/s, from the vendors' data sheets (without sparsity).
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
    arguments, fields = parse_arguments(parser)
    config = with_fields(mixmo_jax.get_config(arguments.config), fields)
    chosen = measure_blocks if arguments.blocks else measure
    report = chosen(config, arguments.turns, arguments.seconds)
    print(format_report(report))
    if arguments.output:
        write_json(arguments.output, report)


def build(config: ml_collections.ConfigDict, dataset: Dataset) -> types.SimpleNamespace:
    """Builds what `train_and_evaluate` builds: the only contact with the parts of training."""
    model = create_model(config.model, dataset.num_classes, distributed.AXIS)
    tx, _ = create_optimizer(config, steps_per_epoch(config, len(dataset.train)))
    plan_fn = make_plan_fn(config, len(dataset.train))
    train_step = make_train_step(config, model, tx, dataset)
    return types.SimpleNamespace(
        config=config,
        dataset=dataset,
        model=model,
        tx=tx,
        plan_fn=plan_fn,
        train_step=train_step,
        create_state=lambda: create_train_state(config.seed, model, tx, dataset.image_shape),
    )


def measure(config: ml_collections.ConfigDict, turns: int, seconds: float) -> dict:
    """Measures everything; a rate or ratio has median, minimum and maximum over the turns."""
    dataset = random_dataset(config)
    parts = build(config, dataset)
    flops_per_step = model_flops(config, dataset)
    plain_config = config.copy_and_resolve_references()
    plain_config.model.num_members = 1
    plain = build(plain_config, dataset)
    compilation = measure_compilation(parts)
    network = create_network(parts)
    folded = Model([network]).fold()
    images = dataset.test.images
    works = {
        "training": training(parts),
        "model": model_alone(parts),
        "plain_model": model_alone(plain),
        "inference": inference(Model([network]), images),
        "folded": inference(folded, images),
        "plain": inference(Model([create_network(plain)]), images),
        "evaluation": evaluation(parts),
        "forward": forward_alone(parts),
        "one_image": inference(folded, images[:1]),
    }
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
    """Measures a step with each block, which mixes every batch, relative to linear mixing."""
    dataset, works = random_dataset(config), {}
    for block in MASKS:
        mixed = config.copy_and_resolve_references()
        mixed.mixmo.update(block=block, patch_prob=1.0)
        works[block] = training(build(mixed, dataset))
    rates = measure_in_turns(works, turns, seconds)
    costs = {f"cost_of_{block}": rates["linear"] / rates[block] for block in MASKS}
    return {
        "config": config.to_dict(),
        "environment": describe_environment(),
        "train_images_per_second_with_linear": summarize(rates["linear"]),
        **{name: summarize(cost) for name, cost in costs.items()},
    }


def measure_training(config: ml_collections.ConfigDict, seconds: float = 3.0) -> float:
    """Returns the images per second of training on this machine."""
    images = min(num_images(config), 100 * config.batch_size // config.batch_repetitions)
    work = training(build(config, random_dataset(config, max(images, config.batch_size))))
    work(0.01)  # compiles
    return work(seconds)


def num_images(config: ml_collections.ConfigDict) -> int:
    """Returns the number of images for training and validation."""
    if config.dataset.name not in DATASETS:
        known = ", ".join(DATASETS)
        raise InputError(f"dataset.name={config.dataset.name!r}: the cost is known for {known}")
    return config.dataset.num_train_images or DATASETS[config.dataset.name][0]


def random_dataset(config: ml_collections.ConfigDict, num_images: int = 0) -> Dataset:
    """Returns random images of the shape of the config's dataset."""
    side = config.dataset.image_size
    count, shape, num_classes = DATASETS.get(config.dataset.name, (10_000, (side, side, 3), 100))
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = rng.integers(0, num_classes, count).astype(np.int32)
        return Split(rng.integers(0, 256, (count, *shape), np.uint8), labels)

    train, test = split(num_images or count), split(2_000)
    names, channels = tuple(map(str, range(num_classes))), shape[2]
    return Dataset(train, test, None, names, (0.5,) * channels, (0.25,) * channels)


def create_network(parts) -> TrainedNetwork:
    """Returns the network before training, which is as fast as afterwards."""
    dataset = parts.dataset
    return TrainedNetwork(
        module=create_model(parts.config.model, dataset.num_classes),
        variables=parts.create_state().variables,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=parts.config.evaluation.batch_size,
    )


def training(parts) -> Work:
    """Training with its feed, a call ahead of the device."""
    update = make_update_fn(parts.train_step, parts.plan_fn)
    feed = create_feed(parts.config, parts.plan_fn, parts.dataset.train)
    state = parts.create_state()
    key = state.key
    calls = itertools.chain.from_iterable(feed(key, epoch) for epoch in itertools.count(1))
    return _repeat(update, distributed.replicate_for_pmap(state), calls, parts.config.batch_size)


def model_alone(parts) -> Work:
    """Forward pass, backward pass and update, on the same ready-made inputs in each step."""
    config, dataset, count = parts.config, parts.dataset, jax.local_device_count()
    members, shape = config.model.num_members, dataset.image_shape
    size = config.batch_size // count
    images = jax.random.normal(jax.random.key(0), (members, size, *shape))
    masks = jnp.full((members, size, *parts.model.stem_shape(*shape[:2])[:2], 1), 1 / members)
    targets = jnp.full((members, size, dataset.num_classes), 1 / dataset.num_classes)
    inputs = distributed.replicate((images, masks, targets))

    def train_step(state, inputs, plan):
        images, masks, targets = inputs

        def loss_fn(params):
            logits, updated = parts.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                masks,
                train=True,
                mutable=["batch_stats"],
            )
            loss = weighted_cross_entropy(logits, targets, jnp.ones(targets.shape[:2]))
            return loss, updated["batch_stats"]

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        loss, grads = jax.lax.pmean((loss, grads), distributed.AXIS)
        updates, opt_state = parts.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        return state, loss, None

    update = make_update_fn(train_step, parts.plan_fn)
    call = next(iter(create_feed(config, parts.plan_fn, dataset.train)(jax.random.key(0), 1)))
    calls = itertools.repeat(call._replace(resident=inputs, streamed=None))
    state = distributed.replicate_for_pmap(parts.create_state())
    return _repeat(update, state, calls, config.batch_size)


def _repeat(update, state, calls, batch_size: int) -> Work:
    def work(seconds: float) -> float:
        nonlocal state
        start, steps, previous = time.perf_counter(), 0, None
        while time.perf_counter() - start < seconds:
            call = next(calls)
            state, losses = update(state, *call)
            jax.block_until_ready(previous)  # one call stays in flight
            previous, steps = losses, steps + call.num_steps
        jax.block_until_ready(previous)
        return steps * batch_size / (time.perf_counter() - start)

    return work


def inference(model: Model, images: np.ndarray) -> Work:
    """The logits of all members, from uint8 images on the host."""

    def work(seconds: float) -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            model.logits(images)
            done += len(images)
        return done / (time.perf_counter() - start)

    return work


def evaluation(parts) -> Work:
    """The evaluation after an epoch: from uint8 images on the host to metrics."""
    state, evaluate = parts.create_state(), make_evaluate_fn(parts.config, parts.dataset)

    def work(seconds: float) -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            evaluate(state)
            done += len(parts.dataset.test)
        return done / (time.perf_counter() - start)

    return work


def forward_alone(parts) -> Work:
    """The logits of normalized batches that lie on the devices."""
    dataset, size = parts.dataset, parts.config.evaluation.batch_size
    model = create_model(parts.config.model, dataset.num_classes)
    forward = jax.jit(functools.partial(model.apply, train=False))
    variables = distributed.replicate(parts.create_state().variables)
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


def measure_compilation(parts) -> dict[str, float]:
    """Measures the compilation of training, without and with JAX's persistent cache."""
    update = make_update_fn(parts.train_step, parts.plan_fn)
    feed = create_feed(parts.config, parts.plan_fn, parts.dataset.train)
    call = next(iter(feed(jax.random.key(0), 1)))
    state = distributed.replicate_for_pmap(parts.create_state())
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


def model_flops(config: ml_collections.ConfigDict, dataset: Dataset) -> float:
    """Returns the FLOPs of forward and backward pass of a step, as XLA counts them.

    They are those of an accelerator's program before optimization. The CPU's own program has loops,
    of which XLA counts one round.

    Raises:
      InputError: if JAX_PLATFORMS excludes the CPU, whose backend counts.
    """
    shape = dataset.image_shape
    model = create_model(config.model, dataset.num_classes)
    images = jax.ShapeDtypeStruct((model.num_members, config.batch_size, *shape), jnp.float32)
    stem = model.stem_shape(*shape[:2])[:2]
    masks = jax.ShapeDtypeStruct((*images.shape[:2], *stem, 1), jnp.float32)

    def loss(variables, images, masks):
        logits, _ = model.apply(variables, images, masks, train=True, mutable=["batch_stats"])
        return logits.sum()

    like = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images[0], train=False), images
    )
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        platforms = jax.config.jax_platforms
        message = f"counting FLOPs needs the CPU, too: {platforms},cpu"
        raise InputError(f"JAX_PLATFORMS={platforms}: {message}") from None
    with jax.default_device(cpu):
        traced = jax.jit(jax.grad(loss)).trace(like, images, masks)
        return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def peak_flops() -> float:
    """Returns the peak of all devices, 0 if it is not known."""
    kind = jax.devices()[0].device_kind
    return jax.device_count() * next((p for name, p in PEAKS.items() if kind.startswith(name)), 0)


def summarize(values: np.ndarray) -> dict[str, float]:
    """Returns median, minimum and maximum."""
    return {name: float(getattr(np, name)(values)) for name in ("median", "min", "max")}


def format_report(report: dict) -> str:
    """Returns a table of all numbers, a line each."""
    lines = [f"{'':<30}{'median':>14}{'min':>14}{'max':>14}"]
    for name, value in report.items():
        values = value.values() if isinstance(value, dict) and "median" in value else [value]
        if all(isinstance(v, int | float) for v in values):
            cells = "".join(f"{v:>14,.4g}" for v in values)
            lines.append(f"{name.replace('_', ' '):<30}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line(main)
