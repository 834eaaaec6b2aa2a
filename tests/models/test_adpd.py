"""The region decoder against the reference, stage by stage, and what must hold of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import losses
from cxr_jax.models import adpd
from cxr_jax.models.densenet import DenseNet, densenet121
from cxr_jax.ops.pooling import region_lse

BLOCK = "decoder.decoder_layers.0."


def dense(arrays, name):
    """A torch linear layer as a flax one."""
    return {"kernel": arrays[f"param_{name}.weight"].T, "bias": arrays[f"param_{name}.bias"]}


def reference_variables(arrays):
    """The reference's weights as those of `DecoderBlock` and of `RegionHeads`."""

    def norm(name):
        part = f"param_{BLOCK}{name}"
        return {"scale": arrays[f"{part}.weight"], "bias": arrays[f"{part}.bias"]}

    def attention(name):
        part = f"param_{BLOCK}{name}.in_proj_"
        return arrays[f"{part}weight"].T, arrays[f"{part}bias"]

    own, own_bias = attention("sa_block.sa")
    cross, cross_bias = attention("mha_block.mha")
    width = len(own)
    block = {
        "self": {
            "qkv": {"kernel": own, "bias": own_bias},
            "proj": dense(arrays, f"{BLOCK}sa_block.sa.out_proj"),
        },
        "cross": {
            "q": {"kernel": cross[:, :width], "bias": cross_bias[:width]},
            "kv": {"kernel": cross[:, width:], "bias": cross_bias[width:]},
            "proj": dense(arrays, f"{BLOCK}mha_block.mha.out_proj"),
        },
        "fc1": dense(arrays, f"{BLOCK}ff_block.layers.0"),
        "fc2": dense(arrays, f"{BLOCK}ff_block.layers.3"),
    }
    names = {"self": "sa", "cross": "mha", "mlp": "ff"}
    for ours, theirs in names.items():
        block[f"norm_{ours}"] = norm(f"norm_{theirs}")
        block[f"scale_{ours}"] = arrays[f"param_{BLOCK}ls_{theirs}.gamma"]
    block["norm_patches"] = norm("norm_encoder")
    heads = {f"box{i}": dense(arrays, f"bbox_predictor.layers.{3 * i}") for i in range(3)}
    heads["presence"] = dense(arrays, "query_present_classifier")
    heads["findings"] = dense(arrays, "classifier.layers.0")
    return block, heads


@pytest.fixture(scope="module")
def reference(golden):
    """The reference's arrays, the block and its output, both in float32."""
    arrays = golden("adpd_decoder")
    variables, heads = reference_variables(arrays)
    hidden = variables["fc1"]["bias"].size
    block = adpd.DecoderBlock(int(arrays["in_heads"]), hidden)
    found = run_block(block, variables, arrays)
    findings = heads["findings"]["bias"].size
    apply = jax.jit(lambda v, x: adpd.RegionHeads(findings).apply({"params": v}, x, train=False))
    heads = apply(heads, found["tokens"])
    return arrays, variables, found | heads


def run_block(block, variables, arrays, *, train=False, rngs=None):
    films, h, w, width = arrays["in_patches"].shape

    @jax.jit  # one program compiles faster than fifty
    def run(variables, queries, patches, positions):
        x = jnp.zeros((films, *queries.shape))
        inputs = dict(patches=patches, positions=positions, train=train)
        return block.apply({"params": variables}, x, queries, **inputs, rngs=rngs)

    patches = arrays["in_patches"].reshape(films, h * w, width)
    return run(variables, arrays["in_tokens"], patches, arrays["in_pos"].reshape(h * w, width))


def test_every_stage_of_the_decoder_matches_reference(reference, assert_golden):
    arrays, _, found = reference
    got = {
        "out_self_attention_branch": found["self_branch"],
        "out_cross_attention_branch": found["cross_branch"],
        "out_cross_attention": found["attention"].mean(1),
        "out_tokens": found["tokens"],
        "out_boxes": found["boxes"],
        "out_presence_logits": found["presence"],
        "out_present": found["presence"] > adpd.PRESENT_LOGIT,
        "out_pathology_logits": found["findings"],
    }
    assert set(got) == {name for name in arrays if name.startswith("out_")}
    for name, value in got.items():
        assert_golden(value, arrays[name], rtol=2e-5, what=name)  # the README's tolerance


def test_sine_positions_match_reference(golden, assert_golden):
    for name, want in golden("detr_sine").items():
        # 1e-5 absolute: the README's tolerance; the reference's own float32.
        assert_golden(adpd.sine_positions(*want.shape), want, rtol=0, atol=1e-5, what=name)


def test_sine_positions_need_pairs_in_both_directions():
    with pytest.raises(ValueError, match="6 features"):
        adpd.sine_positions(2, 2, 6)


