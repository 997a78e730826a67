"""Signals that ask a command to stop, all on one path: the command says what is kept, and the exit status names the signal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator

__all__ = ["Stop", "stopping_signals"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is POSIX only


@dataclasses.dataclass
class Stop:
    """``number`` is the signal that came; SIGINT's where a KeyboardInterrupt came by itself."""

    number: int = signal.SIGINT

    @property
    def name(self) -> str:
        """``"SIGTERM"``, say."""
        return signal.Signals(self.number).name

    @property
    def status(self) -> int:
        """The exit status that a shell gives such an end."""
        return 128 + self.number


@contextlib.contextmanager
def stopping_signals() -> Iterator[Stop]:
    """While this is open, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does; a second signal ends the process at once.

    Signals that are ignored (``nohup``) or that the caller handles stay as they are, all of them outside the main thread.
    Under ``torchrun``, which repeats the terminal's SIGINT, further signals are ignored: it kills what does not end in time.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    again = signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL

    def handle(number: int, frame: object) -> None:
        stop.number = number
        for other in before:
            signal.signal(other, again)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) in usual}
    try:
        for number in before:
            signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
