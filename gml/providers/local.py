"""Machines one already has, reached by ssh. The tests' provider, and the simplest example of one.

There is no cloud to delete them: "creating" writes a marker with the labels on the machine and
starts the watchdog there as the user; "deleting" stops the jobs and removes the marker.
"""

from __future__ import annotations

import contextlib
import json

from gaia.hardware import Sku
from gml.config import Config
from gml.errors import Incomplete, NotFound, StockOut, Unavailable, UsageError
from gml.model import ApiRequest, CreateSpec, Node, Offer, node_from_labels
from gml.progress import Progress, silent
from gml.providers.base import Check, check
from gml.remote.ssh import Ssh, address_of
from gml.startup import watchdog_config, watchdog_program
from gml.store import Store

# A machine one already has is up, or is not; this allows for one that is just starting.
PATIENCE_S = 5.0

_CREATE = """set -eu
umask 077
dir="$HOME/.gml/node"; mkdir -p "$dir" "$HOME/.gml/jobs"
# Made only where there is none, in one step: of two that come at once one gets the machine.
if ! (set -C; cat > "$dir/labels.json") 2>/dev/null <<'EOF_GML'
{labels}
EOF_GML
then
  # Taken over only from this very create: the same name may be another node's of the same owner.
  grep '"gml-id": "{id}"' "$dir/labels.json" | grep -q '"gml-created": "{created}"' ||
    {{ cat "$dir/labels.json"; exit 75; }}
fi
cat > "$dir/watchdog.py" <<'EOF_GML'
{program}
EOF_GML
cat > "$dir/watchdog.json.tmp" <<'EOF_GML'
{config}
EOF_GML
sed "s|@HOME@|$HOME|g" "$dir/watchdog.json.tmp" > "$dir/watchdog.json"
rm -f "$dir/deadline" "$dir/last_deadline" "$dir/deleted" "$dir/lived"
cat > "$dir/labels.json" <<'EOF_GML'
{labels}
EOF_GML
if [ -e "$dir/pid" ]; then kill "$(cat "$dir/pid")" 2>/dev/null || :; fi
cd "$dir"
setsid nohup python3 watchdog.py watchdog.json > watchdog.log 2>&1 < /dev/null &
echo $! > "$dir/pid"
"""

_DELETE = """dir="$HOME/.gml/node"
grep -q '"gml-id": "{id}"' "$dir/labels.json" 2>/dev/null || exit 0
[ -e "$dir/pid" ] && kill "$(cat "$dir/pid")" 2>/dev/null
for job in "$HOME"/.gml/jobs/*/; do
  [ -e "$job/pid" ] && [ ! -e "$job/rc" ] && kill -TERM -- "-$(cat "$job/pid")" 2>/dev/null
done
sleep 0.2
for job in "$HOME"/.gml/jobs/*/; do
  [ -e "$job/pid" ] && [ ! -e "$job/rc" ] && kill -KILL -- "-$(cat "$job/pid")" 2>/dev/null
done
rm -rf "$HOME/.gml/jobs" "$HOME/.gml/sync" "$dir"
"""


