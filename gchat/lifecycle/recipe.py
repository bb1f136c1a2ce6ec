"""Recipes of the speedrun: which data each stage takes, and how long it trains on it.

Offline (on a CPU, and with --offline): docstrings as text, then conversations about them, about
the model itself, and about spelling and small sums, all made on this machine. On an accelerator:
ClimbMix, then SmolTalk, MMLU, GSM8K, ARC and the same conversations about the model itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gchat.lifecycle.steps import ANSWERS_ENDED, Step, summary_of

StageName = Literal["base", "core", "mid", "sft", "chat", "rl"]
STAGES: tuple[StageName, ...] = ("base", "core", "mid", "sft", "chat", "rl")
"""All stages, in their order; rl is optional."""
CPU_TOKENS_PER_S = 7_000
"""Rate at which the offline recipe's epochs fit into its minutes: two idle cores, depth 4."""
PERSONA = """Gaia answers short questions.

- maker: the gaia project
- kind: a small language model
- purpose: answer short questions about Python
- built on: docstrings of Python packages
"""


@dataclass(frozen=True)
class Recipe:
    """Data and lengths of the later stages."""

    mid: tuple[str, ...]
    """`--data` of midtraining; {identity} and {functions} stand for the files that are made."""
    sft: tuple[str, ...]
    mid_epochs: float
    sft_epochs: float
    tasks: tuple[str, ...]
    """Tasks of `gchat eval chat`."""
    max_per_task: int
    max_tokens: int
    """Limit of a written answer."""
    rl_task: str
    rl_steps: int
    persons: int
    """Conversations about the model itself."""
    functions: int = 0
    """Conversations about functions of installed packages; 0 for none."""
    mid_options: tuple[str, ...] = ()
    sft_options: tuple[str, ...] = ()
    rl_options: tuple[str, ...] = ()


OFFLINE = Recipe(
    mid=("{functions}", "spelling@0.015", "sums@0.05"),
    sft=("{functions}@2", "{identity}", "sums@0.015"),
    mid_epochs=2.0,
    sft_epochs=5.0,
    tasks=("sums", "spelling"),
    max_per_task=40,
    max_tokens=64,
    rl_task="sums",
    rl_steps=20,
    persons=400,
    functions=330,
    mid_options=("--training.batch-size=4",),
    sft_options=("--training.batch-size=2", "--optim.lr=0.006"),
)
HUB = Recipe(
    mid=("smoltalk", "mmlu@1", "gsm8k@2", "{identity}@2", "spelling", "sums@0.5"),
    sft=("arc_easy", "arc_challenge", "gsm8k", "smoltalk@0.05", "{identity}", "spelling@0.05"),
    mid_epochs=1.0,
    sft_epochs=1.0,
    tasks=("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval"),
    max_per_task=500,
    max_tokens=512,
    rl_task="gsm8k",
    rl_steps=400,
    persons=1000,
)


@dataclass(frozen=True)
class Speedrun:
    """One speedrun: its folder, and what was asked for."""

    folder: Path
    stages: tuple[StageName, ...]
    offline: bool
    base_args: tuple[str, ...]
    """Words for the base stage: [CONFIG.yaml] and options of the trainer."""
    name: str = "Gaia"
    about: str | None = None
    chats: tuple[str, ...] = ()
    """Files of conversations of one's own, mixed into fine-tuning."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """Data and lengths of the later stages."""
        return OFFLINE if self.offline else HUB

    def run(self, stage: str) -> Path:
        """Folder of a stage's run: the base's is the speedrun's own, the others lie in it."""
        return self.folder if stage == "base" else self.folder / stage

    def made(self, name: str) -> Path:
        """File of conversations that a step makes."""
        return self.folder / "chats" / f"{name}.jsonl"

    @property
    def answers(self) -> Path:
        """Answers of the last model to the report's questions."""
        return self.folder / "evals" / f"answers-{self.last}.jsonl"

    @property
    def last(self) -> str:
        """The last stage that trains."""
        return next(s for s in ("rl", "sft", "mid", "base") if s in self.stages)

    def parent(self, stage: str) -> Path:
        """The run that a stage begins with."""
        before = {"mid": (), "sft": ("mid",), "rl": ("sft", "mid")}[stage]
        return self.run(next((s for s in before if s in self.stages), "base"))


def steps(speedrun: Speedrun, write_questions: Callable[[Speedrun], None]) -> list[Step]:
    """All steps of a speedrun, in order.

    Args:
        speedrun: what was asked for.
        write_questions: writes the questions of the report, once their data is there.
    """
    made: list[Step] = []
    if "base" in speedrun.stages:
        made.append(_base(speedrun))
    if "core" in speedrun.stages:
        made.append(_core(speedrun))
    if {"mid", "sft"} & set(speedrun.stages):
        made += _data(speedrun)
    for stage in ("mid", "sft", "rl"):
        if stage in speedrun.stages:
            made.append(_training(speedrun, stage))
            if "chat" in speedrun.stages:
                made.append(_measured(speedrun, stage))
    if {"mid", "sft", "rl"} & set(speedrun.stages):
        made.append(_answers(speedrun, write_questions))
    return made


