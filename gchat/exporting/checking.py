"""`gchat export check PATH --run RUN`: an exported file beside its run, and in other programs.

Compared are the arrays (the file's beside the run's), and in each program that is here token ids,
logits, greedy ids and the chat template. Our own reader always is; transformers reads folders,
llama.cpp GGUF files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import ConfigError, GaiaError
from gaia.interrupt import raise_on_interrupt
from gaia.runtime import start
from gchat.chat_format import Message, read_format
from gchat.exporting import comparison, probes, programs
from gchat.exporting.comparison import Probes
from gchat.exporting.source import Run
from gchat.importing import gguf_file, hub_folder
from gchat.importing.source import Source

# fp32 sums in another order give less; a wrong rotation of heads gives a thousand times more.
TOLERANCE = {"transformers": 1e-4, "llama.cpp": 1e-3}
"""Largest difference of a logit, as a share of the logits' standard deviation.

fp32's rounding grows with the logits. In transformers at least 1e-4 itself is allowed: SmolLM2, of
deviation 5, is up to 3.7e-4 from it, 1.2e-4 from its sums in fp64, and it 6.6e-5 from those.
"""
_WINDOW = 512  # tokens of a row whose perplexity is measured
_EXACT = {"transformers": ("F32", "F16", "BF16"), "llama.cpp": ("F32",)}


class Differs(GaiaError):
    """An exported file is not what its run is."""

    exit_status = 1


@dataclass(frozen=True)
class Check:
    """Compare an exported file with its run, in every program that is here.

    Example: gchat export check my-model --run runs/cpu --python /opt/torch/bin/python

    The exit status is 1 where something differs that should not: token ids, logits of an unrounded
    file beyond 1e-4 (transformers) or 1e-3 (llama.cpp) of their standard deviation, greedy ids at a
    place that is no tie.
    """

    path: tyro.conf.Positional[Path]
    """Exported folder or .gguf file."""
    run: str
    """Folder of the run."""
    step: str = "last"
    """Checkpoint that was exported: a number of steps, best or last."""
    prompts: int = 200
    """Rows whose logits are compared: half of them texts, half random ids."""
    texts: Path | None = None
    """Text file to tokenize as well."""
    random_texts: int = 10_000
    """Random texts to tokenize."""
    greedy: int = 5
    """Rows that are continued."""
    greedy_tokens: int = 100
    """Ids that each is continued by."""
    perplexity: Path | None = None
    """Text file whose perplexity is measured."""
    perplexity_tokens: int = 20_000
    """Tokens of it that are scored."""
    python: Path | None = None
    """Python that has torch and transformers; this one when left out."""
    llama_cpp: Path | None = None
    """Folder of llama.cpp's libraries; when left out $GAIA_LLAMA_CPP, or where llama.cpp's programs
    lie."""
    json: bool = False
    """Print one JSON object."""

    def start(self) -> dict[str, Any]:
        """Compares and prints a table.

        Raises:
            Differs: something differs that should not.
        """
        raise_on_interrupt()
        self._check_numbers()
        source, program, where = self._opened()
        start(matmul_precision="highest")
        with Run(self.run, self.step) as run:
            if source.layout.tensors() != run.layout.tensors():
                raise ConfigError(
                    f"{self.path} holds a model of another size than {self.run!r}",
                    "name the run that it was exported from",
                )
            asked = self._probes(run)
            findings, model = comparison.compare(run, source, asked)
            findings |= {"path": str(self.path), "run": self.run, "step": run.step}
            if program is not None and where is not None:
                answer = programs.ask(program, asked.job(self.path.resolve()), where=where)
                ours = [run.tokenizer.encode(text) for text in asked.texts]
                findings[program] = comparison.other_program(asked, ours, model, answer)
        findings["problems"] = verdict(findings, program)
        print(json.dumps(findings) if self.json else table(findings, program))
        if findings["problems"]:
            raise Differs(f"{self.path} differs from {self.run}: {findings['problems'][0]}")
        return findings

    def _check_numbers(self) -> None:
        for name in ("prompts", "perplexity_tokens", "greedy_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", "use at least 1")
        for name in ("random_texts", "greedy"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", "use 0 or more")

    def _opened(self) -> tuple[Source, str | None, Path | None]:
        """The file, and the program beside ours that reads it, with the place of that."""
        if self.path.is_dir():
            if self.llama_cpp is not None:
                raise ConfigError("llama_cpp is given, and PATH is a folder", "leave it out")
            python = programs.transformers_python(self.python)
            source = hub_folder.read(self.path)
            return source, "transformers" if python else None, python
        if self.python is not None:
            raise ConfigError("python is given, and PATH is no folder", "leave it out")
        libraries = programs.llama_cpp(self.llama_cpp)
        return gguf_file.read(self.path), "llama.cpp" if libraries else None, libraries

    def _probes(self, run: Run) -> Probes:
        texts = [*probes.AWKWARD, *probes.random_texts(self.random_texts)]
        written = list(probes.AWKWARD)
        if self.texts is not None:
            content = _read(self.texts, "texts")
            texts += [content, *content.splitlines(keepends=True)]
            written += content.splitlines()
        context = run.layout.context
        longest = max(4, min(64, context // 2))
        rows = probes.prompts(run.tokenizer, written, self.prompts, longest)
        steps = min(self.greedy_tokens, context - longest)
        talks, ids = _talks(run)
        return Probes(
            texts=texts,
            talks=talks,
            talk_ids=ids,
            rows=rows,
            greedy=rows[: self.greedy],
            steps=steps,
            windows=self._windows(run),
        )

    def _windows(self, run: Run) -> list[list[int]]:
        """Stretches of the perplexity's text, each behind BOS."""
        if self.perplexity is None:
            return []
        ids = run.tokenizer.encode(_read(self.perplexity, "perplexity"))[: self.perplexity_tokens]
        length = min(run.layout.context, _WINDOW) - 1
        starts = range(0, len(ids), length)
        return [[run.tokenizer.bos_id, *ids[start : start + length]] for start in starts]


