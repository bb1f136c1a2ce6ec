"""Settings of every test. Nothing here imports jax: the tests of gml and gaia_metrics need none."""

import ipaddress
import os
import shutil
import signal
import socket
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent
pytest_plugins = ["time_limit"]


def pytest_configure(config):
    """Before any test module is imported: an own home, and JAX as strict as it can be.

    JAX reads these variables when it is imported, here and in the processes that tests start.
    """
    hear_signals()
    # An example's time is the machine's affair, not the code's.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")
    if hasattr(config, "workerinput"):  # an xdist worker inherits what its controller has set
        return
    config.gaia_home = tempfile.mkdtemp(prefix="gaia-tests-")
    os.environ["GAIA_HOME"] = config.gaia_home
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    # Many tests compile the same small programs; the first one to do so pays, on either worker
    # and in every process that tests start.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(config.gaia_home) / "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Three workers on two cores: NumPy's threads would wait for one another, spinning.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.setdefault("XLA_FLAGS", fast_compilation())


def hear_signals():
    """Undoes what `nohup` and background jobs pass on: SIGHUP and SIGINT ignored, in children too.

    Tests send these signals to the processes they start, and a shell that started pytest with one
    of them ignored would have those processes ignore it as well.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def fast_compilation():
    """Flags that compile in a third of the time, which is most of the time of these tests.

    LLVM runs at -O0, and fusions become code through the older of XLA's two emitters. XLA's own
    passes, and so what is fused and in which dtype it is computed, stay as they are.
    """
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    try:
        known = version("jaxlib").startswith("0.10.")  # XLA ends a process over an unknown flag
    except PackageNotFoundError:
        known = False
    return flags + " --xla_cpu_use_fusion_emitters=false" * known


# Modules that take long, the longest first: the two workers take modules in this order, so that
# none of these is begun when the other worker has nothing left to do.
LONGEST = (
    "gchat/test_stream_run",
    "gchat/test_processes",
    "gchat/test_resume",
    "gchat/test_bad_steps",
    "gml/test_local",
    "gml/test_teardown",
    "gchat/test_packed_run",
    "gchat/test_meshes",
    "gchat/test_train_step",
    "gchat/test_cli",
    "gchat/test_aot",
    "gchat/test_model",
    "gaia/kernels/test_attention",
    "gaia/processes/test_group",
)


def pytest_collection_modifyitems(items):
    """Orders whole modules; tests of a module keep their order."""
    place = {str(ROOT / "tests" / f"{name}.py"): i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(place)))


def pytest_unconfigure(config):
    if home := getattr(config, "gaia_home", None):
        shutil.rmtree(home, ignore_errors=True)


class NetworkBlocked(RuntimeError):
    """Not an OSError, which code under test may take for a network that is down."""


def _check_address(address):
    if not isinstance(address, tuple):  # a Unix socket's path
        return
    host = str(address[0]).split("%")[0]
    try:
        allowed = ipaddress.ip_address(host).is_loopback
    except ValueError:
        allowed = host in ("", "localhost")
    if not allowed:
        raise NetworkBlocked(f"a test tried to reach {address[0]}; only loopback is allowed")


@pytest.fixture(autouse=True, scope="session")
def only_loopback():
    """Refuses every connection of this process but those to this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    lookup = socket.getaddrinfo

    def checked_lookup(host, *args, **kwargs):
        _check_address((host or "", 0))
        return lookup(host, *args, **kwargs)

    def checked_connect(self, address):
        _check_address(address)
        return connect(self, address)

    def checked_connect_ex(self, address):
        _check_address(address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
        patch.setattr(socket, "getaddrinfo", checked_lookup)
        yield


@pytest.fixture(scope="session")
def user_environment():
    """The environment of a process that runs the product as a user would: not JAX's strict one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY_")}
    # Without bytecode every start compiles all of jax and flax anew, which takes seconds.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def gcs_service():
    """A fake Google Cloud Storage in a process of its own, which every client here talks to."""
    pytest.importorskip("google.cloud.storage")
    from fakes.gcs import spawn

    with spawn() as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        import fsspec.config  # has read its variables already where it was imported before

        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield fake


@pytest.fixture
def gcs(gcs_service, tmp_path):
    """The fake, healthy at first, with a prefix of its own for each test (`gcs.uri`)."""
    gcs_service.control({"faults": {}, "reset_stats": True})
    gcs_service.uri = f"gs://gaia-test/{tmp_path.name}"
    yield gcs_service
    gcs_service.control({"faults": {}})


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium through Playwright, which keeps an event loop: closed after each module."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed (tests/system_packages.sh installs it)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
