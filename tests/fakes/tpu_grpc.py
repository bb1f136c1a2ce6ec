"""The TPU API v2 over real gRPC, for the official client as an oracle; state as in `cloud.py`."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent import futures
from typing import Any

import grpc
from google.api_core import exceptions
from google.cloud import tpu_v2 as tpu
from google.cloud.tpu_v2.services.tpu.transports import TpuGrpcTransport
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import any_pb2, empty_pb2
from google.rpc import code_pb2, status_pb2

SERVICE = "google.cloud.tpu.v2.Tpu"
State = tpu.Node.State


def pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


class Fake(operations_pb2_grpc.OperationsServicer):
    """Nodes, queued resources and their operations."""

    def __init__(self) -> None:
        self.nodes: dict[str, tpu.Node] = {}
        self.queued: dict[str, tpu.QueuedResource] = {}
        self.operations: dict[str, tuple[float, Any, operations_pb2.Operation]] = {}
        self.stockout: set[str] = set()
        self.lock = threading.RLock()

    def start(self, target: str, finish: Any) -> operations_pb2.Operation:
        parent = target.split("/nodes/")[0].split("/queuedResources/")[0]
        operation = operations_pb2.Operation(name=f"{parent}/operations/{uuid.uuid4().hex}")
        self.operations[operation.name] = (time.monotonic() + 0.02, finish, operation)
        return operation

    def GetOperation(self, request: Any, context: Any) -> operations_pb2.Operation:
        with self.lock:
            due, finish, operation = self.operations[request.name]
            if not operation.done and time.monotonic() >= due:
                result = finish()
                if isinstance(result, status_pb2.Status):
                    operation.error.CopyFrom(result)
                else:
                    operation.response.CopyFrom(pack(result))
                operation.done = True
            return operation

    def ListNodes(self, request: Any, context: Any) -> tpu.ListNodesResponse:
        zone = request.parent.split("/")[-1]
        found = [n for k, n in self.nodes.items() if zone == "-" or f"/{zone}/" in k]
        return tpu.ListNodesResponse(nodes=found)

    def GetNode(self, request: Any, context: Any) -> tpu.Node:
        if request.name not in self.nodes:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource '{request.name}' was not found")
        return self.nodes[request.name]

    def CreateNode(self, request: Any, context: Any) -> operations_pb2.Operation:
        zone, name = request.parent.split("/")[-1], f"{request.parent}/nodes/{request.node_id}"
        if name in self.nodes:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Resource '{name}' already exists")
        node = tpu.Node(request.node)
        node.name, node.state = name, State.CREATING
        self.nodes[name] = node

        def finish() -> Any:
            if zone in self.stockout:
                del self.nodes[name]
                text = f'There is no more capacity in the zone "{zone}"'
                return status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=text)
            node.state = State.READY
            return tpu.Node.pb(node)

        return self.start(name, finish)

    def DeleteNode(self, request: Any, context: Any) -> operations_pb2.Operation:
        def finish() -> Any:
            self.nodes.pop(request.name, None)
            return empty_pb2.Empty()

        return self.start(request.name, finish)

    def CreateQueuedResource(self, request: Any, context: Any) -> operations_pb2.Operation:
        name = f"{request.parent}/queuedResources/{request.queued_resource_id}"
        item = tpu.QueuedResource(request.queued_resource)
        item.name = name
        item.state = tpu.QueuedResourceState(state=tpu.QueuedResourceState.State.ACTIVE)
        self.queued[name] = item
        return self.start(name, lambda: tpu.QueuedResource.pb(item))

    def DeleteQueuedResource(self, request: Any, context: Any) -> operations_pb2.Operation:
        if not request.force:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it has nodes; use force")

        def finish() -> Any:
            self.queued.pop(request.name, None)
            return empty_pb2.Empty()

        return self.start(request.name, finish)


def serve(fake: Fake) -> tuple[Any, int]:
    """The gRPC server and its port."""
    kinds = {
        "ListNodes": (tpu.ListNodesRequest, tpu.ListNodesResponse),
        "GetNode": (tpu.GetNodeRequest, tpu.Node),
        "CreateNode": (tpu.CreateNodeRequest, None),
        "DeleteNode": (tpu.DeleteNodeRequest, None),
        "CreateQueuedResource": (tpu.CreateQueuedResourceRequest, None),
        "DeleteQueuedResource": (tpu.DeleteQueuedResourceRequest, None),
    }
    methods = {}
    for name, (asked, answered) in kinds.items():

        def handle(request: Any, context: Any, name: str = name) -> Any:
            with fake.lock:
                return getattr(fake, name)(request, context)

        methods[name] = grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=asked.deserialize,
            response_serializer=answered.serialize
            if answered
            else operations_pb2.Operation.SerializeToString,
        )
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    operations_pb2_grpc.add_OperationsServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def check_all(body: dict[str, Any], queued: dict[str, Any]) -> None:
    """The official client over gRPC, with the very bodies that gml sends over REST."""
    from google.protobuf import json_format

    fake = Fake()
    fake.stockout = {"us-east1-d"}
    server, port = serve(fake)
    address = f"127.0.0.1:{port}"
    with grpc.insecure_channel(address) as channel:
        client = tpu.TpuClient(transport=TpuGrpcTransport(host=address, channel=channel))
        node = tpu.Node.wrap(json_format.ParseDict(body, tpu.Node.pb(tpu.Node())))
        parent = "projects/p/locations/us-east5-b"
        made = client.create_node(parent=parent, node_id="n", node=node).result(timeout=60)
        assert made.state == State.READY and made.labels["gml"] == "1"
        assert made.scheduling_config.spot
        again = {"parent": parent, "node_id": "n", "node": node}
        for error, call in (
            (exceptions.AlreadyExists, lambda: client.create_node(**again)),
            (exceptions.NotFound, lambda: client.get_node(name=f"{parent}/nodes/z")),
        ):
            try:
                call()
            except error:
                continue
            raise AssertionError(f"{error} expected")
        try:
            empty = "projects/p/locations/us-east1-d"
            client.create_node(parent=empty, node_id="m", node=node).result(timeout=60)
            raise AssertionError("a stock-out comes in the operation")
        except exceptions.ResourceExhausted as error:
            assert "no more capacity" in str(error)
        item = json_format.ParseDict(queued, tpu.QueuedResource.pb(tpu.QueuedResource()))
        client.create_queued_resource(
            parent=parent, queued_resource_id="q", queued_resource=tpu.QueuedResource.wrap(item)
        ).result(timeout=60)
        name = f"{parent}/queuedResources/q"
        force = tpu.DeleteQueuedResourceRequest(name=name, force=True)
        client.delete_queued_resource(request=force).result(timeout=60)
        client.delete_node(name=f"{parent}/nodes/n").result(timeout=60)
        assert (fake.nodes, fake.queued) == ({}, {})
    server.stop(0).wait()
