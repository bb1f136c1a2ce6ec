"""Makes sure, over ssh, that the machine can end itself."""

from __future__ import annotations

from gml.errors import Unsafe, UsageError
from gml.fleet import Fleet
from gml.model import CreateSpec, Node
from gml.progress import Progress
from gml.providers.base import Provider
from gml.threads import on_hosts


def check_armed(fleet: Fleet, node: Node, progress: Progress) -> None:
    """Waits for the watchdog's first beat on every host; raises Unsafe without one."""
    folder = '"$HOME/.gml/node"' if node.provider == "local" else "/var/lib/gml"
    progress("waiting for the watchdog's first beat")

    def check(index: int) -> None:
        done = fleet.ssh.run(
            node,
            f"for i in $(seq 240); do [ -s {folder}/beat ] && exit 0; sleep 0.25; done; exit 9",
            index=index,
            check=False,
            timeout_s=90,
        )
        if done.returncode != 0:
            raise Unsafe(
                f"the watchdog on {node.id} host {index} does not run, and {node.provider} "
                "has no time limit of its own here",
                "use another --strategy; or add --unsafe to keep it, and read "
                "`journalctl -u gml-watchdog` there",
            )

    on_hosts(len(node.hosts), check)


def send_key(fleet: Fleet, node: Node, spec: CreateSpec, provider: Provider) -> None:
    """Gives the watchdog the key with which it ends its machine (`--self-terminate`)."""
    script = getattr(provider, "self_terminate_script", None)
    if script is None:
        raise UsageError(f"--self-terminate is not for {provider.name}", "leave it out")
    # Over stdin of ssh into a root-only file: never in user data, argv or logs.
    fleet.ssh.run(node, script(node, spec))
