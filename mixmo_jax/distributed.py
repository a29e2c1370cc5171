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

from mixmo_jax import distributed
from mixmo_jax.errors import InputError, expand, shortened, warn

AXIS = "device"


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder for the next start; "" for none.

    A folder that JAX has been told already, such as by `JAX_COMPILATION_CACHE_DIR`, stays.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    path = expand(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warn(f"compilation_cache={folder!r}: cannot be written: {error.strerror}")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(*axes))


def replicate(tree):
    """Puts the same arrays on all local devices, once, for arguments that are not mapped."""
    return jax.device_put(tree, _sharding())


def shard(tree):
    """Cuts arrays along their first axis, a multiple of the local devices, one part for each."""
    return jax.device_put(tree, _sharding(AXIS))


def replicate_for_pmap(tree):
    """Copies a tree to all local devices, stacked along a leading axis as pmap takes it."""
    # Not flax.jax_utils.replicate, whose other mesh axis makes pmap compile twice.
    count = jax.local_device_count()

    def copy(leaf):
        return jax.device_put(jnp.broadcast_to(leaf, (count, *leaf.shape)), _sharding(AXIS))

    return jax.tree.map(copy, tree)


def axis_positions() -> np.ndarray:
    """Returns the places of the local devices on the mapped axis, which spans all processes."""
    if jax.process_count() == 1:
        return np.arange(jax.local_device_count())
    count = jax.local_device_count()
    positions = jax.pmap(lambda _: jax.lax.axis_index(AXIS), AXIS)(shard(np.zeros(count)))
    return np.asarray(positions)


def fetch_first(array: jax.Array) -> np.ndarray:
    """Waits for an array with a leading axis of the devices; returns the first local one's part.

    Unlike `array[0]` it starts no program, which would wait for all that were started since.
    """
    return np.asarray(array.addressable_shards[0].data)[0]


def unreplicate(tree):
    """Returns the first device's copy of a tree that was replicated for pmap."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


# A process that is lost is noticed after this time, and the others end.
_HEARTBEAT_SECONDS = 30
# The others wait that long at their end for process 0, which evaluates the run and draws pictures.
_SHUTDOWN_SECONDS = 3600
# What errors say that come from the connection between the processes.
_LOST = re.compile("gloo|nccl|peer|unavailable|deadline_exceeded|aborted", re.IGNORECASE)


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process to the others of its run. To be called before JAX is used.

    Without arguments the others are found as far as JAX knows the cluster: TPU pods, SLURM, Open
    MPI, Kubernetes. A process that nobody started together with others stays alone.

    Args:
      coordinator_address: `HOST:PORT` of process 0, the same for all.
      num_processes: The number of processes.
      process_id: The number of this process, from 0.

    Raises:
      InputError: if only some of the arguments are given, or the others cannot be reached.
    """
    arguments = (coordinator_address, num_processes, process_id)
    by_hand = any(value is not None for value in arguments)
    if by_hand:
        _check(*arguments)
    connected = jax.distributed.is_initialized()
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *arguments,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = shortened(str(error).partition("\n")[0])
        if by_hand:
            raise InputError(f"coordinator_address={coordinator_address}: {reason}") from error
        if jax.distributed.is_initialized() and not connected:  # with others that do not answer
            raise InputError(f"the other processes cannot be reached: {reason}") from error
        # A ValueError says that there is no cluster, the other that JAX has been used already.
        if not isinstance(error, ValueError) and "before any JAX" not in reason:
            warn(f"other processes, if there are any, cannot be reached: {reason}")


def _check(address: str | None, count: int | None, index: int | None) -> None:
    names = ("coordinator_address", "num_processes", "process_id")
    for name, value in zip(names, (address, count, index), strict=True):
        if value is None:
            raise InputError(f"{name}: missing; {', '.join(names)} belong together")
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise InputError(f"coordinator_address={address}: expected HOST:PORT")
    if not 0 <= index < count:
        raise InputError(f"process_id={index}: expected 0 to num_processes - 1 = {count - 1}")


def is_first() -> bool:
    """Returns whether this is process 0, which reads, writes and speaks for all."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Returns whether this is the only process."""
    return jax.process_count() == 1