def test_bfloat16_stays_near_and_returns_float32(reference):
    arrays, variables, found = reference
    hidden = variables["fc1"]["bias"].size
    half = adpd.DecoderBlock(int(arrays["in_heads"]), hidden, dtype=jnp.bfloat16)
    got = run_block(half, variables, arrays)
    assert {value.dtype for value in got.values()} == {jnp.dtype("float32")}
    for name, value in got.items():
        # A product's inputs have 8 bits: 0.4% each.
        error = np.abs(value - found[name]).max() / np.abs(found[name]).max()
        assert 1e-6 < error < 0.03, name


def test_queries_are_a_set(reference):
    arrays, variables, found = reference
    order = np.random.default_rng(0).permutation(len(arrays["in_tokens"]))
    block = adpd.DecoderBlock(int(arrays["in_heads"]), variables["fc1"]["bias"].size)
    moved = run_block(block, variables, arrays | {"in_tokens": arrays["in_tokens"][order]})
    # 1e-5: float32 sums over the tokens in another order.
    np.testing.assert_allclose(moved["tokens"], found["tokens"][:, order], atol=1e-5)
    np.testing.assert_allclose(moved["attention"], found["attention"][:, :, order], atol=1e-5)


def test_films_are_dropped_whole_and_on_average_nothing_is_lost(reference):
    arrays, variables, found = reference
    many = arrays | {"in_patches": np.tile(arrays["in_patches"][:1], (200, 1, 1, 1))}
    block = adpd.DecoderBlock(int(arrays["in_heads"]), variables["fc1"]["bias"].size, drop_path=0.2)
    rngs = {"dropout": jax.random.key(0)}
    out = run_block(block, variables, many, train=True, rngs=rngs)
    branch = out["self_branch"]
    kept = np.abs(branch).max(axis=(1, 2)) > 0
    assert 0.7 < kept.mean() < 0.9  # 0.8, 200 draws
    whole = np.broadcast_to(found["self_branch"][:1], branch.shape)
    np.testing.assert_allclose(branch[kept], whole[kept] / 0.8, rtol=1e-4, atol=1e-6)
    mlp = np.abs(out["tokens"] - branch - out["cross_branch"]).max(axis=(1, 2)) > 1e-5
    assert 0.7 < mlp.mean() < 0.9
    assert 0.5 < (kept == mlp).mean() < 0.85  # drawn apart: 0.68
    assert (np.abs(out["cross_branch"]).max(axis=(1, 2)) > 0).all()


def test_dropout_is_off_in_evaluation_and_on_in_training(reference):
    arrays, variables, found = reference
    block = adpd.DecoderBlock(int(arrays["in_heads"]), variables["fc1"]["bias"].size, dropout=0.3)
    same = run_block(block, variables, arrays)
    np.testing.assert_array_equal(same["tokens"], found["tokens"])
    other = run_block(block, variables, arrays, train=True, rngs={"dropout": jax.random.key(0)})
    gone = [float((other[name] == 0).mean()) for name in ("self_branch", "cross_branch")]
    np.testing.assert_allclose(gone, 0.3, atol=0.05)


def test_the_boxes_head_has_dropout_and_the_linear_heads_have_none():
    heads = adpd.RegionHeads(3, dropout=0.3)

    @jax.jit
    def run(tokens):
        plain, variables = heads.init_with_output(jax.random.key(1), tokens, train=False)
        rngs = {"dropout": jax.random.key(2)}
        trained, seen = heads.apply(
            variables, tokens, train=True, rngs=rngs, capture_intermediates=True
        )
        return plain, trained, seen

    plain, trained, seen = run(jax.random.normal(jax.random.key(0), (2, 5, 16)))
    for name in ("presence", "findings"):
        np.testing.assert_array_equal(trained[name], plain[name])
    assert (np.abs(trained["boxes"] - plain["boxes"]) > 1e-4).any(axis=-1).all()
    # ReLU leaves half, dropout 70% of that, after either hidden layer.
    for index in range(2):
        (after,) = seen["intermediates"][f"Dropout_{index}"]["__call__"]
        assert 0.2 < (after > 0).mean() < 0.5


def test_width_must_divide_by_the_heads():
    with pytest.raises(ValueError, match="width 6"):
        adpd.CrossAttention(4).init(jax.random.key(0), jnp.zeros((1, 2, 6)), jnp.zeros((1, 3, 6)))


SMALL = dict(width=16, num_regions=5, num_heads=2)


def small(**kwargs):
    backbone = DenseNet(growth_rate=4, block_sizes=(1, 1), init_features=8, stop_at="final")
    return adpd.ADPD(backbone, adpd.RegionHeads(3), **SMALL | kwargs)


@pytest.fixture(scope="module")
def network():
    model = small()
    films = np.random.default_rng(0).normal(size=(3, 32, 48)).astype(np.float32)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(films)
    return model, variables, films


def test_the_network_gives_every_region_its_row(network):
    model, variables, films = network
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, films)
    shapes = {name: value.shape for name, value in out.items()}
    assert shapes == {
        "presence": (3, 5),
        "boxes": (3, 5, 4),
        "findings": (3, 5, 3),
        "tokens": (3, 5, 16),
        "attention": (3, 5, 4, 6),
    }
    assert {value.dtype for value in out.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out["attention"].sum((2, 3)), 1, rtol=1e-5)  # 24 float32 terms
    assert 0 < out["boxes"].min() < out["boxes"].max() < 1
    # Queries differ, so regions do; and what a region says depends on the film.
    assert np.ptp(out["tokens"], axis=0).max() > 1e-3
    assert np.ptp(out["tokens"], axis=1).max() > 1e-3


