"""Estimates the speed of training on a TPU that is not there, from its compiler alone.

    pip install -e ".[tpu]"
    python experiments/tpu_estimate.py --config=cifar100:cut_mixmo+cutmix --topology=v5e:2x2

It compiles the real training program, a call of many steps, and sums the compiler's estimates of
cycles; those of a loop count times its rounds. It reports milliseconds a step, the share of the
chip's peak, the split by kind of work, memory, and copies of the dataset, of which there should be
none. Any field can be set, such as `--config.batch_size=256`. No TPU and no dataset is needed.
"""

import argparse
import collections
import functools
import importlib.util
import math
import os
import re
import time

os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    JAX_PLATFORMS="cpu",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # several estimates at the same time
)

import jax
import jax.numpy as jnp
import numpy as np
from benchmark import build, model_flops, random_dataset
from compare import command_line, parse_arguments, with_fields
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import mixmo_jax
from mixmo_jax.distributed import AXIS
from mixmo_jax.errors import InputError, expand, write_json
from mixmo_jax.input_pipeline.feed import Resident
from mixmo_jax.training.step import make_call_fn

# Clock in Hz, peak of products in bfloat16 in FLOP/s, bytes of memory.
CHIPS = {
    "v4": (1.05e9, 275e12, 32 << 30),
    "v5e": (1.5e9, 197e12, 16 << 30),
    "v5p": (1.75e9, 459e12, 95 << 30),
}
# The first that matches an operation's name counts.
KINDS = {
    "convolution": r"conv_general_dilated",
    "normalization": r"/bn\d?/|batch_norm",
    "random numbers": r"threefry|random|shuffle|permutation|uniform|bernoulli|randint|sort",
    "gather and augmentation": r"gather|dynamic_slice|pad|crop|flip",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar100:cut_mixmo+cutmix", help="%(default)s")
    parser.add_argument("--topology", default="v5e:2x2", help="%(default)s by default")
    parser.add_argument("--chips", type=int, default=1, help="of the topology, %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="of a call, %(default)s by default")
    parser.add_argument("--top", type=int, default=0, help="expensive operations to be listed")
    parser.add_argument("--output", type=expand, help="JSON file with all numbers")
    parser.add_argument("--program", type=expand, help="file for the compiled program")
    arguments, fields = parse_arguments(parser)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('the TPU compiler is missing: pip install -e ".[tpu]"')
    fields = {"model.dtype": "bfloat16", **fields}
    config = with_fields(mixmo_jax.get_config(arguments.config), fields)
    chips = describe_chips(arguments.topology, arguments.chips)
    parts = build(config, random_dataset(config))
    start = time.perf_counter()
    compiled = compile_training(parts, chips, arguments.steps)
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    if arguments.program:
        arguments.program.write_text(text)
    report = describe(compiled, text, parts, arguments)
    report["compile_seconds"] = seconds
    print(format_report(report))
    for name, cycles in operation_cycles(text).most_common(arguments.top):
        print(f"  {cycles / arguments.steps:>12,.0f}  {name[-120:]}")
    if arguments.output:
        write_json(arguments.output, report)


def describe_chips(topology: str, count: int) -> list:
    """The first chips of a TPU that is not there.

    Args:
      topology: The name of the TPU, such as "v5e:2x2".
      count: The number of its chips that train.

    Raises:
      InputError: if there is no such TPU, its chips are not known here, or it has fewer.
    """
    if topology.partition(":")[0] not in CHIPS:
        raise InputError(f"topology={topology}: expected one of {', '.join(CHIPS)}, as in v5e:2x2")
    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"topology={topology}: {error}") from None
    if not 0 < count <= len(chips):
        raise InputError(f"chips={count}: expected 1 to {len(chips)}, as {topology} has")
    return chips[:count]


def compile_training(parts, chips: list, steps: int) -> jax.stages.Compiled:
    """Compiles a call of the training program for chips of a described TPU.

    Args:
      parts: See `benchmark.build`.
      chips: The chips that train, see `describe_chips`.
      steps: The number of steps of the call.
    """
    count, shape = len(parts.dataset.train), parts.dataset.image_shape
    call = make_call_fn(parts.train_step, parts.plan_fn)
    mesh = Mesh(np.array(chips), (AXIS,))
    placed = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P()))
    mapped = jax.shard_map(
        lambda state, resident, order: call(state, resident, None, order, steps),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )
    arguments = (
        jax.tree.map(lambda x: placed(x.shape, x.dtype), jax.eval_shape(parts.create_state)),
        Resident(placed((count, math.prod(shape)), jnp.uint8), placed((count,), jnp.int32)),
        placed((count,), jnp.int32),
    )
    return jax.jit(mapped, donate_argnums=0).lower(*arguments).compile()


