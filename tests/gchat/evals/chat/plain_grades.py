"""Grades of answers by other code than the product's: GSM8K's and HumanEval's own rules.

GSM8K: the number behind `####`, as `grade_school_math/dataset.py` of openai/grade-school-math
(3101c7d) takes it, compared as text. HumanEval: the program is the imports of the prompt and the
first block of code, as nanochat's `tasks/humaneval.py` (92d63d4) puts it together, and then the
tests, as `human_eval/execution.py` of openai/human-eval has them.
"""

import re

from gchat.engine import sandbox

_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")


def gsm8k(answer: str, text: str) -> float:
    """1 where a text has the number of the reference answer."""
    numbers = [_NUMBER.search(one) for one in (answer, text)]
    ours, theirs = (m and m.group(1).strip().replace(",", "") for m in numbers)
    return float(ours is not None and ours == theirs)


def humaneval(problem: dict, text: str) -> float:
    """1 where the program of a text passes the problem's tests, in the sandbox."""
    imports = []
    for line in problem["prompt"].split("\n"):
        if line.strip().startswith(("import ", "from ")):
            imports.append(line.strip())
        elif line.strip() and not line.strip().startswith("#"):
            break
    blocks = re.findall(r"```(?:python)?\s*\n(.*?)\n```", text, re.DOTALL)
    code = blocks[0].strip() if blocks else text.strip()
    parts = ("\n".join(imports), code, problem["test"], f"check({problem['entry_point']})")
    return float(sandbox.run("\n\n".join(parts) + "\n", sandbox.Limits(seconds=10, cpu_s=5)).ok)
