"""The findings task: what it trains on, what it shows, and that severity can start from it."""

import importlib
import json

import cv2
import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.text import Text

from cxr_jax import figures, losses, optimizers, predict, train, workdir
from cxr_jax.data import pipeline, sources
from cxr_jax.data.boxes import MOST as MAX_BOXES
from cxr_jax.data.records import FINDINGS
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.errors import InputError
from cxr_jax.metrics.findings import findings_report
from cxr_jax.tasks import make_task
from cxr_jax.tasks.findings import POOLS

K = len(FINDINGS)


def config_of(name: str, variant: str):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    return config.copy_and_resolve_references()


def shapes_of(task, size):
    example = {name: np.zeros((1, size, size), np.float32) for name in ("image", "lungs", "zones")}
    return jax.eval_shape(task.init, jax.random.PRNGKey(0), example), example


def paths_and_shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {optimizers.path_of(path): leaf.shape for path, leaf in leaves}


def tiny(**changes):
    """The smoke task with one block alone, which compiles in a second."""
    config = config_of("findings", "smoke")
    config.model.backbone.block_sizes = (1,)
    config.update(changes)
    return make_task(config)


@pytest.fixture(scope="module")
def smoke():
    """A tiny task, and the first four phantoms as a batch of evaluation."""
    task = tiny()
    source = PhantomCXR(split="test", count=4, seed=0, size=128)
    batch = next(pipeline.eval_batches(source, task.data.transforms, batch_size=4, threads=0))
    return task, {k: v for k, v in batch.items() if v.dtype.kind not in "US"}


def random_variables(task, batch, seed=0):
    """Initial variables, the heads' numbers large enough for maps that are far from flat."""
    variables = jax.jit(task.init)(jax.random.PRNGKey(seed), batch)
    heads = jax.tree.map(lambda x: 3 * jax.random.normal(jax.random.PRNGKey(7), x.shape),
                         variables["params"]["heads"])  # fmt: skip
    return {**variables, "params": {**variables["params"], "heads": heads}}


def test_the_papers_network():
    task = make_task(config_of("findings", ""))
    shapes, example = shapes_of(task, 512)
    sizes = {part: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
             for part, tree in shapes["params"].items()}  # fmt: skip
    # torchvision's DenseNet-121 without its classifier has 6,953,856 parameters.
    assert sizes == {"backbone": 6_953_856, "heads": K * 1024 + K}
    outputs = jax.eval_shape(task.predict, shapes, example)
    assert outputs["probs"].shape == (1, K)
    assert outputs["heat"].shape == (1, 16, 16, K)
    assert task.preprocess.order == ("equalize", "blur", "resize")


def test_the_papers_learning_rate_falls_once():
    config = config_of("findings", "")
    lr = optimizers.make_schedule(config.optimizer, config.total_steps)
    rates = [float(lr(step)) for step in (0, 106_666, 106_667, 159_999)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-6)  # float32


@pytest.mark.parametrize("variant", ["quick", "cxr3"])
def test_severity_can_start_from_it(variant):
    """Every array of severity's backbone is there, under its name and in its shape."""
    ours, _ = shapes_of(make_task(config_of("findings", variant)), 128)
    theirs, _ = shapes_of(make_task(config_of("severity", "quick")), 128)
    for part in ("params", "batch_stats"):
        wanted = {k: v for k, v in paths_and_shapes(theirs[part]).items() if "backbone/" in k}
        assert wanted
        assert wanted.items() <= paths_and_shapes(ours[part]).items()