def test_the_network_is_its_parts(network):
    model, variables, films = network
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, films)
    params = variables["params"]
    backbone = {"params": params["backbone"], "batch_stats": variables["batch_stats"]["backbone"]}
    apply = jax.jit(lambda v, x: model.backbone.clone(parent=None).apply(v, x, train=False))
    cells = np.asarray(apply(backbone, np.repeat(films[..., None], 3, axis=-1))["final"])
    patches = cells @ np.asarray(params["project"]["kernel"]) + np.asarray(
        params["project"]["bias"]
    )
    arrays = {
        "in_tokens": params["queries"],
        "in_patches": patches,
        "in_pos": adpd.sine_positions(4, 6, 16),
    }
    block = run_block(adpd.DecoderBlock(2, 64), params["block0"], arrays)
    # 1e-5: float32, in other programs.
    np.testing.assert_allclose(out["tokens"], block["tokens"], atol=1e-5)
    want = block["attention"].mean(1).reshape(3, 5, 4, 6)
    np.testing.assert_allclose(out["attention"], want, atol=1e-5)


def test_a_film_does_not_depend_on_the_rest_of_the_batch(network):
    model, variables, films = network
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    other = films.copy()
    other[1:] = -5.0
    for name, value in apply(films).items():
        np.testing.assert_array_equal(apply(other)[name][0], value[0], name)


def test_every_weight_learns(network):
    """In training mode, with dropout; a key's bias alone cannot matter, since a softmax does not
    see what all of its scores share."""
    _, variables, films = network
    model = small(drop_path=0.0)

    def loss(params):
        out, _ = model.apply(
            variables | {"params": params},
            films,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return sum(jnp.sum(jnp.sin(out[k])) for k in ("presence", "boxes", "findings"))

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if np.abs(leaf).max() == 0
    ]
    assert not still


def test_the_patches_have_dropout(network):
    _, variables, films = network
    apply = jax.jit(
        lambda x: small(dropout=0.3).apply(
            variables,
            x,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "Dropout_0",
        )
    )
    _, seen = apply(films)
    (patches,) = seen["intermediates"]["Dropout_0"]["__call__"]
    assert patches.shape == (3, 4, 6, 16)
    assert 0.25 < (patches == 0).mean() < 0.35  # 0.3 of 1152


def test_bfloat16_and_films_without_regions_leave_finite_gradients(network):
    """All losses together; of the first film nothing is known, the third has one region."""
    _, variables, films = network
    model = small(dtype=jnp.bfloat16)
    present = np.zeros((3, 5), np.float32)
    present[1], present[2, 3] = 1, 1
    targets = np.where(present[..., None] > 0, np.float32([0.5, 0.5, 0.2, 0.0]), np.nan)
    labels = np.where(present[..., None] > 0, np.float32([1, 0, np.nan]), np.nan)

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        out, _ = model.apply(
            variables | {"params": params}, films, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        placed = losses.fixed_box_losses(out["boxes"], targets, present)
        _, pooled = region_lse(out["findings"], present, over="present")
        film_labels = np.where(present.any(1)[:, None], np.float32([1, 0, 0]), np.nan)
        terms = [
            *placed.values(),
            losses.presence_loss(out["presence"], present, balanced=True),
            losses.asymmetric_loss(out["findings"], labels, reduction="mean"),
            losses.asymmetric_loss(pooled, film_labels, reduction="sum"),
        ]
        return sum(map(jnp.mean, terms)), terms

    grads, terms = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, terms)))
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, terms))} == {jnp.dtype("float32")}
    # Of the first film only the absence of its regions says anything.
    assert [float(term[0]) > 0 for term in terms] == [False, False, True, False, False]
    assert all((term[1:] > 0).all() for term in terms)


def test_frozen_norms_do_not_move(network):
    _, variables, films = network
    for freeze in (False, True):
        _, moved = jax.jit(
            lambda x, freeze=freeze: small(freeze_norms=freeze).apply(
                variables,
                x,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
        )(films)
        pairs = zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(moved))
        assert all((a == b).all() for a, b in pairs) == freeze


def test_the_papers_network_has_these_parameters():
    d, k = 512, 53
    model = adpd.ADPD(densenet121(stop_at="final"), adpd.RegionHeads(k), width=d)
    film = jax.ShapeDtypeStruct((1, 224, 224), jnp.float32)
    out, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), film
    )
    assert out["attention"].shape == (1, 29, 7, 7)
    block = 2 * (4 * d * d + 4 * d) + 4 * d * d * 2 + 5 * d + 4 * 2 * d + 3 * d
    heads = 2 * (d * d + d) + (d + 1) * 4 + (d + 1) + (d + 1) * k
    want = 6_953_856 + (1024 + 1) * d + 29 * d + block + heads
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == want
