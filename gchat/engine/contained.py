"""The inside of `sandbox.run`: a script of its own that contains itself, then runs the code.

Started as `python -I contained.py FD` with one JSON line on stdin; what became of it goes to the
descriptor FD, which the code does not have. It imports the standard library only, so that a start
takes milliseconds. Three processes: this one waits outside; `init` is process 1 of a new pid
namespace, whose end takes all that the code has started; the code itself runs below it, as a user
id of its own and without capabilities, without network, on a read-only disk.
"""

import ctypes
import json
import os
import resource
import signal
import sys

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 24, 28, 38
NO_ROOT = 0b1011  # user id 0 is nobody special, for good; no ambient capabilities either
SYS_MOUNT_SETATTR = 442  # one number on all architectures; Linux 5.12
AT_RECURSIVE, AT_FDCWD, MOUNT_ATTR_RDONLY = 0x8000, -100, 1
WRITABLE = ("/tmp", "/dev/shm", "/var/tmp")
PYTHON = "/tmp/.python"

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raises where a system call failed: nothing runs half contained."""
    if result != 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    args = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(libc.mount(*args), f"mount {target}")


def unshare(uid: int, gid: int) -> None:
    """New namespaces; without root's rights, within a user namespace that grants them."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    check(libc.unshare(flags | (CLONE_NEWUSER if uid else 0)), "unshare")
    if uid:
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)


def read_only_disk(megabytes: int, home: str) -> None:
    """Everything read-only but small memory disks, and nothing at all in the caller's home.

    Python itself, which may lie in that home, is put where any user may read it.
    """
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    base = os.open(sys.base_prefix, os.O_PATH)
    for folder in filter(os.path.isdir, WRITABLE):
        size = f"size={megabytes}m,mode=1777"
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.mkdir(PYTHON)
    mount(f"/proc/self/fd/{base}", PYTHON, "", MS_BIND | MS_REC)
    os.close(base)
    if os.path.isdir(home) and home not in ("/", *WRITABLE):
        mount("tmpfs", home, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=755")

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    def read_only(path: str, how: int, on: bool) -> None:
        flag = MOUNT_ATTR_RDONLY
        attributes = Attributes(flag if on else 0, 0 if on else flag, 0, 0)
        result = libc.syscall(
            SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), how, ctypes.byref(attributes), 32
        )
        check(result, f"read-only {path}")

    read_only("/", AT_RECURSIVE, True)
    for folder in filter(os.path.isdir, WRITABLE):
        read_only(folder, 0, False)


def limit(limits: dict) -> None:
    """Resource limits of each process of the code; memory as address space."""
    memory = limits["memory_mb"] << 20
    for what, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, limits["files_mb"] << 20),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))


def drop_capabilities() -> None:
    """Takes from this process, and from all that it starts, every right that root has."""
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if os.getuid() == 0:  # of a user namespace; another user id has lost them already
        check(libc.prctl(PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0), "securebits")
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails above the last one
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def run_code(task: dict) -> None:
    """Becomes the code, as a user that owns nothing. Never returns."""
    if task["as_uid"]:
        os.setgroups([])
        os.setresgid(task["as_uid"], task["as_uid"], task["as_uid"])
        os.setresuid(task["as_uid"], task["as_uid"], task["as_uid"])
    drop_capabilities()
    os.chdir("/tmp")
    limit(task["limits"])
    python = os.path.join(PYTHON, "bin", os.path.basename(os.path.realpath(sys.executable)))
    environment = {"HOME": "/tmp", "PATH": "/usr/bin:/bin", "PYTHONHOME": PYTHON, "LANG": "C.UTF-8"}
    with open("/tmp/.code.py", "w") as file:
        file.write(task["code"])
    os.execve(python, [python, "-B", "-s", "/tmp/.code.py"], environment)


def init(task: dict, report: int) -> None:
    """Process 1: builds the walls, starts the code, collects orphans, reports the end."""
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
    read_only_disk(task["limits"]["files_mb"], task["home"])
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
    code = os.fork()
    if not code:
        run_code(task)
    while True:
        pid, status = os.wait()
        if pid == code:
            os.write(report, f"ended {os.waitstatus_to_exitcode(status)}".encode())
            os._exit(0)


def main() -> None:
    """Contains itself and runs the code that stdin names."""
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    try:
        task = json.loads(sys.stdin.buffer.readline())
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
        if os.getppid() != task["parent"]:
            os._exit(1)  # it died before the line above
        unshare(os.getuid(), os.getgid())
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            init(task, report)
    except BaseException as error:  # in any of the three processes
        os.write(report, f"failed {error}".encode())
        os._exit(1)
    os.close(report)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
