"""The real ClickHouse engine in the test process (chdb), with exactly the schema of deploy/."""

import json
import threading
from pathlib import Path

SCHEMA = Path(__file__).resolve().parents[2] / "deploy/clickhouse/schema"


def statements(path: Path) -> list[str]:
    """The statements of a .sql file, split as clickhouse-client does, without comments."""
    lines = (line.split(" -- ")[0].split("  -- ")[0] for line in path.read_text().splitlines())
    text = "\n".join(line for line in lines if not line.lstrip().startswith("--"))
    return [part.strip() for part in text.split(";\n") if part.strip(" \n;")]


def apply_schema(run, definer: str = "") -> None:
    """Run every statement of deploy/'s schema; `definer` is who the server's CURRENT_USER is."""
    for file in sorted(SCHEMA.glob("*.sql")):
        for statement in statements(file):
            if definer:
                statement = statement.replace("DEFINER = CURRENT_USER", f"DEFINER = {definer}")
            run(statement.rstrip(";"))


class Database:
    """A chdb session; one per process at a time."""

    def __init__(self, path: Path | str):
        from chdb.session import Session

        self.session = Session(str(path))
        # chdb is not closed while another thread asks it: that thread would stay in it.
        self._one = threading.Lock()
        apply_schema(self.session.query)

    def insert(self, rows: dict[str, list[dict]]) -> None:
        """Does with a batch what the collector's exporter does."""
        from tests.fakes.otlp import as_json  # gRPC, which a stand-in for the client has no use for

        for table, items in rows.items():
            lines = [json.dumps(as_json(item)) for item in items]
            if lines:
                query = f"INSERT INTO otel.{table} FORMAT JSONEachRow\n" + "\n".join(lines)
                with self._one:
                    self.session.query(query)

    def answer(self, sql: str, form: str, **params: str) -> bytes:
        """The bytes that the server sends for a query with `param_NAME` arguments."""
        with self._one:
            return self.session.query(sql, form, params=params).bytes()

    def query(self, sql: str) -> tuple[list[str], list[str], list[list]]:
        """Column names, types, rows."""
        with self._one:
            text = self.session.query(sql, "JSONCompact").data()
        out = json.loads(text)
        return (
            [c["name"] for c in out["meta"]],
            [c["type"] for c in out["meta"]],
            out["data"],
        )

    def rows(self, sql: str) -> list[list]:
        return self.query(sql)[2]

    def close(self) -> None:
        with self._one:
            self.session.close()
