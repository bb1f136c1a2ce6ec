"""Secrets stay out of what is kept, printed and sent; names and numbers that are none stay."""

import argparse
import dataclasses
import enum
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gaia_metrics
from gaia_metrics.config import redact
from gaia_metrics.redaction import HIDDEN, redact_text, secret_name
from tests.fakes import otlp

ROOT = Path(__file__).resolve().parents[2]
VALUE = "hunter2-is-it"  # no shape of its own: found by its name alone

NAMES = [
    "AWS_SECRET_ACCESS_KEY", "private_key", "privateKey", "api-key", "apiKey", "APIKey",
    "x-api-key",
    "openai_key", "OPENAI_API_KEY", "credentials", "GOOGLE_APPLICATION_CREDENTIALS", "auth", "pwd",
    "password", "db_passwd", "userPassword", "passphrase", "client_secret", "secrets", "hf_token",
    "WANDB_API_KEY", "wandb-key", "access_token", "github.token", "Authorization", "Set-Cookie",
    "ssh_key", "signing_key", "webhook_key", "api_tokens", "bearer", "storage_account_key",
]  # fmt: skip
HARMLESS = [
    "tokenizer", "author", "max_tokens", "eos_token", "pad_token", "special_tokens", "sort_key",
    "key", "key_dim", "n_kv_heads", "keyboard", "compass", "secretary", "tokens_per_step", "passes",
    "authors", "primary_key", "monkey", "cookiecutter", "num_keys",
]  # fmt: skip
SHAPES = [
    "sk-proj-AbCdEfGhIjKlMnOpQrStUv", "sk-ant-api03-AbCdEfGhIjKlMnOpQrSt", "hf_" + "aB3" * 10,
    "ghp_" + "a1" * 18, "github_pat_" + "a1" * 20, "glpat-" + "a1b2" * 5, "xoxb-1234567890-abcdef",
    "AKIAIOSFODNN7EXAMPLE", "AIza" + "Sy" * 16, "ya29.a0AfH6SMBx-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "https://hooks.slack.com/services/T000/B000/XXXX",
]  # fmt: skip
PARTLY = [
    ("postgres://me:hunter2-is-it@db:5432/x", "postgres://me:(hidden)@db:5432/x"),
    ("redis://:hunter2-is-it@cache:6379", "redis://:(hidden)@cache:6379"),
    ("Authorization: Bearer hunter2-is-it", "Authorization: Bearer (hidden)"),
    ("curl -H 'x-api-key: hunter2-is-it' x", "curl -H 'x-api-key: (hidden)' x"),
    ("Server=db;User=me;Password=hunter2-is-it;", "Server=db;User=me;Password=(hidden);"),
    ("https://h/x?access_token=hunter2-is-it&a=1", "https://h/x?access_token=(hidden)&a=1"),
]


@pytest.mark.parametrize("name", NAMES)
def test_secret_names(name):
    assert secret_name(name)
    assert redact({"a": {name: VALUE}}) == {"a": {name: HIDDEN}}
    assert redact({name: [VALUE, {"x": VALUE}]}) == {name: [HIDDEN, {"x": HIDDEN}]}
    assert redact({name: VALUE.encode()}) == {name: HIDDEN}
    assert redact({name: 5, "b": {name: True}}) == {name: 5, "b": {name: True}}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names(name):
    assert redact({name: VALUE}) == {name: VALUE}


@pytest.mark.parametrize("secret", SHAPES, ids=lambda s: s[:8])
def test_shapes_are_hidden_anywhere(secret):
    assert redact({"note": f"a {secret} b"}) == {"note": f"a {HIDDEN} b"}
    assert redact({"list": [[secret]], secret: 1}) == {"list": [[HIDDEN]], HIDDEN: 1}


@pytest.mark.parametrize("text, clean", PARTLY)
def test_only_the_secret_of_a_text_is_hidden(text, clean):
    assert redact_text(text) == clean and redact_text(clean) == clean


def test_ordinary_text_is_untouched():
    for text in ("the token was lost", "basic idea: a password is needed", "commit 0123abcd" * 3,
                 "def f(key): return d[key]", "https://example.org:8080/a@b",
                 "loss: 3.2; key: k", "the bearer certificate"):  # fmt: skip
        assert redact_text(text) == text


def test_headers_as_pairs():
    config = {"headers": [["Authorization", VALUE], ("X-Api-Key", VALUE), ["Accept", "text"]]}
    assert redact(config) == {
        "headers": [["Authorization", HIDDEN], ["X-Api-Key", HIDDEN], ["Accept", "text"]]
    }


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    lr: float = 1.0
    token: str = VALUE


def test_configs_of_any_kind(tmp_path):
    itself: dict = {}
    itself["self"] = itself
    deep: dict = {}
    for _ in range(2000):
        deep = {"d": deep}
    for i, config in enumerate([
        Settings(), argparse.Namespace(lr=1.0, token=VALUE), {"x": float("nan"), "y": Settings()},
        {1: {2: 3}, (1, 2): 3, "p": Path("/x"), "e": Colour.RED, "s": {1}}, itself, deep,
        {"a": "\ud800", "f": print},
    ]):  # fmt: skip
        run = gaia_metrics.init("p", "n", config, dir=tmp_path / str(i), system_interval=0)
        run.finish()
        text = (tmp_path / str(i) / "run.json").read_text()
        assert VALUE not in text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    with pytest.raises(gaia_metrics.MetricsError, match="is no table"):
        gaia_metrics.init("p", "n", "config.yaml", dir=tmp_path / "str")


def test_nothing_of_a_run_holds_a_secret(tmp_path):
    """Run folder, output and every request: none holds one of the secrets that went in."""
    secrets = [VALUE, *SHAPES]
    code = """
import json, sys, gaia_metrics
names, shapes, value, folder = json.loads(sys.argv[1])
config = {name: value for name in names}
config |= {"shapes": shapes, "nested": [{n: [value]} for n in names]}
run = gaia_metrics.init("p", "n", config, dir=folder, system_interval=0)
run.log(0, {"a": 1.0, "b": "not a number"})
for shape in shapes:
    run.text(0, "t", "x " + shape)
    run.alert("oops " + shape, shape, "error")
run.log("step of Bearer " + value, {"a": 1.0})
run.finish()
"""
    folder = tmp_path / "run"
    with otlp.serve(keep=True) as receiver:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps([NAMES, SHAPES, VALUE, str(folder)])],
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, "PATH": "/usr/bin"},
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0 and receiver.requests >= 2, done.stderr
        sent = "".join(map(str, receiver.raw))
    kept = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file()).decode("latin-1")
    for secret in secrets:
        first = secret.split("\n")[0] if "BEGIN" not in secret else "MIIEow"
        for place in (kept, sent, done.stdout, done.stderr):
            assert first not in place, first
    assert HIDDEN in kept and HIDDEN in sent
