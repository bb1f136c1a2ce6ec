"""EC2 for tests: moto's server, behind a proxy that counts calls and breaks the one it is told to.

moto answers as EC2 does in form; what it lacks (it runs no machine and boots at once) does not
matter for what is tested: that no instance is doubled or forgotten.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlparse

from tests.fakes.sshd import free_port


class Ec2:
    """The address of EC2, and what passed. `fault` as the cloud's: None or (kind, …) by call."""

    def __init__(self) -> None:
        # A process of its own: as a thread it dies of any warning that its imports give.
        self.target = ("127.0.0.1", free_port())
        self.moto = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.target[1])],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 90
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(self.target) == 0:
                    break
            assert self.moto.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        self.calls: list[str] = []
        self.fault: Callable[[int, str], Any] = lambda number, action: None
        handler = type("Handler", (_Proxy,), {"ec2": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *a: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """An empty cloud with the security group and the image that gml looks for."""
        self.fault = lambda number, action: None
        connection = http.client.HTTPConnection(*self.target, timeout=30)
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()
        connection.close()
        for region in ("us-east-1", "us-west-2"):
            client = self.client(region)
            group = client.create_security_group(GroupName="gml-ssh", Description="x")["GroupId"]
            rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22,
                    "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}  # fmt: skip
            client.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        self.calls.clear()

    def client(self, region: str = "us-east-1") -> Any:
        import boto3

        host, port = self.target
        return boto3.client(
            "ec2", region_name=region, endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip

    def instances(self) -> list[dict[str, Any]]:
        """Everything that is billed, in both regions."""
        billed = []
        for region in ("us-east-1", "us-west-2"):
            for group in self.client(region).describe_instances()["Reservations"]:
                billed += [i for i in group["Instances"] if i["State"]["Name"] != "terminated"]
        return billed

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.moto.terminate()
        self.moto.wait(timeout=30)


class _Proxy(BaseHTTPRequestHandler):
    ec2: Ec2

    def log_message(self, *args: Any) -> None:
        return

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action = dict(parse_qsl(body.decode())).get("Action", "")
        number = len(self.ec2.calls)
        self.ec2.calls.append(action)
        fault = self.ec2.fault(number, action)
        if fault and fault[0] == "hook" and fault[2] == "before":
            fault[1]()
            return
        if fault == ("drop", "before"):
            return
        if fault and fault[0] == "error":
            # docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
            text = (
                "<?xml version='1.0'?><Response><Errors><Error><Code>{}</Code><Message>{}</Message>"
                "</Error></Errors><RequestID>r</RequestID></Response>"
            ).format(fault[2], "injected")
            self._answer(fault[1], text.encode(), "text/xml")
            return
        connection = http.client.HTTPConnection(*self.ec2.target, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        connection.request("POST", urlparse(self.path).path or "/", body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault and fault[0] == "hook":
            fault[1]()
            return
        if fault == ("drop", "after"):
            return
        self._answer(answer.status, data, answer.headers.get("Content-Type", "text/xml"))

    def do_GET(self) -> None:
        self._answer(200, b"", "text/plain")

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
