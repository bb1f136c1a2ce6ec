"""The update of `gchat rl`: one step's answers, their rewards, and what is learned of them."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaia import parallel
from gaia.data.batch import IGNORE, Batch
from gchat.evals.periodic import make_engine
from gchat.posttrain import policy, start
from gchat.posttrain.policy import Rollout
from gchat.posttrain.prompts import PromptOrder, Prompts
from gchat.posttrain.rewards import Rewards
from gchat.posttrain.rollouts import Sampler, seeds
from gchat.posttrain.transcript import transcript
from gchat.run.loop import Alive, TrainingFailed
from gchat.run.series import read_series
from gchat.tasks.task import Item, Task
from gchat.train_state import TrainState, graphdef
from gchat.train_step import StepMetrics, make_scorer, make_train_step


class Policy:
    """The update of a step, and what is measured of it.

    Args:
        started: the run.
        task: whose items are the prompts.
        items: places in it of the prompts that fit.
        length: of a row of prompt and answer.
        room: positions that the longest prompt and its answer take, those held out included.
        rewards: of answers.
        held_out: items to evaluate on, and the rewards of answers to them.
    """

    def __init__(
        self, started: start.Started, task: Task, items: Sequence[int], length: int,
        room: int, rewards: Rewards, held_out: tuple[Sequence[Item], Rewards],
    ) -> None:  # fmt: skip
        config, mesh, graph = started.config, started.mesh, started.graph
        self._started, self._config, self._rl, self._mesh = started, config, config.rl, mesh
        self._task, self._items, self._length, self._room = task, items, length, room
        self._rewards, (self._held_out, self._held_out_rewards) = rewards, held_out
        steps, optim = config.training.amounts.steps * config.rl.passes, config.optim
        of_updates = replace(
            config,
            training=replace(config.training, steps=steps),
            optim=optim.repeated(config.rl.passes),
        )
        self._step = make_train_step(graph, of_updates, mesh, policy.objective(config.rl))
        self._score = make_scorer(graph, config, mesh, temperature=config.rl.temperature)
        self._sampler: Sampler | None = None
        self._reference: Any = None
        self._empty_steps, self._shown = 0, ""

    def prompts(self, index: int) -> PromptOrder:
        """Opens the prompts, from a batch on."""
        self._empty_steps = empty_steps(self._started.session.folder.path, index)
        return PromptOrder(
            self._items, self._rl.prompts, self._config.training.seed, index, self._rewards.close
        )

    def update(
        self, state: TrainState, prompts: Prompts, limit: Any = None
    ) -> tuple[TrainState, StepMetrics]:
        """Draws, grades and learns one step's answers; donates the state."""
        rl, began = self._rl, time.perf_counter()
        items = [self._task[i] for i in prompts.items]
        groups = self._drawn(state.params, items, prompts.index, rl.samples, rl.temperature)
        seconds = time.perf_counter() - began
        reward_Gn = self._graded(items, groups)
        self._shown = transcript(items, groups, reward_Gn)
        advantage_Gn, kept_G = policy.advantages(reward_Gn, rl.loss)
        learned_Gn = np.isfinite(reward_Gn) & kept_G[:, None]
        rollouts = [rollout for group in groups for rollout in group]
        batch = policy.rows(rollouts, advantage_Gn.ravel(), learned_Gn.ravel(), rl, self._length)
        figures = _figures(rollouts, batch, reward_Gn, kept_G, seconds)
        self._empty_steps = 0 if kept_G.any() else self._empty_steps + 1
        # Without a gradient, momentum and decay would still move the parameters.
        highest = math.inf if limit is None else limit
        highest = np.float32(highest if kept_G.any() else -math.inf)
        rows = self._on_device(state.params, batch)
        passes = []
        for _ in range(rl.passes):
            state, metrics = self._step(state, rows, highest)
            passes.append(metrics)
        return state, _mean(passes, figures)

    def _drawn(
        self, params: Any, items: Sequence[Item], batch: int, samples: int, temperature: float,
        alive: Alive = lambda done, total: None,
    ) -> list[list[Rollout]]:  # fmt: skip
        config, chat_format = self._config, self._started.format
        assert chat_format is not None
        params = self._started.whole(params)
        if self._sampler is None:
            engine = make_engine(
                graphdef(self._started.plain()),
                params,
                self._started.tokenizer,
                self._room,
                slots=self._rl.slots,
            )
            self._sampler = Sampler(engine, chat_format, self._rl.max_new_tokens)
        return self._sampler.draw(
            params,
            [tuple(chat_format.prompt(item.question)) for item in items],
            samples=samples,
            temperature=temperature,
            seeds=seeds(config.training.seed, batch, len(items)),
            alive=alive,
        )

    def _graded(self, items: Sequence[Item], groups: Sequence[Sequence[Rollout]]) -> np.ndarray:
        """Rewards [G, n]; NaN where the function gave none.

        Raises:
            TrainingFailed: it gave none at all.
        """
        of = [item for item, group in zip(items, groups, strict=True) for _ in group]
        answers = [rollout.message for group in groups for rollout in group]
        reward_Gn = np.array(self._rewards.grade(of, answers)).reshape(len(groups), -1)
        if not np.isfinite(reward_Gn).any():
            raise TrainingFailed(
                f"rl.reward graded none of a step's {reward_Gn.size} answers: "
                f"{self._rewards.problem}",
                "mend the function, then go on with --resume",
            )
        return reward_Gn

    def _on_device(self, params: Any, batch: Batch) -> Batch:
        """The rows, with the log-probabilities that the loss compares with."""
        more = dict(batch.more or {})
        plain = batch._replace(weights_BT=None, more=None)
        if self._rl.passes > 1:
            more["old"] = -np.asarray(self._score(params, plain))
        if self._rl.kl:
            if self._reference is None:
                self._reference = self._started.init().params
            more["reference"] = -np.asarray(self._score(self._reference, plain))
        batch = batch._replace(more=more)
        return jax.tree.map(lambda a: parallel.shard_rows(a, self._mesh), batch)

    def evaluate(self, params: Any, alive: Alive) -> dict[str, float]:
        """Mean reward of greedy answers to the held-out items."""
        if not self._held_out:
            return {}
        groups = self._drawn(params, self._held_out, 0, 1, 0.0, alive)
        answers = [group[0] for group in groups]
        rewards = np.array(
            self._held_out_rewards.grade(self._held_out, [a.message for a in answers])
        )
        known = rewards[np.isfinite(rewards)]
        return {
            "eval/reward": float(known.mean()) if known.size else 0.0,
            "eval/answer_tokens": float(np.mean([len(answer.ids) for answer in answers])),
        }

    def sample(self, params: Any) -> str:
        """The newest step's rollouts with their rewards, for people."""
        del params
        return self._shown

    def stop(self) -> str:
        """Says so where no group has taught anything for `rl.stall_steps` steps in a row."""
        if self._empty_steps < self._rl.stall_steps:
            return ""
        return (
            f"in each of the last {self._empty_steps} steps all answers to a prompt had the same "
            "reward, so nothing is learned; try an easier or harder task, more --rl.samples or a "
            "higher --rl.temperature"
        )


