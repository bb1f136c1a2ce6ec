"""Q-PT records of a plan: windows side by side as answers, each asked for in several phrasings."""

from collections.abc import Iterator
from typing import Any

from gchat.synth import qpt
from gchat.synth.facts import Draw, Facts
from gchat.synth.planning import Job, Plan
from gchat.synth.records import record_id, source_of


def write(job: Job, plan: Plan) -> Iterator[dict[str, Any]]:
    """Records; phrasings that are held out ask for passages of trained articles, one each."""
    step = -(-job.window // job.stride)  # every sentence once, where the stride divides the window
    known = [(f"qpt-{i}", style, text) for i, (style, text) in enumerate(qpt.phrasings())]
    heldout = [one for one in known if one[0] in plan.heldout_styles]
    trained = [one for one in known if one[0] not in plan.heldout_styles]
    for window in plan.windows:
        if window.number % step:
            continue
        topic, draw = Facts(window).topic, Draw(f"{window.id} {job.seed} qpt")
        part = plan.parts[window.id]
        wanted = [(one, part) for one in draw.shuffled(trained)[: job.phrasings]]
        if part == "train" and heldout:
            wanted.append((draw.of(heldout), "heldout_phrasing"))
        for (name, style, template), split in wanted:
            yield {
                "id": record_id(window.id, name, job.seed),
                "kind": "qpt",
                "source": source_of(window),
                "style": name,
                "register": style,
                "split": split,
                "question": template.replace("{topic}", topic),
                "answer": window.text,
                "fact": f"{window.start}:passage",
                "model": "offline",
            }
