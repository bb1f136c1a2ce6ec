"""The steps of a factory: commands of `gchat`, each a process of its own, done once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gchat.factory import files
from gchat.lifecycle.steps import ANSWERS_ENDED, Step


@dataclass(frozen=True)
class Factory:
    """The options of the command, as they were asked for."""

    folder: Path
    inputs: tuple[str, ...]
    records: tuple[str, ...] = ()
    """Further options of `gchat synth generate`."""
    preset: str = "cpu"
    vocab_size: int = 4096
    steps: int = 150
    """Updates of Q-PT, and of the baseline's pretraining."""
    sft_steps: int = 250
    batch_size: int = 8
    seq_len: int = 512
    questions: int = 60
    """Questions of each held-out part that the model is judged by."""
    judge: tuple[str, ...] = ("--lexical",)
    """Options of `gchat judge` that say who judges."""
    baseline: bool = False
    """Train continued pretraining and SFT beside it, on as many tokens."""
    seconds: dict[str, float] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """A file or folder of the factory."""
        return self.folder / name


def steps(asked: Factory) -> list[Step]:
    """All steps, in order."""
    made = [_records(asked), _tokenizer(asked), *_pretrained(asked, "qpt", _chats(asked))]
    if asked.baseline:
        made += _pretrained(asked, "cpt", _texts(asked))
    for name in ("qpt", "cpt") if asked.baseline else ("qpt",):
        made += [_sft(asked, name), _answers(asked, name), _judged(asked, name)]
    return made


def _records(asked: Factory) -> Step:
    out = asked.file("records")
    words = ["synth", "generate", *asked.inputs, "--out", str(out),
             "--kinds", "qa", "contrast", "qpt", *asked.records]  # fmt: skip
    return Step("records", "make", lambda: words, out / "report.json")


def _tokenizer(asked: Factory) -> Step:
    def words() -> list[str]:
        files.training(asked.file("records"), asked.folder)
        text, out = asked.file("text.jsonl"), asked.file("tokenizer.json")
        return ["tokenizer", "train", "--input", str(text), "--out", str(out),
                "--vocab-size", str(asked.vocab_size), "--forced-years", "1900-1949",
                "--forced-months", "--forced-terms", str(asked.file("terms.txt"))]  # fmt: skip

    return Step("tokenizer", "make", words, asked.file("tokenizer.json"))


def _chats(asked: Factory) -> Callable[[Path], list[str]]:
    """Passages as answers, of which alone is learned."""
    return lambda out: [
        "data", "chat", str(asked.file("qpt.jsonl")), "--out", str(out), "--tokenizer",
        str(asked.file("tokenizer.json")), "--seq-len", str(asked.seq_len), "--workers", "1",
    ]  # fmt: skip


def _texts(asked: Factory) -> Callable[[Path], list[str]]:
    """The same passages as plain text."""
    return lambda out: [
        "data", "prepare", "--source", "text", "--input", str(asked.file("text.jsonl")),
        "--out", str(out), "--tokenizer", str(asked.file("tokenizer.json")), "--val-fraction",
        "0.05", "--workers", "1",
    ]  # fmt: skip


def _pretrained(asked: Factory, name: str, prepared: Callable[[Path], list[str]]) -> list[Step]:
    data, run = asked.file(f"{name}-data"), asked.file(name)
    words = ["train", asked.preset, "--data-dir", str(data), "--run-dir", str(run),
             "--max-steps", str(asked.steps), *_shape(asked)]  # fmt: skip
    if name == "qpt":  # conversations are packed whole, apart from one another
        words += ["--data.packing", "best_fit"]
    resume = ["train", "--resume", "--allow-restart", "--run-dir", str(run)]
    return [
        Step(f"{name} data", "make", lambda: prepared(data), data / "manifest.json"),
        Step(name, "train", lambda: words, run, resume),
    ]


def _shape(asked: Factory) -> list[str]:
    return ["--training.batch-size", str(asked.batch_size), "--model.seq-len", str(asked.seq_len)]


def _sft(asked: Factory, base: str) -> Step:
    run = asked.file(f"{base}-sft")
    words = ["sft", "--base", str(asked.file(base)), "--data", str(asked.file("sft.jsonl")),
             "--run-dir", str(run), "--max-steps", str(asked.sft_steps),
             "--training.batch-size", str(asked.batch_size), "--lr", "0.004"]  # fmt: skip
    resume = ["sft", "--resume", "--allow-restart", "--run-dir", str(run)]
    return Step(f"{base}-sft", "train", lambda: words, run, resume)


def _answers(asked: Factory, base: str) -> Step:
    """The model's answers to held-out questions."""
    out = asked.file(f"{base}-answers.jsonl")

    def words() -> list[str]:
        todo = asked.file("questions.jsonl")
        if not todo.exists():
            files.questions(asked.file("records"), todo, asked.questions)
        return ["generate", str(todo), str(out), "--run", str(asked.file(f"{base}-sft")),
                "--temperature", "0", "--max-tokens", "64", *ANSWERS_ENDED]  # fmt: skip

    return Step(f"{base} answers", "measure", words, asked.file(f"{base}-answers.summary.json"))


def _judged(asked: Factory, base: str) -> Step:
    out = asked.file(f"{base}-verdicts.jsonl")
    words = ["judge", str(asked.file(f"{base}-answers.jsonl")), str(out), *asked.judge,
             "--by", "split", "kind", "--retry-errors", "--json"]  # fmt: skip
    return Step(f"{base} judged", "measure", lambda: words, asked.file(f"{base}-judge.json"))
