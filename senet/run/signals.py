"""Stopping by SIGINT (Ctrl-C) and SIGTERM."""

import os
import signal
import socket
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run was stopped by `signal_number`, and saved; the text says how to go on."""

    def __init__(self, signal_number, text):
        super().__init__(text)
        self.exit_status = 128 + signal_number


class StopSignals:
    """Inside its `with` statement the first signal is only noted in `received`, and a second one
    ends the process at once.

    A Python signal handler has to wait for the main thread to come back from TensorFlow, which
    may take a whole training step. The wakeup socket does not, and a thread listens at its end.
    """

    received = None

    def __enter__(self):
        self._listening, self._waking = socket.socketpair()
        self._waking.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        self._handlers_before = {s: signal.signal(s, lambda *_: None) for s in SIGNALS}
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._waking.close()

    def _listen(self):
        with self._listening:
            while number := self._listening.recv(1):
                if number[0] in SIGNALS:
                    if self.received:
                        os._exit(128 + number[0])
                    self.received = signal.Signals(number[0])
