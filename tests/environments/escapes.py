"""Ways out of the sandbox, as programs. Each calls ``escaped`` where it got what it must not get."""

from __future__ import annotations

from textwrap import dedent

PRELUDE = """
import ctypes, os, sys, time, signal, socket, resource, threading
HOST = __HOST__
libc = ctypes.CDLL(None, use_errno=True)
machine = os.uname().machine
def number(x86, arm):
    return x86 if machine == "x86_64" else arm
def call(x86, arm, *arguments):
    words = [a if isinstance(a, bytes) or a is None else ctypes.c_long(a) for a in arguments]
    return libc.syscall(ctypes.c_long(number(x86, arm)), *words)
def escaped(what=""):
    print("ESCAPED", what, flush=True)
def tried(function, *arguments):
    try:
        function(*arguments)
    except (OSError, ValueError) as error:
        print("refused:", error)
    else:
        escaped(function)
"""

FILES = {
    "read /etc/passwd": "tried(open, '/etc/passwd')",
    "read /etc/shadow": "tried(open, '/etc/shadow')",
    "read a file of the host": "tried(open, HOST['secret_file'])",
    "list the home of root": """
        found = os.listdir("/root") if os.path.isdir("/root") else []
        if set(found) - {".pyenv", ".local"}: escaped(found)
        tried(open, "/root/.bashrc")
    """,
    "look through the root folder": """
        if set(os.listdir("/")) & {"home", "work", "mnt", "opt", "srv", "sys", "var", "run", "boot", "sbin"}: escaped()
    """,
    "climb above the folder": """
        os.chdir("/box")
        for _ in range(40): os.chdir("..")
        if os.path.exists("home") or os.path.exists("etc/passwd"): escaped()
    """,
    "symbolic link to a host file": """
        os.symlink(HOST["secret_file"], "link")
        tried(open, "link")
        os.symlink("/proc/1/root/etc/passwd", "other")
        tried(open, "other")
    """,
    "hard link to the standard library": "tried(os.link, os.__file__, '/box/linked')",
    "write to the root": "tried(open, '/new', 'w')",
    "write to the standard library": "tried(open, os.__file__, 'a')",
    "write beside the standard library": "tried(open, os.path.dirname(os.__file__) + '/sitecustomize.py', 'w')",
    "write to a shared library": "tried(open, '/etc/ld.so.cache', 'r+')",
    "write to the temporary folder of the host": """
        open("/tmp/planted", "w").write("x")
        if not os.path.exists("/box/planted"): escaped()
    """,
    "third-party packages": """
        for name in ("pydantic", "torch", "pip", "posttrain"):
            try: __import__(name)
            except ImportError: pass
            else: escaped(name)
    """,
    "remount the root writable": """
        if call(165, 40, b"none", b"/", None, 32, None) == 0: escaped()
    """,
    "mount proc": "if call(165, 40, b'proc', b'/box', b'proc', 0, None) == 0: escaped()",
    "mount a tmpfs": "if call(165, 40, b'x', b'/box', b'tmpfs', 0, None) == 0: escaped()",
    "uncover /proc": """
        if call(166, 39, b"/proc", 2) == 0: escaped()
        if os.listdir("/proc"): escaped(os.listdir("/proc"))
    """,
    "/proc of the host": """
        for path in ("/proc/self/environ", "/proc/1/environ", "/proc/self/root", "/proc/sys", "/proc/mounts"):
            if os.path.exists(path): escaped(path)
    """,
    "/sys and cgroups": """
        for path in ("/sys", "/sys/fs/cgroup", "/sys/kernel"):
            if os.path.exists(path): escaped(path)
        tried(os.makedirs, "/sys/fs/cgroup/mine")
    """,
    "devices": """
        if set(os.listdir("/dev")) != {"null", "zero", "urandom"}: escaped(os.listdir("/dev"))
        for path in ("/dev/mem", "/dev/kmem", "/dev/sda", "/dev/vda", "/dev/tty", "/dev/kvm", "/dev/shm/x"):
            tried(open, path, "rb" if "shm" not in path else "wb")
    """,
    "make a device": """
        import stat
        tried(os.mknod, "/box/mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1))
        tried(os.mknod, "/box/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))
    """,
    "chroot": """
        os.mkdir("jail")
        if call(161, 51, b"jail") == 0: escaped()
        if call(155, 41, b"jail", b"jail") == 0: escaped()
    """,
    "open by handle": """
        if call(304, 265, -100, bytes(16), 0) >= 0: escaped()
        if ctypes.get_errno() != 1: escaped("errno %d" % ctypes.get_errno())
    """,
    "new mount interface": """
        for one in (430, 428, 429, 432, 442):
            if call(one, one, b"tmpfs", 0, 0, 0, 0) >= 0: escaped(one)
    """,
}

