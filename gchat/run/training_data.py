"""Data of a run: its manifests, tokenizer and batches, from one data set or a mixture."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jax.sharding import Mesh

from gaia import storage
from gaia.data import packing
from gaia.data.loader import Loader, make_lane_loader, make_loader
from gaia.data.manifest import Manifest, load_manifest
from gaia.data.rows import CacheOptions
from gaia.errors import ConfigError, DataError
from gaia.parallel import rows_here
from gaia.processes.group import Group
from gaia.step_ranges import in_steps
from gaia.storage import gcs, region
from gchat.config import DataConfig, TrainConfig, derive
from gchat.data.chat_check import check_rows
from gchat.data.on_the_fly import TextSet, changed_files, open_text
from gchat.tokenizer import Tokenizer

MANY_EPOCHS = 4
_PACKED = "; packed by "


class TrainingData:
    """Opens the manifests and compares them with the configuration.

    Attributes:
        config: with `dir`, `window` and `fingerprint` filled in.
        manifest: of the data set that gives tokenizer and validation text.
        manifests: of all sources by name; one without a name where there is no mixture.
        tokenizer: of all of them.

    Raises:
        ConfigError: no data is named, or the window is not the one the data was prepared with.
        DataError: a data set is missing or damaged, was replaced, or has another tokenizer.
    """

    def __init__(self, config: DataConfig) -> None:
        self.text: TextSet | None = None
        if config.text is not None:
            self._open_text(config, config.text)
            return
        if config.text_column != "text":
            raise ConfigError(
                f"data.text_column = {config.text_column!r} is of data.text, which is not given",
                "give --data.text, or drop it",
            )
        where = config.dir or next(iter(config.mixture.values()), None)
        if where is None:
            raise ConfigError("data.dir is not set", "give --data-dir, or run gchat/speedrun.sh")
        if config.weights and not config.mixture:
            raise ConfigError(
                f"data.weights = {dict(config.weights)!r} is of data.mixture, which is not given",
                "give --data.mixture, or drop it",
            )
        self.manifests: dict[str, Manifest] = {
            name: load_manifest(source) for name, source in (config.mixture or {"": where}).items()
        }
        self.manifest = load_manifest(where) if config.mixture else self.manifests[""]
        self.tokenizer = Tokenizer.load(f"{where}/tokenizer.json")
        for name, manifest in self.manifests.items():
            self._check_tokenizer(config.mixture.get(name, where), manifest)
        self.config = replace(
            config,
            dir=where,
            window=_window(config.window, self.manifests),
            fingerprint=_fingerprint(config, self.manifests),
        )

    def _open_text(self, config: DataConfig, place: str) -> None:
        """The same for text that is tokenized as it is needed."""
        for name in ("dir", "mixture", "window"):
            if value := getattr(config, name):
                raise ConfigError(
                    f"data.{name} = {value!r} does not go with data.text", "give one of them"
                )
        text = self.text = open_text(
            place,
            column=config.text_column,
            tokenizer=config.tokenizer,
            vocab_size=config.vocab_size,
            forced=config.forced,
            begun=config.fingerprint,
        )
        self.manifest, self.tokenizer = text.manifest, text.tokenizer
        self.manifests = {"": self.manifest}
        changed = changed_files(config.fingerprint, text) if config.fingerprint else []
        fingerprint = _checked(config, text.fingerprint(), place, changed)
        self.config = replace(config, dir=str(text.folder), fingerprint=fingerprint)

    def describe(self) -> str:
        """One sentence on the data for a report."""
        return self.text.describe() if self.text else self.manifest.describe()

    def _check_tokenizer(self, where: str, manifest: Manifest) -> None:
        theirs, ours = manifest.tokenizer.sha256, self.tokenizer.sha256
        if theirs != ours:
            raise DataError(
                f"{where} was made with another tokenizer ({manifest.tokenizer.kind} "
                f"{theirs[:12]}) than {self.tokenizer.info.kind} {ours[:12]}",
                "prepare it again with --tokenizer and the tokenizer.json of the other",
            )

    def derive(self, config: TrainConfig) -> tuple[TrainConfig, list[str]]:
        """The configuration with every number that follows from it and the data (`derive`)."""
        derived, sentences = derive(
            replace(config, data=self.config),
            vocab_size=self.tokenizer.vocab_size,
            padded_vocab_size=self.tokenizer.padded_vocab_size,
        )
        for manifest in self.manifests.values():
            check_rows(manifest, derived.model.seq_len, derived.data.packing)
        optim, training = derived.optim, derived.training
        if optim.weight_decay_steps or optim.matrix_weight_decay_steps or training.batch_ramp:
            per_epoch = self.rows(derived) / training.amounts.batch_size
            ramp = in_steps("training.batch_ramp", training.batch_ramp, per_epoch)
            training = replace(training, batch_ramp=ramp)
            training.check_ramp(training.amounts.steps, config.stage.name)
            optim, said = optim.in_steps(per_epoch, training.amounts.steps)
            derived = replace(derived, optim=optim, training=training)
            sentences += said
        return derived, sentences

    def rows(self, config: TrainConfig) -> float:
        """Training rows that hold the data once; of text that a run tokenizes, about as many."""
        seq_len = config.model.seq_len
        if self.text is not None:
            return max(1.0, self.text.tokens / seq_len)
        loader = make_loader(
            dict(self.config.mixture) or self.config.place,
            seq_len=seq_len,
            batch_size=1,
            seed=0,
            packing=config.data.packing,
            prefetch=0,
            cache=self.cache(config),
            weights=dict(self.config.weights) or None,
        )
        try:
            return float(len(loader.rows))
        finally:
            loader.close()

    def check_same(self, group: Group) -> None:
        """Raises DataError where another process of the run sees other data."""
        facts = (
            f"{self.tokenizer.sha256} {self.manifests!r} {self.text and self.text.fingerprint()}"
        )
        prints = group.all_gather(hashlib.sha256(facts.encode()).hexdigest())
        other = next((i for i, p in enumerate(prints) if p != prints[0]), None)
        if other is not None:
            raise DataError(
                f"data.dir holds other data on process {other} than on process 0",
                "prepare it once, then copy it or use a gs:// address",
            )

    def loader(self, config: TrainConfig, start_step: int, mesh: Mesh) -> Loader:
        """This process's rows of each batch, from `start_step` on."""
        data, batch_size = config.data, config.training.amounts.batch_size
        here = rows_here(batch_size, mesh)
        if self.text is not None:
            rows = self.text.rows(config.model.seq_len, data.packing, batch_size, len(here))
            seed = config.training.seed
            return make_lane_loader(
                rows, batch_size=batch_size, seed=seed, start_step=start_step, rows_here=here
            )
        where: str | Mapping[str, str] = dict(data.mixture) or data.place
        return make_loader(
            where,
            weights=data.weights or None,
            split="train",
            seq_len=config.model.seq_len,
            batch_size=batch_size,
            seed=config.training.seed,
            start_step=start_step,
            rows_here=here,
            packing=data.packing,
            cache=self.cache(config),
        )

    @staticmethod
    def cache(config: TrainConfig) -> CacheOptions:
        """Options of the cache: its folder, its size, and how long to wait for a bucket."""
        data = config.data
        return CacheOptions(data.cache_dir, int(data.cache_gib * 2**30), 60 * data.patience_minutes)

    def seen(self, config: TrainConfig, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets [rows, T] that the run of a text saw first, up to `most` tokens."""
        assert self.text is not None
        amounts, seq_len = config.training.amounts, config.model.seq_len
        batch_size = amounts.batch_size
        rows = self.text.rows(seq_len, config.data.packing, batch_size, batch_size)
        steps = max(1, min(amounts.steps, most // (batch_size * seq_len)))
        with make_lane_loader(rows, batch_size=batch_size, seed=config.training.seed) as loader:
            batches = [loader.batch(step) for step in range(steps)]
        return (
            np.concatenate([batch.inputs_BT for batch in batches]),
            np.concatenate([batch.targets_BT for batch in batches]),
        )

    def epochs(self, config: TrainConfig) -> float | None:
        """Times that the run sees its training tokens; None for a mixture, which logs its own."""
        if config.data.mixture:
            return None
        return config.training.amounts.tokens / self._training_tokens()

    def _training_tokens(self) -> int:
        return self.text.tokens if self.text else self.manifest.tokens("train")

    def epochs_described(self, config: TrainConfig) -> list[str]:
        """The same in a sentence, and a warning where text repeats too often."""
        epochs = self.epochs(config)
        if epochs is None:
            return []
        tokens = self._training_tokens()
        about = "about " * bool(self.text)
        sentence = f"epochs: {about}{epochs:.2f} of {tokens / 1e6:,.2f}M training tokens"
        if epochs > 1:
            sentence += "; the training loss steps down where an epoch begins, validation does not"
        if epochs <= MANY_EPOCHS:
            return [sentence]
        return [
            sentence,
            f"warning: above {MANY_EPOCHS} epochs repeated text teaches little more "
            "(arXiv 2305.16264): prepare more text, or train less",
        ]

    def warnings(self) -> list[str]:
        """Warnings that a person should read before paying for this run."""
        places = self.config.mixture.values() or [self.config.text or self.config.place]
        zone = region.this_zone() if any(storage.is_remote(p) for p in places) else None
        warnings = []
        for place in places:
            if zone and storage.is_remote(place):
                try:
                    warning = region.differs(gcs.bucket_location(place), zone, place)
                except gcs.StorageError as error:
                    warning = f"cannot tell where the bucket lies: {error}"
                if warning:
                    warnings.append(warning)
        return warnings


def _window(given: int | None, manifests: Mapping[str, Manifest]) -> int:
    """W of the data; ConfigError where the configuration says another."""
    windows = {name: manifest.window for name, manifest in manifests.items()}
    for name, window in windows.items():
        if given is not None and len(set(windows.values())) == 1 and window != given:
            raise ConfigError(
                f"data.window is {given}, but {name or 'the data'} was prepared with {window}",
                "the window decides the order: leave it out, or prepare with --window",
            )
    return next(iter(windows.values()))


def _fingerprint(config: DataConfig, manifests: Mapping[str, Manifest]) -> str:
    """The data's fingerprint; an error where the run began with another, or packed otherwise."""
    shards = "; ".join(
        f"{name}: {manifest.fingerprint()}".removeprefix(": ")
        for name, manifest in manifests.items()
    )
    return _checked(config, shards, ", ".join(config.mixture.values()) or str(config.dir))


def _checked(config: DataConfig, data: str, place: str, changed: Sequence[str] = ()) -> str:
    """The fingerprint of data and packing, compared with the one that the run began with.

    Args:
        data: fingerprint of the data alone.
        place: of the data, for the error.
        changed: what is known of the difference.
    """
    fingerprint = data
    if config.packing != "split":
        # Rows follow from the data and the packer; plans are not stored.
        fingerprint += f"{_PACKED}{config.packing}, version {packing.VERSION}"
    (before, _, then), (_, _, now) = (
        (text or "").partition(_PACKED) for text in (config.fingerprint, fingerprint)
    )
    if before == data and then != now:
        raise ConfigError(
            f"data.packing was {then or 'split'} and is {now or 'split'}",
            "it decides the rows: put it back, or start a new run with another --run.name",
        )
    if config.fingerprint is not None and before != data:
        said = f" ({', '.join(changed[:5])}{', …' * (len(changed) > 5)})" if changed else ""
        raise DataError(
            f"{place} is not what the run began with: it had {config.fingerprint} and now has "
            f"{fingerprint}{said}",
            "put the old data back, or start a new run",
        )
    return fingerprint
