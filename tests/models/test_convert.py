"""DenseNet-121 with PCAM heads through the importer, and what the importer refuses."""

import json
import zlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from cxr_jax.errors import InputError
from cxr_jax.models import convert, densenet, pcam


def weights_from_names(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The recipe of golden/README.md, 'Weights made from names'."""
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = rng.standard_normal(shape).astype(np.float32)
        if name.endswith((".running_mean", ".bias")):
            w = np.float32(0.1) * w
        elif name.endswith(".running_var"):
            w = 1 + np.float32(0.1) * np.abs(w)
        elif w.ndim >= 2:
            w = w * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            w = 1 + np.float32(0.1) * w
        state[name] = w
    return state


def template_of(model, size: int):
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def test_densenet121_pcam_matches_reference(golden, assert_golden):
    arrays = golden("densenet121_pcam")
    shapes = json.loads((golden.folder / "densenet121_pcam.json").read_text())["used"]
    state = weights_from_names(shapes)
    np.testing.assert_allclose(  # the README's check of the recipe, to its printed digits
        state["backbone.features.conv0.weight"].ravel()[:3],
        [0.02349294, 0.1056538, -0.02470772],
        rtol=1e-6,
    )
    findings = sum(name.startswith("fc_") and name.endswith(".bias") for name in shapes)
    model = pcam.PCAMNet(densenet.densenet121(), pcam.PCAMHeads(findings))
    image = arrays["in_image"]
    variables = convert.from_torch(state, template_of(model, image.shape[1]))

    back = convert.to_torch(variables)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)

    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    out = {name: np.asarray(value) for name, value in out.items()}
    got = {
        "out_stem_slice": out["stem"][..., :2],
        "out_stem_chanmean": out["stem"].mean(axis=(1, 2)),
        "out_block1_chanmean": out["block1"].mean(axis=(1, 2)),
        "out_block1_slice": out["block1"][:, ::2, ::2, ::32],
        "out_block2_chanmean": out["block2"].mean(axis=(1, 2)),
        "out_block2_slice": out["block2"][:, ::2, ::2, ::32],
        "out_block3": out["block3"],
        "out_block4_slice": out["block4"][..., ::32],
        "out_final": out["final"],
        "out_logit_maps": out["logit_maps"],
        "out_logits": out["logits"],
    }
    for name, value in got.items():
        # 1e-4: the README's tolerance; 121 layers of float32 sums in another order.
        assert_golden(value, arrays[name], rtol=1e-4, what=name)


@pytest.fixture(scope="module")
def small():
    """A two-block network, its variables and the same as a PyTorch state."""
    model = densenet.DenseNet(growth_rate=4, block_sizes=(1, 2), init_features=8)
    template = template_of(model, 32)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), template)
    return template, variables, convert.to_torch(variables)


def test_round_trip_keeps_every_bit(small):
    template, variables, state = small
    again = traverse_util.flatten_dict(convert.from_torch(state, template))
    for path, array in traverse_util.flatten_dict(variables).items():
        np.testing.assert_array_equal(again[path], array, err_msg="/".join(path))
    assert state["features.conv0.weight"].shape == (8, 3, 7, 7)
    assert state["features.denseblock1.denselayer1.conv1.weight"].shape == (16, 8, 1, 1)


def test_names_of_published_torchvision_files_and_counters_are_read(small):
    template, variables, state = small
    published = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: array
        for name, array in state.items()
    }
    assert published.keys() != state.keys()
    published["features.norm0.num_batches_tracked"] = np.array(7)
    got = convert.from_torch(published, template)
    jax.tree.map(np.testing.assert_array_equal, got, variables)


def test_what_does_not_fit_is_named(small):
    template, _, state = small
    name = "features.denseblock2.denselayer1.conv1.weight"
    lacking = {key: value for key, value in state.items() if key != name}
    with pytest.raises(InputError, match=rf"lack '{name}' \(1 of {len(state)} names"):
        convert.from_torch(lacking, template)
    extra = state | {"classifier.weight": np.zeros((2, 2)), "classifier.bias": np.zeros(2)}
    with pytest.raises(InputError, match=r"'classifier.weight'.*\(2 such names\)"):
        convert.from_torch(extra, template)
    convert.from_torch(extra, template, ignore=("classifier.",))
    with pytest.raises(InputError, match=rf"'{name}' has the shape \(3,\).*\(1 such names\)"):
        convert.from_torch(state | {name: np.zeros(3)}, template)