def empty_steps(folder: Path, step: int) -> int:
    """Steps in a row, up to `step`, of which a run's log says that no group taught anything."""
    log = folder / "metrics.jsonl"
    kept = read_series(log).get("rl/groups_kept", []) if step and log.exists() else []
    count = 0
    for _, groups in reversed([(s, groups) for s, groups in kept if s <= step]):
        if groups:
            break
        count += 1
    return count


def _figures(
    rollouts: Sequence[Rollout], batch: Batch, reward_Gn: np.ndarray, kept_G: np.ndarray,
    seconds: float,
) -> dict[str, float]:  # fmt: skip
    """Figures of a step's rollouts for the log."""
    tokens = [len(rollout.ids) for rollout in rollouts]
    chosen, learned = batch.targets_BT != IGNORE, np.asarray(batch.weights_BT) > 0
    known = [rewards[np.isfinite(rewards)] for rewards in reward_Gn]
    return {
        "rl/reward": float(np.nanmean(reward_Gn)),
        "rl/reward_std": float(np.mean([one.std() if one.size else 0.0 for one in known])),
        "rl/groups_kept": float(kept_G.sum()),
        "rl/ungraded": float(np.sum(~np.isfinite(reward_Gn))),
        "rl/answer_tokens": float(np.mean(tokens)),
        "rl/longest_answer": float(max(tokens)),
        "rl/cut_off": float(np.mean([not rollout.ended for rollout in rollouts])),
        "rl/learned_share": float(learned.sum() / max(1, chosen.sum())),
        "rl/rollout_seconds": seconds,
        "rl/rollout_tokens_per_s": sum(tokens) / seconds,
    }


def _mean(passes: Sequence[StepMetrics], figures: dict[str, float]) -> StepMetrics:
    """One step's metrics out of those of its updates."""

    mean: StepMetrics = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *passes)
    clipped = mean.more["rl/clip_share"] / max(figures["rl/learned_share"], 1e-9)
    more = {**mean.more, **figures, "rl/clip_share": clipped}
    return mean._replace(lr_share=passes[0].lr_share, more=more)
