"""The HTTP side of the fake Google Cloud Storage: JSON API, uploads, batches, and the XML API.

Each client uses another part: google-cloud-storage the JSON API with resumable and multipart
uploads, tensorstore media uploads, gcsfs batches, google-cloud-cpp (in array_record) the XML API
with open-ended ranges, the transfer fleet XML multipart uploads.
"""

import contextlib
import json
import re
import socket
import struct
import time
import uuid
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from fakes.gcs_store import ApiError, Blob, multipart, no_object

_BLOCK = 1 << 18
_ROUTE = re.compile(r"(?:/download)?/storage/v1/b(?:/([^/]+))?(?:/(o|storageLayout))?(?:/(.+))?$")
_PERMISSION = {
    ("GET", "o"): "storage.objects.get",
    ("GET", "list"): "storage.objects.list",
    ("POST", "o"): "storage.objects.create",
    ("PUT", "o"): "storage.objects.create",
    ("DELETE", "o"): "storage.objects.delete",
    ("GET", "b"): "storage.buckets.get",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client or an outage hung up
            super().handle()

    # ── Every request ─────────────────────────────────────────────────────────────────────────

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.content = self._read_body()
        if parts.path == "/_control":
            what = json.loads(self.content or b"{}")
            outage_s = what.pop("outage_s", None)
            self._json(self.server.fake.control(what))
            if outage_s:  # once the answer is out: it would be cut off too
                self.wfile.flush()
                self.server.fake.go_away(outage_s)
            return
        self.decoded = unquote(parts.path)
        if (code := self.server.trouble.request(self.command, self.decoded)) is not None:
            self._error(ApiError(code, "injected failure", "backendError"))
            return
        self.server.trouble.wait_first_byte()
        try:
            self._route(parts.path)
        except ApiError as error:
            self._error(error)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET

    def _route(self, path: str) -> None:
        if path.startswith(("/upload/", "/resumable/upload/")):
            match = re.match(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o", path)
            assert match is not None
            self._allow("POST", "o")
            self._upload(match[1])
        elif path.startswith("/batch/"):
            self._batch()
        elif match := _ROUTE.match(path):
            bucket, kind, name = match.groups()
            if kind == "storageLayout":
                self._json(self.server.store.bucket(bucket) | {"hierarchicalNamespace": None})
            elif kind is None:
                self._allow(self.command, "b")
                self._bucket(bucket)
            elif name is None:
                self._allow("GET", "list")
                self._json(self.server.store.list(bucket, self.query, self.base))
            else:
                self._allow(self.command, "o")
                self._object(bucket, name)
        else:
            self._xml(*[*self.decoded.lstrip("/").split("/", 1), ""][:2])

    def _allow(self, method: str, kind: str) -> None:
        permission = _PERMISSION.get((method, kind), "")
        if permission in self.server.trouble.faults.denied:
            what = "bucket" if kind == "b" else "object"
            raise ApiError(
                403,
                f"trainer@gaia-test.iam.gserviceaccount.com does not have {permission} access to "
                f"the Google Cloud Storage {what}. Permission '{permission}' denied on resource "
                "(or it may not exist).",
                "forbidden",
            )

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, body: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(code, json.dumps(body).encode(), "application/json", headers)

    def _error(self, error: ApiError) -> None:
        if error.code == 304:
            self._send(304, b"")
        else:
            self._json(error.body(), error.code)

    def _send(
        self,
        code: int,
        body: bytes = b"",
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if code != 204:
            self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ── JSON API ──────────────────────────────────────────────────────────────────────────────

    def _bucket(self, name: str | None) -> None:
        store = self.server.store
        if self.command == "POST":
            wanted = json.loads(self.content)
            self._json(store.create_bucket(wanted["name"], wanted.get("location", "US-CENTRAL1")))
        elif name is None:
            self._json({"items": [store.bucket(n) for n in store.bucket_names()]})
        elif self.command == "DELETE":
            store.delete_bucket(name)
            self._send(204)
        else:
            self._json(store.bucket(name))

    def _object(self, bucket: str, raw: str) -> None:
        store = self.server.store
        if match := re.match(r"(.+)/(rewriteTo|copyTo)/b/([^/]+)/o/(.+)", raw):
            source, verb, to_bucket, to_name = (unquote(part) for part in match.groups())
            blob = store.copy(store.get(bucket, source), to_bucket, to_name, self.query)
            resource, size = blob.resource(self.base), str(len(blob.data))
            done = {
                "kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size,
                "objectSize": size, "resource": resource,
            }  # fmt: skip
            self._json(done if verb == "rewriteTo" else resource)
            return
        if match := re.match(r"(.+)/moveTo/o/(.+)", raw):
            source, to_name = (unquote(part) for part in match.groups())
            blob = store.copy(store.get(bucket, source), bucket, to_name, self.query)
            store.delete(bucket, source, {})
            self._json(blob.resource(self.base))
            return
        if raw.endswith("/compose") and self.command == "POST":
            names = [source["name"] for source in json.loads(self.content)["sourceObjects"]]
            blob = store.compose(bucket, unquote(raw.removesuffix("/compose")), names, self.query)
            self._json(blob.resource(self.base))
            return
        name = unquote(raw)
        if self.command == "DELETE":
            store.delete(bucket, name, self.query)
            self._send(204)
        elif self.command == "PATCH":
            self._json(store.patch(bucket, name, json.loads(self.content)).resource(self.base))
        elif self.query.get("alt") == "media":
            self._media(store.get(bucket, name, self.query))
        else:
            self._json(store.get(bucket, name, self.query).resource(self.base))

    def _upload(self, bucket: str) -> None:
        kind = self.query.get("uploadType")
        if "upload_id" in self.query:
            self._resume_upload()
        elif kind == "resumable":
            self.server.store.bucket(bucket)
            wanted = json.loads(self.content or b"{}")
            name = wanted.get("name") or self.query["name"]
            if not wanted.get("contentType"):
                wanted["contentType"] = self.headers.get("X-Upload-Content-Type")
            key = uuid.uuid4().hex
            self.server.uploads[key] = (bucket, name, bytearray(), wanted, dict(self.query))
            where = f"{self.base}/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            self._send(200, headers={"Location": f"{where}&upload_id={key}"})
        elif kind == "media":
            kind = self.headers.get("Content-Type")
            self._stored(bucket, self.query["name"], self.content, {"contentType": kind})
        else:
            wanted, data = multipart(self.headers["Content-Type"], self.content)
            self._stored(bucket, wanted.get("name") or self.query["name"], data, wanted)

    def _stored(
        self, bucket: str, name: str, data: bytes, wanted: dict, query: dict | None = None
    ) -> None:
        given = Blob(bucket, name, bytes(data), 0)
        if wanted.get("crc32c", given.crc32c) != given.crc32c:
            raise ApiError(400, "Provided CRC32C does not match calculated CRC32C.", "invalid")
        if "md5Hash" in wanted and wanted["md5Hash"] != given.md5:
            raise ApiError(400, "Provided MD5 hash does not match calculated MD5.", "invalid")
        blob = self.server.store.put(
            bucket, name, data, self.query if query is None else query,
            wanted.get("contentType"), wanted.get("metadata"),
        )  # fmt: skip
        self.server.trouble.count(stored=1)
        self._json(blob.resource(self.base))

    def _resume_upload(self) -> None:
        key = self.query["upload_id"]
        if key not in self.server.uploads:
            raise ApiError(410, "The upload session is gone.", "gone")
        bucket, name, data, wanted, query = self.server.uploads[key]
        if self.command == "DELETE":
            del self.server.uploads[key]
            self._send(499)
            return
        match = re.match(
            r"bytes (\*|(\d+)-(\d+|\*))/(\d+|\*)", self.headers.get("Content-Range", "bytes 0-*/*")
        )
        assert match is not None
        if match[2] is not None and int(match[2]) <= len(data):
            data[int(match[2]) :] = self.content
        total = len(data) if self.headers.get("Content-Range") is None else match[4]
        if total != "*" and len(data) >= int(total):
            self._stored(bucket, name, data, wanted, query)
            self.server.uploads.pop(key, None)
        else:
            self._send(308, headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {})

    def _batch(self) -> None:
        """Several deletions or reads of metadata in one request (gcsfs deletes this way)."""
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
        assert boundary is not None
        answers = []
        for part in self.content.split(b"--" + boundary[1].encode())[1:-1]:
            text = part.decode()
            request = re.search(r"(GET|DELETE) (\S+) HTTP", text)
            ident = re.search(r"Content-ID: <?([^>\r\n]+)>?", text, re.IGNORECASE)
            assert request is not None
            route = _ROUTE.match(urlsplit(request[2]).path)
            assert route is not None and route[3] is not None
            try:
                if request[1] == "DELETE":
                    self._allow("DELETE", "o")
                    self.server.store.delete(route[1], unquote(route[3]), {})
                    status = "204 No Content\r\n\r\n"
                else:
                    blob = self.server.store.get(route[1], unquote(route[3]))
                    status = f"200 OK\r\n\r\n{json.dumps(blob.resource(self.base))}"
            except ApiError as error:
                status = f"{error.code} Error\r\n\r\n{json.dumps(error.body())}"
            answers.append(
                "--batch\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{ident[1] if ident else ''}>\r\n\r\nHTTP/1.1 {status}\r\n"
            )
        body = "".join(answers) + "--batch--"
        self._send(200, body.encode(), "multipart/mixed; boundary=batch")

    # ── Bodies ────────────────────────────────────────────────────────────────────────────────

    def _media(self, blob: Blob) -> None:
        headers = {
            "x-goog-generation": str(blob.generation),
            "x-goog-metageneration": str(blob.metageneration),
            "x-goog-stored-content-length": str(len(blob.data)),
            "x-goog-stored-content-encoding": "identity",
            "x-goog-hash": f"crc32c={blob.crc32c},md5={blob.md5}",
            "ETag": f'"{blob.generation}"',
            "Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
            "Accept-Ranges": "bytes",
        }
        size = len(blob.data)
        begin, end, code = 0, size, 200
        if match := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            if match[1]:
                begin, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
            else:
                begin = max(0, size - int(match[2]))
            if begin >= size:
                raise ApiError(416, "The requested range cannot be satisfied.", "requestedRange")
            code = 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self.send_response(code)
        self.send_header("Content-Type", blob.content_type)
        self.send_header("Content-Length", str(end - begin))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self._stream(memoryview(blob.data)[begin:end])

    def _stream(self, data: memoryview) -> None:
        trouble = self.server.trouble
        trouble.count(gets=1)
        if data and trouble.flips(self.decoded):
            wrong = bytearray(data)
            wrong[len(wrong) // 2] ^= 1
            data = memoryview(wrong)
        stop = len(data) // 2 if trouble.breaks(self.decoded) else len(data)
        try:
            for at in range(0, stop, _BLOCK):
                block = data[at : min(at + _BLOCK, stop)]
                trouble.wait_link(len(block))
                self.wfile.write(block)
                trouble.count(bytes=len(block))
        except OSError:
            trouble.count(aborted=1)
            self.close_connection = True
            return
        if stop < len(data):  # a reset, not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    # ── XML API ───────────────────────────────────────────────────────────────────────────────

    def _xml(self, bucket: str, name: str) -> None:
        store, query, uploads = self.server.store, self.query, self.server.uploads
        condition = self.headers.get("x-goog-if-generation-match")
        conditions = {} if condition is None else {"ifGenerationMatch": condition}
        if self.command in ("GET", "HEAD"):
            self._allow("GET", "o")
            self._media(store.get(bucket, name)) if name else self._xml_list(bucket)
        elif self.command == "POST" and "uploads" in query:
            key = uuid.uuid4().hex
            uploads[key] = {}
            self._send_xml(
                "InitiateMultipartUploadResult",
                f"<Bucket>{bucket}</Bucket><Key>{name}</Key><UploadId>{key}</UploadId>",
            )
        elif self.command == "PUT" and "partNumber" in query:
            uploads[query["uploadId"]][int(query["partNumber"])] = self.content
            part = Blob(bucket, name, self.content, 0)
            hashes = f"crc32c={part.crc32c},md5={part.md5}"
            self._send(200, headers={"ETag": f'"{part.md5}"', "x-goog-hash": hashes})
        elif self.command == "POST" and "uploadId" in query:
            parts = uploads.pop(query["uploadId"])
            store.put(bucket, name, b"".join(parts[k] for k in sorted(parts)), conditions)
            self._send_xml("CompleteMultipartUploadResult", f"<Key>{name}</Key>")
        elif self.command == "DELETE" and "uploadId" in query:
            uploads.pop(query["uploadId"], None)
            self._send(204)
        elif self.command == "PUT":
            blob = store.put(bucket, name, self.content, conditions)
            self._send(200, headers={"x-goog-generation": str(blob.generation)})
        elif self.command == "DELETE":
            store.delete(bucket, name, conditions)
            self._send(204)
        else:
            raise no_object(bucket, name)

    def _xml_list(self, bucket: str) -> None:
        found = self.server.store.list(bucket, self.query, self.base)["items"]
        entries = "".join(
            f"<Contents><Key>{quote(o['name'])}</Key><Size>{o['size']}</Size>"
            f"<LastModified>{o['updated']}</LastModified><ETag>{o['etag']}</ETag></Contents>"
            for o in found
        )
        head = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated>"
        self._send_xml("ListBucketResult", head + entries)

    def _send_xml(self, root: str, inside: str) -> None:
        space = "http://s3.amazonaws.com/doc/2006-03-01/"  # a name, which the clients look for
        text = f'<?xml version="1.0"?><{root} xmlns="{space}">{inside}</{root}>'
        self._send(200, text.encode(), "application/xml")
