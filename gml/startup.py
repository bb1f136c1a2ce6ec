"""The startup script of a machine: installs the watchdog as a systemd unit. No secret is in it.

The provider runs it as root at every boot (Google) or at the first (Lambda's cloud-init); systemd
keeps the watchdog alive afterwards, across reboots and crashes.
"""

from __future__ import annotations

import base64
import gzip
import json
from importlib import resources
from typing import Any

from gml.errors import UsageError
from gml.model import CreateSpec

STATE_DIR = "/var/lib/gml"
# EC2 takes no more user data, before base64.
EC2_BYTES = 16384

_SCRIPT = """\
#!/bin/bash
# gml: arms the deadline of this machine. Written by `gml node create`; contains no secret.
set -u
mkdir -p /opt/gml {state}
base64 -d <<'EOF' | gunzip > /opt/gml/watchdog.py
{program}
EOF
base64 -d > /opt/gml/watchdog.json <<'EOF'
{config}
EOF
cat > /etc/systemd/system/gml-watchdog.service <<'EOF'
[Unit]
Description=gml watchdog: deletes this machine at its deadline
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/python3 /opt/gml/watchdog.py /opt/gml/watchdog.json
Restart=always
RestartSec=5
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable --now gml-watchdog.service
{extra}"""


def watchdog_config(
    spec: CreateSpec, *, delete: list[dict[str, Any]], use_metadata: bool, metadata: str = ""
) -> dict[str, Any]:
    """The watchdog's configuration for a cloud machine."""
    return {
        "state_dir": STATE_DIR,
        "jobs_dirs": ["/root/.gml/jobs" if spec.user == "root" else f"/home/{spec.user}/.gml/jobs"],
        "metadata": metadata or "http://metadata.google.internal",
        "use_metadata": use_metadata,
        "deadline": spec.deadline,
        "run_s": spec.run_s,
        "grace_s": min(spec.grace_s, spec.timeout_s // 2),
        "idle_s": spec.idle_s,
        "tick_s": 5,
        "ssh_port": 22,
        "poweroff": ["shutdown", "-P", "now"],
        "delete": delete,
    }


def watchdog_program() -> str:
    """Source text of the watchdog."""
    return resources.files("gml.watchdog").joinpath("watchdog.py").read_text(encoding="utf-8")


def startup_script(config: dict[str, Any], extra: str = "", limit: int | None = None) -> str:
    """The bash script that installs and starts the watchdog with this configuration.

    Raises:
        UsageError: it has more than `limit` bytes, which is all that the provider takes.
    """
    script = _SCRIPT.format(
        state=STATE_DIR,
        program=_fold(gzip.compress(watchdog_program().encode(), mtime=0)),
        config=_fold(json.dumps(config, indent=1).encode()),
        extra=extra,
    )
    size = len(script.encode())
    if limit is not None and size > limit:
        problem = f"the startup script has {size} bytes, and the provider takes {limit}"
        raise UsageError(problem, "use an ssh key with a shorter public key")
    return script


def _fold(data: bytes) -> str:
    packed = base64.b64encode(data).decode()
    return "\n".join(packed[i : i + 76] for i in range(0, len(packed), 76))
