"""`gchat export hf|gguf|check`: a run as files that other programs load, and their comparison."""

import json
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gaia.errors import ConfigError
from gaia.interrupt import raise_on_interrupt
from gaia.runtime import start as start_machine
from gchat.chat_format import ChatFormat, read_format
from gchat.exporting import card, gguf_file, hf_folder, ollama, place, programs, vocabulary
from gchat.exporting.checking import Check
from gchat.exporting.options import Outtype, outtype
from gchat.exporting.source import Run
from gchat.exporting.vocabulary import Ends
from gchat.importing.run_writer import named

_GB = 10**9


@dataclass(frozen=True)
class _Export(ABC):
    run: str
    """Folder of the run."""
    out: Path
    """Place of the export."""
    outtype: str = "f32"
    """Number format of the weights."""
    step: str = "last"
    """Checkpoint: a number of steps, best (lowest validation bits per byte) or last."""
    name: str | None = None
    """Name of the model, for people; that of the run when left out."""
    licence: str | None = None
    """Licence of the weights as an SPDX identifier, for the model card; of an imported model its
    own when left out."""
    overwrite: bool = False
    """Replace another export in --out."""
    json: bool = False
    """Print one JSON object."""

    def start(self) -> dict[str, Any]:
        """Exports and prints what came out."""
        return replace(self, out=named(self.out))._start()

    def _start(self) -> dict[str, Any]:
        began = time.monotonic()
        raise_on_interrupt()
        kind = outtype(self.outtype, hf=isinstance(self, HuggingFace))
        self.check_place()
        start_machine()
        with Run(self.run, self.step) as run:
            chat = read_format(run.path, run.tokenizer)
            facts = {
                "out": str(self.out),
                "run": self.run,
                "step": run.step,
                "name": self._name(run),
                "licence": self._licence(run),
                "outtype": kind.name,
            }
            facts |= self.export(run, kind, chat)
        facts["seconds"] = round(time.monotonic() - began, 1)
        if self.json:
            print(json.dumps(facts))
            return facts
        types = ", ".join(f"{count} {name}" for name, count in facts.get("types", {}).items())
        print(
            f"{self.out}: {facts['name']}, step {facts['step']}, {kind.name}, "
            f"{facts['bytes'] / 1e6:,.1f} MB{f' ({types})' * bool(types)}, {facts['seconds']:.0f} s"
        )
        for note in facts["notes"]:
            print(f"  {note}")
        return facts

    @abstractmethod
    def check_place(self) -> None:
        """Raises ConfigError where nothing may be written."""

    @abstractmethod
    def export(self, run: Run, kind: Outtype, chat: ChatFormat) -> dict[str, Any]:
        """Writes the files; returns facts about them."""

    def _name(self, run: Run) -> str:
        return self.name or run.imported.get("name") or run.path.resolve().name

    def _licence(self, run: Run) -> str | None:
        return self.licence or run.imported.get("about", {}).get("license")

    def _card(self, run: Run, kind: str, outtype: Outtype, notes: list[str]) -> str:
        return card.card(
            run,
            name=self._name(run),
            licence=self._licence(run),
            kind=kind,
            outtype=outtype.name,
            file=self.out.name,
            notes=notes,
        )


def _bar(run: Run) -> tqdm:
    total = sum(_size(parameter.shape) for parameter in run.parameters())
    return tqdm(desc="export", total=total, unit="", unit_scale=True, disable=None, file=sys.stderr)


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _bytes(run: Run, item: float) -> int:
    """Bytes of the weights, with room for the texts beside them."""
    values = sum(_size(parameter.shape) for parameter in run.parameters())
    return int(values * item) + 256 * run.layout.rows + 2**20


