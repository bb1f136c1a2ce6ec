"""OTLP requests, written straight as protobuf bytes.

Why by hand: an OTLP point is three fixed-width fields and one attribute, and all points of a step
share everything but eight bytes. Concatenating them costs 0.3 us a point in the training process,
the generated classes 1.1 us, SDK objects 6 us; and sending over HTTP then needs no dependency.
The tests parse the result with the official opentelemetry-proto classes.

Field numbers: opentelemetry-proto v1, metrics.proto, logs.proto, common.proto, resource.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

_DOUBLE = struct.Struct("<d").pack
_FIXED64 = struct.Struct("<Q").pack
_POINTS: dict[tuple[int, int], tuple[Callable[..., bytes], Callable[[bytes], tuple]]] = {}
Scalar = str | bool | int | float


def varint(value: int) -> bytes:
    """Base-128 varint of a non-negative integer (or of a negative one in 64-bit complement)."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> bytes:
    """sint32/sint64."""
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def text(number: int, value: str) -> bytes:
    """A string field; empty strings are left out, as proto3 does."""
    return field(number, value.encode("utf-8", "replace")) if value else b""


def any_value(value: Scalar) -> bytes:
    """common.AnyValue."""
    if isinstance(value, bool):
        return b"\x10" + varint(value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return b"\x18" + varint(value)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE(value)
    return field(1, str(value).encode("utf-8", "replace"))


def attributes(number: int, values: Mapping[str, Scalar]) -> bytes:
    """Repeated common.KeyValue under field `number`."""
    return b"".join(
        field(number, text(1, key) + field(2, any_value(value))) for key, value in values.items()
    )


def point_frame(time_ns: int, step: int | None) -> tuple[bytes, bytes]:
    """Return the bytes before and after a gauge point's eight value bytes, tag and length included.

    Gauge.data_points (1) of NumberDataPoint: time_unix_nano (3), as_double (4), attributes (7).
    """
    tail = b""
    if step is not None:  # attributes(7, {"step": step}), in one piece: it is done for each step
        number = varint(step)
        pair = b"\x0a\x04step\x12" + bytes((len(number) + 1,)) + b"\x18" + number
        tail = b"\x3a" + bytes((len(pair),)) + pair
    return bytes((0x0A, 18 + len(tail), 0x19)) + _FIXED64(time_ns) + b"\x21", tail


def points(
    time_ns: int, step: int | None, values: Iterable[float], count: int
) -> tuple[bytes, ...]:
    """Gauge points of one step, ready for `gauge`: all packed at once, then cut apart.

    They differ in eight bytes only; packing them one by one takes twice as long.
    """
    head, tail = point_frame(time_ns, step)
    key = (count, len(tail))
    known = _POINTS.get(key)
    if known is None:
        pack = struct.Struct("<" + f"{len(head)}sd{len(tail)}s" * count).pack
        cut = struct.Struct(f"{len(head) + 8 + len(tail)}s" * count).unpack
        known = _POINTS[key] = (pack, cut)
    fields: list[bytes | float] = [head, 0.0, tail] * count
    fields[1::3] = values
    return known[1](known[0](*fields))


def gauge(name: str, points: bytes, unit: str = "") -> bytes:
    """ScopeMetrics.metrics (2): a Metric with a gauge of ready-made points."""
    return field(2, text(1, name) + text(3, unit) + field(5, points))


def info_point(time_ns: int, start_ns: int, values: Mapping[str, Scalar]) -> bytes:
    """A gauge point of value 1 that carries facts in its attributes (an "info metric")."""
    body = b"\x11" + _FIXED64(start_ns) + b"\x19" + _FIXED64(time_ns) + b"\x21" + _DOUBLE(1.0)
    return field(1, body + attributes(7, values))


def exponential_histogram(name: str, step: int, time_ns: int, record: Mapping) -> bytes:
    """ScopeMetrics.metrics (2): one ExponentialHistogram point from a histogram record.

    `record` holds count, sum, min, max, scale, zero_count and (offset, counts) for `positive` and
    `negative`, as histogram.py makes them.
    """
    body = b"\x19" + _FIXED64(time_ns) + b"\x21" + _FIXED64(record["count"])
    body += b"\x29" + _DOUBLE(record["sum"]) + b"\x30" + zigzag(record["scale"])
    body += b"\x39" + _FIXED64(record["zero_count"])
    for number, key in ((8, "positive"), (9, "negative")):
        offset, counts = record[key]
        packed = b"".join(map(varint, counts))
        body += field(number, b"\x08" + zigzag(offset) + (field(2, packed) if packed else b""))
    body += b"\x61" + _DOUBLE(record["min"]) + b"\x69" + _DOUBLE(record["max"])
    own = {"step": step} | ({"gaia.seq": record["seq"]} if "seq" in record else {})
    body += attributes(1, own)
    delta = b"\x10\x01"  # aggregation_temporality (2) = DELTA: each point stands alone
    return field(2, text(1, name) + field(10, field(1, body) + delta))


def metrics_request(resource: Mapping[str, Scalar], metrics: Iterable[bytes]) -> bytes:
    """ExportMetricsServiceRequest with one resource and one scope."""
    scope = field(1, text(1, "gaia_metrics"))
    body = field(1, attributes(1, resource)) + field(2, scope + b"".join(metrics))
    return field(1, body)


def log_record(
    time_ns: int, severity: int, event: str, body: str, values: Mapping[str, Scalar]
) -> bytes:
    """ScopeLogs.log_records (2)."""
    record = b"\x09" + _FIXED64(time_ns) + b"\x10" + varint(severity)
    record += field(5, any_value(body)) + attributes(6, values)
    record += b"\x59" + _FIXED64(time_ns) + text(12, event)
    return field(2, record)


def logs_request(resource: Mapping[str, Scalar], records: Iterable[bytes]) -> bytes:
    """ExportLogsServiceRequest with one resource and one scope."""
    scope = field(1, text(1, "gaia_metrics"))
    body = field(1, attributes(1, resource)) + field(2, scope + b"".join(records))
    return field(1, body)


def rejected(response: bytes) -> tuple[int, str]:
    """(rejected items, message) of an Export…ServiceResponse's partial_success."""
    outer = _fields(response).get(1, b"")
    inner = _fields(outer) if isinstance(outer, bytes) else {}
    count, message = inner.get(1, 0), inner.get(2, b"")
    return (
        count if isinstance(count, int) else 0,
        message.decode("utf-8", "replace") if isinstance(message, bytes) else "",
    )


def _fields(data: bytes) -> dict[int, int | bytes]:
    """Decode varint and length-delimited fields; stops at what it does not know."""
    out: dict[int, int | bytes] = {}
    at = 0

    def take() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    try:
        while at < len(data):
            tag = take()
            if tag & 7 == 0:
                out[tag >> 3] = take()
            elif tag & 7 == 2:
                size = take()
                out[tag >> 3] = data[at : at + size]
                at += size
            else:
                break
    except IndexError:
        pass
    return out