@pytest.mark.parametrize(
    "base, pool",
    [("quick", "max"), ("cxr3", "linear"), *(("smoke", p) for p in POOLS)],
)
def test_every_pooling_fits(base, pool):
    config = config_of("findings", ",".join(filter(None, [base, f"pool={pool}"])))
    task, size = make_task(config), config.preprocess.size
    shapes, example = shapes_of(task, size)
    assert task.model.heads.pool == pool
    assert jax.eval_shape(task.predict, shapes, example)["probs"].shape == (1, K)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pool": "median"}, "config.pool='median'"),
        ({"positive_weights": (1.0, 2.0)}, "positive_weights"),
        ({"positive_weights": (0.0,) * K}, "positive_weights"),
        ({"preprocess.size": 100}, "stride 16"),
        ({"mask_lungs": True, "lungs.masks": "drawn"}, "config.lungs.masks='drawn'"),
        ({"mask_lungs": True, "lungs.masks": "predicted"}, "config.lungs.workdir"),
        ({"untrained": ("fracture",)}, "config.untrained has 'fracture'"),
        ({"second.name": "phantom_cxr"}, "nothing can be learned from films without findings"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_line(changes, words):
    config = config_of("findings", "smoke")
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        make_task(config)
    assert "\n" not in str(error.value)


def test_boxes_follow_the_stretch_of_the_film(smoke):
    task, _ = smoke
    film = np.zeros((100, 200), np.uint8)
    film[20:60, 50:150] = 200
    record = {"id": "a", "image": film, "box_label": np.array([3])}
    record["boxes"] = np.array([[50, 20, 150, 60]], np.float32)
    example = task.data.transforms.example(record)
    # 64 px a side: x times 0.32, y times 0.64
    np.testing.assert_allclose(example["boxes"][0], [16, 12.8, 48, 38.4], rtol=1e-6)
    assert np.isnan(example["boxes"][1:]).all()
    assert example["box_label"].tolist() == [3] + [-1] * (MAX_BOXES - 1)
    assert np.isnan(example["findings"]).all()  # not given: unknown
    bright = np.argwhere(example["image"] > 128)
    # Resized, blurred and equalised, the edges are within a pixel and a half of the box's.
    np.testing.assert_allclose(bright.min(0), [12.8, 16], atol=1.5)
    np.testing.assert_allclose(bright.max(0) + 1, [38.4, 48], atol=1.5)


def test_training_has_no_boxes_and_no_lesions(smoke):
    task, _ = smoke
    source = PhantomCXR(split="train", count=2, seed=0, size=128)
    example = task.data.transforms.finish(
        task.data.transforms.example(source[0]), np.random.default_rng(0)
    )
    assert set(example) == {"image", "findings"}
    np.testing.assert_array_equal(example["findings"], source[0]["findings"])


def test_too_many_boxes_are_one_line(smoke):
    task, _ = smoke
    record = {"id": "crowded", "image": np.zeros((64, 64), np.uint8)}
    record |= {"boxes": np.zeros((65, 4)), "box_label": np.zeros(65)}
    with pytest.raises(InputError, match="'crowded' has 65 boxes"):
        task.data.transforms.example(record)


def test_phantoms_have_fewer_boxes_than_are_kept():
    source = PhantomCXR(split="test", count=40, seed=0, size=128, disease_extent=1.0)
    assert 0 < max(len(source[i]["boxes"]) for i in range(0, 40, 2)) <= MAX_BOXES


def test_films_without_a_known_finding_are_left_out(smoke):
    class Source:
        name, version, split = "some", "1", "train"
        fields, partial = frozenset({"image", "findings"}), frozenset({"findings"})

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"id": str(index)} | ({"findings": np.zeros(K)} if index % 2 else {})

    source = smoke[0].data.adapt(Source(), training=True)
    assert [source[i]["id"] for i in range(len(source))] == ["1", "3"]


@pytest.fixture(scope="module")
def predicted(smoke):
    """Variables and the outputs for the batch of `smoke`, whose labels are not given."""
    task, batch = smoke
    variables = random_variables(task, batch)
    return variables, jax.device_get(jax.jit(task.predict)(variables, {"image": batch["image"]}))


def test_score_reads_the_truth(smoke, predicted):
    task, batch = smoke
    rows = jax.jit(task.score)(predicted[1], batch)
    np.testing.assert_array_equal(rows["labels"], batch["findings"])
    boxed = {(b, k) for b in range(4) for k in batch["box_label"][b] if k >= 0}
    assert boxed == set(map(tuple, np.argwhere(rows["pointing_valid"])))
    positive = batch["findings"].astype(bool)
    positive[:, 0] = False  # 'no finding' has no box
    np.testing.assert_array_equal(rows["pointing_valid"], positive)