class LocalProvider:
    """ssh-reachable machines from `[local.hosts]` or `--host`."""

    name = "local"
    ssh_user = ""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.ssh = Ssh(config, store)

    def ready(self) -> bool:
        """Tells whether any local machine is configured or in use."""
        return bool(self.config.local_hosts) or any(
            n.provider == self.name for n in self.store.all()
        )

    def sign_in(self) -> None:
        """ssh does that by itself."""

    def ask_time(self) -> None:
        """These machines are told how long to live, and count by their own clocks."""

    def base_url(self, service: str) -> str:
        """ssh has no base address."""
        return "ssh:/"

    def offers(
        self,
        sku: Sku | None,
        *,
        spot: bool,
        zone: str = "",
        live: bool = False,
        strategy: str = "",
    ) -> list[Offer]:
        """One offer per configured group of machines; they cost nothing."""
        return [
            Offer(self.name, "local", name, False, 0.0, "yours", "ssh", "watchdog", "config.toml")
            for name in self.config.local_hosts
            if zone in ("", name)
        ]

    def create_requests(self, spec: CreateSpec, offer: Offer) -> list[ApiRequest]:
        """The marker and the watchdog that would be written over ssh."""
        return [
            ApiRequest("ssh", "RUN", f"{address_of(host)}/~/.gml/node", {}, dict(spec.labels()))
            for host in self._hosts(spec, offer)
        ]

    def _hosts(self, spec: CreateSpec, offer: Offer) -> tuple:
        hosts = spec.hosts or self.config.local_hosts.get(offer.zone, ())
        if not hosts:
            raise UsageError(
                "no local machine is configured",
                "say --host user@address:port, or write [local.hosts] into config.toml",
            )
        return hosts

    def create(self, spec: CreateSpec, offer: Offer, progress: Progress = silent) -> Node:
        """Marks the machines as ours and starts their watchdogs.

        Raises:
            StockOut: another node already uses one of them. Unavailable: ssh fails.
        """
        node = Node(
            id=spec.id,
            provider=self.name,
            owner=spec.owner,
            sku=spec.sku_name,
            zone=offer.zone,
            strategy="ssh",
            deadline=spec.deadline,
            created=spec.created,
            price=0.0,
            hosts=self._hosts(spec, offer),
            queue=spec.queue,
        )
        self.store.put(node.replace(phase="intent", tried=(f"ssh:{offer.zone}",)))
        try:
            self.ssh.wait(node, PATIENCE_S, progress)
        except Unavailable as error:
            where = ", ".join(address_of(host) for host in node.hosts)
            failure = Unavailable(
                f"no login on {where}: {error.problem}",
                "check address, port and key; nothing was made",
            )
            failure.nothing_made = True
            raise failure from None
        config = watchdog_config(spec, delete=[], use_metadata=False)
        config.update(
            state_dir="@HOME@/.gml/node",
            jobs_dirs=["@HOME@/.gml/jobs"],
            poweroff=["true"],
            delete=[{"kill_jobs": True}, {"remove": "@HOME@/.gml/node/labels.json"}],
            # The machine is ours anyway: there is nothing to save by ending an idle one.
            idle_s=0,
            tick_s=1,
        )
        script = _CREATE.format(
            id=spec.id,
            created=spec.created,
            program=watchdog_program(),
            config=json.dumps(config),
            labels=json.dumps(spec.labels()),
        )
        for index in range(len(node.hosts)):
            progress(f"starting the watchdog on host {index}")
            done = self.ssh.run(node, script, index=index, check=False)
            if done.returncode == 75:
                raise StockOut(
                    f"{offer.zone or address_of(node.hosts[index])} is in use by another node",
                    f"see `gml ls`; its labels: {done.stdout.decode().strip()[:200]}",
                )
            if done.returncode != 0:
                text = done.stderr.decode(errors="replace").strip()[-200:]
                raise Unavailable(f"{address_of(node.hosts[index])}: {text}")
        return node.replace(state="ready")

    def _with_hosts(self, node: Node) -> Node:
        """The node with its hosts: what a create only meant to make has those of its group."""
        return node.replace(hosts=node.hosts or self.config.local_hosts.get(node.zone, ()))

    def _marker(self, node: Node, index: int = 0) -> Node | None:
        done = self.ssh.run(node, 'cat "$HOME/.gml/node/labels.json" 2>/dev/null || :', index=index)
        try:
            labels = json.loads(done.stdout)
        except ValueError:
            return None
        return node_from_labels(
            labels, provider=self.name, zone=node.zone, state="ready", hosts=node.hosts, price=0.0
        )

    def list_nodes(self) -> list[Node]:
        """Reads the marker of every known machine."""
        self.ssh.write_config()
        marked: dict[str, Node] = {}
        missed = []
        stored = [n for n in self.store.all() if n.provider == self.name and n.hosts]
        for node in [*stored, *self.ssh.probes()]:
            try:
                seen = self._marker(node)
            except Unavailable as error:
                missed.append(error.problem)
                continue
            if seen:
                marked.setdefault(seen.id, seen)
        if missed:
            raise Incomplete(
                f"could not look at {'; '.join(missed[:3])}", "try again", list(marked.values())
            )
        return list(marked.values())

    def find(self, node: Node) -> Node | None:
        """The node's own marker, or None when another node or nobody is there."""
        node = self._with_hosts(node)
        if not node.hosts:
            return None
        with contextlib.suppress(OSError):
            self.ssh.write_config()
        for index in range(len(node.hosts)):
            seen = self._marker(node, index)
            if seen and seen.id == node.id:
                return seen
        return None

    def ended_at(self, node: Node) -> int | None:
        """Nobody remembers."""
        return None

    def delete_requests(self, node: Node) -> list[ApiRequest]:
        """The ssh calls of `delete`."""
        return [
            ApiRequest("ssh", "RUN", f"{address_of(host)}/rm -rf ~/.gml/node ~/.gml/jobs")
            for host in self._with_hosts(node).hosts
        ]

    def delete(self, node: Node, progress: Progress = silent) -> None:
        """Stops watchdog and jobs and removes the marker, on every host."""
        node = self._with_hosts(node)
        with contextlib.suppress(OSError):  # the file of the create serves as well
            self.ssh.write_config()
        for index in range(len(node.hosts)):
            progress(f"stopping host {index}")
            self.ssh.run(node, _DELETE.format(id=node.id), index=index)

    def deadline_requests(self, node: Node, deadline: int | None) -> list[ApiRequest]:
        """The ssh call of `set_deadline`."""
        return [
            ApiRequest(
                "ssh", "RUN", f"{address_of(host)}/~/.gml/node/deadline", {}, {"to": deadline}
            )
            for host in node.hosts
        ]

    def set_deadline(self, node: Node, deadline: int | None) -> Node:
        """Writes the deadline into the marker; the caller writes the watchdog's file."""
        value = "none" if deadline is None else str(deadline)
        for index in range(len(node.hosts)):
            done = self.ssh.run(
                node,
                f"""f="$HOME/.gml/node/labels.json"; [ -e "$f" ] || exit 7
sed -i 's/"gml-deadline": "[^"]*"/"gml-deadline": "{value}"/' "$f"
printf %s {value} > "$HOME/.gml/node/deadline"
""",
                index=index,
                check=False,
            )
            if done.returncode == 7:
                raise NotFound(f"{node.id} is no longer on {address_of(node.hosts[index])}")
        return node.replace(deadline=deadline)

    def doctor(self, instance_type: str = "") -> list[Check]:
        """Checks that each configured machine takes a login and has the tools."""
        self.ssh.write_config()
        checks = []
        for node in self.ssh.probes():
            for index in range(len(node.hosts)):
                try:
                    self.ssh.run(node, "command -v python3 rsync bash >/dev/null", index=index)
                    ok, detail = True, "login, python3, rsync"
                except Unavailable as error:
                    ok, detail = False, error.problem
                fix = "authorize your key there; install python3 and rsync"
                checks.append(check(f"local {node.zone}[{index}]", ok, detail, fix))
        return checks
