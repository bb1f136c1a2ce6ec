"""The tasks of CORE: kind, examples, file, and what guessing scores.

Tasks, shots and delimiters are those of nanochat's eval bundle (core.yaml), which took them from
DCLM's and MosaicML's evaluation gauntlet. A baseline is the accuracy that counts as 0. `Core_v1`
has the baselines that DCLM began with and nanochat uses; in `Core_v2` DCLM corrected three of them
(mlfoundations/dclm, eval/additional_aggregation.json and eval_meta_data.csv): commonsense_qa
(20 -> 40.3, its most frequent answer), agi_eval_lsat_ar (20 -> 25) and language identification
(9.1 -> 25), which each have four choices.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

from gaia.errors import ConfigError

Kind = Literal["multiple_choice", "schema", "language_modeling"]
"""Several ends to one beginning, several beginnings with one end, or one exact continuation."""

VERSIONS = ("core_v1", "core_v2")


class Task(NamedTuple):
    """One task of CORE."""

    name: str
    kind: Kind
    shots: int
    """Solved examples before the question."""
    file: str
    """Path below eval_data, without `.jsonl`."""
    git_blob: str
    """SHA-1 of the published file as a git object: `git hash-object FILE`."""
    baseline_v1: float
    baseline_v2: float
    delimiter: str = " "
    """Text between question and answer."""

    def centred(self, accuracy: float, version: str) -> float:
        """(accuracy - baseline) / (1 - baseline), with the baseline of `core_v1` or `core_v2`."""
        baseline = self.baseline(version)
        return (accuracy - baseline) / (1 - baseline)

    def baseline(self, version: str) -> float:
        """The accuracy that counts as 0 under `core_v1` or `core_v2`."""
        return self.baseline_v1 if version == "core_v1" else self.baseline_v2


_MC: Kind = "multiple_choice"
_SCHEMA: Kind = "schema"
_LM: Kind = "language_modeling"
_ANSWER = "\nAnswer: "
_HELLASWAG = "448321079fdc140bd8566b16b24eda9ceacd3501"

TASKS = (
    Task("hellaswag_zeroshot", _MC, 0, "language_understanding/hellaswag",
         _HELLASWAG, 0.25, 0.25),
    Task("jeopardy", _LM, 10, "world_knowledge/jeopardy_all",
         "2f771918dbc8b68550df204171b14d2648b5d494", 0.0, 0.0, _ANSWER),
    Task("bigbench_qa_wikidata", _LM, 10, "world_knowledge/bigbench_qa_wikidata",
         "5e1be72797ba082fd4f6efa42f7d759d2d23339a", 0.0, 0.0),
    Task("arc_easy", _MC, 10, "world_knowledge/arc_easy",
         "b5fd1bf87a24246a6be67230b721541688f5c349", 0.25, 0.25, _ANSWER),
    Task("arc_challenge", _MC, 10, "world_knowledge/arc_challenge",
         "ce66b8dcfb4bac892a404a0dda8b4e8ed0f84b89", 0.25, 0.25, _ANSWER),
    Task("copa", _MC, 0, "commonsense_reasoning/copa",
         "b22f96e08ae9d0e97e1ae58f67b6425c77ef200a", 0.5, 0.5),
    Task("commonsense_qa", _MC, 10, "commonsense_reasoning/commonsense_qa",
         "f1cc16a88b05ab0934aab2ec2d02a6869e6e5520", 0.2, 0.403),
    Task("piqa", _MC, 10, "commonsense_reasoning/piqa",
         "a9992adfdefde366fe7ccff871f5aa62449a09cf", 0.5, 0.5, _ANSWER),
    Task("openbook_qa", _MC, 0, "commonsense_reasoning/openbook_qa",
         "a8aff255a64cbc72a85252acf00df25a315686c2", 0.25, 0.25),
    Task("lambada_openai", _LM, 0, "language_understanding/lambada_openai",
         "4da02dd53b9e7385871d06ab855471d77b2f7dda", 0.0, 0.0),
    Task("hellaswag", _MC, 10, "language_understanding/hellaswag", _HELLASWAG, 0.25, 0.25),
    Task("winograd", _SCHEMA, 0, "language_understanding/winograd_wsc",
         "762fe030ac6938ecba438c47a04057247c6ab891", 0.5, 0.5),
    Task("winogrande", _SCHEMA, 0, "language_understanding/winogrande",
         "316e87ae4659f0c402b0f00551fdec83ab0a0986", 0.5, 0.5),
    Task("bigbench_dyck_languages", _LM, 10, "symbolic_problem_solving/bigbench_dyck_languages",
         "27a4ac2b3b18716add92f4ecd62475c4f8d77768", 0.0, 0.0),
    Task("agi_eval_lsat_ar", _MC, 3, "symbolic_problem_solving/agi_eval_lsat_ar",
         "d663b427ba310d3f877f09a6830198ca7c856189", 0.2, 0.25),
    Task("bigbench_cs_algorithms", _LM, 10, "symbolic_problem_solving/bigbench_cs_algorithms",
         "7ecee0f270f3de8b6558da14ae02181f3d950a40", 0.0, 0.0),
    Task("bigbench_operators", _LM, 10, "symbolic_problem_solving/bigbench_operators",
         "a982dc4f962725c9dc4abb07d3cc333c99959290", 0.0, 0.0),
    Task("bigbench_repeat_copy_logic", _LM, 10,
         "symbolic_problem_solving/bigbench_repeat_copy_logic",
         "86621f10e7124ed6f3a61fb91493c1256c008f60", 0.0, 0.0),
    Task("squad", _LM, 10, "reading_comprehension/squad",
         "dc733b8f58ec666c53fd946198c434b819a00680", 0.0, 0.0),
    Task("coqa", _LM, 0, "reading_comprehension/coqa",
         "028bd4e51326cc43f8394987ae47fbb271aeba9d", 0.0, 0.0),
    Task("boolq", _MC, 10, "reading_comprehension/boolq",
         "f42083a58713d00ef4600118cfdf79618c269190", 0.62, 0.62, _ANSWER),
    Task("bigbench_language_identification", _MC, 10,
         "language_understanding/bigbench_language_identification",
         "1f132fbbb12a67ce267b7b92b458175632c265f3", 0.091, 0.25),
)  # fmt: skip

GPT2_CORE = 0.256525
"""`core_v1` of GPT-2 XL (1.6B), which nanochat's speedrun is measured against."""


def chosen(names: Sequence[str]) -> tuple[Task, ...]:
    """The tasks of these names; all for no names.

    Raises:
        ConfigError: a name is unknown; it names the nearest.
    """
    by_name = {task.name: task for task in TASKS}
    for name in names:
        if name not in by_name:
            nearest = get_close_matches(name, by_name, n=1, cutoff=0.3)
            hint = f"did you mean {nearest[0]}?" if nearest else f"use some of {', '.join(by_name)}"
            raise ConfigError(f"--tasks names {name!r}, which is no task of CORE", hint)
    return tuple(task for task in TASKS if not names or task.name in names)