def broadcast(tree):
    """Returns process 0's arrays in all processes, bit for bit.

    Args:
      tree: A tree of arrays, of the same shapes and dtypes in all processes.
    """
    if is_alone():
        return tree
    values, treedef = jax.tree.flatten(tree)
    values = [np.asarray(value) for value in values]
    # As bytes: a sum over the processes, which it is on the way, would turn -0.0 into 0.0.
    data = [np.frombuffer(value.tobytes(), np.uint8) for value in values]
    data = multihost_utils.broadcast_one_to_all(data)
    received = [
        np.frombuffer(np.asarray(d).tobytes(), v.dtype).reshape(v.shape)
        for d, v in zip(data, values, strict=True)
    ]
    return jax.tree.unflatten(treedef, received)


def broadcast_json(value):
    """Returns process 0's value, anything that JSON can hold, in all processes."""
    if is_alone():
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if not is_first():
        data = data[:0]
    size = int(broadcast(np.int32(data.size)))
    data = broadcast(np.resize(data, size) if data.size else np.zeros(size, np.uint8))
    return json.loads(data.tobytes())


def check_equal(description: dict[str, object]) -> None:
    """Checks that all processes were started alike.

    Args:
      description: What must be equal, by the names by which a user knows it; JSON can hold it.

    Raises:
      InputError: in each process that differs from process 0.
    """
    first = broadcast_json(description)
    own = json.loads(json.dumps(description))
    differences = [
        f"{name}={shortened(str(own.get(name)))} (process 0: {shortened(str(first.get(name)))})"
        for name in {**first, **own}
        if own.get(name) != first.get(name)
    ]
    if differences:
        which = f"process {jax.process_index()} differs from process 0"
        raise InputError(f"{which}: {', '.join(differences)}")


def map_rows(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Computes a function of rows, each process its part of them, and gathers the results.

    Args:
      function: `[n, …] → [n, …]`, row by row, for any n >= 1.
      rows: [N, …], the same in all processes; N >= 1.

    Returns:
      The results [N, …], in all processes.
    """
    if is_alone():
        return function(rows)
    size = -(-len(rows) // jax.process_count())
    part = (jax.process_index() * size + np.arange(size)) % len(rows)  # equally many for all
    results = multihost_utils.process_allgather(function(rows[part]))  # [processes, size, …]
    return np.asarray(results).reshape(-1, *results.shape[2:])[: len(rows)]


def any_process(question: Callable[[], bool], delay: int) -> Callable[[], bool]:
    """Returns a question that all processes ask equally often, to which they get one answer.

    Args:
      question: Asked of this process.
      delay: The number of questions by which the answers lag behind, so that nobody waits.

    Returns:
      A function that returns whether the answer was yes in any process, `delay` questions ago or
      before. A process that is alone gets its answer at once.
    """
    if is_alone():
        return question
    any_fn = jax.pmap(lambda flag: jax.lax.pmax(flag, distributed.AXIS), distributed.AXIS)
    pending, answer = collections.deque(), False

    def ask() -> bool:
        nonlocal answer
        flags = np.full(jax.local_device_count(), question(), np.int32)
        pending.append(any_fn(distributed.shard(flags)))
        if len(pending) > delay:
            answer |= bool(distributed.fetch_first(pending.popleft()))
        return answer

    return ask


@contextlib.contextmanager
def ending_without_others() -> Iterator[None]:
    """Ends this process if it fails; the others notice, and end too.

    Python would wait at its exit until all processes arrive there.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or not jax.distributed.is_initialized():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            reason = shortened(str(error).partition("\n")[0])
            print(
                f"error: another process has ended or cannot be reached: {reason}", file=sys.stderr
            )
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Takes the first SIGINT or SIGTERM as a request to stop, as a context manager.

    The second one ends the process at once, even while something is being compiled: a thread reads
    the signals, as Python's own handlers wait for the main thread. Outside of the main thread it
    does nothing, as Python handles signals only there.

    Args:
      own_process: Whether the process is a command's own. If not, as in a notebook, the second
        signal does not end it but raises `KeyboardInterrupt`, as soon as Python gets to it.

    Attributes:
      received: The number of the first signal, None if there was none.
    """

    received: int | None = None

    def __init__(self, own_process: bool = True):
        self._own_process = own_process

    def __enter__(self) -> "StopSignals":
        self._old_handlers, self._handled, self._repeated = {}, False, False
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # A shell lets its background jobs ignore the Ctrl-C that is meant for others; None is
            # a handler that is not Python's, which could not be restored.
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
        """Python's handler, in the main thread; it may take several signals for one."""
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
