"""Faults in the system calls of a change, whoever makes them: Python, HDF5, FAISS or Arrow. Needs Linux and strace.

The change runs in a forked process, to which strace is attached. It makes one call fail, or kills the process there.
"""

import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipfake.errors import ClipfakeError

WRITING = (
    *("openat", "write", "pwrite64", "ftruncate", "fallocate", "link", "linkat", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "mkdir", "mkdirat"),
)
TRACEBACK = 3  # exit status of a process that raised anything but an error of clipfake
KILL = "signal=SIGKILL"


@dataclass(frozen=True)
class Call:
    """A system call that writes into the folder of a test."""

    name: str
    ordinal: int  # among the calls of this name that its thread makes
    text: str

    def faults(self) -> list[str]:
        """What strace can inject: errors that a disk gives for this call, or the end of the process."""
        errors = {
            "openat": ("EACCES", "ENOSPC"),
            "mkdir": ("ENOSPC", "EROFS"),
            "unlink": ("EIO", "EROFS"),
            "unlinkat": ("EIO", "EROFS"),
            "rmdir": ("EIO",),
            "fsync": ("EIO", "ENOSPC"),
        }
        return [*(f"error={error}" for error in errors.get(self.name, ("EIO", "ENOSPC"))), KILL]


@dataclass(frozen=True)
class Outcome:
    """How a traced process ended."""

    status: int  # its exit status, or minus the signal that ended it
    output: str


def available() -> bool:
    """True if strace is installed and may attach to a process of this user."""
    if not shutil.which("strace"):
        return False
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    try:
        with _attached(child, "-o", os.devnull, "-e", "trace=none"):
            os.kill(child, signal.SIGCONT)
            return os.waitpid(child, 0)[1] == 0
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False


def run(change: Callable[[], object], work: Path, fault: str = "") -> Outcome:
    """Run a change in another process, with a fault such as "fsync:error=EIO:when=3"; its log is in `work`."""
    output, options = work / "output", ("-e", f"inject={fault}") if fault else ()
    child = os.fork()
    if not child:
        _run(change, output)
    os.waitpid(child, os.WUNTRACED)
    traced = fault.partition(":")[0] or ",".join(WRITING)
    with _attached(child, "-f", "-y", "-s", "0", "-o", str(work / "calls"), "-e", f"trace={traced}", *options):
        os.kill(child, signal.SIGCONT)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(status, output.read_text())


def _run(change: Callable[[], object], output: Path) -> None:
    """Run a change as the command line does, and end the process."""
    status = TRACEBACK
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.kill(os.getpid(), signal.SIGSTOP)
        change()
        status = 0
    except ClipfakeError as e:
        os.write(2, f"clipfake: {e}\n".encode())
        status = 1
    except BaseException:  # noqa: BLE001 - the process ends here
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


@contextmanager
def _attached(process: int, *options: str) -> Iterator[None]:
    """Attach strace to a stopped process, and wait for its end; raises TimeoutError if it cannot be attached."""
    command = ["strace", "-qq", *options, "-p", str(process)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as strace:
        until = time.monotonic() + 30
        while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
            if strace.poll() is not None or time.monotonic() > until:
                strace.kill()
                raise TimeoutError("strace cannot attach")
            time.sleep(0.002)
        yield


def calls_in(work: Path) -> list[Call]:
    """The calls that the last change made and that write below `work`, except into the files of this module."""
    counts: Counter[tuple[str, str]] = Counter()
    calls = []
    for line in (work / "calls").read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(\w+)\((.*)", line)
        if not match:
            continue
        thread, name, arguments = match.groups()
        counts[thread, name] += 1
        reads = name == "openat" and not re.search(r"O_CREAT|O_WRONLY|O_RDWR", arguments)
        if str(work) in arguments and f"{work}/output" not in arguments and not reads:
            calls.append(Call(name, counts[thread, name], line))
    return calls
