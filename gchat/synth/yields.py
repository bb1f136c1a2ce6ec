"""The report of a generation: what each style gave and cost, how different the questions are."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from gchat.synth import contrasts
from gchat.synth.filters.corpus_wide import plain
from gchat.synth.planning import Job, Plan
from gchat.synth.split import parts

Row = dict[str, Any]
SAME = 0.9
"""Share of words that two questions have in common when they count as the same."""


@dataclass(frozen=True)
class Report:
    """Facts of a generation."""

    facts: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """The report as a page of markdown."""
        facts = self.facts
        yield "# Synthetic records"
        yield ""
        yield (
            f"{facts['articles']:,} articles ({facts['heldout_articles']:,} held out whole), "
            f"{facts['windows']:,} windows, model {facts['model']}"
        )
        yield ", ".join(f"{count:,} {part}" for part, count in facts["parts"].items())
        if facts["balance"]:
            yield "right choice first and second: " + " / ".join(
                f"{n:,}" for n in facts["balance"].values()
            )
        if facts["same_question"]:
            pair = facts["same_question"]
            yield (
                f"two styles that ask the same most often: {pair['styles'][0]} and "
                f"{pair['styles'][1]}, for {pair['share']:.1%} of the windows that have both"
            )
        if facts["dead"]:
            yield f"{facts['dead']:,} items were given up; {facts['dead_first']}"
        yield ""
        yield "| rejected in phase: filter | records |"
        yield "|---|---:|"
        for name, count in facts["rejects"].items():
            yield f"| {name} | {count:,} |"
        yield ""
        priced = facts["cost"] > 0
        unit = "US$" if priced else "tokens"
        yield f"| style | made | accepted | yield | {unit} per accepted record |"
        yield "|---|---:|---:|---:|---:|"
        for name, row in facts["styles"].items():
            each = row["cost_per_accepted"] if priced else row["tokens_per_accepted"]
            shown = "-" if each is None else f"{each:.6f}" if priced else f"{each:,.0f}"
            yield (
                f"| {name} | {row['made']:,} | {row['accepted']:,} | {row['yield']:.0%} | {shown} |"
            )


def count(
    job: Job, plan: Plan, kept: Sequence[Row], rejects: Sequence[Row], dead: Sequence[Row],
    tokens: Sequence[int], cost: float,
) -> Report:  # fmt: skip
    """Counts a finished generation."""
    why = Counter(f"{r['phase']}: {r['filter']}" for r in rejects)
    return Report(
        {
            "model": job.model,
            "articles": plan.articles,
            "heldout_articles": plan.heldout_articles,
            "windows": len(plan.windows),
            "records": len(kept),
            "parts": parts(r["split"] for r in kept),
            "kinds": dict(Counter(r["kind"] for r in kept)),
            "balance": contrasts.balance(kept) if "contrast" in job.kinds else {},
            "same_question": same_question(kept),
            "rejects": dict(why.most_common()),
            "dead": len(dead),
            "dead_first": dead[0]["why"] if dead else "",
            "tokens": {"prompt": tokens[0], "completion": tokens[1]},
            "cost": cost,
            "styles": _by_style(kept, [r for r in rejects if "style" in r]),
        }
    )


def _by_style(kept: Iterable[Row], rejects: Iterable[Row]) -> dict[str, Row]:
    """Made, accepted, tokens and cost of each style, those of its rejects included."""
    table: dict[str, Row] = defaultdict(
        lambda: {"made": 0, "accepted": 0, "tokens": 0, "cost": 0.0}
    )
    for accepted, rows in ((1, kept), (0, rejects)):
        for record in rows:
            row = table[record["style"] if record["kind"] != "qpt" else "qpt"]
            row["made"] += 1
            row["accepted"] += accepted
            row["tokens"] += sum(record.get("tokens", ()))
            row["cost"] += record.get("cost", 0.0)
    for row in table.values():
        good = row["accepted"]
        row["yield"] = round(good / row["made"], 4)
        row["tokens_per_accepted"] = round(row["tokens"] / good, 1) if good else None
        row["cost_per_accepted"] = row["cost"] / good if good else None
    return dict(sorted(table.items(), key=lambda pair: (-pair[1]["accepted"], pair[0])))


def same_question(records: Iterable[Row]) -> Row | None:
    """The two styles that ask the same for the largest share of the windows which have both."""
    shares = same_questions(records)
    if not shares:
        return None
    (a, b), share = max(shares.items(), key=lambda pair: pair[1])
    return {"styles": [a, b], "share": round(share, 4)}


def same_questions(records: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Share of windows in which two styles ask the same, by the pair of styles.

    The same are questions whose words agree in `SAME` of all, order, case and marks aside.
    """
    windows: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for record in records:
        if record["kind"] == "qa":
            words = frozenset(plain(record["question"]).split())
            windows[record["source"]["window"]][record["style"]] = words
    both: Counter[tuple[str, str]] = Counter()
    same: Counter[tuple[str, str]] = Counter()
    for asked in windows.values():
        for (a, words_a), (b, words_b) in combinations(sorted(asked.items()), 2):
            both[a, b] += 1
            same[a, b] += len(words_a & words_b) >= SAME * len(words_a | words_b)
    return {pair: same[pair] / number for pair, number in both.items() if number >= 5}