RIGHTS = {
    "become root": """
        for change in (os.setuid, os.setgid, os.seteuid): tried(change, 0)
        tried(os.setgroups, [0])
    """,
    "capabilities": """
        import struct
        header, data = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
        libc.capget(header, data)
        if any(data.raw): escaped(data.raw)
        if libc.capset(header, struct.pack("=6I", 1 << 21, 1 << 21, 0, 0, 0, 0)) == 0: escaped()
        for capability in range(41):
            if libc.prctl(23, capability, 0, 0, 0) == 1: escaped(capability)
    """,
    "set-user-id programs": """
        os.makedirs("bin")
        open("bin/su", "w").write("#!/bin/sh\\n")
        os.chmod("bin/su", 0o6755)
        for path in ("/bin/su", "/usr/bin/su", "/box/bin/su", "/usr/lib/openssh/ssh-keysign"):
            tried(os.execv, path, [path])
    """,
    "start a program": """
        import subprocess
        for command in ([sys.executable, "-c", "print('ESCAPED')"], ["/lib64/ld-linux-x86-64.so.2", "--list"], ["sh"]):
            tried(subprocess.run, command)
        if os.system("echo ESCAPED") == 0: escaped()
    """,
    "new namespaces": """
        for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000):
            if libc.unshare(flag) == 0: escaped(hex(flag))
            child = call(56, 220, flag | 17, 0, 0, 0, 0)
            if child == 0: os._exit(0)
            if child > 0: escaped(hex(flag))
        if call(435, 435, bytes(88), 88) >= 0: escaped("clone3")
        if call(308, 268, 0, 0) == 0: escaped("setns")
    """,
    "ptrace": """
        if call(101, 117, 0, 0, 0, 0) == 0: escaped("traceme")
        if call(101, 117, 16, 1, 0, 0) == 0: escaped("attach to init")
        if call(310, 270, 1, 0, 0, 0, 0, 0) == 0: escaped("read the memory of init")
        if call(311, 271, 1, 0, 0, 0, 0, 0) == 0: escaped("write it")
    """,
    "keyrings": """
        if call(248, 217, b"user", b"name", b"secret", 6, -3) >= 0: escaped()
        if call(250, 219, 0, -3, 1) >= 0: escaped()
        if call(249, 218, b"user", b"name", None, -3) >= 0: escaped()
    """,
    "change the clock": """
        tried(time.clock_settime, time.CLOCK_REALTIME, 0)
        if call(164, 170, bytes(16), None) == 0: escaped()
        if call(159, 171, bytes(208)) >= 0: escaped()
    """,
    "host name": "tried(socket.sethostname, 'mine')",
    "load kernel code": """
        for one, arm in ((321, 280), (313, 273), (175, 105), (246, 104), (298, 241), (323, 282), (425, 425)):
            if call(one, arm, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1: escaped((one, ctypes.get_errno()))
    """,
    "calls of 32-bit programs": """
        if machine == "x86_64":
            if libc.syscall(ctypes.c_long(0x40000000 | 165), b"x", b"/box", b"tmpfs", 0, None) == 0: escaped("x32")
            import mmap
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            child = os.fork()
            if child == 0:
                if ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0: escaped("int 0x80")
                os._exit(0)
            if os.waitpid(child, 0)[1] == 0: escaped("it was not killed")
    """,
    "raise its own limits": """
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            tried(resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        tried(resource.prlimit, 1, resource.RLIMIT_CPU, (1, 1))
        tried(os.nice, -5)
    """,
    "undo the filter": """
        libc.prctl(38, 0, 0, 0, 0)
        libc.prctl(22, 0, 0, 0, 0)
        libc.prctl(4, 1, 0, 0, 0)
        if libc.unshare(0x10000000) == 0: escaped()
    """,
}

