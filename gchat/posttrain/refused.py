"""Options of the trainer that a stage after pretraining refuses: they would be without effect."""

from collections.abc import Set

from gaia.errors import ConfigError

_OF_PRETRAINING = ("--eval.core-", "--run.target-core")
_DATA = ("--data.dir", "--data.mixture", "--data.text", "--data.weights")


def check_typed(name: str, prog: str, typed: Set[str], *, epochs: bool) -> None:
    """Refuses, before anything is read, options without effect and two that say one thing.

    Args:
        name: of the stage.
        prog: its command.
        typed: full names of the options that were given.
        epochs: passes over the data are given, too.

    Raises:
        ConfigError: naming the option.
    """
    for stage in ("dpo", "rl"):
        others = sorted(option for option in typed if option.startswith(f"--{stage}."))
        if others and stage != name:
            raise ConfigError(f"{others[0]} is of `gchat {stage}`", "leave it out")
    for field in ("name", "base-commit", "chat"):
        if f"--stage.{field}" in typed:
            raise ConfigError(f"--stage.{field} follows from the base run", "leave it out")
    if epochs and {"--training.steps", "--training.tokens"} & typed:
        raise ConfigError("--epochs and a number of steps are both given", "give one of them")
    if "--training.tokens-per-param" in typed:
        raise ConfigError(
            "--training.tokens-per-param is of pretraining", "use --epochs or --max-steps"
        )
    if any(o.endswith(("-reference", "-rule")) for o in typed if o.startswith("--optim.")):
        raise ConfigError(
            "optim.batch_reference, width_reference, width_rule and decay_rule are of pretraining",
            f"leave them out; {prog} takes learning rates as they are given",
        )
    if core := sorted(option for option in typed if option.startswith(_OF_PRETRAINING)):
        raise ConfigError(
            f"{core[0]} is of pretraining", "leave it out, and run `gchat eval core` afterwards"
        )
    if data := sorted({*_DATA} & typed):
        raise ConfigError(
            f"{data[0]} is of pretraining", "use --rl.task" if name == "rl" else "use --data FILE"
        )
