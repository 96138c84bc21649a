"""What holds for all tests.

XLA's flags, which must be set before JAX starts its backend:

* Eight host devices, for the tests that shard.
* None of LLVM's optimizations: most of the time of these tests is compilation, and this takes two
  fifths off it. What computes for long runs as a program of its own, without these flags.

Annotations are checked at run time, and neither ranks nor dtypes are promoted silently.
"""

import os

import jax
import jaxtyping
import pytest

pytest.register_assert_rewrite("tests.support")

WANTED = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "0",
}
flags = os.environ.get("XLA_FLAGS", "")
missing = [f"--{name}={value}" for name, value in WANTED.items() if name not in flags]
os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

from tests.support import typechecks  # noqa: E402  (before anything of wush_jax)

typechecks.install()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests in one worker, files in their order: what they share is compiled once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture
def others_promote():
    """Implicitly, and not ours: Flax's norms with 16-bit scales, optax's powers of its count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def unchecked():
    """Annotations are not checked: for tests of the errors that wrong arguments get from us."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
