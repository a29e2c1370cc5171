"""Devices and processes: placement, replication, broadcast, and the signals that stop a run."""

import collections
import contextlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixmo_jax.errors import InputError, expand, format_value, warn

AXIS = "device"


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder for the next start ("": nowhere).

    A folder that JAX was given otherwise, such as by `JAX_COMPILATION_CACHE_DIR`, stays.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    try:
        expand(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warn(f"compilation_cache={folder!r}: cannot be written: {error.strerror}")
        return
    jax.config.update("jax_compilation_cache_dir", str(expand(folder)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def replicate(tree):
    """Places a copy of the arrays on each local device, for arguments that are not mapped."""
    return jax.device_put(tree, _sharding())


def shard(tree):
    """Splits arrays along their first axis over the local devices, whose number divides it."""
    return jax.device_put(tree, _sharding(AXIS))


def replicate_for_pmap(tree):
    """Copies a tree to all local devices, stacked along a leading axis for pmap."""
    # Not flax.jax_utils.replicate, whose other mesh axis makes pmap compile twice.
    count = jax.local_device_count()

    def copy(leaf):
        return jax.device_put(jnp.broadcast_to(leaf, (count, *leaf.shape)), _sharding(AXIS))

    return jax.tree.map(copy, tree)


def axis_positions() -> np.ndarray:
    """Returns the indices of the local devices on the mapped axis, which spans all processes."""
    count = jax.local_device_count()
    if is_alone():
        return np.arange(count)
    positions = jax.pmap(lambda _: jax.lax.axis_index(AXIS), AXIS)(shard(np.zeros(count)))
    return np.asarray(positions)


def fetch_first(array: jax.Array) -> np.ndarray:
    """Waits for an array with a leading device axis; returns the part of the first local device.

    Unlike `array[0]` it starts no program, which would wait for all programs started since.
    """
    return np.asarray(array.addressable_shards[0].data)[0]


def unreplicate(tree):
    """Returns the first device's copy of a tree that was replicated for pmap."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


_HEARTBEAT_SECONDS = 30  # after which a lost process is noticed, and the others end
_SHUTDOWN_SECONDS = 3600  # the others wait at their end while process 0 evaluates the run
# In errors of the connection between the processes.
_LOST = re.compile("gloo|nccl|peer|unavailable|deadline_exceeded|aborted", re.IGNORECASE)


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process to the others of its run. To be called before JAX is used.

    Without arguments JAX looks for a cluster: TPU pods, SLURM, Open MPI, Kubernetes. A process that
    was started alone stays alone.

    Args:
      coordinator_address: `HOST:PORT` of process 0, the same for all.
      num_processes: The number of processes.
      process_id: The index of this process.

    Raises:
      InputError: if the arguments do not fit together, or the others cannot be reached.
    """
    arguments = (coordinator_address, num_processes, process_id)
    by_hand = arguments != (None, None, None)
    if by_hand:
        complete = None not in arguments and re.fullmatch(r".+:\d+", coordinator_address)
        if not complete or not 0 <= process_id < num_processes:
            names = ("coordinator_address", "num_processes", "process_id")
            given = ", ".join(f"{n}={format_value(v)}" for n, v in zip(names, arguments))  # noqa: B905
            raise InputError(f"{given}: expected HOST:PORT, a count, and 0 to num_processes - 1")
    connected = jax.distributed.is_initialized()
    jax.config.update("jax_enable_preemption_service", False)  # see `StopSignals`
    try:
        jax.distributed.initialize(
            *arguments,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = _first_line(error)
        if by_hand or (jax.distributed.is_initialized() and not connected):
            raise InputError(f"the other processes cannot be reached: {reason}") from error
        # A ValueError means that there is no cluster, the other that JAX has been used already.
        if not isinstance(error, ValueError) and "before any JAX" not in reason:
            warn(f"other processes, if there are any, cannot be reached: {reason}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def is_first() -> bool:
    """Returns whether this is process 0, which reads, writes and prints for all."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Returns whether this is the only process."""
    return jax.process_count() == 1


def broadcast(tree):
    """Returns process 0's arrays in all processes, bit for bit.

    Args:
      tree: A tree of arrays with the same shapes and dtypes in all processes.
    """
    if is_alone():
        return tree
    values, treedef = jax.tree.flatten(tree)
    values = [np.asarray(value) for value in values]
    # As bytes: JAX broadcasts by a sum over the processes, which would turn -0.0 into 0.0.
    data = [np.frombuffer(value.tobytes(), np.uint8) for value in values]
    received = [
        np.asarray(part).view(value.dtype).reshape(value.shape)
        for part, value in zip(multihost_utils.broadcast_one_to_all(data), values, strict=True)
    ]
    return jax.tree.unflatten(treedef, received)


def broadcast_json(value):
    """Returns process 0's value, one that JSON can hold, in all processes."""
    if is_alone():
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast(np.int32(data.size)))
    return json.loads(broadcast(np.resize(data, size)).tobytes())


def check_equal(description: dict[str, object]) -> None:
    """Checks that all processes were started with the same values.

    Args:
      description: Values that JSON can hold, by names that the user knows.

    Raises:
      InputError: in each process that differs from process 0.
    """
    first = broadcast_json(description)
    own = json.loads(json.dumps(description))
    differences = [
        f"{name}={format_value(own.get(name))} (process 0: {format_value(first.get(name))})"
        for name in {**first, **own}
        if own.get(name) != first.get(name)
    ]
    if differences:
        process = f"process {jax.process_index()} differs from process 0"
        raise InputError(f"{process}: {', '.join(differences)}")


def map_rows(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Computes a function of rows, split over the processes, and gathers the results.

    Args:
      function: `[n, …] → [n, …]`, row by row, for any n >= 1.
      rows: [N, …], the same in all processes; N >= 1.

    Returns:
      The results [N, …], in all processes.
    """
    if is_alone():
        return function(rows)
    size = -(-len(rows) // jax.process_count())
    part = (jax.process_index() * size + np.arange(size)) % len(rows)  # as many for each process
    results = multihost_utils.process_allgather(function(rows[part]))  # [processes, size, …]
    return np.asarray(results).reshape(-1, *results.shape[2:])[: len(rows)]


def any_process(predicate: Callable[[], bool], delay: int) -> Callable[[], bool]:
    """Returns `predicate` OR-ed over all processes, `delay` calls late.

    All processes must call it equally often. Because of the delay, no call waits for the device. A
    process that is alone gets `predicate` itself.
    """
    if is_alone():
        return predicate
    any_fn = jax.pmap(lambda flag: jax.lax.pmax(flag, AXIS), AXIS)
    pending, answer = collections.deque(), False

    def delayed() -> bool:
        nonlocal answer
        pending.append(any_fn(shard(np.full(jax.local_device_count(), predicate(), np.int32))))
        if len(pending) > delay:
            answer |= bool(fetch_first(pending.popleft()))
        return answer

    return delayed


@contextlib.contextmanager
def ending_without_others() -> Iterator[None]:
    """Ends this process at once if it fails: at its exit, JAX would wait for the others.

    The others notice, and end too.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or not jax.distributed.is_initialized():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            reason = f"another process has ended or cannot be reached: {_first_line(error)}"
            print(f"error: {reason}", file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Takes the first SIGINT or SIGTERM as a request to stop; a context manager.

    The second one ends the process at once, even during a compilation: a thread reads the signals,
    as Python's own handlers wait for the main thread. In other threads than the main one it does
    nothing, as Python handles signals only there.

    JAX's preemption service does not replace it. Measured (jax 0.12): it needs
    `jax.distributed.initialize`, ignores the second SIGTERM, and does not notice SIGINT.

    Args:
      own_process: Whether the process belongs to the command. If not, as in a notebook, the second
        signal does not end it but raises `KeyboardInterrupt`, as soon as Python gets to it.

    Attributes:
      received: The number of the first signal, None without one.
    """

    received: int | None = None

    def __init__(self, own_process: bool = True):
        self._own_process = own_process

    def __enter__(self) -> "StopSignals":
        self._old_handlers, self._handled, self._repeated = {}, False, False
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # A shell lets its background jobs ignore Ctrl-C. None is a handler outside of Python,
            # which could not be restored.
            kept = (signal.SIG_IGN, None)
            self._old_handlers = {s: h for s, h in handlers.items() if h not in kept}
        if not self._old_handlers:
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # Only signals with a handler in Python are written to the pipe.
        for number in self._old_handlers:
            signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if not self._old_handlers:
            return
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def requested(self) -> bool:
        """Returns whether there was a signal."""
        return self.received is not None

    def _handle(self, signum, frame) -> None:
        """Python's handler, in the main thread; several signals may be one call."""
        if (self._handled or self._repeated) and not self._own_process:
            raise KeyboardInterrupt
        self._handled = True

    def _watch(self) -> None:
        while number := os.read(self._reader, 1)[0]:
            if number not in SIGNALS:
                continue
            if self.received is not None:
                if self._own_process:
                    os._exit(128 + number)
                self._repeated = True
                continue
            self.received = number
            start = "\n" if sys.stderr.isatty() else ""  # below the bar
            message = "stopping after the steps under way; a second signal stops at once"
            print(f"{start}{message}", file=sys.stderr, flush=True)
