"""A program that must not outlive the Neaptide that started it: `supervisor.py LIFELINE LIMIT PROGRAM WORDS...`.

Neaptide holds the other end of the pipe LIFELINE (a file descriptor). When that end closes, because Neaptide let go of it or died in
whatever way, the program and all that it started are killed. LIMIT: seconds of processor time it may take, 0 for any number. This
process ends as the program does, by the same status or signal. It runs alone, by path, with the standard library only.
"""

from __future__ import annotations

import _thread
import os
import resource
import signal
import sys


def main() -> None:
    """Run the program to its end, or to that of the lifeline."""
    lifeline, limit, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(lifeline, False)
    if limit:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    heard = [signal.SIGPIPE, signal.SIGXFSZ]  # Python ignores these, and what it starts would too
    try:
        program = os.posix_spawn(words[0], words, os.environ, setpgroup=0, setsigdef=heard)
    except OSError as error:
        sys.exit(f"cannot start {words[0]!r}: {error.strerror or error}")
    _thread.start_new_thread(_end_with, (lifeline, program))
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-status])
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _end_with(lifeline: int, program: int) -> None:
    while os.read(lifeline, 1):
        pass
    try:
        os.killpg(program, signal.SIGKILL)
    except ProcessLookupError:  # it has just ended by itself
        return


if __name__ == "__main__":
    main()