def describe(compiled, text: str, parts, arguments: argparse.Namespace) -> dict:
    """Returns the report about a compiled call."""
    config = parts.config
    clock, peak, memory = CHIPS[arguments.topology.partition(":")[0]]
    cycles = collections.Counter()
    for name, count in operation_cycles(text).items():
        kinds = (kind for kind, pattern in KINDS.items() if re.search(pattern, name))
        cycles[next(kinds, "other")] += count / arguments.steps
    total = sum(cycles.values())
    seconds = total / clock
    flops = model_flops(config, parts.dataset)
    analysis = compiled.memory_analysis()
    used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return {
        "config": config.to_dict(),
        "topology": arguments.topology,
        "chips": arguments.chips,
        "step_ms": 1e3 * seconds,
        "images_per_second": config.batch_size / seconds,
        "flops_per_step": flops,
        "share_of_peak": flops / arguments.chips / seconds / peak,
        "split": {kind: n / total for kind, n in cycles.most_common()},
        "bytes_per_chip": used,
        "memory_share": used / memory,
        "dataset_copies": dataset_copies(text, len(parts.dataset.train)),
    }


def operation_cycles(text: str) -> collections.Counter:
    """Estimated cycles of each operation of a call, those in a loop times its rounds."""
    bodies = computations(text)
    cycles = collections.Counter()

    def add(name: str, times: int) -> None:
        for line in bodies[name]:
            if match := re.search(r'"estimated_cycles":"(\d+)"', line):
                named = re.search(r'op_name="([^"]*)"', line)
                cycles[named[1] if named else line.split("=")[0].strip()] += times * int(match[1])
            if match := re.search(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)", line):
                add(match[2], times * loop_rounds(bodies[match[1]]))

    add("ENTRY", 1)
    return cycles


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program; the first is called "ENTRY"."""
    found, name = collections.defaultdict(list), None
    for line in text.splitlines():
        if match := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = "ENTRY" if match[1] else match[2]
        elif name:
            found[name].append(line)
    return found


def loop_rounds(condition: list[str]) -> int:
    """The rounds of a loop that counts to a constant; 1 of another, such as one of rejections."""
    limits = [match[1] for line in condition if (match := re.search(r"constant\((\d+)\)", line))]
    counts = any("ROOT" in line and "direction=LT" in line for line in condition)
    return int(limits[0]) if counts and len(limits) == 1 else 1


def dataset_copies(text: str, num_images: int) -> list[str]:
    """The operations that write an array as large as the dataset, beside its being passed on."""
    passed = ("parameter", "get-tuple-element", "bitcast")
    found = re.findall(rf"%(\S+) = u8\[{num_images},[\d,]+\]\S* (\S+?)\(", text)
    assert found, "no dataset in the program"
    return [name for name, kind in found if kind not in passed]


def format_report(report: dict) -> str:
    """The report as lines for the terminal."""
    split = ", ".join(f"{kind} {part:.1%}" for kind, part in report["split"].items())
    return "\n".join(
        [
            f"{report['topology']}, {report['chips']} chips, compiled in "
            f"{report['compile_seconds']:.0f} s",
            f"{report['step_ms']:.3f} ms a step, {report['images_per_second']:,.0f} images/s, "
            f"{report['share_of_peak']:.1%} of the peak",
            split,
            f"memory {report['bytes_per_chip'] / 2**20:,.0f} MiB a chip, "
            f"{report['memory_share']:.1%} of it",
            f"copies of the dataset: {report['dataset_copies'] or 'none'}",
        ]
    )


if __name__ == "__main__":
    command_line(main)
