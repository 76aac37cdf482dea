"""How long to wait for another process: as long as it gets on, which its processor time tells on a busy machine and a slow one alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

STALL_S = 120.0
STEP_S = 0.05  # processor time within a stall that counts as getting on; a thread that only reports takes a tenth of it


class Patience:
    """Ends when what is waited for has not used `STEP_S` of processor time within `stall_s` seconds of `clock`."""

    def __init__(self, stall_s: float = STALL_S, clock: Callable[[], float] = time.monotonic):
        self._stall_s, self._clock = stall_s, clock
        self._since, self._spent = clock(), 0.0

    def ended(self, spent: float) -> bool:
        """Whether to give up, after hearing that so many seconds of processor time are `spent` so far."""
        if not self._spent <= spent < self._spent + STEP_S:
            self._since, self._spent = self._clock(), spent
        return self._clock() - self._since > self._stall_s


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used; 0 where it is gone or the system does not tell (all but Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