def test_sure_films_and_cells_keep_their_order(smoke, predicted):
    """Sigmoid in float32 is 1 from 17 on."""
    task, batch = smoke
    logits = np.linspace(18, 40, 4 * K, dtype=np.float32).reshape(4, K)
    maps = np.broadcast_to(
        18 + np.arange(256, dtype=np.float32).reshape(16, 16, 1) / 16, (4, 16, 16, K)
    )
    outputs = predicted[1] | {
        **{"probs": jax.nn.sigmoid(logits), "absent": jax.nn.sigmoid(-logits)},
        **{"heat": jax.nn.sigmoid(maps), "heat_absent": jax.nn.sigmoid(-maps)},
    }
    rows = jax.device_get(task.score(outputs, batch))
    np.testing.assert_allclose(rows["log_odds"], logits, rtol=1e-4)
    # The highest cell is the last one, and no box reaches it: a tie would hit in part.
    assert not rows["pointing_hit"].any()
    labels = np.zeros((4, K), np.float32)
    labels[2:] = 1
    assert findings_report(rows | {"labels": labels})["mean_auc"].value == 1


def test_explanations_are_measured_of_the_opacity(smoke, predicted):
    task, batch = smoke
    rows = jax.device_get(jax.jit(task.measure)(predicted[0], batch))
    heat = predicted[1]["heat"][..., FINDINGS.index("lung opacity")]
    lesion = np.asarray(batch["lesion"]) > 0
    step = lesion.shape[1] // heat.shape[1]
    middles = lesion[:, step // 2 :: step, step // 2 :: step]
    assert lesion.any(axis=(1, 2)).any()
    np.testing.assert_array_equal(rows["heat_valid"], lesion.any(axis=(1, 2)))
    for b in np.flatnonzero(rows["heat_valid"]):
        np.testing.assert_allclose(rows["heat_hit"][b], middles[b][heat[b] == heat[b].max()].mean())
    np.testing.assert_allclose(rows["blind_hit"], middles.mean(axis=(1, 2)), atol=1e-6)
    scored = jax.jit(task.score)(predicted[1] | rows, batch)
    report = findings_report(jax.device_get(scored))
    for name in ("heat", "gradcam", "brightness", "blind"):
        assert report[f"{name}_hit"].count == rows["heat_valid"].sum()
        assert report[f"{name}_deletion"].count == 4
    assert not any("heat" in name for name in findings_report(task.score(predicted[1], batch)))


def test_a_pcam_probability_lies_within_its_map(predicted):
    """Its logit is a weighted mean of the logit map."""
    low, high = (fn(predicted[1]["heat"], axis=(1, 2)) for fn in (np.min, np.max))
    assert (high - low > 0.05).any()
    # 1e-6: float32 probabilities
    assert (low - 1e-6 <= predicted[1]["probs"]).all()
    assert (predicted[1]["probs"] <= high + 1e-6).all()


def test_unknown_findings_do_not_train(smoke, predicted):
    """A finding that is unknown of all films has no gradient, nor has a batch without labels."""
    task, batch = smoke
    variables = predicted[0]
    rest = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def gradient(labels):
        return jax.grad(
            lambda params: task.loss(
                {"params": params, **rest},
                batch | {"findings": labels},
                rng=jax.random.PRNGKey(0),
                step=jnp.zeros((), jnp.int32),
            )[0]
        )(variables["params"])

    nothing = gradient(np.full((4, K), np.nan, np.float32))
    assert all(not np.any(x) for x in jax.tree.leaves(nothing))
    labels = np.array(batch["findings"])
    labels[:, 3] = np.nan
    heads = gradient(labels)["heads"]["fc"]
    touched = [bool(np.any(heads["bias"][k])) for k in range(K)]
    assert touched == [k != 3 for k in range(K)]


def test_positive_weights_scale_the_loss_of_positives_only():
    logits = jnp.array([[0.3, -1.2, 2.0]])
    labels = jnp.array([[1.0, 0.0, np.nan]])
    weights = jnp.array([4.0, 9.0, 9.0])
    plain = [float(np.log1p(np.exp(-0.3))), float(np.log1p(np.exp(-1.2)))]
    got = losses.masked_bce(logits, labels, positive_weights=weights)
    np.testing.assert_allclose(got, [(4 * plain[0] + plain[1]) / 2], rtol=1e-6)
    # Weights of one are no weights, to the bit.
    ones = losses.masked_bce(logits, labels, positive_weights=jnp.ones(3))
    np.testing.assert_array_equal(ones, losses.masked_bce(logits, labels))


def test_with_masks_only_the_lungs_are_seen(smoke):
    task = tiny(mask_lungs=True)
    assert task.data.inputs == {"image", "lungs"}
    source = PhantomCXR(split="test", count=2, seed=0, size=128)
    batch = next(pipeline.eval_batches(source, task.data.transforms, batch_size=2, threads=0))
    batch = {k: v for k, v in batch.items() if v.dtype.kind not in "US"}
    variables = random_variables(task, batch)
    predict = jax.jit(task.predict)
    before = predict(variables, batch)["probs"]
    outside = batch | {"image": batch["image"] + (batch["lungs"] == 0)}
    np.testing.assert_array_equal(predict(variables, outside)["probs"], before)
    inside = batch | {"image": batch["image"] + (batch["lungs"] == 1)}
    assert np.abs(predict(variables, inside)["probs"] - before).max() > 1e-4


def test_describe_is_plain_json(smoke):
    described = smoke[0].describe({}, {"probs": np.linspace(0, 1, K, dtype=np.float32)})
    assert described["findings"]["no finding"] == 0.0
    assert described["findings"]["support devices"] == 1.0
    assert list(described["findings"]) == list(FINDINGS)


@pytest.fixture
def panel():
    """A film of 100 x 80 px, ten maps of 5 x 4 cells; three findings are probable."""
    heat = np.full((5, 4, K), 0.1, np.float32)
    probs = np.full(K, 0.1)
    for k, place in ((1, (3, 1)), (5, (1, 3)), (9, (0, 0))):
        heat[*place, k], probs[k] = 0.95, 0.9 - 0.05 * k
    probs[0] = 0.99
    true = np.zeros(K)
    true[[1, 9]], true[4] = 1, np.nan
    return dict(film=np.full((100, 80), 90, np.uint8), heat=heat, probs=probs, names=FINDINGS), true


def texts(figure):
    drawn = list(figure.texts)
    for ax in figure.axes:
        drawn += [*ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
    return [text.get_text() for text in drawn]


def film_place(figure, axes, color):
    """Mean place (x, y), in film pixels, of a colour in the picture of one of the axes."""
    pixels, ax = figures.to_array(figure).astype(int), figure.axes[axes]
    box = ax.get_window_extent()
    top, bottom = round(pixels.shape[0] - box.y1), round(pixels.shape[0] - box.y0)
    part = pixels[top:bottom, round(box.x0) : round(box.x1)]
    near = np.abs(part - np.array(matplotlib.colors.to_rgb(color)) * 255).max(-1) < 20
    assert near.any()
    y, x = (places.mean() for places in np.nonzero(near))
    return x / part.shape[1] * 80, y / part.shape[0] * 100


def test_the_panel_shows_the_three_most_probable_findings(panel):
    given, true = panel
    figure = figures.findings_panel(**given, findings_true=true, title="film 7")
    shown = texts(figure)
    # cardiomegaly 0.85, pneumonia 0.65; support devices, at 0.45, is under one half
    assert len(figure.axes) == 5  # film, two maps, colour bar, table
    assert {"cardiomegaly, p = 0.85", "pneumonia, p = 0.65", "film 7"} <= set(shown)
    assert shown.count("R") == shown.count("L") == 3
    assert (shown.count("yes"), shown.count("no"), shown.count("unknown")) == (2, 7, 1)
    assert shown.count("✗") == 3  # no finding, pneumonia, support devices
    assert {"no box was drawn", "0.99", "0.45"} <= set(shown)
    untold = texts(figures.findings_panel(**given))
    assert not {"truth", "yes", "no box was drawn"} & set(untold)


def test_no_word_of_the_table_is_cut_off(panel):
    given, _ = panel
    figure = figures.findings_panel(**given, findings_true=np.full(K, np.nan))
    edge = figures.to_array(figure).shape[1]
    for text in figure.axes[-1].texts:
        assert text.get_window_extent().x1 < edge


def test_the_cross_is_on_the_highest_cell_and_the_boxes_are_where_they_are(panel):
    given, true = panel
    boxes = np.array([[20, 60, 40, 80], [8, 4, 72, 20]], np.float32)
    figure = figures.findings_panel(
        **given, findings_true=true, boxes=boxes, box_label=np.array([1, 5])
    )
    # Cell (3, 1) of 5 x 4 over 100 x 80 px: its middle is (30, 70); one film pixel is 5 drawn.
    np.testing.assert_allclose(film_place(figure, 1, figures.PREDICTION), (30, 70), atol=1)
    np.testing.assert_allclose(film_place(figure, 1, figures.TRUTH), (30, 70), atol=1)
    np.testing.assert_allclose(film_place(figure, 2, figures.PREDICTION), (70, 30), atol=1)
    np.testing.assert_allclose(film_place(figure, 2, figures.TRUTH), (40, 12), atol=1)


def test_findings_of_one_place_share_a_box(panel):
    given, _ = panel
    boxes = np.array([[20, 60, 40, 80]] * 2 + [[50, 60, 70, 80]] * 2, np.float32)
    figure = figures.findings_panel(**given, boxes=boxes, box_label=np.array([5, 2, 5, 2]))
    assert len(figure.axes[0].patches) == 2
    assert texts(figure).count("lung opacity, pneumonia") == 1


def test_a_film_without_a_probable_finding_still_shows_one_map(panel):
    given, _ = panel
    given["probs"] = np.linspace(0.4, 0.1, K)
    figure = figures.findings_panel(**given)
    assert "cardiomegaly, p = 0.37" in texts(figure)  # not 'no finding', which has no place
    assert len(figure.axes) == 4


def test_a_huge_film_and_its_boxes_are_shrunk_together(panel):
    given, _ = panel
    given["film"] = np.full((4000, 3200), 90, np.uint8)
    boxes = np.array([[800, 2400, 1600, 3200]], np.float32)
    figure = figures.findings_panel(**given, boxes=boxes, box_label=np.array([1]))
    np.testing.assert_allclose(film_place(figure, 1, figures.TRUTH), (30, 70), atol=1)


def test_wrong_lengths_are_refused(panel):
    given, true = panel
    with pytest.raises(ValueError, match="must be equal"):
        figures.findings_panel(**given, findings_true=true[:3])
    with pytest.raises(ValueError, match="1 boxes and 2 labels"):
        figures.findings_panel(**given, boxes=np.zeros((1, 4)), box_label=np.zeros(2))
    with pytest.raises(ValueError, match="must be equal"):
        figures.auc_chart(["a"], [], ["1 of 2"])


def test_the_chart_of_aucs_says_what_is_undefined():
    figure = figures.auc_chart(
        ["edema", "fracture"], [(0.8, 0.7, 0.9), (None, None, None)], ["3 of 9", "0 of 9"]
    )
    assert {"0.80", "undefined: one class only", "3 of 9", "0 of 9"} <= set(texts(figure))
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2
               and line.get_xdata()[0] != line.get_xdata()[1]]  # fmt: skip
    assert list(line.get_xdata()) == [0.7, 0.9]


def test_summary_figures_survive_one_class(smoke):
    rows = {
        "probs": np.random.default_rng(0).random((6, K)),
        "labels": np.zeros((6, K), np.float32),
        "group": np.array(list("aabbcc")),
    }
    rows["labels"][:3, 2], rows["labels"][:, 4] = 1, np.nan
    shown = texts(smoke[0].evaluation.figures(rows)["auc"])
    assert shown.count("undefined: one class only") == K - 1
    assert {"3 of 6", "0 of 0"} <= set(shown)


def test_what_is_not_trained_is_not_told():
    task = tiny(untrained=("cardiomegaly", "support devices"))
    source = PhantomCXR(split="test", count=40, seed=0, size=128)
    record = next(r for r in source if len(r["box_label"]) and r["findings"][9])
    example = task.data.transforms.example(record)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(example["findings"])), [1, 9])
    assert 9 in record["box_label"]
    assert not np.isin(example["box_label"], (1, 9)).any()
    outputs = {"probs": np.full(K, 0.9, np.float32), "heat": np.zeros((4, 4, K), np.float32)}
    told = task.describe(record, outputs)["findings"]
    assert [name for name, p in told.items() if p is None] == ["cardiomegaly", "support devices"]
    texts = [text.get_text() for text in task.figure(record, outputs).findobj(Text)]
    assert "edema" in texts
    assert not {"cardiomegaly", "support devices"} & set(texts)


