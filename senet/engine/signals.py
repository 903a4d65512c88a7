"""Stop on SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal or ssh connection)."""

import contextlib
import os
import signal
import socket
import threading

from senet.engine.compat import discard_output, print_error

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Raised to stop the program on the signal `signal_number`; the message says what to do next.
    Like KeyboardInterrupt, it is not caught by `except Exception`."""

    def __init__(self, signal_number, text):
        super().__init__(text)
        self.exit_status = 128 + signal_number


@contextlib.contextmanager
def signals_as_exceptions():
    """Raise Stopped on SIGTERM and SIGHUP inside the block, so that temporary files are removed.
    Only the main thread can receive signals; in others, this has no effect."""

    def stop(number, _):
        name = signal.Signals(number).name
        raise Stopped(number, f"stopped by {name}; run the same command to restart")

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) == signal.SIG_DFL
        and threading.current_thread() is threading.main_thread()
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Handle signals inside a `with` statement: store the first signal in `received`, and end the
    process on the second one, unless that is SIGHUP. A signal that was ignored before, as SIGHUP is
    under nohup, stays ignored.

    A Python signal handler runs only when the main thread returns from TensorFlow, which may take a
    whole training step. The wakeup socket has no such delay: a thread reads its other end.
    """

    received = None

    def __enter__(self):
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._listening, self._waking = socket.socketpair()
        self._waking.setblocking(False)
        self._descriptor_before = signal.set_wakeup_fd(
            self._waking.fileno(), warn_on_full_buffer=False
        )
        self._handlers_before = {
            number: signal.signal(number, lambda *_: None)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor_before)
        self._waking.close()

    def _listen(self):
        with self._listening:
            while number := self._listening.recv(1):
                if number[0] in self._handlers_before:
                    self._note(signal.Signals(number[0]))

    def _note(self, number):
        if self.received:
            # When a terminal closes, both its shell and the kernel send SIGHUP.
            if number == signal.SIGHUP:
                return
            os._exit(128 + number)
        self.received = number
        if number == signal.SIGHUP:
            # Writing to a closed terminal would raise an error.
            discard_output(*self._terminals)
        if number == signal.SIGINT:
            print_error(
                "finishing this step, then saving; press Ctrl-C again to quit without saving"
            )
