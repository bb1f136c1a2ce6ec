"""Pub/Sub over real gRPC, for the official client.

What it does, and where that is said:
- A pulled message is hidden until its ack deadline (the subscription's, or the one that
  ModifyAckDeadline sets, 0 to 600 s; 0 returns it at once):
  https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#subscriber
- Each delivery has an ack id of its own. An old one acknowledges nothing any more, and no error
  says so (exactly-once delivery is off): https://cloud.google.com/pubsub/docs/lease-management
- `delivery_attempt` counts deliveries where there is a dead letter policy; after
  max_delivery_attempts a message goes to the dead letter topic:
  https://cloud.google.com/pubsub/docs/handling-failures
- UpdateSubscription changes the fields that its mask names and no others; a subscription keeps
  messages for 10 minutes to 31 days:
  https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions
- Pull waits for a message until the client's own deadline.
- At least once: with `twice`, each so many-th message is delivered twice at the same time.
Errors are NOT_FOUND, ALREADY_EXISTS and INVALID_ARGUMENT, with the service's words.
"""

import contextlib
import threading
import time
import uuid
from concurrent import futures

import grpc
from google.protobuf import empty_pb2
from google.pubsub_v1 import types

EMPTY = empty_pb2.Empty


class Subscription:
    """One subscription: its messages, each with the moment at which it may be delivered."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.messages = {}  # message id: [message, due, ack id, deliveries]


class Fake:
    """Topics and subscriptions. `twice`: every so many-th delivery comes twice; 0 never."""

    def __init__(self):
        self.topics, self.subscriptions = {}, {}
        self.lock = threading.RLock()
        self.twice, self.pulled = 0, 0

    def CreateTopic(self, request, context):
        with self.lock:
            if request.name in self.topics:
                context.abort(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"Resource already exists in the project (resource={_short(request.name)}).",
                )
            self.topics[request.name] = types.Topic(name=request.name)
            return self.topics[request.name]

    def CreateSubscription(self, request, context):
        with self.lock:
            if request.name in self.subscriptions:
                context.abort(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"Resource already exists in the project (resource={_short(request.name)}).",
                )
            if request.topic not in self.topics:
                self._missing(request.topic, context)
            policy = request.dead_letter_policy
            if policy.dead_letter_topic and not 5 <= policy.max_delivery_attempts <= 100:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "Invalid dead letter policy max delivery attempts: must be between 5 and 100.",
                )
            self.subscriptions[request.name] = Subscription(request)
            return request

    def UpdateSubscription(self, request, context):
        with self.lock:
            name = request.subscription.name
            if name not in self.subscriptions:
                self._missing(name, context)
            seconds = request.subscription.message_retention_duration.total_seconds()
            if not 600 <= seconds <= 31 * 86_400:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Invalid message retention.")
            wanted = self.subscriptions[name].wanted
            for path in request.update_mask.paths:
                setattr(wanted, path, getattr(request.subscription, path))
            return wanted

    def Publish(self, request, context):
        with self.lock:
            if request.topic not in self.topics:
                self._missing(request.topic, context)
            ids = []
            for message in request.messages:
                message.message_id = uuid.uuid4().hex
                ids.append(message.message_id)
                self._deliver_to(request.topic, message)
            return types.PublishResponse(message_ids=ids)

    def _deliver_to(self, topic, message):
        for subscription in self.subscriptions.values():
            if subscription.wanted.topic == topic:
                subscription.messages[message.message_id] = [message, 0.0, "", 0]

    def Pull(self, request, context):
        while context.is_active():
            with self.lock:
                if request.subscription not in self.subscriptions:
                    self._missing(request.subscription, context)
                received = self._take(self.subscriptions[request.subscription], request)
            if received or request.return_immediately:
                return types.PullResponse(received_messages=received)
            time.sleep(0.01)
        return types.PullResponse()

    def _take(self, subscription, request):
        now, received = time.monotonic(), []
        policy = subscription.wanted.dead_letter_policy
        for id, entry in list(subscription.messages.items()):
            if len(received) == request.max_messages:
                break
            message, due, _, deliveries = entry
            if due > now:
                continue
            if policy.dead_letter_topic and deliveries >= policy.max_delivery_attempts:
                del subscription.messages[id]
                self._deliver_to(policy.dead_letter_topic, message)
                continue
            self.pulled += 1
            copies = 2 if self.twice and self.pulled % self.twice == 0 else 1
            for _ in range(copies):
                entry[2], entry[3] = uuid.uuid4().hex, deliveries + 1
                received.append(
                    types.ReceivedMessage(
                        ack_id=entry[2], message=message,
                        delivery_attempt=entry[3] if policy.dead_letter_topic else 0,
                    )
                )  # fmt: skip
            entry[1] = now + (subscription.wanted.ack_deadline_seconds or 10)
        return received[: max(request.max_messages, 2)]

    def ModifyAckDeadline(self, request, context):
        if not 0 <= request.ack_deadline_seconds <= 600:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "Invalid ack deadline given. It must be between 0 and 600 seconds.",
            )
        with self.lock:
            if request.subscription not in self.subscriptions:
                self._missing(request.subscription, context)
            for entry in self.subscriptions[request.subscription].messages.values():
                if entry[2] in request.ack_ids:
                    entry[1] = time.monotonic() + request.ack_deadline_seconds
        return EMPTY()

    def Acknowledge(self, request, context):
        with self.lock:
            if request.subscription not in self.subscriptions:
                self._missing(request.subscription, context)
            messages = self.subscriptions[request.subscription].messages
            for id, entry in list(messages.items()):
                # One whose deadline passed may still be acknowledged while nobody else has it.
                if entry[2] in request.ack_ids:
                    del messages[id]
        return EMPTY()

    @staticmethod
    def _missing(name, context):
        context.abort(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={_short(name)}).")


def _short(name):
    return name.rsplit("/", 1)[-1]


METHODS = {
    "Publisher": {"CreateTopic": (types.Topic, types.Topic),
                  "Publish": (types.PublishRequest, types.PublishResponse)},
    "Subscriber": {"CreateSubscription": (types.Subscription, types.Subscription),
                   "UpdateSubscription": (types.UpdateSubscriptionRequest, types.Subscription),
                   "Pull": (types.PullRequest, types.PullResponse),
                   "ModifyAckDeadline": (types.ModifyAckDeadlineRequest, EMPTY),
                   "Acknowledge": (types.AcknowledgeRequest, EMPTY)},
}  # fmt: skip


def _serializer(kind):
    return EMPTY.SerializeToString if kind is EMPTY else kind.serialize


@contextlib.contextmanager
def serve():
    """(the fake, the environment in which Google's client asks it)."""
    fake = Fake()
    server = grpc.server(futures.ThreadPoolExecutor(64))
    for service, methods in METHODS.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(fake, name), request_deserializer=taken.deserialize,
                response_serializer=_serializer(given),
            )
            for name, (taken, given) in methods.items()
        }  # fmt: skip
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"google.pubsub.v1.{service}", handlers),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield fake, {"PUBSUB_EMULATOR_HOST": f"127.0.0.1:{port}"}
    finally:
        server.stop(None).wait(10)
