"""One run: from the keeper's fork to the untrusted code, and its end.

Three processes. The *opener* leaves for a new user, mount and process namespace and waits. The *init* is process 1 of
it: it makes the folder, gives up every right, holds the wall clock, and takes every process of the run with it when it
ends. The *program* gets its limits and the filter of system calls, and then runs the code.

Here: that order. Not here: reading what the program writes (``serve``).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

from . import kernel, seccomp

BOX = "/box"
"""The run's own folder."""
INSIDE_USER = 1000
_SPARE_PROCESSES = 2  # the opener and the init are counted with the program's
_DUMMY_CORE_BYTES = 1  # 0 would still feed a core dump to a handler program; 1 is refused for that, too


def open_run(order: dict[str, Any], files: dict[str, bytes], status: int) -> NoReturn:
    """The opener, in a process of its own. Standard input, output and error are in place."""
    user, group = os.getuid(), os.getgid()
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
        kernel.map_user(INSIDE_USER, user, group)
        init = os.fork()
        if init == 0:
            _init(order, files, status)
        os.close(status)
        os.waitpid(init, 0)
    except BaseException as error:
        _report(status, {"failed": f"the run's namespaces: {_said(error)}"})
    os._exit(0)


def _init(order: dict[str, Any], files: dict[str, bytes], status: int) -> NoReturn:
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from inside, process 1 ignores what it does not handle
        _make_box(order, files)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        begun_read, begun_write = os.pipe()
        program = os.fork()
        if program == 0:
            _program(order, begun_write)
        os.close(begun_write)
        _report(status, _watch(order, program, begun_read))
    except BaseException as error:
        _report(status, {"failed": f"the run's folder: {_said(error)}"})
    os._exit(0)


def _make_box(order: dict[str, Any], files: dict[str, bytes]) -> None:
    secure = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("/", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("nothing", "/proc", "tmpfs", secure | kernel.MS_RDONLY, data="size=4k,nr_inodes=1,mode=0555")
    room = f"size={order['folder_bytes']},nr_inodes={order['files']},mode=0700"
    kernel.mount("box", BOX, "tmpfs", secure, data=room)
    os.chdir(BOX)
    for name, data in files.items():
        if "/" in name:
            os.makedirs(os.path.dirname(name), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
        with open(name, "wb") as stream:  # noqa: PTH123 - the guest stays free of pathlib
            stream.write(data)


def _watch(order: dict[str, Any], program: int, begun: int) -> dict[str, Any]:
    """Wait for the program, up to its wall clock. Whether its code was ever reached is on the pipe."""
    start = time.monotonic()
    handle = os.pidfd_open(program)
    waiter = select.poll()
    waiter.register(handle, select.POLLIN)
    in_time = bool(waiter.poll(order["wall_seconds"] * 1000))
    os.set_blocking(begun, False)
    if not _has_begun(begun):
        return {"failed": "the program's code was not reached"}
    if not in_time:
        os.kill(program, signal.SIGKILL)
    _, code, usage = os.wait4(program, 0)
    return {
        "timed_out": not in_time,
        "exit_code": os.WEXITSTATUS(code) if os.WIFEXITED(code) else None,
        "signal": os.WTERMSIG(code) if os.WIFSIGNALED(code) else None,
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_bytes": usage.ru_maxrss * 1024,
    }


def _has_begun(begun: int) -> bool:
    try:
        return os.read(begun, 1) == b"+"
    except BlockingIOError:
        return False


def _program(order: dict[str, Any], begun: int) -> NoReturn:
    os.setsid()
    os.dup2(begun, 3)
    os.closerange(4, 1 << 16)
    _limit(order)
    source = _source(order["entry"])
    seccomp.install()
    os.write(3, b"+")
    os.close(3)
    run_code(order["entry"], source)


def _limit(order: dict[str, Any]) -> None:
    cpu = int(order["cpu_seconds"])
    allowed = resource.getrlimit(resource.RLIMIT_CORE)[1]
    core = _DUMMY_CORE_BYTES if allowed == resource.RLIM_INFINITY else min(_DUMMY_CORE_BYTES, allowed)
    for kind, soft, hard in (
        (resource.RLIMIT_AS, order["address_bytes"], order["address_bytes"]),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, order["file_bytes"], order["file_bytes"]),
        (resource.RLIMIT_NOFILE, order["open_files"], order["open_files"]),
        (
            resource.RLIMIT_NPROC,
            order["processes"] + _SPARE_PROCESSES,
            order["processes"] + _SPARE_PROCESSES,
        ),
        (resource.RLIMIT_CORE, core, core),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 64, 64),
    ):
        resource.setrlimit(kind, (soft, hard))


def _source(entry: str) -> bytes:
    with open(entry, "rb") as stream:  # noqa: PTH123
        return stream.read()


def run_code(entry: str, source: bytes) -> NoReturn:
    """Run ``source`` as Python runs a script, and end the process as it would."""
    import atexit
    import threading
    import types

    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=f"{BOX}/{entry}", __builtins__=__builtins__)
    sys.modules["__main__"] = main
    sys.argv = [entry]
    sys.path.insert(0, BOX)
    code = 0
    try:
        exec(compile(source, f"{BOX}/{entry}", "exec"), main.__dict__)
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException as error:
        trace = error.__traceback__
        sys.excepthook(type(error), error.with_traceback(trace and trace.tb_next), None)
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = code or 120  # as Python does where its last words cannot be written
    with contextlib.suppress(BaseException):
        sys.stderr.flush()
    os._exit(code)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(BaseException):
        sys.stderr.write(f"{error.code}\n")
    return 1


def _report(status: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(message).encode())


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
