"""A clone that tests of research train in."""

import pytest

from clones import committed


@pytest.fixture
def clone(tmp_path):
    """A committed clone of one package, with a training that is only said to be one."""
    return committed(
        tmp_path / "clone",
        {
            "requirements/cpu.txt": "jax\n",
            "gchat/model.py": "import os, beside.x\n",
            "gchat/train.py": "print('a word')\n",
        },
    )
