"""deploy/: what can be shown without containers. smoke.sh starts the stack where docker exists."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from tests.fakes import real_parts

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PINNED = re.compile(r"^[a-z0-9./-]+:v?\d+\.\d+(\.\d+)*(-alpine)?$")

# Keys of each component, from its documentation in opentelemetry-collector(-contrib) v0.165.0:
# receiver/otlpreceiver/config.md, config/confighttp, config/configgrpc, processor/
# memorylimiterprocessor, extension/{bearertokenauth,healthcheck,storage/filestorage}extension,
# exporter/clickhouseexporter, exporter/exporterhelper. Nested as in the configuration.
GRPC = {"endpoint", "transport", "tls", "max_recv_msg_size_mib", "max_concurrent_streams",
        "read_buffer_size", "write_buffer_size", "keepalive", "auth", "include_metadata",
        "middlewares"}  # fmt: skip
HTTP = {"endpoint", "tls", "cors", "auth", "max_request_body_size", "include_metadata",
        "response_headers", "compression_algorithms", "read_timeout", "read_header_timeout",
        "write_timeout", "idle_timeout", "traces_url_path", "metrics_url_path", "logs_url_path",
        "keep_alives_enabled", "middlewares"}  # fmt: skip
TABLE = {"name": None}
COMPONENTS = {
    "extensions": {
        "health_check": {"endpoint", "path", "tls", "response_body", "check_collector_pipeline"},
        "bearertokenauth": {"scheme", "token", "tokens", "filename", "header"},
        "file_storage": {"directory", "create_directory", "directory_permissions", "timeout",
                         "compaction", "fsync", "recreate"},
    },
    "receivers": {"otlp": {"protocols": {
        "grpc": dict.fromkeys(GRPC) | {"auth": {"authenticator": None}},
        "http": dict.fromkeys(HTTP) | {"auth": {"authenticator": None}},
    }}},
    "processors": {"memory_limiter": {
        "check_interval", "limit_mib", "spike_limit_mib", "limit_percentage",
        "spike_limit_percentage", "min_gc_interval_when_soft_limited",
        "min_gc_interval_when_hard_limited"}},
    "exporters": {"clickhouse": {
        **dict.fromkeys((
            "endpoint", "username", "password", "ttl", "database", "connection_params",
            "create_schema", "compress", "async_insert", "tls", "logs_table_name",
            "traces_table_name", "cluster_name", "table_engine", "timeout", "json")),
        "metrics_tables": dict.fromkeys(
            ("gauge", "sum", "summary", "histogram", "exponential_histogram"), TABLE),
        "sending_queue": {
            **dict.fromkeys(("enabled", "num_consumers", "queue_size", "sizer",
                             "block_on_overflow", "storage", "wait_for_result")),
            "batch": dict.fromkeys(("flush_timeout", "min_size", "max_size", "sizer"))},
        "retry_on_failure": dict.fromkeys((
            "enabled", "initial_interval", "max_interval", "max_elapsed_time", "multiplier",
            "randomization_factor")),
    }},
}  # fmt: skip


def check_keys(value, allowed, where):
    if allowed is None or not isinstance(value, dict):
        return
    for key, inner in value.items():
        assert key in allowed, f"{where}.{key} is not documented"
        check_keys(inner, allowed[key] if isinstance(allowed, dict) else None, f"{where}.{key}")


def test_collector_configuration():
    config = yaml.safe_load((DEPLOY / "collector/config.yaml").read_text())
    for group, known in COMPONENTS.items():
        for name, settings in config[group].items():
            check_keys(settings, known[name.split("/")[0]], f"{group}.{name}")
    service = config["service"]
    assert set(service["extensions"]) == set(config["extensions"])
    for pipeline in service["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        for group in ("receivers", "processors", "exporters"):
            assert set(pipeline[group]) <= set(config[group])
    for protocol in config["receivers"]["otlp"]["protocols"].values():
        assert protocol["auth"]["authenticator"] in config["extensions"]
    exporter = config["exporters"]["clickhouse"]
    assert exporter["create_schema"] is False
    assert exporter["sending_queue"]["storage"] in config["extensions"]
    landing = (DEPLOY / "clickhouse/schema/01-landing.sql").read_text()
    tables = [t["name"] for t in exporter["metrics_tables"].values()]
    for table in [*tables, exporter["logs_table_name"]]:
        assert f"otel.{table}\n" in landing
    assert landing.count("\nENGINE = Null;") == len(tables) + 1


EXPORTER_COLUMNS = {  # the INSERT statements of the exporter, internal/sqltemplates/*_insert.sql
    "otel_metrics_gauge": "ResourceAttributes ResourceSchemaUrl ScopeName ScopeVersion "
    "ScopeAttributes ScopeDroppedAttrCount ScopeSchemaUrl ServiceName MetricName "
    "MetricDescription MetricUnit Attributes StartTimeUnix TimeUnix Value Flags Exemplars",
    "otel_metrics_exp_histogram": "ResourceAttributes ResourceSchemaUrl ScopeName ScopeVersion "
    "ScopeAttributes ScopeDroppedAttrCount ScopeSchemaUrl ServiceName MetricName "
    "MetricDescription MetricUnit Attributes StartTimeUnix TimeUnix Count Sum Scale ZeroCount "
    "PositiveOffset PositiveBucketCounts NegativeOffset NegativeBucketCounts Exemplars Flags "
    "Min Max AggregationTemporality",
    "otel_logs": "Timestamp TraceId SpanId TraceFlags SeverityText SeverityNumber ServiceName "
    "Body ResourceSchemaUrl ResourceAttributes ScopeSchemaUrl ScopeName ScopeVersion "
    "ScopeAttributes LogAttributes EventName",
}


@pytest.mark.parametrize("table", EXPORTER_COLUMNS)
def test_landing_tables_have_the_exporters_columns(table):
    text = (DEPLOY / "clickhouse/schema/01-landing.sql").read_text()
    body = re.search(rf"otel\.{table}\n\((.*?)\n\)\nENGINE", text, re.S)[1]
    columns = re.findall(r"^    ([A-Z]\w+)", body, re.M)
    assert columns == EXPORTER_COLUMNS[table].split()


def test_compose():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert PINNED.match(service["image"]), (name, service["image"])
        assert name == "caddy" or "ports" not in service, f"{name} is public"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./") and not source.startswith("./secrets/"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("./"):
                assert source in compose["volumes"]
        for secret in service.get("secrets", ()):
            assert secret in compose["secrets"]
    for name, service in compose["services"].items():
        published = [str(port) for port in service.get("ports", ())]
        assert all(p.startswith(("${GAIA_BIND:-0.0.0.0}:", "127.0.0.1:")) for p in published)
        assert not published or name == "caddy"
    assert compose["services"]["clickhouse"]["networks"] == ["database"]
    assert compose["networks"]["database"]["internal"] is True
    for name in ("clickhouse", "grafana", "caddy"):
        assert "healthcheck" in compose["services"][name]


def test_the_reader_can_only_read_limited_views():
    tree = ElementTree.parse(DEPLOY / "clickhouse/users.d/gaia.xml").getroot()
    assert tree.find("users/default").get("remove") == "remove"
    grants = [q.text for q in tree.findall("users/grafana_reader/grants/query")]
    assert grants and all(re.match(r"GRANT SELECT ON gaia\.\w+$", g) for g in grants)
    views = (DEPLOY / "clickhouse/schema/views.sql").read_text()
    grants.remove("GRANT SELECT ON gaia.points")  # for gaia_metrics.query: numbers only
    for grant in grants:
        assert f"CREATE OR REPLACE VIEW {grant.split()[-1]}\n" in views
    assert (
        views.count("CREATE OR REPLACE VIEW") == views.count("SQL SECURITY DEFINER") == len(grants)
    )
    profile = tree.find("profiles/gaia_reader")
    assert profile.findtext("readonly") == "1"
    for limit in ("max_execution_time", "max_memory_usage", "max_rows_to_read", "max_result_rows"):
        assert int(profile.findtext(limit)) > 0
    assert tree.find("quotas/gaia_reader") is not None
    queried = set(re.findall(r"gaia\.(\w+)", (DEPLOY / "grafana/queries.py").read_text()))
    rules = (DEPLOY / "grafana/provisioning/alerting/rules.yaml").read_text()
    queried |= set(re.findall(r"(?:FROM|JOIN) gaia\.(\w+)", rules))
    assert queried <= {grant.split(".")[-1] for grant in grants}


@pytest.fixture
def copy(tmp_path):
    """deploy/ in a folder of its own, with a docker that only notes what it is asked."""
    target = tmp_path / "deploy"
    shutil.copytree(DEPLOY, target, ignore=shutil.ignore_patterns("secrets", ".env"))
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/docker"
    fake.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    return target, os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def run(command, env):
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_up_makes_secrets_once(copy, tmp_path):
    deploy, env = copy
    done = run(["bash", deploy / "up.sh", "--domain", "metrics.example.org", "--public"], env)
    assert done.returncode == 0, done.stderr
    secrets = deploy / "secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    token = (secrets / "otlp_token").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", token) and token not in done.stdout
    values = {p.name: p.read_text() for p in secrets.iterdir() if p.suffix != ".xml"}
    assert len(set(values.values())) == 5
    users = (secrets / "clickhouse-users.xml").read_text()
    for name in ("admin", "writer", "reader"):
        password = values[f"clickhouse_{name}_password"]
        assert hashlib.sha256(password.encode()).hexdigest() in users and password not in users
    assert not re.search(r"@\w+@", users)
    assert "GAIA_PUBLIC=true" in (deploy / ".env").read_text()
    assert "up --detach --wait" in (tmp_path / "calls").read_text()
    again = run(["bash", deploy / "up.sh"], env)
    assert again.returncode == 0 and "metrics.example.org" in again.stdout
    assert (secrets / "otlp_token").read_text() == token
    for bad in (["--domain", "a b;rm"], ["--nonsense"]):
        refused = run(["bash", deploy / "up.sh", *bad], env)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1


def test_dry_runs_change_nothing(copy, tmp_path):
    deploy, env = copy
    (tmp_path / "gaia_metrics").symlink_to(DEPLOY.parent / "gaia_metrics")
    env["PYTHON"] = sys.executable
    before = sorted(p for p in deploy.rglob("*"))
    for script in ("up.sh", "smoke.sh"):
        done = run(["bash", deploy / script, "--dry-run"], env)
        assert done.returncode == 0, done.stderr
        assert "docker compose up" in done.stdout and "grafana/grafana:" in done.stdout
    assert sorted(p for p in deploy.rglob("*")) == before and not (tmp_path / "calls").exists()
    for arguments, address in (([], "127.0.0.1"), (["--domain", "m.example.org"], "0.0.0.0")):
        done = run(["bash", deploy / "up.sh", "--dry-run", *arguments], env)
        assert f"GAIA_BIND={address}" in done.stdout.splitlines()  # what Caddy's ports listen on
    for script in ("up.sh", "k8s/install.sh"):  # by a relative name, as people call it
        command = ["bash", f"deploy/{script}", "--help"]
        told = subprocess.run(command, capture_output=True, text=True, cwd=deploy.parent)
        assert told.returncode == 0 and f"deploy/{script}" in told.stdout
    refused = run(["bash", deploy / "smoke.sh", "--nonsense"], env)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1


needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


@needs_kubectl
def test_kubernetes_manifests(copy):
    deploy, env = copy
    command = ["bash", deploy / "k8s/install.sh", "--domain", "m.example.org"]
    done = run([*command, "--email", "me@example.org", "--public", "--dry-run"], env)
    assert done.returncode == 0, done.stderr
    items = [item for item in yaml.safe_load_all(done.stdout) if item]
    kinds = {(item["kind"], item["metadata"]["name"]) for item in items}
    for wanted in (("StatefulSet", "clickhouse"), ("StatefulSet", "collector"),
                   ("Deployment", "grafana"), ("Ingress", "gaia"), ("CronJob", "clickhouse-backup"),
                   ("NetworkPolicy", "clickhouse"), ("Issuer", "letsencrypt")):  # fmt: skip
        assert wanted in kinds
    assert all(i["metadata"].get("namespace", "gaia") == "gaia" for i in items)
    assert "GAIA_" not in done.stdout.replace("GAIA_DOMAIN and GAIA_EMAIL", "")
    assert not any(item["kind"] == "Secret" for item in items)
    claims = {i["metadata"]["name"] for i in items if i["kind"] == "PersistentVolumeClaim"}
    maps = {i["metadata"]["name"] for i in items if i["kind"] == "ConfigMap"}
    for pod in pods(items):
        for container in pod["containers"]:
            assert PINNED.match(container["image"]), container["image"]
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
    refused = run(["bash", deploy / "k8s/install.sh", "--domain", "x"], env)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1


def pods(items):
    for item in items:
        spec = item.get("spec", {})
        if item["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            yield spec["template"]["spec"]


@needs_kubectl
def test_compose_and_kubernetes_run_the_same_versions():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    pinned = {image["name"]: image["newTag"] for image in
              yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["images"]}  # fmt: skip
    for service in compose.values():
        name, _, tag = service["image"].partition(":")
        assert pinned.get(name, tag) == tag
    grafana = (DEPLOY / "k8s/grafana.yaml").read_text()
    assert compose["grafana"]["environment"]["GF_PLUGINS_PREINSTALL_SYNC"] in grafana


def test_the_versions_that_tests_build_are_those_that_are_deployed():
    """compose.yaml is the one place of versions; the parts of the slow chain follow it."""
    versions = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-versions"]
    tags = {name: re.split("[:@]", image)[-1] for name, image in versions.items()}
    builder = yaml.safe_load((ROOT / "tests/fakes/collector/builder.yaml").read_text())
    assert builder["dist"]["version"] == tags["collector"]
    release = tags["collector"].rpartition(".")[0]  # contrib's modules may be a patch ahead
    modules = [m["gomod"] for part in ("receivers", "exporters", "extensions", "processors")
               for m in builder[part]]  # fmt: skip
    assert all(f" v{release}." in module for module in modules)
    assert real_parts.OCB.endswith(f"@v{tags['collector']}")
    assert real_parts.CADDY.endswith(f"@v{tags['caddy'].removesuffix('-alpine')}")
    engine = metadata.version("chdb-core").split(".")[:2]
    assert engine == tags["clickhouse"].split(".")[:2]
    page = (DEPLOY / "README.md").read_text()
    assert [tag for tag in tags.values() if tag not in page] == []


def test_backup_keeps_the_newest(tmp_path):
    """The script with stand-ins for the client and the date."""
    script = (DEPLOY / "clickhouse/backup.sh").read_text()
    for name in ("backups", "secrets", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets/clickhouse_admin_password").write_text("pw-in-a-file")
    (tmp_path / "bin/clickhouse-client").write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n'
        f'name=$(sed -n "s/.*\'\\(gaia-.*zip\\)\'.*/\\1/p" <<< "$*")\n'
        f": > {tmp_path}/backups/$name\n"
    )
    (tmp_path / "bin/clickhouse-client").chmod(0o755)
    for day in range(1, 6):
        (tmp_path / f"backups/gaia-2026010{day}-031700.zip").write_text("")
    for place in ("/backups", "/run/secrets", "/tmp/client"):
        script = script.replace(place, f"{tmp_path}/{place.split('/')[-1]}")
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "KEEP": "3"}
    done = run(["sh", "-c", script], env)
    assert done.returncode == 0, done.stderr
    kept = sorted(p.name for p in (tmp_path / "backups").iterdir())
    assert len(kept) == 3 and kept[0] == "gaia-20260104-031700.zip"
    assert "pw-in-a-file" not in (tmp_path / "calls").read_text()
