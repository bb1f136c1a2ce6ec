"""Checks requests against Google's trimmed discovery documents: paths, query, fields, enums."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "fixtures" / "discovery"


@functools.cache
def document(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


@functools.cache
def _methods(name: str) -> list[tuple[str, re.Pattern[str], str, dict[str, Any]]]:
    found = []
    for key, method in document(name)["methods"].items():
        pattern = re.sub(r"\{\+?\w+\}", "[^/:]+", method["path"])
        found.append((method["httpMethod"], re.compile(pattern), key, method))
    return found


def check_request(name: str, method: str, path: str, query: list[str], body: Any) -> list[str]:
    """Violations of one request; [] when it is what the service documents."""
    for verb, pattern, key, spec in _methods(name):
        if verb == method and pattern.fullmatch(path):
            allowed = {*spec["query"], *document(name)["globals"], "$alt"}
            errors = [f"{key}: unknown query parameter {q}" for q in query if q not in allowed]
            if spec["request"] and body is not None:
                errors += check_object(name, spec["request"], body)
            elif body is not None:
                errors.append(f"{key}: takes no body")
            return errors
    return [f"{name}: no method {method} {path}"]


def check_object(name: str, ref: str, value: Any, path: str = "") -> list[str]:
    """Unknown fields, wrong types and enums of an object of schema `ref`."""
    if not isinstance(value, dict):
        return [f"{path or ref}: not an object"]
    schema = document(name)["schemas"][ref]
    errors = []
    for key, item in value.items():
        spec = schema.get("properties", {}).get(key)
        if spec is None:
            errors.append(f"{path}{key}: unknown field of {ref}")
        elif spec.get("readOnly"):
            errors.append(f"{path}{key}: output only")
        else:
            errors += _value(name, spec, item, f"{path}{key}")
    return errors


def _value(name: str, spec: dict[str, Any], value: Any, path: str) -> list[str]:
    if "$ref" in spec:
        return check_object(name, spec["$ref"], value, f"{path}.")
    kind = spec.get("type")
    if kind == "array":
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [
            e for i, x in enumerate(value) for e in _value(name, spec["items"], x, f"{path}[{i}]")
        ]
    if kind == "object":
        if not isinstance(value, dict):
            return [f"{path}: not an object"]
        inner = spec.get("additionalProperties")
        if not inner:
            return []
        return [e for k, x in value.items() for e in _value(name, inner, x, f"{path}.{k}")]
    if spec.get("enum") and value not in spec["enum"]:
        return [f"{path}: {value!r} is not one of {spec['enum']}"]
    if kind == "string" and spec.get("format") in ("int64", "uint64"):
        good = isinstance(value, str) and value.isdigit()
    elif kind == "string" and spec.get("format") == "google-duration":
        good = isinstance(value, str) and bool(re.fullmatch(r"\d+(\.\d+)?s", value))
    else:
        types = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
        good = isinstance(value, types.get(kind, object)) and not (
            kind == "integer" and isinstance(value, bool)
        )
    return [] if good else [f"{path}: {value!r} is no {spec.get('format') or kind}"]


def check_crd(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Violations of a CRD's openAPIV3Schema, unknown fields included, as strict decoding does."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, (int, str)) else [f"{path}: neither number nor string"]
    kind = schema.get("type")
    if kind in kinds and (
        not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool))
    ):
        return [f"{path}: {value!r} is no {kind}"]
    if schema.get("enum") and value not in schema["enum"]:
        return [f"{path}: {value!r} is not one of {schema['enum']}"]
    if isinstance(value, list):
        item = schema.get("items", {})
        return [e for i, x in enumerate(value) for e in check_crd(item, x, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return []
    fields = schema.get("properties", {})
    errors = [f"{path}.{k}: is missing" for k in schema.get("required", []) if k not in value]
    for key, item in value.items():
        if key in fields:
            errors += check_crd(fields[key], item, f"{path}.{key}")
        elif isinstance(schema.get("additionalProperties"), dict):
            errors += check_crd(schema["additionalProperties"], item, f"{path}.{key}")
        elif fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
            errors.append(f"{path}.{key}: unknown field")
    return errors
