"""A clickhouse-client as far as deploy/clickhouse/*.sh use it, over HTTP to the engine."""

import os
import sys
from pathlib import Path

from tests.fakes.clickhouse_http import PASSWORDS, ROOT

PASSWORD = "secret-pw"
# The embedded engine has no zip, so a backup's name loses that ending: it is a folder here.
PROGRAM = f"""#!{sys.executable} -S
import os, sys, urllib.error, urllib.request
from pathlib import Path
words = sys.argv[1:]
assert Path(words[words.index("--config-file") + 1]).read_text().count({PASSWORD!r}) == 1
if "--query" in words:
    texts = [words[words.index("--query") + 1].replace(".zip'", "'")]
else:
    sys.path.insert(0, {str(ROOT)!r})
    from tests.fakes.clickhouse import statements
    texts = statements(Path(words[words.index("--queries-file") + 1]))
left = int(os.environ.get("FAIL_AFTER", "1000000"))
for text in texts:
    if (left := left - 1) < 0 or (os.environ.get("FAIL_ON") or text + "-") in text:
        sys.exit(1)
    request = urllib.request.Request("http://127.0.0.1:" + os.environ["PORT"], text.encode())
    request.add_header("X-ClickHouse-User", "gaia_admin")
    request.add_header("X-ClickHouse-Key", {PASSWORDS["gaia_admin"]!r})
    try:
        sys.stdout.write(urllib.request.urlopen(request).read().decode())
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode() + text)
"""


def install(folder: Path, port: int) -> dict[str, str]:
    """Puts it into folder/bin; the environment in which deploy's scripts find it and the engine.

    FAIL_AFTER=N ends it after N statements of one call, FAIL_ON=TEXT before one with that text.
    """
    program = folder / "bin/clickhouse-client"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (folder / "clickhouse_admin_password").write_text(PASSWORD)
    return os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PORT": str(port),
        "SCHEMA_DIR": str(ROOT / "deploy/clickhouse/schema"),
        "SECRETS_DIR": str(folder),
    }
