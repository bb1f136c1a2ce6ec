"""`gchat import hf|gguf PATH --out RUN`: a model made elsewhere becomes a run folder."""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from gaia.errors import ConfigError
from gaia.interrupt import raise_on_interrupt
from gchat import tokenizer as tokenizers
from gchat.importing import gguf_file, hub_folder, run_writer
from gchat.importing.source import Source
from gchat.model_shape import all_params


@dataclass(frozen=True)
class _Import:
    path: tyro.conf.Positional[Path]
    """Path of the model."""
    out: Path
    """Folder of the run to write."""
    seq_len: int | None = None
    """Longest row of the run, at most the model's context; default: the context."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the run's matrix products; the parameters are kept in float32."""
    overwrite: bool = False
    """Replace another import in --out."""
    json: bool = False
    """Print one JSON object."""

    def source(self) -> Source:
        """Opens the model."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """Files that decide the result."""
        raise NotImplementedError

    def run(self) -> dict[str, Any]:
        """Imports and prints what came out."""
        return replace(self, out=run_writer.named(self.out))._run()

    def _run(self) -> dict[str, Any]:
        began = time.monotonic()
        raise_on_interrupt()
        facts = self._import()
        if self.json:
            print(json.dumps({"run": str(self.out), **facts}))
        else:
            print(
                f"{self.out}: {facts['name']}, {facts['parameters'] / 1e6:,.1f}M parameters, "
                f"{facts['vocabulary']:,} ids, context {facts['seq_len']:,} "
                f"({time.monotonic() - began:.0f} s)"
            )
        return facts

    def _import(self) -> dict[str, Any]:
        source = self.source()
        source.check_tensors()
        asked = {
            "sha256": run_writer.digest(self.files()),
            "seq_len": self.seq_len,
            "compute_dtype": self.compute_dtype,
        }
        if stored := run_writer.finished(self.out, asked, overwrite=self.overwrite):
            return stored
        if self.seq_len is not None and not 1 <= self.seq_len <= source.layout.context:
            raise ConfigError(
                f"seq_len is {self.seq_len}, the model's context is {source.layout.context}",
                f"use 1 to {source.layout.context}",
            )
        vocabulary = source.vocabulary
        tokenizer = tokenizers.imported(
            vocabulary.definition,
            rows=source.layout.rows,
            bos=vocabulary.bos,
            stops=vocabulary.stops,
        )
        model = source.layout.config(
            seq_len=self.seq_len,
            compute_dtype=self.compute_dtype,
            padded_rows=tokenizer.padded_vocab_size,
        )
        facts = {
            "format": source.kind,
            "name": source.about.get("name") or source.path.resolve().name,
            "parameters": all_params(model)
            - (tokenizer.padded_vocab_size - source.layout.rows)
            * source.layout.dim
            * (1 if source.layout.tied else 2),
            "vocabulary": tokenizer.vocab_size,
            "seq_len": model.seq_len,
            "kinds": sorted({tensor.kind for tensor in source.tensors.values()}),
            "about": dict(source.about),
            "asked": asked,
        }
        with tqdm(
            desc="import",
            total=sum(_size(tensor.shape) for tensor in source.tensors.values()),
            unit="",
            unit_scale=True,
            disable=None,
            file=sys.stderr,
        ) as bar:
            run_writer.write(source, model, tokenizer, self.out, facts, bar.update)
        return facts


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


@dataclass(frozen=True)
class HuggingFace(_Import):
    """Import a Hugging Face folder: config.json, safetensors, tokenizer.json."""

    def source(self) -> Source:
        """Opens the folder."""
        return hub_folder.read(self.path)

    def files(self) -> list[Path]:
        """JSON files and weights of the folder, by name."""
        kinds = (".json", ".jinja", ".safetensors")
        return sorted(p for p in self.path.iterdir() if p.suffix in kinds and p.is_file())


@dataclass(frozen=True)
class Gguf(_Import):
    """Import a GGUF file: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or K-quants."""

    def source(self) -> Source:
        """Opens the file."""
        return gguf_file.read(self.path)

    def files(self) -> list[Path]:
        """Names the file."""
        return [self.path]


VERBS = {"hf": HuggingFace, "gguf": Gguf}
