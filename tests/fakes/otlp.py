"""A real OTLP receiver over loopback: gRPC and HTTP, bearer token, gzip, faults on demand.

It stands where the collector stands: every point becomes the row that the collector's ClickHouse
exporter would insert (column names of contrib v0.165.0; attribute values become text), and `sink`
gets the rows by table name.
"""

import contextlib
import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc

Rows = dict[str, list[dict]]
MESSAGES = {
    "/v1/metrics": metrics_pb.ExportMetricsServiceRequest,
    "/v1/logs": logs_pb.ExportLogsServiceRequest,
}


@dataclass
class Receiver:
    """A running receiver. `fault(n)` is asked before each request: None, an HTTP status,
    (status, headers) or "reset".

    Attributes:
        grpc_endpoint, http_endpoint: for OTEL_EXPORTER_OTLP_ENDPOINT.
        requests: how many were accepted; `raw` their decoded messages, where `keep` is set.
    """

    sink: Callable[[Rows], None]
    token: str | None = None
    fault: Callable[[int], object] = lambda n: None
    keep: bool = False
    requests: int = 0
    seen: int = 0
    points: int = 0
    encodings: set = field(default_factory=set)
    raw: list = field(default_factory=list)
    grpc_endpoint: str = ""
    http_endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, message):
        rows: Rows = {}
        if isinstance(message, metrics_pb.ExportMetricsServiceRequest):
            for resource in message.resource_metrics:
                metric_rows(resource, rows)
        else:
            for resource in message.resource_logs:
                log_rows(resource, rows)
        with self.lock:
            self.sink(rows)
            self.requests += 1
            self.points += sum(map(len, rows.values()))
            if self.keep:
                self.raw.append(message)

    def next_fault(self):
        with self.lock:
            self.seen += 1
            return self.fault(self.seen)


def text(value) -> str:
    kind = value.WhichOneof("value")
    got = getattr(value, kind) if kind else ""
    return str(got).lower() if isinstance(got, bool) else str(got)


def attributes(pairs) -> dict:
    return {pair.key: text(pair.value) for pair in pairs}


def metric_rows(resource, rows: Rows) -> None:
    attrs = attributes(resource.resource.attributes)
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            common = {
                "ResourceAttributes": attrs,
                "ScopeName": scope.scope.name,
                "ServiceName": attrs.get("service.name", ""),
                "MetricName": metric.name,
                "MetricUnit": metric.unit,
            }
            kind = metric.WhichOneof("data")
            table = {"exponential_histogram": "exp_histogram"}.get(kind, kind)
            out = rows.setdefault(f"otel_metrics_{table}", [])
            for point in getattr(metric, kind).data_points:
                row = common | {
                    "Attributes": attributes(point.attributes),
                    "StartTimeUnix": point.start_time_unix_nano,
                    "TimeUnix": point.time_unix_nano,
                    "Flags": point.flags,
                }
                if kind in ("gauge", "sum"):
                    row["Value"] = float(getattr(point, point.WhichOneof("value")))
                elif kind == "exponential_histogram":
                    row |= {
                        "Count": point.count, "Sum": point.sum, "Scale": point.scale,
                        "ZeroCount": point.zero_count, "Min": point.min, "Max": point.max,
                        "PositiveOffset": point.positive.offset,
                        "PositiveBucketCounts": list(point.positive.bucket_counts),
                        "NegativeOffset": point.negative.offset,
                        "NegativeBucketCounts": list(point.negative.bucket_counts),
                    }  # fmt: skip
                out.append(row)


def log_rows(resource, rows: Rows) -> None:
    attrs = attributes(resource.resource.attributes)
    out = rows.setdefault("otel_logs", [])
    for scope in resource.scope_logs:
        for record in scope.log_records:
            out.append(
                {
                    "Timestamp": record.time_unix_nano,
                    "SeverityNumber": record.severity_number,
                    "ServiceName": attrs.get("service.name", ""),
                    "Body": record.body.string_value,
                    "ResourceAttributes": attrs,
                    "LogAttributes": attributes(record.attributes),
                    "EventName": record.event_name,
                }
            )


def as_json(row: dict) -> dict:
    """A row as JSONEachRow has it: times with nine decimals, NaN and infinities as text."""
    row = dict(row)
    for key in ("StartTimeUnix", "TimeUnix", "Timestamp"):
        if key in row:
            row[key] = f"{row[key] // 10**9:010d}.{row[key] % 10**9:09d}"
    value = row.get("Value", 0.0)
    if value != value or abs(value) == float("inf"):
        row["Value"] = str(value)
    return row


class _Grpc:
    """Both services; `Export` of either message."""

    def __init__(self, receiver: Receiver, response):
        self.receiver, self.response = receiver, response

    def Export(self, request, context):
        metadata = dict(context.invocation_metadata())
        if self.receiver.token and metadata.get("authorization") != f"Bearer {self.receiver.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")
        fault = self.receiver.next_fault()
        if fault is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"fault {fault}")
        self.receiver.take(request)
        return self.response()


def _handler(receiver: Receiver):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.encodings.add(self.headers.get("content-encoding", "identity"))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if receiver.token and self.headers.get("authorization") != f"Bearer {receiver.token}":
                return self.answer(401)
            fault = receiver.next_fault()
            if fault == "reset":
                self.connection.close()
                self.close_connection = True
                return None
            if isinstance(fault, tuple):  # (status, headers): what is no OTLP receiver
                return self.answer(*fault)
            if fault is not None:
                return self.answer(int(fault))
            message = MESSAGES[self.path]()
            message.ParseFromString(body)
            receiver.take(message)
            return self.answer(200)

        def answer(self, status, headers=None):
            self.send_response(status)
            for name, value in (headers or {"content-type": "application/x-protobuf"}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    return Handler


@contextlib.contextmanager
def serve(
    sink: Callable[[Rows], None] = lambda rows: None,
    credentials: grpc.ServerCredentials | None = None,
    ssl_context=None,
    http_port: int = 0,
    **options,
) -> Iterator[Receiver]:
    """Run a receiver on free ports until the block ends."""
    receiver = Receiver(sink, **options)
    server = grpc.server(
        futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", 4 << 20)]
    )
    metrics_grpc.add_MetricsServiceServicer_to_server(
        _Grpc(receiver, metrics_pb.ExportMetricsServiceResponse), server
    )
    logs_grpc.add_LogsServiceServicer_to_server(
        _Grpc(receiver, logs_pb.ExportLogsServiceResponse), server
    )
    if credentials is not None:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = ThreadingHTTPServer(("127.0.0.1", http_port), _handler(receiver))
    http.daemon_threads = True
    scheme = "http"
    if ssl_context is not None:
        http.socket = ssl_context.wrap_socket(http.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    receiver.grpc_endpoint = f"{'https' if credentials else 'http'}://localhost:{port}"
    receiver.http_endpoint = f"{scheme}://localhost:{http.server_port}"
    try:
        yield receiver
    finally:
        http.shutdown()
        http.server_close()
        server.stop(0).wait()