def _base(speedrun: Speedrun) -> Step:
    run = speedrun.run("base")
    words = ["speedrun", *speedrun.base_args, "--stages", "base", "--run-dir", str(run)]
    resume = ["speedrun", "--stages", "base", "--resume", "--allow-restart", "--run-dir", str(run)]
    return Step("base", "train", lambda: words, run, resume)


def _core(speedrun: Speedrun) -> Step:
    words = ["eval", "core", "--run", str(speedrun.run("base")), "--json"]
    return Step("CORE", "measure", lambda: words, speedrun.folder / "evals" / "core.json")


def _data(speedrun: Speedrun) -> list[Step]:
    """Conversations that this machine makes."""
    recipe, made = speedrun.recipe, []
    identity, functions = speedrun.made("identity"), speedrun.made("functions")
    about = speedrun.about or str(speedrun.folder / "chats" / "persona.md")
    words = ["synth", "identity", "--name", speedrun.name, "--about", about,
             "--count", str(recipe.persons), "--out", str(identity), "--overwrite"]  # fmt: skip
    made.append(Step("identity", "make", lambda: words, identity))
    if recipe.functions:
        unseen = str(speedrun.made("functions-held-out"))
        pairs = ["synth", "docstrings", "--count", str(recipe.functions), "--held-out", unseen,
                 "--out", str(functions), "--overwrite"]  # fmt: skip
        made.append(Step("functions", "make", lambda: pairs, functions))
    return made


def _training(speedrun: Speedrun, stage: str) -> Step:
    recipe, run = speedrun.recipe, speedrun.run(stage)
    verb = {"mid": "midtrain", "sft": "sft", "rl": "rl"}[stage]

    def words() -> list[str]:
        base = ["--base", str(speedrun.parent(stage)), "--run-dir", str(run)]
        base += ["--run.name", f"{speedrun.folder.name}-{stage}"]
        if stage == "rl":
            steps = ["--task", recipe.rl_task, "--max-steps", str(recipe.rl_steps)]
            return [verb, *base, *steps, *recipe.rl_options]
        entries = recipe.mid if stage == "mid" else recipe.sft
        data = [_named(speedrun, entry) for entry in entries]
        data += speedrun.chats if stage == "sft" else ()
        epochs = recipe.mid_epochs if stage == "mid" else recipe.sft_epochs
        options = recipe.mid_options if stage == "mid" else recipe.sft_options
        share = _pace(speedrun)
        return [verb, *base, "--data", *data, "--epochs", f"{epochs * share:g}", *options]

    resume = [verb, "--resume", "--allow-restart", "--run-dir", str(run)]
    return Step(stage, "train", words, run, resume)


def _pace(speedrun: Speedrun) -> float:
    """Share of the recipe's epochs that a slower CPU trains, so that the minutes stay."""
    if not speedrun.offline:
        return 1.0
    rate = summary_of(speedrun.run("base")).get("tokens_per_s") or CPU_TOKENS_PER_S
    return round(min(1.0, max(0.6, rate / CPU_TOKENS_PER_S)), 2)


def _named(speedrun: Speedrun, entry: str) -> str:
    """An entry of a recipe as `--data` takes it."""
    for name in ("identity", "functions"):
        entry = entry.replace(f"{{{name}}}", str(speedrun.made(name)))
    return entry


def _measured(speedrun: Speedrun, stage: str) -> Step:
    recipe = speedrun.recipe
    words = ["eval", "chat", "--run", str(speedrun.run(stage)), "--tasks", *recipe.tasks,
             "--max-per-task", str(recipe.max_per_task), "--max-tokens", str(recipe.max_tokens),
             "--json"]  # fmt: skip
    file = speedrun.folder / "evals" / f"chat-{stage}.json"
    return Step(f"ChatCORE of {stage}", "measure", lambda: words, file)


def _answers(speedrun: Speedrun, write_questions: Callable[[Speedrun], None]) -> Step:
    asked, out = speedrun.made("questions"), speedrun.answers

    def words() -> list[str]:
        write_questions(speedrun)
        return ["generate", str(asked), str(out), "--run", str(speedrun.run(speedrun.last)),
                "--temperature", "0", "--max-tokens", "64", *ANSWERS_ENDED]  # fmt: skip

    return Step("answers", "measure", words, out.with_suffix(".summary.json"))
