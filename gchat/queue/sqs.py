"""Amazon SQS as the broker of a queue: three queues for the priorities, and a dead letter.

`NAME-high`, `NAME-middle`, `NAME-low` and `NAME-dead`. Region, keys and endpoint are boto3's own
(AWS_REGION, AWS_ENDPOINT_URL, profiles, the machine's role).
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from gaia.errors import ConfigError
from gchat.queue.base import driver, to_json
from gchat.queue.protocol import QueueError
from gchat.queue.transport import BANDS, Message

_LONGEST_S = 43_200  # of a visibility timeout
_LONGEST_DELAY_S = 900
_LARGEST = 1_000_000  # bytes of a request; SQS takes 1 MiB
_RETENTION_S = 1_209_600  # of messages, the longest that SQS takes: 14 days
_GONE = ("ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight",
         "AWS.SimpleQueueService.MessageNotInflight", "InvalidIdFormat")  # fmt: skip


class Sqs:
    """Calls of SQS.

    Args:
        name: of the queues.

    Raises:
        ConfigError: a name that SQS does not take, or no region.
    """

    retention_s = float(_RETENTION_S)

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,72}", name):
            raise ConfigError(f"name {name!r} of the queue", "use letters, digits, - and _")
        self.url, self._name = f"sqs://{name}", name
        boto3, self._core = driver("boto3", "sqs"), driver("botocore.exceptions", "sqs")
        config = driver("botocore.config", "sqs").Config(
            retries={"max_attempts": 8, "mode": "standard"}, max_pool_connections=16
        )
        try:
            self._client = boto3.client("sqs", config=config)
        except self._core.NoRegionError:
            raise ConfigError("sqs:// needs a region", "set AWS_REGION") from None
        self._urls: dict[str, str] = {}

    def make(self, attempts: int) -> None:
        """Makes the queues that are not there, and sets what all of them are to have."""
        keep = {"MessageRetentionPeriod": str(_RETENTION_S)}
        with self._explained():
            dead = self._client.create_queue(QueueName=f"{self._name}-dead")["QueueUrl"]
            self._client.set_queue_attributes(QueueUrl=dead, Attributes=keep)
            arn = self._client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])
            policy = {
                "deadLetterTargetArn": arn["Attributes"]["QueueArn"],
                "maxReceiveCount": min(1000, attempts + 1),
            }
            for band in BANDS:
                url = self._client.create_queue(QueueName=f"{self._name}-{band}")["QueueUrl"]
                self._client.set_queue_attributes(
                    QueueUrl=url, Attributes=keep | {"RedrivePolicy": json.dumps(policy)}
                )

    def send(self, band: str, bodies: list[dict[str, Any]], delay_s: float = 0.0) -> None:
        """Sends messages, up to ten in a request; one that SQS refuses is an error."""
        delay = math.ceil(min(_LONGEST_DELAY_S, delay_s))
        for texts in _batches([to_json(body) for body in bodies]):
            entries = [
                {"Id": str(i), "MessageBody": text, "DelaySeconds": delay}
                for i, text in enumerate(texts)
            ]
            with self._explained():
                answer = self._client.send_message_batch(QueueUrl=self._url(band), Entries=entries)
            if refused := answer.get("Failed"):
                raise QueueError(f"{self.url}: {refused[0].get('Message')}", "send it again")

    def receive(
        self, band: str, n: int, seconds: float, *, thorough: bool = False
    ) -> list[Message]:
        """Takes up to n messages; a thorough look asks all of SQS's servers."""
        with self._explained():
            answer = self._client.receive_message(
                QueueUrl=self._url(band), MaxNumberOfMessages=min(10, n),
                VisibilityTimeout=_whole(seconds), WaitTimeSeconds=int(thorough),
                AttributeNames=["ApproximateReceiveCount"],
            )  # fmt: skip
        return [
            Message(
                json.loads(one["Body"]), one["ReceiptHandle"],
                int(one["Attributes"]["ApproximateReceiveCount"]),
            )
            for one in answer.get("Messages", ())
        ]  # fmt: skip

    def hide(self, band: str, handle: str, seconds: float) -> bool:
        """Hides a message for so many seconds from now."""
        return self._held(
            self._client.change_message_visibility, QueueUrl=self._url(band),
            ReceiptHandle=handle, VisibilityTimeout=_whole(seconds),
        )  # fmt: skip

    def delete(self, band: str, handle: str) -> bool:
        """Ends a message."""
        return self._held(
            self._client.delete_message, QueueUrl=self._url(band), ReceiptHandle=handle
        )

    def in_work(self) -> int:
        """Messages that are hidden just now, about."""
        name, count = "ApproximateNumberOfMessagesNotVisible", 0
        for band in BANDS:
            with self._explained():
                answer = self._client.get_queue_attributes(
                    QueueUrl=self._url(band), AttributeNames=[name]
                )
            count += int(answer["Attributes"][name])
        return count

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _url(self, band: str) -> str:
        if band not in self._urls:
            answer = self._client.get_queue_url(QueueName=f"{self._name}-{band}")
            self._urls[band] = answer["QueueUrl"]
        return self._urls[band]

    def _held(self, call: Any, **arguments: Any) -> bool:
        try:
            with self._explained():
                call(**arguments)
        except _Gone:
            return False
        return True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._core.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _GONE:
                raise _Gone(str(error)) from None
            remedy = "check its name, region and your access"
            raise QueueError(f"{self.url}: {error}", remedy) from None
        except self._core.BotoCoreError as error:
            raise QueueError(f"{self.url}: {error}", "check region, keys and network") from None


class _Gone(QueueError):
    """The message belongs to somebody else by now."""


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Messages as SQS takes them in one request."""
    batch, size = list[str](), 0
    for text in texts:
        length = len(text.encode())
        if batch and (len(batch) == 10 or size + length > _LARGEST):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += length
    if batch:
        yield batch


def _whole(seconds: float) -> int:
    return math.ceil(min(_LONGEST_S, max(0.0, seconds)))
