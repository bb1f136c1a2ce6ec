"""The `gchat` command: verbs and printing only.

gchat speedrun | train | midtrain | sft | dpo | rl | sample | chat | generate | judge | orchestrate
      | models add|ls|show|compare|note|rm | serve | web | plan
      | dashboard | checkpoints | picture | eval bpb|core|chat|identity | import hf|gguf
      | export hf|gguf|check | synth generate|factory|identity|… | sweep | compare | ladder
      | research run|ideas|with
      | data prepare|chat|curate|download|count|verify|upload | tokenizer train|eval
"""

import json
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# All else is imported by the verbs: without the extra `train`, and on Ctrl-C, this must answer.
from gaia.errors import GaiaError, run_cli
from gaia.extras import install
from gaia.interrupt import end_on_interrupt, raise_on_interrupt

USAGE = """usage: gchat VERB [options]        (gchat VERB --help lists them)

  speedrun             from text to a trained model and its report, in one command
  train                train on a prepared data set: gchat train CONFIG.yaml --data-dir DIR
  midtrain             continue a run on text, or on tasks and chats: --base RUN --data FILE
  sft                  fine-tune on chats: gchat sft --base RUN --data FILE.jsonl --epochs 3
  dpo                  prefer the better of two answers: gchat dpo --base RUN --data pairs.jsonl
  rl                   improve by rewards: gchat rl --base RUN --task gsm8k
  sample               continue a prompt: gchat sample --run runs/cpu --prompt "The"
  chat                 talk with it: gchat chat --run runs/cpu [-p QUESTION]
  generate             answer a file of questions: gchat generate IN.jsonl OUT.jsonl --run runs/cpu
  judge                grade answers, the judge's own errors taken out: gchat judge IN OUT --run R
  orchestrate          train, judge, generate by turns on one accelerator: gchat orchestrate PLAN
  models               an archive of models: gchat models add|ls|show|compare|note|rm
  serve                answer over HTTP, as OpenAI does: gchat serve --run runs/cpu
  web                  a chat site with accounts: gchat web --run runs/chat; gchat web admin --help
  plan                 memory, time and cost on a slice: gchat plan speedrun --sku v6e-8
  dashboard            the same as a page with sliders
  checkpoints          steps of a run with size, time and validation: gchat checkpoints runs/cpu
  picture              a run in one picture: gchat picture runs/cpu
  eval bpb             bits per byte of a text: gchat eval bpb --run runs/cpu --text FILE
  import hf|gguf       a model made elsewhere as a run: gchat import gguf FILE --out RUN
  export hf|gguf       a run for other programs: gchat export gguf --run runs/cpu --out cpu.gguf
  export check         an exported file beside its run, in every program that is here
  eval core            CORE, 22 tasks: gchat eval core --run runs/cpu --max-per-task 100
  eval chat            ChatCORE, tasks asked as conversations: gchat eval chat --run runs/chat
  data prepare         text to token shards: gchat data prepare --source text --input F --out DIR
  data curate          drop documents not worth training on: rules, duplicates, a report
  data chat            conversations to shards: gchat data chat F --out DIR --base RUN
  data download        a data set of the hub, tokenized: climbmix, fineweb, hf://ORG/NAME
  data count           count the tokens of a data set
  data verify          re-read every shard against the manifest, local or gs://
  data show            rows of a batch: segments, and what of them is learned
  data upload          copy a data set to a bucket: gchat data upload DIR gs://bucket/prefix
  tokenizer train      a vocabulary of your own: gchat tokenizer train --input F --out DIR
  tokenizer eval       compare tokenizers on several kinds of text
  synth identity       conversations that teach a model its name; also synth qpt, docstrings
  synth factory        a corpus becomes a judged model; synth generate makes its records alone
  synth worker         work on a queue of questions; also synth status, priority, dead
  eval identity        the share of questions about itself that it answers with its name
  compare              branches, trained alike: gchat compare main my-idea --minutes 10
  ladder               sizes, the law of their losses, the next size: gchat ladder --depths 2 3 4 5
  research run         one experiment of an agent's loop: gchat research run --minutes 5 --json
  research ideas       ideas that ship as patches: gchat compare main +relu2
  research with        a verb with ideas applied: gchat research with +fast train --data-dir DIR
  sweep                variants x sizes x seeds of a YAML file: gchat sweep FILE.yaml

--debug anywhere shows a traceback instead of one line."""


@dataclass(frozen=True)
class EvalBpb:
    """Bits per byte of a text under a trained run's model and tokenizer."""

    run: str
    """Folder of the run."""
    text: str
    """A text file, read as one document."""
    step: str = "last"
    """Checkpoint: a number of steps, best (lowest validation bits per byte) or last."""
    json: bool = False
    """Print one JSON object."""