NETWORK = {
    "connect": "tried(socket.create_connection, ('1.1.1.1', 53), 2)",
    "connect to a server of the host": "tried(socket.create_connection, ('127.0.0.1', HOST['port']), 2)",
    "look a name up": "tried(socket.getaddrinfo, 'localhost.example', 80)",
    "unix sockets": """
        tried(socket.socket, socket.AF_UNIX, socket.SOCK_STREAM)
        tried(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM)
    """,
    "netlink, packet and vsock sockets": """
        for family in (16, 17, 40, 38, 10): tried(socket.socket, family, socket.SOCK_RAW)
    """,
    "listen": "tried(socket.create_server, ('127.0.0.1', 0))",
    "network interfaces": """
        try: names = [name for _, name in socket.if_nameindex()]
        except OSError: names = []
        if set(names) - {"lo"}: escaped(names)
    """,
}

PROCESSES = {
    "kill processes of the host": """
        tried(os.kill, HOST["pid"], 0)
        tried(os.kill, HOST["pid"], signal.SIGKILL)
    """,
    "signals to the parent": """
        for one in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getppid(), one)
        time.sleep(0.05)
    """,
    "kill everything": """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try: os.kill(-1, signal.SIGTERM)
        except OSError: pass
    """,
    "more processes than allowed": """
        children = []
        try:
            while len(children) < 200:
                child = os.fork()
                if child == 0: time.sleep(60); os._exit(0)
                children.append(child)
        except OSError: pass
        if len(children) > 8: escaped(len(children))
        for child in children: os.kill(child, signal.SIGKILL)
    """,
    "more threads than allowed": """
        started = 0
        try:
            while started < 200:
                threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
                started += 1
        except (RuntimeError, MemoryError): pass
        if started > 8: escaped(started)
    """,
    "environment of the caller": """
        if set(os.environ) - {"HOME", "LANG", "LC_ALL", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED",
                              "PYTHONUTF8", "TMPDIR", "TZ", "PWD"}: escaped(set(os.environ))
        if "do-not-read" in repr(os.environ): escaped()
    """,
    "inherited descriptors": """
        open_now = []
        for fd in range(3, 1024):
            try: os.fstat(fd)
            except OSError: continue
            open_now.append(fd)
        if open_now: escaped(open_now)
    """,
    "terminal": """
        tried(open, "/dev/tty")
        for fd in (0, 1, 2):
            if os.isatty(fd): escaped()
    """,
    "the keeper's memory": """
        frame = sys._getframe()
        while frame:
            if "do-not-" + "read" in repr(frame.f_locals): escaped()
            frame = frame.f_back
    """,
}

MEMORY = {
    "memory that no limit counts: memfd": "tried(os.memfd_create, 'x')",
    "System V shared memory": "if call(29, 194, 0, 1 << 30, 0o1600) >= 0: escaped()",
    "System V semaphores and queues": """
        if call(64, 190, 0, 10, 0o1600) >= 0: escaped()
        if call(68, 186, 0, 0o1600) >= 0: escaped()
    """,
    "POSIX shared memory and semaphores": """
        from multiprocessing import shared_memory, Lock
        tried(shared_memory.SharedMemory, None, True, 1 << 20)
        tried(Lock)
    """,
    "message queues": """
        if call(240, 180, b"mine", 0o102, 0o600, None) >= 0: escaped()
    """,
    "lock memory": "if libc.mlockall(3) == 0: escaped()",
}


def program(source: str, host: dict[str, object]) -> bytes:
    """The whole program of an attempt."""
    return (PRELUDE.replace("__HOST__", repr(host)) + dedent(source)).encode()