@dataclass(frozen=True)
class HuggingFace(_Export):
    """Export a run as a Hugging Face folder, for transformers, vLLM and SGLang.

    Example: gchat export hf --run runs/cpu --out my-model --outtype bf16
    """

    max_shard_gb: float = 5.0
    """Largest file of weights, GB; larger models are divided over several."""

    def check_place(self) -> None:
        """Raises ConfigError where nothing may be written."""
        if self.max_shard_gb <= 0:
            raise ConfigError(f"max_shard_gb is {self.max_shard_gb:g}", "use a size above 0")
        is_export = (self.out / place.FACTS).is_file()
        place.check_free(self.out, overwrite=self.overwrite, is_export=is_export)

    def export(self, run: Run, kind: Outtype, chat: ChatFormat) -> dict[str, Any]:
        """Writes the folder."""
        ends = vocabulary.ends_of(run.tokenizer, chat, generation=True)
        definition = vocabulary.definition(run.tokenizer)
        hf_folder.config(run.layout, kind, ends)  # refused before anything is written
        notes = _notes(chat)
        most = max(1, int(self.max_shard_gb * _GB))
        with place.beside(self.out, _bytes(run, hf_folder.ITEM_BYTES[kind.name])) as folder:
            made = folder / "made"
            made.mkdir()
            with _bar(run) as bar:
                hf_folder.weights(run, kind, made, most=most, progress=bar.update)
            hf_folder.texts(run, kind, ends, definition, made)
            (made / "README.md").write_text(self._card(run, "hf", kind, notes), encoding="utf-8")
            _write_modelfile(made / "Modelfile", ".", run, chat, ends)
            facts = {"bytes": sum(p.stat().st_size for p in made.iterdir()), "notes": notes}
            about = {"run": run.path.resolve().name, "step": run.step, "outtype": kind.name}
            (made / place.FACTS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            place.move_folder(made, self.out)
        return facts


@dataclass(frozen=True)
class Gguf(_Export):
    """Export a run as a GGUF file, for llama.cpp, Ollama and what is built on them.

    Formats: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1; with llama.cpp's library also q2_K,
    q3_K_S/M/L, q4_K_S/M, q5_K_S/M, q6_K, iq4_NL, iq4_XS. Beside FILE.gguf lie FILE.md, the model
    card, and FILE.Modelfile for Ollama.

    Example: gchat export gguf --run runs/cpu --out cpu.gguf --outtype q4_K_M --llama-cpp DIR
    """

    llama_cpp: Path | None = None
    """Folder of llama.cpp's libraries; when left out $GAIA_LLAMA_CPP, or where llama.cpp's programs
    lie."""

    def check_place(self) -> None:
        """Raises ConfigError where nothing may be written."""
        if self.out.suffix != ".gguf":
            raise ConfigError(f"out = {str(self.out)!r} is no GGUF file", "let it end in .gguf")
        is_export = False
        if self.out.is_file():
            with open(self.out, "rb") as file:
                is_export = file.read(4) == b"GGUF"
        place.check_free(self.out, overwrite=self.overwrite, is_export=is_export)
        for name, beside in self._beside.items():
            if not place.was_moved(self.out, name):
                place.check_free(beside, overwrite=self.overwrite, is_export=is_export)

    @property
    def _beside(self) -> dict[str, Path]:
        """Places of the card and of Ollama's file, by their names while they are written."""
        suffixes = {"card": ".md", "modelfile": ".Modelfile"}
        return {name: self.out.with_suffix(suffix) for name, suffix in suffixes.items()}

    def export(self, run: Run, kind: Outtype, chat: ChatFormat) -> dict[str, Any]:
        """Writes the file and what lies beside it."""
        folder_of_llama = None
        if kind.by_llama_cpp:
            folder_of_llama = programs.needed_llama_cpp(self.llama_cpp, f"outtype {self.outtype}")
        elif self.llama_cpp is not None:
            raise ConfigError(f"llama_cpp is not used for outtype {self.outtype}", "leave it out")
        gguf = gguf_file.library()
        ends = vocabulary.ends_of(run.tokenizer, chat, generation=False)
        words = vocabulary.for_llama_cpp(run.tokenizer, run.layout.rows)
        room = _bytes(run, 4 + 4 * kind.by_llama_cpp)
        with place.beside(self.out, room) as folder:
            made = folder / "plain.gguf"
            with _bar(run) as bar:
                about = self._about(run)
                gguf_file.write(run, kind, words, ends, about, made, bar.update)
            if folder_of_llama is not None:
                plain, made = made, folder / "quantised.gguf"
                ftype = gguf.LlamaFileType[f"MOSTLY_{kind.name}"]
                programs.quantize(plain, made, folder_of_llama, int(ftype))
                plain.unlink()
            notes = [*words.notes, *gguf_file.fallbacks_in(made, kind), *_notes(chat)]
            facts = {
                "bytes": made.stat().st_size,
                "types": gguf_file.types_in(made),
                "pre_tokenizer": words.pre,
                "notes": notes,
            }
            text = self._card(run, "gguf", kind, notes)
            (folder / "card").write_text(text, encoding="utf-8")
            _write_modelfile(folder / "modelfile", f"./{self.out.name}", run, chat, ends)
            place.move_files(folder, self._beside | {made.name: self.out})
        return facts

    def _about(self, run: Run) -> dict[str, str]:
        about = {
            "general.type": "model",
            "general.name": self._name(run),
            "general.license": self._licence(run),
            "gaia.run": run.path.resolve().name,
            "gaia.step": str(run.step),
            "gaia.commit": run.facts("summary.json").get("commit"),
        }
        return {key: str(text) for key, text in about.items() if text}


def _notes(chat: ChatFormat) -> list[str]:
    if chat.kind == "text":
        return ["no chat template: the run was not trained on conversations"]
    return []


def _write_modelfile(path: Path, model: str, run: Run, chat: ChatFormat, ends: Ends) -> None:
    text = ollama.modelfile(model, run.tokenizer, chat, ends, run.layout.context)
    path.write_text(text, encoding="utf-8")


VERBS = {"hf": HuggingFace, "gguf": Gguf, "check": Check}
