"""schemathesis tries every route of the description, as a user and as an administrator."""

import subprocess
import sys

import pytest

import chat_site
from chat_site import add_user

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("who", ["user", "admin"])
def test_schemathesis_sees_no_500(tmp_path, upstream, who):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed (slow.txt)")
    site = chat_site.make_site(f"sqlite:///{tmp_path}/site.db", upstream.url)
    add_user(site, "crawler", who)
    add_user(site, "other", "admin")
    with chat_site.running(site) as place:
        client = place.client("crawler")
        client.chat(content="hello")
        cookies = "; ".join(f"{name}={value}" for name, value in client.http.cookies.items())
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{place.url}/api/openapi.json",
            "--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing",
            "--max-examples", "30", "--workers", "1", "--seed", "1", "--request-timeout", "60",
            "-H", f"Cookie: {cookies}", "-H", f"X-CSRF-Token: {client.csrf}",
            # Those would end the session that the crawl needs.
            "--exclude-path-regex", "/api/(logout|password|login|admin/users/)",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert client.get("/api/me").status_code == 200  # it was logged in all the time
