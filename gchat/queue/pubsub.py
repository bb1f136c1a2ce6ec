"""Google Pub/Sub as the broker of a queue: three topics for the priorities, and a dead letter.

Topics and subscriptions `NAME-high`, `NAME-middle`, `NAME-low` and `NAME-dead`. Credentials are
Google's own; PUBSUB_EMULATOR_HOST sends everything to another server. A lease is an ack deadline,
600 s at most. Pub/Sub does not tell a late acknowledgement from a timely one: the result that is
written first decides.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

from gaia.errors import ConfigError
from gchat.queue.base import driver, to_json
from gchat.queue.protocol import QueueError
from gchat.queue.transport import BANDS, Message

_LONGEST_S = 600  # of an ack deadline
_LOOK_S, _LOOK_WELL_S = 1.0, 3.0  # a pull waits so long for a message
_EMPTY_S = 3.0  # a band where none was is not asked again so soon
_DELIVERIES = (5, 100)  # limits of max_delivery_attempts
_RETENTION_S = 31 * 86_400  # of messages, the longest that Pub/Sub takes
_TIMEOUT_S = 60.0


class PubSub:
    """Calls of Pub/Sub.

    Args:
        name: `PROJECT/NAME`.

    Raises:
        ConfigError: a name that Pub/Sub does not take, or no credentials.
    """

    retention_s = float(_RETENTION_S)

    def __init__(self, name: str) -> None:
        match = re.fullmatch(r"([a-z0-9:.-]+)/([A-Za-z][A-Za-z0-9_.~+%-]{0,240})", name)
        if match is None:
            raise ConfigError(f"queue 'pubsub://{name}'", "write pubsub://PROJECT/NAME?results=…")
        self.url, self._project, self._name = f"pubsub://{name}", match[1], match[2]
        pubsub = driver("google.cloud.pubsub_v1", "pubsub")
        self._api = driver("google.api_core.exceptions", "pubsub")
        try:
            self._publisher, self._subscriber = pubsub.PublisherClient(), pubsub.SubscriberClient()
        except driver("google.auth.exceptions", "pubsub").GoogleAuthError as error:
            raise ConfigError(
                f"pubsub:// needs Google's credentials ({error})",
                "run `gcloud auth application-default login`",
            ) from None
        self._empty_until: dict[str, float] = {}

    def make(self, attempts: int) -> None:
        """Makes the topics and subscriptions that are not there; older ones keep messages as long
        as new ones from then on."""
        least, most = _DELIVERIES
        keep = {"message_retention_duration": {"seconds": _RETENTION_S}}
        policy = {
            "dead_letter_topic": self._topic("dead"),
            "max_delivery_attempts": max(least, min(most, attempts + 1)),
        }
        for band in ("dead", *BANDS):
            with self._explained(), contextlib.suppress(self._api.AlreadyExists):
                self._publisher.create_topic(name=self._topic(band), timeout=_TIMEOUT_S)
            wanted: dict[str, Any] = {
                "name": self._subscription(band), "topic": self._topic(band),
                "ack_deadline_seconds": 60, "expiration_policy": {}, **keep,
            }  # fmt: skip
            if band != "dead":
                wanted["dead_letter_policy"] = policy
            with self._explained():
                try:
                    self._subscriber.create_subscription(request=wanted, timeout=_TIMEOUT_S)
                except self._api.AlreadyExists:
                    kept = {"name": self._subscription(band), **keep}
                    change = {"subscription": kept, "update_mask": {"paths": list(keep)}}
                    self._subscriber.update_subscription(request=change, timeout=_TIMEOUT_S)

    def send(self, band: str, bodies: list[dict[str, Any]], delay_s: float = 0.0) -> None:
        """Publishes messages, all in one request; Pub/Sub has no delays."""
        messages = [{"data": to_json(body).encode()} for body in bodies]
        with self._explained():
            # The request itself, not the client's batches of its own: when it returns, it is there.
            self._publisher.api.publish(
                request={"topic": self._topic(band), "messages": messages}, timeout=_TIMEOUT_S
            )
        self._empty_until.pop(band, None)

    def receive(
        self, band: str, n: int, seconds: float, *, thorough: bool = False
    ) -> list[Message]:
        """Pulls up to n messages and sets their deadlines."""
        if not thorough and time.monotonic() < self._empty_until.get(band, 0.0):
            return []
        place = self._subscription(band)
        try:
            with self._explained():
                answer = self._subscriber.pull(
                    request={"subscription": place, "max_messages": n}, retry=None,
                    timeout=_LOOK_WELL_S if thorough else _LOOK_S,
                )  # fmt: skip
        except _Late:  # nothing came
            answer = None
        received = list(answer.received_messages) if answer is not None else []
        if not received:
            self._empty_until[band] = time.monotonic() + _EMPTY_S
            return []
        self._deadline(band, [one.ack_id for one in received], seconds)
        return [
            Message(json.loads(one.message.data), one.ack_id, max(1, one.delivery_attempt))
            for one in received
        ]

    def hide(self, band: str, handle: str, seconds: float) -> bool:
        """Sets a message's deadline; Pub/Sub ignores one that is no longer ours."""
        self._deadline(band, [handle], seconds)
        self._empty_until.pop(band, None)
        return True

    def _deadline(self, band: str, handles: list[str], seconds: float) -> None:
        whole = math.ceil(min(_LONGEST_S, max(0.0, seconds)))
        with self._explained():
            self._subscriber.modify_ack_deadline(
                request={"subscription": self._subscription(band), "ack_ids": handles,
                         "ack_deadline_seconds": whole},
                timeout=_TIMEOUT_S,
            )  # fmt: skip

    def delete(self, band: str, handle: str) -> bool:
        """Acknowledges a message."""
        with self._explained():
            self._subscriber.acknowledge(
                request={"subscription": self._subscription(band), "ack_ids": [handle]},
                timeout=_TIMEOUT_S,
            )
        return True

    def in_work(self) -> int:
        """Always 0: Pub/Sub tells such numbers to Cloud Monitoring alone, minutes later."""
        return 0

    def close(self) -> None:
        """Closes the connections."""
        self._publisher.stop()
        self._publisher.transport.close()
        self._subscriber.close()

    def _topic(self, band: str) -> str:
        return f"projects/{self._project}/topics/{self._name}-{band}"

    def _subscription(self, band: str) -> str:
        return f"projects/{self._project}/subscriptions/{self._name}-{band}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._api.AlreadyExists:
            raise
        except self._api.DeadlineExceeded as error:
            raise _Late(f"{self.url}: {error}", "check the network") from None
        except (self._api.GoogleAPIError, self._api.RetryError) as error:
            text = " ".join(str(error).split())[:300]
            raise QueueError(f"{self.url}: {text}", "check project, name and your roles") from None


class _Late(QueueError):
    """No answer in time."""
