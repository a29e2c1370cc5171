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

    Attributes:
      received: The number of the first signal, None if there was none.
    """

    received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._old_handlers = {}
        if threading.current_thread() is threading.main_thread():
            # A shell lets its background jobs ignore the Ctrl-C that is meant for others.
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._old_handlers = {s: h for s, h in handlers.items() if h is not signal.SIG_IGN}
        if not self._old_handlers:
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # Only signals with a handler in Python are written to the pipe.
        for number in self._old_handlers:
            signal.signal(number, lambda *_: None)
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

    def _watch(self) -> None:
        while number := os.read(self._reader, 1)[0]:
            if number not in SIGNALS:
                continue
            if self.received is not None:
                os._exit(128 + number)
            self.received = number
            start = "\n" if sys.stderr.isatty() else ""  # below the bar
            message = "stopping after this step; a second signal stops at once"
            print(f"{start}{message}", file=sys.stderr, flush=True)
