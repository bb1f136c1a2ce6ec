"""Secrets are hidden by the name they stand under, and by their own shape.

Names are taken apart (`AWS_SECRET_ACCESS_KEY`, `x-api-key`, `dbPassword`), so that `tokenizer` and
`author` stay while `auth` goes. Shapes are the published prefixes of tokens, private keys in PEM,
and passwords inside URLs, headers and connection strings.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(hidden)"

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Text under a name with one of these parts is hidden, whatever else the name says.
_SECRET = {
    "password", "passwords", "passwd", "passphrase", "pwd", "pw", "secret", "secrets",
    "credential", "credentials", "creds", "cookie", "cookies", "authorization", "auth",
    "bearer", "apikey", "apikeys", "apitoken", "accesskey", "secretkey", "privatekey",
}  # fmt: skip
# A part before `key` or `keys` that makes it a secret one.
_KEYS = {
    "api", "access", "private", "secret", "signing", "signature", "encryption", "decryption",
    "account", "client", "service", "ssh", "rsa", "pem", "license", "master", "session",
    "shared", "storage", "sas", "hmac", "webhook", "deploy", "app", "bot", "admin", "user",
    "aws", "gcp", "azure", "google", "openai", "anthropic", "hf", "huggingface", "wandb",
    "github", "gitlab", "slack", "comet", "neptune", "mistral", "cohere", "groq", "together",
    "replicate", "pinecone", "lambda", "modal", "runpod", "vast",
}  # fmt: skip
# A part beside `token` or `tokens` that makes it a word of the vocabulary, or a number of them.
_WORDS = {
    "bos", "eos", "pad", "unk", "mask", "cls", "sep", "special", "begin", "end", "start",
    "stop", "max", "min", "num", "n", "per", "total", "image", "user", "assistant", "system",
    "prefix", "suffix", "middle", "control", "extra", "additional", "new", "count", "id", "ids",
    "type", "types",
}  # fmt: skip
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\b(?:sk|rk|pk)[-_](?:[A-Za-z0-9]+[-_]){0,3}[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    r"|\bhf_[A-Za-z0-9]{20,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abeoprs]-[\w-]{10,}|https://hooks\.slack\.com/services/\S+"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[\w-]{30,}|\bya29\.[\w.-]{10,}|\bGOCSPX-[\w-]{10,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web tokens
    r"|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{30,}|\bdop_v1_\w{30,}|\br8_\w{30,}",
    re.DOTALL,
)
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s@/]+(?=@)", re.I)
_IN_TEXT = re.compile(
    r"\b((?:authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)"
    r"|(?:[\w-]*(?:password|passwd|pwd|secret|api[-_]?key|access[-_]?token"
    r"|auth[-_]?token|credential)[\"']?\s*[=:]\s*[\"']?))(?!\(hidden)[^\s\"',;&]{4,}",
    re.I,
)
# In prose "bearer" is a word: what follows must look like no word.
_BEARER = re.compile(r"\b([Bb]earer\s+)(?=\S*[\d._-])(?!\(hidden)[^\s\"',;&]{8,}")


def secret_name(name: str) -> bool:
    """Return True where text under this name is a secret."""
    parts = [part.lower() for part in _PARTS.findall(name)]
    if _SECRET.intersection(parts) or "".join(parts) in _SECRET:
        return True
    if {"key", "keys"}.intersection(parts) and _KEYS.intersection(parts):
        return True
    return bool({"token", "tokens"}.intersection(parts)) and not _WORDS.intersection(parts)


def redact_text(text: str) -> str:
    """Hide what has the shape of a secret inside a text; the rest stays as it is.

    A lone surrogate, which could be printed and sent by nobody, becomes a question mark.
    """
    text = text.encode("utf-8", "replace").decode()
    text = _SHAPES.sub(HIDDEN, text)
    text = _IN_URL.sub(rf"\1{HIDDEN}", text)
    text = _IN_TEXT.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1{HIDDEN}", text)


def redact_value(name: str, value: Any) -> Any:
    """Hide a plain value that stands under `name`: numbers, booleans and None stay."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value
    if not isinstance(text, str):
        return value
    if text and secret_name(name):
        return HIDDEN
    return redact_text(text)
