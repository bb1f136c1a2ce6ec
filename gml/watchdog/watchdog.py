"""Deletes the machine it runs on, at its deadline or when idle. Runs there as root, python >= 3.8.

Only the standard library, one file, no gml: it must keep working when everything else has failed.
It fails closed: a deadline that can't be read counts as past. Order of deadlines: the file
`deadline` beside the configuration (written by `gml node extend`), else the metadata attribute
`gml-deadline`, else the configuration. "none" means that the user removed it.

Usage: python3 watchdog.py CONFIG.json
CONFIG: {"state_dir", "jobs_dirs", "metadata", "use_metadata", "deadline", "run_s", "grace_s",
         "idle_s", "tick_s", "ssh_port", "poweroff": [argv],
         "delete": [{"method", "url", "body", "auth"}]}
`auth` is "metadata" (service account token) or "file:PATH" (a 0600 key file, Bearer). On machines
that are not ours to delete, entries {"kill_jobs": true} and {"remove": PATH} stand instead.
"""

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request


class Watchdog:
    """One tick is one look at everything; state that must survive a reboot lies in `state_dir`."""

    def __init__(self, config, wall=time.time, mono=time.monotonic):
        self.config = config
        self.wall = wall
        self.mono = mono
        self.failures = 0
        self.powered_off = False
        self.idle_since = None
        self.seen = None
        self.expires_mono = None
        self.started = mono()
        self.lived_before = None

    # ---- what the world says

    def metadata(self, path):
        """Text of a metadata path, or None."""
        request = urllib.request.Request(
            self.config["metadata"].rstrip("/") + "/computeMetadata/v1/" + path,
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read().decode()
        except (OSError, ValueError):
            return None

    def deadline(self):
        """Unix seconds, or None for "removed by the user". Unreadable means 0: already past.

        The last deadline that could be read stays in force while the metadata server is away, so
        that a moment's outage neither kills a run nor prolongs it.
        """
        text = read(self.path("deadline"))
        if text is None and self.config.get("use_metadata"):
            text = self.metadata("instance/attributes/gml-deadline")
            if text is None:
                text = read(self.path("last_deadline"))
        if text is None:
            text = str(self.config.get("deadline", ""))
        text = text.strip()
        if text == "none":
            return None
        if not text.isdigit():
            return 0
        if read(self.path("last_deadline")) != text:
            write(self.path("last_deadline"), text)
        return int(text)

    def path(self, name):
        """A file of the state folder."""
        return os.path.join(self.config["state_dir"], name)

    def remaining(self):
        """Seconds to the deadline, by whichever of the two clocks says less.

        The wall clock is right across reboots and sleeps; the monotonic one across a wall clock
        that jumps back. None means that there is no deadline.
        """
        deadline = self.deadline()
        lived = self.lived()
        if deadline is None:
            self.seen = self.expires_mono = None
            return None
        if deadline != self.seen:
            self.seen = deadline
            self.expires_mono = self.mono() + (deadline - self.wall())
        left = min(deadline - self.wall(), self.expires_mono - self.mono())
        if self.config.get("run_s") and str(deadline) == str(self.config.get("deadline")):
            # Whoever set the deadline may have had a wrong clock: our own time counts as well,
            # until somebody moves the deadline.
            left = min(left, self.config["run_s"] - lived)
        return left

    def lived(self):
        """Seconds that this machine has been up so far, by its own monotonic clock."""
        if self.lived_before is None:
            text = (read(self.path("lived")) or "").strip()
            self.lived_before = int(text) if text.isdigit() else 0
        seconds = self.lived_before + self.mono() - self.started
        write(self.path("lived"), str(int(seconds)))
        return seconds

    def notice(self):
        """A preemption or maintenance notice of the provider, or ''."""
        if not self.config.get("use_metadata"):
            return ""
        if (self.metadata("instance/preempted") or "").strip() == "TRUE":
            return "preempted"
        event = (self.metadata("instance/maintenance-event") or "").strip()
        return "maintenance" if event.startswith("TERMINATE") else ""

    def jobs(self):
        """Process group ids of running jobs."""
        groups = []
        for pattern in self.config.get("jobs_dirs", []):
            for folder in glob.glob(os.path.join(pattern, "*")):
                pid = (read(os.path.join(folder, "pid")) or "").strip()
                if pid.isdigit() and not os.path.exists(os.path.join(folder, "rc")) and alive(pid):
                    groups.append(int(pid))
        return groups

    def busy(self):
        """Reason why the machine is not idle, or ''."""
        if self.jobs():
            return "job"
        if ssh_sessions(self.config.get("ssh_port", 22)):
            return "ssh"
        if accelerator_in_use():
            return "accelerator"
        return ""

    # ---- what it does

    def tell_jobs(self, why):
        """SIGTERM to every job, once per reason and job: time to write a checkpoint."""
        for pgid in self.jobs():
            mark = self.path(f"told-{why}-{pgid}")
            if os.path.exists(mark):
                continue
            write(mark, why)
            log(f"SIGTERM to job {pgid} ({why})")
            try:
                os.killpg(pgid, signal.SIGTERM)
            except OSError as error:
                log(f"could not signal {pgid}: {error}")

    def authorization(self, how):
        """The Authorization header of a delete call."""
        if how == "metadata":
            raw = self.metadata("instance/service-accounts/default/token")
            return "Bearer " + json.loads(raw or "{}").get("access_token", "")
        if how.startswith("file:"):
            return "Bearer " + (read(how[5:]) or "").strip()
        return ""

    def delete(self):
        """One attempt at deleting the machine; True when the provider took it."""
        taken = bool(self.config["delete"])
        for call in self.config["delete"]:
            if call.get("kill_jobs"):
                for pgid in self.jobs():
                    log(f"SIGKILL to job {pgid}")
                    os.killpg(pgid, signal.SIGKILL)
                continue
            if "remove" in call:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(call["remove"])
                continue
            body = json.dumps(call["body"]).encode() if call.get("body") is not None else None
            headers = {"Content-Type": "application/json"}
            try:
                headers["Authorization"] = self.authorization(call.get("auth", "metadata"))
                request = urllib.request.Request(
                    call["url"], data=body, method=call["method"], headers=headers
                )
                with urllib.request.urlopen(request, timeout=20) as answer:
                    code = answer.status
            except urllib.error.HTTPError as error:
                code = error.code
            except (OSError, ValueError) as error:
                log("{} {}: {}".format(call["method"], call["url"], error))
                taken = False
                continue
            log("{} {} -> {}".format(call["method"], call["url"], code))
            taken = taken and (200 <= code < 300 or code == 404)
        return taken

    def end(self, why):
        """Deletes; after three failures powers off too, and goes on trying."""
        log("deleting this machine: " + why)
        if self.delete():
            write(self.path("deleted"), why)
            return True
        self.failures += 1
        if self.failures >= 3 and not self.powered_off:
            self.powered_off = True
            log("the provider refuses; powering off")
            subprocess.call(self.config["poweroff"])
        return False

    def tick(self):
        """One look; True when the machine has been deleted."""
        write(self.path("beat"), str(int(self.wall())))
        left = self.remaining()
        if left is not None and left <= 0:
            return self.end("deadline")
        why = self.notice()
        if why:
            self.tell_jobs(why)
        if left is not None and left <= self.config.get("grace_s", 120):
            self.tell_jobs("deadline")
        limit = self.config.get("idle_s") or 0
        if limit:
            reason = self.busy()
            if reason:
                self.idle_since = None
            elif self.idle_since is None:
                self.idle_since = self.mono()
            elif self.mono() - self.idle_since >= limit:
                return self.end(f"idle for {limit} s")
        return False

    def run(self):
        """Ticks until the machine is gone."""
        while not self.tick():
            time.sleep(self.config.get("tick_s", 5))
        return 0


def read(path):
    """Text of a file, or None."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def write(path, text):
    """Writes a small file; a full disk must not stop the watchdog."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        log(f"cannot write {path}: {error}")


def alive(pid):
    """Tells whether a process runs; one that ended and that nobody asked for has an id, too."""
    stat = read(f"/proc/{int(pid)}/stat")
    return stat is not None and stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def ssh_sessions(port):
    """Established connections to the ssh port, from /proc/net/tcp{,6}."""
    count = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (read(table) or "").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "01" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                count += 1
    return count


def accelerator_in_use():
    """Tells whether a process holds a TPU device open, or a GPU computes."""
    for fd in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith("/dev/accel") or (
            target.startswith("/dev/vfio/") and target[10:].isdigit()
        ):
            return True
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(int(x) >= 5 for x in out.stdout.decode().split() if x.isdigit())


def log(text):
    """To stdout, which systemd keeps."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) + text, flush=True)


def main(argv):
    """Reads the configuration and watches."""
    with open(argv[1], encoding="utf-8") as file:
        config = json.load(file)
    os.makedirs(config["state_dir"], mode=0o755, exist_ok=True)
    return Watchdog(config).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
