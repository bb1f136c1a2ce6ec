"""The file of a sweep: what is wrong in it is named in one line."""

import pytest

from gaia.errors import ConfigError
from gchat.research.sweep_file import read_sweep
from sweeps import written


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("variants: {main: {}}\nvariant: 1", "perhaps you meant variants"),
        ("variants: {wide: {model.dimm: 64}}", "variant wide: unknown option --model.dimm"),
        ("set: {trainin.tokens: 5}\nvariants: {main: {}}", "training.tokens"),
        ("variants: {}", "names no variants"),
        ("variants: [main]", "variants is"),
        ("variants: {main: {}}\nseeds: [1, 1]", "seeds is [1, 1]; give one or more, each once"),
        ("variants: {main: {}}\nseeds: []", "seeds is []; give one or more"),
        ("variants: {main: {}}\nseeds: [1, -2]", "seeds has -2; use 0 to 4294967295"),
        ("variants: {1: {}, '1': {model.depth: 2}}", "one name twice, as a word and as a number"),
        ("set: {data.text: x}\nvariants: {main: {}}", "the field data.text is given; use --data"),
        ("variants: {main: {}, main: {model.depth: 2}}", "the key 'main' is given twice"),
        ("variants: {main: {}}\nseeds: 3", "a list of whole numbers"),
        ("variants: {main: {}}\nearly_stop: {at: 0.5}", "lacks behind"),
        ("variants: {main: {}}\nearly_stop: {at: 2, behind: 1}", "early_stop.at is 2"),
        ("variants: {main: {}}\nearly_stop: {at: half, behind: 1}", "early_stop.at is 'half'"),
        ("variants: {main: {}}\nset: [x]", "set is ['x']"),
        ("variants: {main: {}}\npreset: cpuu", "cpuu"),
        ("variants: {main: {model.depth: two}}", "variant main"),
        ("variants: {main: {training.seed: 9}}", "the field training.seed is given; use --seeds"),
        ("set: {run.dir: x}\nvariants: {main: {}}", "the field run.dir is given"),
        ("set: {checkpoint.dir: x}\nvariants: {main: {}}", "keeps checkpoints of its own"),
        ("variants: {main: {run.mirror: x}}", "would mix their files"),
        ("variants: {big: {data.vocab_size: 512}}", "data.vocab_size is set; move it to `set`"),
        ("variants: {a: {}}\nsizes: {x: {data.source: docs}}", "a sweep has one data set"),
        ("data: d\nset: {data.tokenizer: bpe}\nvariants: {main: {}}", "`data` names a prepared"),
        (
            "variants: {main: {}}\nsizes: {d2: {data-dir: x}}",
            "the field data-dir is given; use --data",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, named):
    with pytest.raises(ConfigError) as refused:
        read_sweep(written(tmp_path, text))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
