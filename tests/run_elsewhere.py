"""Tests that run the documented commands which `test_documented_runs.py` does not run itself.

A command belongs to the first line whose page and beginning fit; a page is "" for all pages.
"""

from documented import Command

PAGES = (
    "README.md", "gchat/README.md", "docs/chat.md", "docs/data.md", "docs/models.md",
    "docs/plan.md", "docs/posttraining.md", "docs/research.md",
)  # fmt: skip
"""Pages with commands that run as they are written."""

TESTS = (
    ("", "bash tests/run.sh", "test_documented_runs.py"),  # that is it
    ("", "python -m gchat.train speedrun --coordinator", "gchat/test_processes.py"),  # 4 processes
    ("", "python -m gchat.data.download", "gchat/test_other_data.py"),  # the hub
    ("", "gchat data download wikipedia", "gchat/data/test_wikipedia.py"),
    ("", "gchat data download", "gchat/test_other_data.py"),
    ("", "gchat import", "gchat/importing/test_layouts.py"),  # a model made elsewhere
    ("", "gchat export", "gchat/exporting/test_files.py"),  # other programs
    ("", "gchat eval core", "gchat/evals/core/test_command.py"),  # the bundle
    ("", "gchat eval chat", "gchat/evals/chat/test_command.py"),
    ("", "gchat chat", "gchat/ask/test_chat.py"),  # a terminal
    ("", "gchat serve", "gchat/serve/test_command.py"),  # serves until it is stopped
    ("", "gchat web", "gchat/serve/site/browser/test_story.py"),
    ("", "python tests/benchmarks/serve.py", "test_benchmarks.py"),  # minutes
    ("", "python -m gchat.scaling.calibrate", "gchat/test_aot.py"),  # compiles for hours
    ("", "gchat plan --sku v6e-8 --search", "gchat/test_aot.py"),
    ("", "gchat dashboard", "gchat/scaling/test_dashboard.py"),  # serves until it is stopped
    ("docs/importing.md", "gchat", "gchat/importing/test_smollm2.py"),
    ("docs/core.md", "gchat train", "gchat/evals/core/test_command.py"),
    ("docs/judge.md", "gchat", "gchat/judge/test_judge.py"),
    ("docs/models.md", "gchat models", "gchat/archive/test_models.py"),
    ("docs/models.md", "gchat tokenizer", "gchat/archive/test_models.py"),
    ("docs/models.md", "gchat data", "gchat/archive/test_models.py"),
    ("docs/models.md", "gchat train", "gchat/archive/test_models.py"),
    ("docs/orchestrate.md", "gchat", "gchat/orchestrate/test_orchestrate.py"),
    ("docs/plateau.md", "gchat compare", "gchat/research/test_compare.py"),
    ("docs/posttraining.md", "gchat rl", "gchat/posttrain/test_rl_and_dpo.py"),
    ("docs/posttraining.md", "gchat dpo", "gchat/posttrain/test_rl_and_dpo.py"),
    ("docs/posttraining.md", "gchat", "gchat/posttrain/test_sft.py"),
    ("docs/posttraining.md", "bash gchat/speedrun.sh --stages", "gchat/test_speedrun.py"),
    ("docs/posttraining.md", "bash gchat/speedrun.sh --resume", "gchat/test_speedrun.py"),
    ("docs/web.md", "gchat dpo", "gchat/serve/site/test_admin.py"),
    ("docs/queue.md", "gchat synth", "gchat/queue/test_worker.py"),
    ("docs/queue.md", "gml run", "gml/test_run_many.py"),
    ("docs/research.md", "git switch", "gchat/research/test_end_to_end.py"),
    ("docs/research.md", "sed", "gchat/research/test_end_to_end.py"),
    ("docs/research.md", "gchat compare main my-idea --on", "gchat/research/test_rented.py"),
    ("docs/research.md", "gchat compare", "gchat/research/test_end_to_end.py"),
    ("docs/research.md", "gchat research with", "gchat/research/test_ideas.py"),
    ("docs/research.md", "gchat research run", "gchat/research/test_end_to_end.py"),
    ("docs/research.md", "python tests/benchmarks/curve_vs_nanochat.py", "test_benchmarks.py"),
    ("docs/synthesis.md", "gchat synth factory", "gchat/synth/test_factory.py"),
    ("docs/synthesis.md", "gchat", "gchat/synth/test_generate.py"),
    ("gml/README.md", "gml", "gml/test_golden_path.py"),
    ("deploy/README.md", "", "gaia_metrics/test_deploy.py"),
    ("deploy/chat/README.md", "", "deploy/test_chat.py"),
    ("deploy/serve/README.md", "", "deploy/test_serve.py"),
)


def runner_of(command: Command) -> str | None:
    """The test file that runs a command, seen from `tests/`; None where it runs as written."""
    for page, beginning, test in TESTS:
        if page in ("", command.page) and command.text.startswith(beginning):
            return test
    return None