def test_findings_that_no_film_labels_are_told_and_predicted_as_null(tmp_path, capsys):
    """The whole way: a table of two findings, trained on, and a film of it predicted on."""
    rows = ["image,group,split,edema,pneumothorax"]
    for k, record in enumerate(PhantomCXR(split="train", count=8, seed=0, size=128)):
        cv2.imwrite(str(tmp_path / f"{k}.png"), record["image"])
        rows.append(f"{k}.png,p{k},{'train' if k < 6 else 'test'},{k % 2},")
    (tmp_path / "films.csv").write_text("\n".join(rows))
    config = config_of("findings", "smoke")
    config.data = sources.block("manifest", path=str(tmp_path / "films.csv"))
    config.update(devices=1, total_steps=1, eval_steps=(), eval_every=0, batch_size=2)
    assert train.train(config, tmp_path / "run")
    told = [x for x in capsys.readouterr().out.splitlines() if "has a label for" in x]
    names = [name for name in FINDINGS if name != "edema"]
    assert told == [
        f"nothing in the training set has a label for {', '.join(names)}: not learned, and null in "
        "predictions"
    ]
    assert workdir.trained_on(tmp_path / "run")["unlabelled"] == names
    assert predict.predict([tmp_path / "0.png"], tmp_path / "run", tmp_path / "out") == 0
    (line,) = map(json.loads, (tmp_path / "out" / "predictions.jsonl").open())
    assert {name for name, p in line["findings"].items() if p is not None} == {"edema"}
    again = sources.open_source(config.data, "train")
    workdir.claim(config, tmp_path / "run", again)  # what is kept does not look like other data


