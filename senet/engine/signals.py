"""Stop on SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal or ssh connection)."""

import contextlib
import os
import signal
import socket
import threading
import time

from senet.engine.compat import print_error
from senet.engine.errors import Failure
from senet.engine.text import duration

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONG = 3  # seconds left of a step that are worth a note


class Stopped(BaseException):
    """Raised to stop the program on the signal `signal_number`; the message says what to do next.
    Like KeyboardInterrupt, it is not caught by `except Exception`."""

    def __init__(self, signal_number, text):
        super().__init__(text)
        self.exit_status = 128 + signal_number


@contextlib.contextmanager
def _handling(numbers, handler):
    """Handle the signals `numbers` inside the block. A signal that was ignored before, as SIGHUP is
    under nohup, stays ignored. Only the main thread can; in others, this has no effect."""
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def signals_as_exceptions():
    """Return a context in which SIGTERM and SIGHUP raise Stopped, so that temporary files are
    removed."""

    def stop(number, _):
        name = signal.Signals(number).name
        raise Stopped(number, f"stopped by {name}; run the same command to restart")

    return _handling([signal.SIGTERM, signal.SIGHUP], stop)


class StopSignals(contextlib.ExitStack):
    """Inside a `with` statement, store the first signal in `received`, and end the process on the
    second one, unless that is SIGHUP. If `waiting` is true, the first one ends the process.

    Python calls signal handlers only between operations of the main thread: not during a training
    step. A thread that reads the wakeup socket has no such delay."""

    received = None
    waiting = False  # for other workers
    step_end = 0.0  # when the current step will probably end, in seconds of time.monotonic()

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            raise Failure(
                "training must run in the main thread, which receives signals, not in another"
            )
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self.callback(writer.close)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.callback(signal.set_wakeup_fd, -1)
        self.enter_context(_handling(SIGNALS, lambda *_: None))
        threading.Thread(target=self._listen, args=[reader], daemon=True).start()
        return self

    def _listen(self, reader):
        with reader:
            while number := reader.recv(1):
                if number[0] in SIGNALS:
                    self._note(signal.Signals(number[0]))

    def _note(self, number):
        # When a terminal closes, both its shell and the kernel send SIGHUP.
        if self.received and number == signal.SIGHUP:
            return
        if self.waiting:
            print_error(f"stopped by {number.name} while waiting for workers")
        if self.waiting or self.received:
            os._exit(128 + number)
        self.received = number
        if number == signal.SIGINT:
            left = self.step_end - time.monotonic()
            note = f" ({duration(left)} left)" if left > LONG else ""
            print_error(
                f"finishing this step{note}, then saving; press Ctrl-C again to quit without saving"
            )
