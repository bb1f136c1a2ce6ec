"""Notices of a run to people: by webhook, Slack-compatible hook or mail, without a server.

GAIA_NOTIFY holds addresses, separated by spaces. They are secrets, so they stand in no config:

    https://example.org/hook          a JSON object is posted: event, level, title, text, run, …
    slack+https://hooks.slack.com/…   {"text": …}, which Slack, Mattermost and Discord (/slack) take
    mailto:me@example.org             by the mail server GAIA_SMTP (host:port, STARTTLS where it is
                                      offered), as GAIA_SMTP_USER with GAIA_SMTP_PASSWORD

Told are warnings and errors (not a number, loss spike, slow, stalled, `run.alert`) and the end.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from gaia_metrics.errors import MetricsError

MOST = 50  # notices of one run: a loop that alerts must not flood a channel
TIMEOUT_S = 10.0
ENDS = {"finished": "info", "stopped": "warn", "crashed": "error"}


def addresses(env: Mapping[str, str]) -> list[str]:
    """Read GAIA_NOTIFY. Raises MetricsError, without the address, where one cannot work."""
    targets = env.get("GAIA_NOTIFY", "").split()
    for i, address in enumerate(targets, 1):
        mail = address.startswith("mailto:")
        if not (_is_mail(address) if mail else _is_web(address.removeprefix("slack+"))):
            raise MetricsError(
                f"GAIA_NOTIFY: address {i} of {len(targets)} is neither a web nor a mail address",
                "give https://…, slack+https://… or mailto:…, separated by spaces",
            )
        if mail and not env.get("GAIA_SMTP"):
            raise MetricsError("GAIA_NOTIFY has a mailto: address", "set GAIA_SMTP to host:port")
        port = env.get("GAIA_SMTP", "").partition(":")[2]
        if mail and port and not (port.isascii() and port.isdigit()):
            raise MetricsError("GAIA_SMTP ends in no port number", "set it to host:port")
    return targets


def _is_mail(address: str) -> bool:
    return "@" in address


def _is_web(address: str) -> bool:
    try:
        parts = urlsplit(address)
        _ = parts.port  # is read here, and may raise
    except ValueError:  # whose text holds the address, which is a secret
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


class Notices:
    """A sink that passes on alerts and tells of the end, from a thread of its own.

    Args:
        targets: addresses, as `addresses` gives them.
        facts: run id, name, project, host: they go with each notice.
        warn: called as warn(key, problem, remedy); says each key once.
    """

    def __init__(
        self, targets: list[str], facts: dict[str, Any], warn: Callable[[str, str, str], None]
    ) -> None:
        self._targets, self._facts, self._warn = targets, facts, warn
        self._count = 0
        self._queue: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gaia-metrics-notify", daemon=True)
        self._thread.start()

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Values are watched elsewhere."""

    def flush(self, fsync: bool) -> None:
        """Nothing is held back."""

    def record(self, record: dict) -> None:
        """Pass on an alert of level warn or error."""
        if record["kind"] == "alert" and record.get("level") in ("warn", "error"):
            self._put("alert", record["level"], record["name"], record["text"], record["step"])

    def ended(self, status: str, step: int) -> None:
        """Tell of the end; a preempted machine's SIGTERM is "stopped"."""
        why = {"stopped": "stopped (SIGTERM or preemption)"}.get(status, status)
        self._put("end", ENDS.get(status, "info"), f"run {why}", f"last step {step}", step)

    def close(self, timeout: float) -> None:
        """Wait for what is under way."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _put(self, event: str, level: str, title: str, text: str, step: int) -> None:
        self._count += 1
        if event == "end" or self._count <= MOST:
            notice = {"event": event, "level": level, "title": title, "text": text, "step": step}
            self._queue.put(self._facts | notice)
        elif self._count == MOST + 1:
            self._warn("notices", f"{MOST} notices were sent; further alerts are only kept", "")

    def _run(self) -> None:
        while (notice := self._queue.get()) is not None:
            for i, target in enumerate(self._targets, 1):
                try:
                    send(target, notice, os.environ)
                except Exception as error:  # its text may hold the address, which is a secret
                    self._warn(
                        f"notify-{i}",
                        f"a notice could not be sent to address {i} of GAIA_NOTIFY "
                        f"({type(error).__name__})",
                        "check the address and the network",
                    )


def send(target: str, notice: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Send one notice to one address. Raises OSError and the like where that fails."""
    line = f"[{notice['level']}] {notice['name']}: {notice['title']}"
    body = f"{notice['text']}\nrun {notice['run']} of {notice['project']} on {notice['host']}"
    if notice.get("url"):
        body += f"\n{notice['url']}"
    if target.startswith("mailto:"):
        _mail(unquote(target.removeprefix("mailto:").split("?")[0]), line, body, env)
        return
    import urllib.request  # 30 ms: only where something is sent

    payload = {"text": f"{line}\n{body}"} if target.startswith("slack+") else dict(notice)
    request = urllib.request.Request(
        target.removeprefix("slack+"),
        json.dumps(payload).encode(),
        {"content-type": "application/json", "user-agent": "gaia-metrics"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass


def _mail(recipient: str, subject: str, body: str, env: Mapping[str, str]) -> None:
    import smtplib
    import ssl
    from email.message import EmailMessage

    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = env.get("GAIA_SMTP_FROM") or env.get("GAIA_SMTP_USER") or recipient
    message["To"] = recipient
    message.set_content(body)
    host, _, port = env["GAIA_SMTP"].partition(":")
    with smtplib.SMTP(host, int(port or 587), timeout=TIMEOUT_S) as server:
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls(context=ssl.create_default_context())
            server.ehlo()
        if env.get("GAIA_SMTP_USER"):
            if not server.has_extn("auth"):
                raise OSError("the mail server takes no password on this connection")
            server.login(env["GAIA_SMTP_USER"], env.get("GAIA_SMTP_PASSWORD", ""))
        server.send_message(message)