@pytest.mark.parametrize(
    "task, words", [("findings", "no finding is known"), ("severity", "no film has a scored zone")]
)
def test_a_table_of_empty_labels_is_refused(task, words, tmp_path):
    columns = ["edema"] if task == "findings" else [f"severity_{zone}" for zone in "ABCDEF"]
    rows = [",".join(["image,group,split,lungs", *columns])]
    for k, record in enumerate(PhantomCXR(split="train", count=4, seed=0, size=128)):
        cv2.imwrite(str(tmp_path / f"{k}.png"), record["image"])
        cv2.imwrite(str(tmp_path / f"m{k}.png"), record["lungs"] * 100)
        split = "train" if k < 3 else "test"
        rows.append(f"{k}.png,p{k},{split},m{k}.png" + "," * len(columns))
    (tmp_path / "films.csv").write_text("\n".join(rows))
    config = config_of(task, "smoke")
    config.data = sources.block("manifest", path=str(tmp_path / "films.csv"))
    config.update(devices=1, batch_size=2)
    with pytest.raises(InputError, match=words):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_as_many_films_are_looked_at_as_it_takes():
    class Films(list):
        def peek(self, index, field):
            assert index < 2
            assert field == "findings"
            known = np.full(K, np.nan)
            known[index::2] = 0
            return known

    assert tiny().data.unlabelled(Films(range(9))) == ()
    assert tiny(untrained=("edema",)).data.unlabelled([]) == tuple(
        name for name in FINDINGS if name != "edema"
    )
