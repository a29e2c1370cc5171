"""Ctrl-C and the signal that a scheduler sends before it takes the machine away."""

import os
import signal
import sys
import threading

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
