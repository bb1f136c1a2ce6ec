"""`gchat web` as a process of its own behind a real nginx with TLS, as deploy/chat has it."""

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = "chat.example.org"
PASSWORD = "seven quiet otters"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def certificate(folder, *names):
    """Writes fullchain.pem and privkey.pem of a certificate that signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.now()
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2)).not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "fullchain.pem").write_bytes(made.public_bytes(pem))
    (folder / "privkey.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def configuration(folder, site_port, port=None, http_port=None):
    """deploy/chat/nginx.conf as a whole file that needs no rights; its text else unchanged."""
    text = (ROOT / "deploy/chat/nginx.conf").read_text()
    text = text.replace(f"/etc/letsencrypt/live/{HOST}", str(folder))
    text = text.replace("server 127.0.0.1:8000;", f"server 127.0.0.1:{site_port};")
    text = re.sub(r"^    listen \[::\].*\n", "", text, flags=re.M)
    text = text.replace("listen 443", f"listen 127.0.0.1:{port or 443}")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{http_port or 80};")
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    types = "" if not Path("/etc/nginx/mime.types").exists() else "include /etc/nginx/mime.types;\n"
    file = folder / "nginx.conf"
    file.write_text(
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\nworker_processes 1;\ndaemon off;\n"
        f"events {{}}\nhttp {{\naccess_log {folder}/access.log;\n{types}{paths}{text}\n}}\n"
    )
    return file


@contextlib.contextmanager
def nginx(folder, site_port):
    """nginx before a site; its address, by a name that the browser must map to this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    certificate(folder, HOST, "localhost")
    port, http_port = free_port(), free_port()
    file = configuration(folder, site_port, port, http_port)
    # Without rights to change its user it stays who started it; as root, `nobody` must reach it.
    command = ["nginx", "-c", str(file), "-p", str(folder)]
    if os.getuid() == 0:
        command += ["-g", "user root;"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 20
        while True:
            assert process.poll() is None, process.stderr.read().decode()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        yield f"https://{HOST}:{port}", http_port
    finally:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()


@contextlib.contextmanager
def web(folder, *arguments, database=None, environment=None, wait_s=120):
    """`gchat web` on a port of its own, and SQLite where no address is given.

    Yields (port, database's address, process).
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, database = free_port(), database or f"sqlite:///{folder / 'site.db'}"
    log = (folder / "web.log").open("a")
    given = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    command = [sys.executable, "-m", "gchat", "web", "--port", str(port), "--database", database]
    process = subprocess.Popen([*command, *arguments], env=given, stderr=log, cwd=folder)
    try:
        end = time.monotonic() + wait_s
        while True:
            text = (folder / "web.log").read_text()
            assert process.poll() is None, text
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            assert time.monotonic() < end, text
            time.sleep(0.2)
        yield port, database, process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def add_user(database, name, role="user"):
    """Makes an account by `gchat web admin add-user`."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), "GCHAT_PASSWORD": PASSWORD}
    command = [sys.executable, "-m", "gchat", "web", "admin", "add-user", "--name", name,
               "--role", role, "--database", database]  # fmt: skip
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def chromium(playwright, **options):
    """Chromium that takes the site's name for this machine, and its certificate for good."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {HOST} 127.0.0.1"]
    browser = playwright.chromium.launch(executable_path=path, args=arguments, **options)
    try:
        yield browser
    finally:
        browser.close()


def head(address, port):
    """The headers of an answer through nginx."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = address.replace(HOST, "127.0.0.1")
    request = urllib.request.Request(url, headers={"Host": f"{HOST}:{port}"})
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers
