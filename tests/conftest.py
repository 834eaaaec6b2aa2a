"""Fixtures every test room shares."""

import gc
import importlib.metadata
import os
import pathlib

import numpy as np
import pytest

# Programs of tests run a few times only: unoptimised, they compile in half the time. Before jax is
# imported; eight simulated CPU devices for the tests of parallel.py.
_LEVEL = "--xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {_LEVEL}")

# For the processes that tests start. Without the newer emitters of fused loops, which later
# versions cannot leave, what is left to compile takes a third; they round more coarsely (one update
# on eight devices is 2e-3 from that on one, not 1e-5), so here, where numbers are held to others,
# they stay.
UNOPTIMISED = _LEVEL
if importlib.metadata.version("jaxlib").startswith("0.10."):
    UNOPTIMISED += " --xla_cpu_use_fusion_emitters=false"

from cxr_jax.cli import setup_jax  # noqa: E402, flags first

# The compilation cache of the commands: runs of one config compile once.
setup_jax()

# What is traced lives long: a tenth of the time went into looking through it.
gc.set_threshold(50_000, 20, 100)

ROOT = pathlib.Path(__file__).resolve().parents[1]


# Files of more than a minute, so that none of them is begun last.
LONG = (
    *("test_loops", "test_colabs", "test_hosts", "test_packaged_models", "test_diagnosis"),
    *("test_survival", "test_sweep", "test_seam", "test_simclr", "test_commands", "test_faults"),
    *("test_checkpoints", "test_early_stopping", "test_batch_statistics", "test_model"),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    order = {stem: place for place, stem in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def counts(report) -> dict[str, int]:
    """Of how many films, zones, patients, ... each number of a report is."""
    return {name: value.count for name, value in report.items()}


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: the arrays of a reference file, from the folder in CXR_GOLDEN."""
    folder = pathlib.Path(os.environ.get("CXR_GOLDEN", ROOT / "tests" / "golden"))

    def load(name: str) -> dict[str, np.ndarray]:
        # A missing reference fails the test: it is needed, not optional.
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    load.folder = folder
    return load


@pytest.fixture(scope="session")
def assert_golden():
    """The comparison of golden/README.md: max|got - want| <= atol + rtol * max|want|."""

    def check(got, want, *, rtol: float, atol: float = 0.0, what: str = ""):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
        assert np.isfinite(got).all(), f"{what}: not finite"
        error, bound = np.abs(got - want).max(), atol + rtol * np.abs(want).max()
        assert error <= bound, f"{what}: error {error:.3g} over {bound:.3g}"

    return check


@pytest.fixture(scope="session")
def cxr_data() -> pathlib.Path:
    """The folder of real images; tests that need it are skipped, visibly, where it is absent."""
    folder = pathlib.Path(os.environ.get("CXR_DATA", ROOT / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images are absent ({folder}); set CXR_DATA to run this test")
    return folder.resolve()
