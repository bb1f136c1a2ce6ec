"""The speedrun's plan: sizes and steps that fit the machine and the hours, and its data set."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from gaia import runtime, storage
from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError
from gaia.hardware import chip_of_device_kind
from gchat.config import TrainConfig, derive, price_per_hour
from gchat.data.prepare import prepare
from gchat.data.sources import docs
from gchat.model import GPTConfig
from gchat.model_shape import matmul_params
from gchat.scaling.estimate import (
    Estimate,
    estimate,
    overhead_seconds,
    placed,
    tokens_within,
)
from gchat.scaling.plan import vocabulary

LEAST_STEPS = 20  # fewer show nothing
DEPTHS = tuple(range(4, 41, 2))  # what the plan chooses from
# On a CPU the tokens are few, and a model too large for them is worse than a small one that sees
# more: the plan takes the largest of these depths that gets so many tokens per matmul parameter
# (EXPERIMENTS.md, "The cpu preset").
CPU_DEPTHS = (2, 3, 4)
CPU_TOKENS_PER_PARAM = 0.5
AMX_UNUSED = (
    "this CPU has AMX tiles, which XLA's products do not make full use of: torch's bf16 products "
    "are over 4 times as fast there (gchat/EXPERIMENTS.md)"
)


class Plan:
    """Plan of a training: sizes and steps that fit the machine and the hours."""

    def __init__(
        self,
        config: TrainConfig,
        machine: runtime.Machine,
        peak: float,
        deadline: float,
        *,
        strict: bool,
        length_asked: bool = False,
    ) -> None:
        if config.data.dir is None and (config.data.source == "text") != bool(config.data.input):
            raise ConfigError(
                f"data.source is {config.data.source} and data.input is {config.data.input!r}",
                "give both --data.source text and --data.input PATH, or neither",
            )
        if config.data.text is not None:
            raise ConfigError(
                f"data.text = {config.data.text!r} does not go with the speedrun, which prepares",
                "give --data.source text --data.input PATH, or use `gchat train --data.text`",
            )
        self._given, self._strict, self._length_asked = config, strict, length_asked
        self._accepted = False
        self.config, self._machine, self._peak, self._deadline = config, machine, peak, deadline

    def _vocab(self) -> tuple[int, int]:
        return vocabulary(self._given)

    def _seconds_left(self) -> float:
        return self._deadline - time.monotonic() - overhead_seconds(self._machine, self._peak)

    def _estimate(self, config: TrainConfig) -> tuple[TrainConfig, list[str], Estimate]:
        vocab, padded = self._vocab()
        derived, said = derive(config, vocab_size=vocab, padded_vocab_size=padded)
        derived = placed(derived, self._machine)
        return derived, said, estimate(derived, self._machine, self._peak)

    def placed(self) -> TrainConfig:
        """The configuration with the micro-batches and rematerialisation that fit the machine."""
        derived, _, _ = self._estimate(self.config)
        return replace(
            self.config,
            model=replace(self.config.model, remat=derived.model.remat),
            training=replace(self.config.training, grad_accum=derived.training.grad_accum),
        )

    def choose_size(self, *, fixed_depth: bool) -> None:
        """The largest depth that the time can feed, unless the user chose one; then its steps.

        An accelerator must finish the whole schedule of a depth; a CPU, whose schedule is
        shortened to the time, must reach CPU_TOKENS_PER_PARAM.
        """
        on_cpu = self._machine.platform == "cpu"
        if not fixed_depth:
            depths = CPU_DEPTHS if on_cpu else DEPTHS
            models = [replace(self._given.model, depth=depth) for depth in depths]
            enough = self._is_fed if on_cpu else self._ends_in_time
            fitting = [model for model in models if enough(model)]
            if not fitting and not on_cpu:
                raise ConfigError(f"not even depth {depths[0]} finishes in time", "raise --hours")
            self.config = replace(self._given, model=fitting[-1] if fitting else models[0])
        if on_cpu or fixed_depth:
            self.fit_steps()

    def _ends_in_time(self, model: GPTConfig) -> bool:
        try:
            _, _, cost = self._estimate(replace(self._given, model=model))
        except ConfigError:  # does not fit the memory, or does not divide over the mesh
            return False
        return cost.seconds <= self._seconds_left()

    def _is_fed(self, model: GPTConfig) -> bool:
        derived, _, _ = self._estimate(replace(self._given, model=model))
        tokens = tokens_within(derived.model, self._machine, self._peak, self._seconds_left())
        return tokens >= CPU_TOKENS_PER_PARAM * matmul_params(derived.model)

    def fit_steps(self) -> None:
        """Shortens the schedule to the time that is left.

        A length that was typed stays: first it must fit, and then the time that preparing the data
        took changes it no more.

        Raises:
            ConfigError: what was asked for does not fit into the hours.
        """
        given = self._given.training
        if given.steps is not None or self._accepted:
            return
        derived, _, cost = self._estimate(self.config)
        limit = int(self._seconds_left() * cost.tokens / cost.seconds)
        wanted = cost.tokens if given.tokens is None else given.tokens
        rows = derived.training.amounts.batch_size * derived.model.seq_len
        if limit < LEAST_STEPS * rows and self._strict:
            raise ConfigError(
                f"only {max(0, limit // rows)} steps fit into the hours", "raise --hours"
            )
        if self._length_asked and wanted > limit + rows:
            hours = wanted / cost.tokens * cost.seconds / 3600
            raise ConfigError(
                f"the {wanted:,} training tokens asked for take about {hours:.2f} h, "
                f"{max(0.0, self._seconds_left()) / 3600:.2f} h are left for them",
                f"raise --hours, or ask for at most {max(0, limit // rows * rows):,}",
            )
        if self._length_asked:
            self._accepted = True
            return
        # A very slow machine takes its time, unless the user limited it.
        tokens = max(LEAST_STEPS * rows, min(wanted, limit) // rows * rows)
        training = replace(self.config.training, tokens=tokens)
        self.config = replace(self.config, training=training)

    def show(self, hours: float, why: str, peak_source: str) -> None:
        """Prints the plan: hours and dollars first."""
        config, said, cost = self._estimate(self.config)
        m, price = self._machine, self._price()
        print(
            f"plan: {hours:.2f} h ({why}), at most ${price * hours:.2f} at ${price:.2f}/h; "
            f"training about {cost.seconds / 60:.1f} min of it"
        )
        print(
            f"machine: {m.devices} x {m.device_kind}, {self._peak / 1e12:.3g} TFLOP/s "
            f"({peak_source})"
        )
        if m.platform == "cpu" and runtime.has_amx():
            print(AMX_UNUSED)
        for sentence in said:
            print(sentence)
        print(
            f"cost: {cost.params / 1e6:,.1f}M parameters, {cost.flops:.3g} FLOP, about "
            f"{cost.memory_bytes / 2**30:.1f} GiB per device (estimate; grad_accum "
            f"{config.training.grad_accum}, remat {config.model.remat})"
        )
        source = config.data.dir or f"{config.data.source} -> {self.data_dir()}"
        print(f"data: {source}, tokenizer {config.data.tokenizer}")
        print(f"files: {config.run.folder}/ (config.yaml, metrics.jsonl, checkpoints/, report.md)")

    def _price(self) -> float:
        price = price_per_hour(self.config)
        if price or self.config.run.price_per_hour is not None:
            return price
        chip = chip_of_device_kind(self._machine.device_kind)
        listed = chip.price() if chip else None
        if chip is None or listed is None:
            return 0.0
        return listed.on_demand * self._machine.devices / chip.devices_per_chip

    def data_dir(self) -> Path:
        """Folder of the speedrun's data set; its name says what it holds."""
        data = self.config.data
        name = [data.source, Path(data.tokenizer).stem]
        if data.tokenizer == "bpe":
            name.append(str(data.vocab_size))
            if data.forced:
                name.append(hashlib.sha256(repr(data.forced).encode()).hexdigest()[:8])
        if data.source == "docs":
            name.append(docs.fingerprint()[:8])
        if data.source == "climbmix":
            name.append(str(self._shards()))
        if data.input:
            name.append(Path(data.input).stem)
        return storage.home() / "data" / "-".join(name)

    def _shards(self) -> int:
        """ClimbMix shards that hold the tokens of the run once (250M characters, 4.8 per token)."""
        if self.config.data.shards is not None:
            return self.config.data.shards
        _, _, cost = self._estimate(self.config)
        return max(1, -(-int(cost.tokens * 4.8) // 250_000_000))

    def prepare_data(self) -> None:
        """Makes the data set unless one was given (or lies there from an earlier run)."""
        config = self.config
        if not price_per_hour(config):  # nobody says one: the list's is of this kind of chip
            config = replace(config, run=replace(config.run, price_per_hour=self._price()))
        data = config.data
        if data.dir is None:
            out = self.data_dir()
            prepare(
                source=data.source,
                input=data.input,
                out=out,
                tokenizer=data.tokenizer,
                vocab_size=data.vocab_size,
                forced=data.forced if data.tokenizer == "bpe" else (),
                shards=self._shards() if data.source == "climbmix" else 8,
            )
            data = replace(data, dir=str(out))
        load_manifest(data.place)
        self.config = replace(config, data=data)
