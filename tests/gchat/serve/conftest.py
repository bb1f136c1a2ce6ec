import pytest

import serving


@pytest.fixture(scope="module")
def server():
    with serving.running() as made:
        yield made
