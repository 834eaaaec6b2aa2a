"""Against what is known by hand, and on a small run."""

import jax
import numpy as np
import pytest

from configs import severity
from cxr_jax import checkpoint_analysis as analysis
from cxr_jax import train
from cxr_jax.checkpoints import complete_steps
from cxr_jax.data import sources
from cxr_jax.trained import TrainedRun, make_batch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps of the smallest severity model, each with its checkpoint."""
    folder = tmp_path_factory.mktemp("analysis") / "run"
    config = severity.get_config("smoke").copy_and_resolve_references()
    config.update(total_steps=3, checkpoint_every=1, keep_last=3, eval_steps=(3,), devices=1)
    assert train.train(config, folder)
    return TrainedRun.load(folder, tuple(complete_steps(folder)))


@pytest.fixture(scope="module")
def records(run):
    source = sources.open_source(run.config.data, "train")
    return [source[k] for k in range(4)]


def test_parts_hold_every_number(run):
    rows = analysis.parts(run.ensemble[0])
    assert {row["collection"] for row in rows} <= set(analysis.COLLECTIONS)
    counted = sum(row["numbers"] for row in rows if row["collection"] == "params")
    assert counted == sum(x.size for x in jax.tree.leaves(run.ensemble[0]["params"]))
    assert all(row["rms"] >= 0 for row in rows)


def test_movement_is_the_distance_between_checkpoints(run):
    rows = analysis.movement(run.workdir)
    assert {row["step"] for row in rows} == set(run.steps[1:])
    old, new = (
        np.concatenate([np.ravel(x) for x in analysis.flatten(v["params"]["vit"]).values()])
        for v in run.ensemble[:2]
    )
    (row,) = [
        r
        for r in rows
        if (r["step"], r["part"], r["collection"]) == (run.steps[1], "vit", "params")
    ]
    wanted = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert row["distance"] == pytest.approx(wanted, rel=1e-4)


def test_intermediates_are_what_the_network_gives(run, records):
    found = analysis.intermediates(run, records)
    attention = [name for name in found if name.endswith("attn/1")]
    assert attention
    for name in attention:
        np.testing.assert_allclose(found[name].sum(-1), 1, rtol=1e-5)
    taps = [name for name in found if name.startswith("backbone/") and name.count("/") == 1]
    assert taps
    assert all(len(found[name]) == len(records) for name in taps + attention)
    # Caught, not computed anew: the map head's output is the prediction's.
    side = int((found[attention[0]].shape[-1] - 1) ** 0.5)
    assert analysis.attention_distance(found[attention[0]], (side, side)).shape == (
        found[attention[0]].shape[1],
    )


def test_loss_along_ends_at_the_losses_of_the_ends(run, records):

    batch = make_batch(run.task, records)
    wanted = [
        float(run.task.loss(v, batch, rng=jax.random.PRNGKey(0), step=run.steps[-1])[0])
        for v in run.ensemble[:2]
    ]
    found = analysis.loss_along(run, (0, 1), records, (0.0, 0.5, 1.0))
    np.testing.assert_allclose(found[[0, 2]], wanted, rtol=1e-4)
    assert np.isfinite(found).all()


def test_cka():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 7))
    turn, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    assert analysis.linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    # Kornblith et al., Eq. 3, from its definition by features.
    y = rng.normal(size=(20, 4))
    a, b = x - x.mean(0), y - y.mean(0)
    wanted = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert analysis.linear_cka(x, y) == pytest.approx(wanted)
    assert np.isnan(analysis.linear_cka(np.ones((5, 2)), x[:5]))


def test_attention_distance_by_hand():
    grid, n = (2, 3), 6
    own = np.zeros((1, 2, n + 1, n + 1))
    own[:, 0] = np.eye(n + 1)  # every cell looks at itself
    own[:, 1, :, 1] = 1  # every cell looks at the first
    distances = analysis.attention_distance(own, grid)
    first = [np.hypot(r, c) for r in range(2) for c in range(3)]
    np.testing.assert_allclose(distances, [0, np.mean(first)])


def test_position_similarity_by_hand():
    position = np.zeros((1, 5, 2))
    position[0, 1:] = [[1, 0], [0, 2], [3, 0], [-1, 0]]
    found = analysis.position_similarity(position, (2, 2))
    np.testing.assert_allclose(found[0], [[1, 0], [1, -1]])