def _read(path: Path, option: str) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option} = {str(path)!r} cannot be read ({error})", "give a text file in UTF-8"
        ) from None
    if not text:
        raise ConfigError(f"{option} = {str(path)!r} is empty", "give another file")
    return text


def _talks(run: Run) -> tuple[list[list[dict[str, str]]], list[list[int]]]:
    """Conversations, and their ids up to where the answer begins; none where it has no chat."""
    chat = read_format(run.path, run.tokenizer)
    if chat.kind == "text":
        return [], []
    turns = [("user", "Who are you?"), ("assistant", " I'm a model.\n"), ("user", "Añd 12 + 345?")]
    shapes = [turns[:1], turns, [("system", "Be brief."), *turns]]
    talks = [[{"role": role, "content": text} for role, text in shape] for shape in shapes]
    ids = [chat.prompt([Message(role, text) for role, text in shape]) for shape in shapes]
    return talks, ids


def verdict(findings: dict[str, Any], program: str | None) -> list[str]:
    """Sentences about what differs and should not."""
    problems = []
    kinds = findings["arrays"]["kinds"]
    if kinds == ["F32"] and findings["arrays"]["equal"] < findings["arrays"]["tensors"]:
        problems.append("arrays of an F32 file differ from the run's")
    for name in filter(None, ("gchat", program)):
        facts = findings[name]
        for what in ("texts", "talks"):
            if facts.get(what, {}).get("other"):
                problems.append(f"{name}: {facts[what]['other']} {what} have other ids")
    if program is None or set(kinds) - {*_EXACT[program]}:
        return problems
    logits = findings[program]["logits"]
    unit = logits["std"] if program == "llama.cpp" else max(1.0, logits["std"])
    if logits["largest"] > TOLERANCE[program] * unit:
        problems.append(f"{program}: logits differ by up to {logits['largest']:.2g}")
    for row in findings[program]["greedy"]:
        if row["at"] is not None and row["gap"] > 2 * TOLERANCE[program] * unit:
            problems.append(f"{program}: greedy id {row['at']} differs by {row['gap']:.2g}")
    return problems


def table(findings: dict[str, Any], program: str | None) -> str:
    """The findings for people."""
    arrays = findings["arrays"]
    lines = [
        f"{findings['path']} beside step {findings['step']} of {findings['run']}: "
        f"{arrays['equal']} of {arrays['tensors']} tensors equal, relative error "
        f"{arrays['relative_error']:.2g} ({', '.join(arrays['kinds'])})",
        "",
        f"{'program':14}{'token ids':24}{'logits: largest, std':26}{'KL':10}{'top':8}greedy",
    ]
    for name in filter(None, ("gchat", program)):
        facts = findings[name]
        texts, logits = facts["texts"], facts["logits"]
        count = f"{texts['count']:,} texts "
        apart = f"{logits['largest']:.2g}, {logits['std']:.3g}"
        same = "equal" if not texts["other"] else f"{texts['other']:,} OTHER"
        lines.append(
            f"{name:14}{count + same:24}{apart:26}"
            f"{logits['kl']:<10.2g}{logits['same_top']:<8.2%}{_greedy(facts.get('greedy'))}"
        )
    for name in filter(None, ("gchat", program)):
        if "talks" in findings[name]:
            other = findings[name]["talks"]["other"]
            lines.append(f"{name}: chat template {'equal' if not other else 'DIFFERS'}")
        if "perplexity" in findings[name]:
            lines.append(f"{name}: perplexity {findings[name]['perplexity']:.4f}")
    if "run_perplexity" in findings:
        lines.append(f"the run: perplexity {findings['run_perplexity']:.4f}")
    lines += [f"DIFFERS: {problem}" for problem in findings["problems"]]
    if program is None:
        lines.append("no other program is here: give --python or --llama-cpp")
    return "\n".join(lines)


def _greedy(rows: list[dict[str, Any]] | None) -> str:
    if not rows:
        return "-"
    apart = [f"{row['at']} (gap {row['gap']:.2g})" for row in rows if row["at"] is not None]
    size = f"{len(rows)} x {rows[0]['tokens']}"
    return f"{size} equal" if not apart else f"{size}, first others at {', '.join(apart)}"
