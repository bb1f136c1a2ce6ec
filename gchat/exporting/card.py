"""The model card: data, metrics, licence, commit and lineage of a run, and how to load its export.

The front matter is what the hub reads (huggingface.co/docs/hub/model-cards).
"""

import json
from collections.abc import Mapping
from typing import Any

from gchat.exporting.source import Run
from gchat.model_shape import all_params

_METRICS = {
    "val_bpb": "validation, bits per byte",
    "val_loss": "validation, nats per token",
    "train_loss": "training loss of the last step, nats per token",
    "core_v1": "CORE (nanochat's baselines)",
    "core_v2": "CORE (DCLM's corrected baselines)",
    "tokens": "tokens seen",
    "steps": "steps",
    "seconds": "seconds of training",
    "device": "device",
    "cost_usd": "cost, US dollars",
}


def card(
    run: Run,
    *,
    name: str,
    licence: str | None,
    kind: str,
    outtype: str,
    file: str,
    notes: list[str],
) -> str:
    """Text of a README.md.

    Args:
        run: opened.
        name: of the model, for people.
        licence: SPDX identifier; None where nobody said one.
        kind: "hf" or "gguf".
        outtype: number format.
        file: name of the file or folder, for the examples.
        notes: sentences about this file.
    """
    chat = run.facts("chat.json").get("kind")
    front = {
        "license": licence.lower() if licence else "other",
        "library_name": "transformers" if kind == "hf" else "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gaia", "conversational"] if chat else ["gaia"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    parts = [
        f"---\n{head}\n---\n# {name}",
        _sizes(run, outtype),
        _table("Training", _training(run)),
        _table("Metrics", _metrics(run)),
        _table("Lineage", _lineage(run, licence)),
        f"## Loading\n{_loading(kind, file)}",
    ]
    if notes:
        parts.append("## About this file\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _sizes(run: Run, outtype: str) -> str:
    layout = run.layout
    millions = all_params(run.config.model.without_adapters()) / 1e6
    family = "Qwen3" if layout.qk_norm else "Llama"
    return (
        f"{millions:,.1f}M parameters in {outtype}, {family}'s layout: "
        f"{layout.depth} layers, width {layout.dim:,}, {layout.heads} heads of {layout.head_dim} "
        f"({layout.kv_heads} for keys and values), hidden size {layout.hidden:,}, {layout.rows:,} "
        f"ids, {'tied' if layout.tied else 'untied'} head, context {layout.context:,}."
    )


def _training(run: Run) -> dict[str, Any]:
    config = run.config
    data = config.data.text or config.data.dir
    rows: dict[str, Any] = {"data": data and data.rstrip("/").rpartition("/")[2]}
    if config.data.mixture:
        rows["data"] = ", ".join(config.data.mixture)
    if run.config.stage.data:
        rows["data"] = ", ".join(p.rstrip("/").rpartition("/")[2] for p in run.config.stage.data)
    if run.imported:
        return {"data": "see the model it was imported from"}
    rows |= {
        "optimizer": f"{config.optim.name}, learning rate {config.optim.lr:g}",
        "rows of a step": config.training.batch_size,
        "tokens of a row": config.model.seq_len,
        "seed of the order": config.training.seed,
    }
    return rows


def _metrics(run: Run) -> dict[str, Any]:
    summary = run.facts("summary.json")
    return {text: summary.get(key) for key, text in _METRICS.items()}


def _lineage(run: Run, licence: str | None) -> dict[str, Any]:
    summary, imported = run.facts("summary.json"), run.imported
    base = run.config.training.init_from
    return {
        "run": run.path.resolve().name,
        "step": run.step,
        "commit": summary.get("commit"),
        "stage": run.config.stage.name,
        "began with": base and base.rstrip("/").rpartition("/")[2],
        "commit of that": run.config.stage.base_commit,
        "imported from": imported.get("name"),
        "licence": licence or "not stated: ask whoever trained it before using it",
        "tokenizer": f"{run.tokenizer.kind}, sha256 {run.tokenizer.sha256[:16]}",
    }


def _table(title: str, rows: Mapping[str, Any]) -> str:
    known = {key: value for key, value in rows.items() if value not in (None, "", 0)}
    if not known:
        return f"## {title}\nnot recorded"
    lines = [f"| {key} | {_shown(value)} |" for key, value in known.items()]
    return "\n".join([f"## {title}", "| | |", "|---|---|", *lines])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _loading(kind: str, file: str) -> str:
    if kind == "gguf":
        return (
            f'```bash\nllama-cli -m {file} -p "Once"        # llama.cpp\nllama-server -m {file}\n'
            f"ollama create mine -f {file.removesuffix('.gguf')}.Modelfile\n"
            f"gchat import gguf {file} --out runs/mine   # gaia\n```"
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{file}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{file}")\n```\n\n'
        f"```bash\nvllm serve {file}\npython -m sglang.launch_server --model-path {file}\n"
        f"gchat import hf {file} --out runs/mine   # gaia\n```\n\n"
        "Text that users write may hold the names of special tokens: pass "
        "`split_special_tokens=True` to the tokenizer, or it can close its own turn."
    )