def _train(args: list[str]) -> None:
    from gchat.train import run

    run(args, prog="gchat train")


def _plan(args: list[str]) -> None:
    from gchat.scaling.cli import plan_main

    raise_on_interrupt()  # --verify has a process and a folder of its own
    plan_main(args)


def _dashboard(args: list[str]) -> None:
    from gchat.scaling.cli import dashboard_main

    raise_on_interrupt()
    dashboard_main(args)


def _sample(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.ask.sample import Sample

    parse(Sample, args, prog="gchat sample", description=Sample.__doc__).run_it()


def _chat(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.ask.chat import Chat

    spelled = ["--prompt" if word == "-p" else word for word in args]
    chat = parse(Chat, spelled, prog="gchat chat", description=Chat.__doc__)
    raise_on_interrupt()
    chat.chat()


def _generate(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.ask.generate import Generate

    job = parse(Generate, args, prog="gchat generate", description=Generate.__doc__)
    raise_on_interrupt()
    job.generate()


def _serve(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.serve.command import serve
    from gchat.serve.options import Serve

    options = parse(Serve, args, prog="gchat serve", description=Serve.__doc__)
    serve(options)


def _web(args: list[str]) -> None:
    from gchat.serve.site.entry import main as web_main

    web_main(args, _known)


def _eval(args: list[str]) -> None:
    from gaia.config import parse

    verb = _known("gchat eval", args, ["bpb", "core", "chat", "identity"])
    if verb != "bpb":
        others = {"core": _eval_core, "chat": _eval_chat, "identity": _eval_identity}
        others[verb](args[1:])
        return
    options = parse(EvalBpb, args[1:], prog="gchat eval bpb", description=EvalBpb.__doc__)
    from gchat.run.loading import load_run

    loaded = load_run(options.run, step=options.step)
    score = loaded.score_file(options.text)
    if options.json:
        figures = {**score._asdict(), "perplexity": score.perplexity}
        print(json.dumps({"text": options.text, **figures, "step": loaded.step}))
    else:
        print(
            f"{options.text}: {score.bpb:.4f} bits per byte, loss {score.loss:.4f}, perplexity "
            f"{score.perplexity:.2f} ({score.tokens:,} tokens, {score.bytes:,} bytes)"
        )


def _eval_identity(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.ask.identity import EvalIdentity

    description = EvalIdentity.__doc__
    options = parse(EvalIdentity, args, prog="gchat eval identity", description=description)
    raise_on_interrupt()
    options.evaluate()


def _eval_core(args: list[str]) -> None:
    from gaia.config import parse
    from gaia.output import may_go_away
    from gaia.processes.group import joined, take_options
    from gchat.run import core

    processes, args = take_options(args)
    options = parse(core.EvalCore, args, prog="gchat eval core", description=core.EvalCore.__doc__)
    raise_on_interrupt()
    with may_go_away(), joined(processes) as group:
        core.main(options, group)


def _eval_chat(args: list[str]) -> None:
    from gaia.config import parse
    from gaia.output import may_go_away
    from gchat.ask.evaluate import EvalChat

    options = parse(EvalChat, args, prog="gchat eval chat", description=EvalChat.__doc__)
    raise_on_interrupt()
    with may_go_away():
        options.main()


def _checkpoints(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.run.checkpoints import Options, show

    raise_on_interrupt()
    show(parse(Options, args, prog="gchat checkpoints", description=Options.__doc__))


def _import(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.importing.cli import VERBS

    verb = _known("gchat import", args, VERBS)
    command = VERBS[verb]
    parse(command, args[1:], prog=f"gchat import {verb}", description=command.__doc__).run()


def _export(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.exporting.cli import VERBS

    verb = _known("gchat export", args, VERBS)
    command = VERBS[verb]
    parse(command, args[1:], prog=f"gchat export {verb}", description=command.__doc__).start()


def _data(args: list[str]) -> None:
    from gchat.data.cli import VERBS, Curate, parse_verb

    raise_on_interrupt()
    given = parse_verb(_known("gchat data", args, VERBS), args[1:])
    if isinstance(given, Curate):
        kind, _, folder = (given.perplexity.scorer or "").partition(":")
        given.run(_run_scorer(folder) if kind == "run" else None)
    else:
        given.run()


def _run_scorer(folder: str) -> Callable[[], Any]:
    """Makes a trained run the scorer of the perplexity filter."""
    from gchat.run.scorer import Run

    return Run(folder)


def _tokenizer(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.data.vocabulary import VERBS

    raise_on_interrupt()
    verb = _known("gchat tokenizer", args, VERBS)
    command = VERBS[verb]
    parse(command, args[1:], prog=f"gchat tokenizer {verb}", description=command.__doc__).run()


def _synth(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.synth.cli import VERBS

    raise_on_interrupt()
    verb = _known("gchat synth", args, [*VERBS, "factory"])
    if verb == "factory":  # it imports the trainer's parts
        from gchat.factory.command import Command as command
    else:
        command = VERBS[verb]
    given: Any = parse(command, args[1:], prog=f"gchat synth {verb}", description=command.__doc__)
    given.start() if verb == "generate" else given.run()


def _models(args: list[str]) -> None:
    from gaia.config import parse
    from gchat.archive.command import VERBS

    raise_on_interrupt()
    verb = _known("gchat models", args, VERBS)
    command = VERBS[verb]
    parse(command, args[1:], prog=f"gchat models {verb}", description=command.__doc__).start()


def _research(args: list[str]) -> None:
    raise_on_interrupt()
    verb = _known("gchat research", args, ["run", "with", "ideas"])
    if verb == "run":  # first of all: an agent may have broken what the others import
        from gchat.research.driver import hand_over

        hand_over(args[1:])
    module = "gchat.research.patched" if verb == "with" else "gchat.research.cli"
    name = {"run": "research_main", "with": "run", "ideas": "ideas_main"}[verb]
    _main_of(module, name)(args[1:])


def _main_of(
    module: str, name: str = "main", interrupt: bool = False
) -> Callable[[list[str]], None]:
    """A verb that is a function of a module, imported when it is called for.

    With `interrupt` Ctrl-C raises KeyboardInterrupt in it; the others see to that themselves.
    """

    def verb(args: list[str]) -> None:
        if interrupt:
            raise_on_interrupt()
        getattr(import_module(module), name)(args)

    return verb


VERBS: dict[str, Callable[[list[str]], None]] = {
    "speedrun": _main_of("gchat.lifecycle.command"),
    "train": _train,
    "midtrain": _main_of("gchat.posttrain.midtrain", "run"),
    "sft": _main_of("gchat.posttrain.sft", "run"),
    "dpo": _main_of("gchat.posttrain.dpo", "run"),
    "rl": _main_of("gchat.posttrain.rl", "run"),
    "sample": _sample,
    "chat": _chat,
    "generate": _generate,
    "judge": _main_of("gchat.judge.command"),
    "orchestrate": _main_of("gchat.orchestrate.command"),
    "picture": _main_of("gchat.run.picture"),
    "models": _models,
    "serve": _serve,
    "web": _web,
    "plan": _plan,
    "dashboard": _dashboard,
    "checkpoints": _checkpoints,
    "eval": _eval,
    "import": _import,
    "export": _export,
    "data": _data,
    "tokenizer": _tokenizer,
    "synth": _synth,
    "sweep": _main_of("gchat.research.cli", "sweep_main", interrupt=True),
    "compare": _main_of("gchat.research.cli", "compare_main", interrupt=True),
    "ladder": _main_of("gchat.research.ladder_cli", "ladder_main", interrupt=True),
    "research": _research,
}


def main(args: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status.

    Args:
        args: the verb and its options; those of this process when left out.
    """
    if args is None:
        end_on_interrupt("gchat")
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    return run_cli("gchat", _verb, args)


def _verb(args: list[str]) -> None:
    verb = VERBS[_known("gchat", args, VERBS)]
    try:
        verb(args[1:])
    except ModuleNotFoundError as error:
        if all(find_spec(name) for name in ("jax", "tyro", "yaml")):
            raise
        raise GaiaError(f"{error.name} is not installed", install("train")) from None


def _help_of(program: str, commands: Collection[str]) -> str:
    """The lines of `USAGE` about a group of commands, and all of their names."""
    group = program.removeprefix("gchat").strip()
    about = [line for line in USAGE.splitlines() if line.startswith(f"  {group} ")]
    head = f"usage: {program} COMMAND [options]; COMMAND --help lists the options"
    return "\n".join([head, "", *about, *[""] * bool(about), f"commands: {', '.join(commands)}"])


def _known(program: str, args: list[str], commands: Collection[str]) -> str:
    """The command that `args` begin with; a question for help is answered, and ends the program.

    Raises:
        SystemExit: the help was printed.
        GaiaError: the command is missing or unknown; the remedy names the nearest one.
    """
    choices = f"use one of {', '.join(commands)}"
    if args[:1] in (["-h"], ["--help"], ["help"]):
        print(_help_of(program, commands))
        raise SystemExit(0)
    if not args:
        raise GaiaError(f"no command is given after `{program}`", choices)
    if args[0] in commands:
        return args[0]
    nearest = get_close_matches(args[0], commands, n=1)
    remedy = f"did you mean `{program} {nearest[0]}`?" if nearest else choices
    raise GaiaError(f"unknown command `{program} {args[0]}`", remedy)


if __name__ == "__main__":
    sys.exit(main())
