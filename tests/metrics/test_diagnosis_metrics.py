"""The diagnosis report against scikit-learn, and what it says where a class is missing."""

import jax
import numpy as np
import pytest
import sklearn.metrics

from cxr_jax.metrics import diagnosis
from cxr_jax.metrics.bootstrap import bootstrap

CLASSES = ("normal", "other infection", "covid-19")
report = diagnosis.DiagnosisReport(CLASSES)


def rows_of(count=300, labels=None, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count) if labels is None else np.asarray(labels)
    logits = rng.normal(0, 1, (len(labels), 3)) + 1.5 * np.eye(3)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {"probs": probs, "label": labels}


def test_it_agrees_with_scikit_learn():
    rows = rows_of()
    found, labels, probs = report(rows), rows["label"], rows["probs"]
    wanted = sklearn.metrics.roc_auc_score(labels, probs, multi_class="ovr", average="macro")
    assert found["mean_auc"].value == pytest.approx(wanted)
    called = probs.argmax(axis=1)
    assert found["accuracy"].value == pytest.approx((called == labels).mean())
    wanted = sklearn.metrics.balanced_accuracy_score(labels, called)
    assert found["balanced_accuracy"].value == pytest.approx(wanted)
    matrix = sklearn.metrics.confusion_matrix(labels, called, normalize="true")
    keys = [diagnosis.key(name) for name in CLASSES]
    for k, true in enumerate(keys):
        for j, other in enumerate(keys):
            name = f"recall_{true}" if j == k else f"{true}_called_{other}"
            assert found[name].value == pytest.approx(matrix[k, j])
            assert found[name].count == (labels == k).sum()


def test_sure_films_keep_their_order():
    """Softmax in float32 is 1 from a lead of 17 on; the AUC is that of the logits all the same."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    lead = 22 + 2 * labels + rng.normal(0, 1.5, 400)
    logits = np.stack([lead, np.zeros(400), np.full(400, -40)], axis=1).astype(np.float32)
    probs = np.asarray(jax.nn.softmax(logits))
    assert (probs[:, 0] == 1).mean() > 0.9
    found = report({"probs": probs, "label": np.where(labels, 0, 1)})
    wanted = sklearn.metrics.roc_auc_score(labels, lead)
    assert found["auc_normal"].value == pytest.approx(wanted, abs=1e-3)
    assert np.isfinite(found["auc_covid_19"].value) or found["auc_covid_19"].reason


def test_thresholds_are_those_of_other_films():
    validation, test = rows_of(seed=1), rows_of(seed=2)
    chosen = diagnosis.choose(validation["probs"], validation["label"], CLASSES)
    rows = diagnosis.with_choice(test, chosen, CLASSES)
    found = report(rows)
    for k, name in enumerate(CLASSES):
        mine = validation["label"] == k
        threshold = chosen[f"threshold_{diagnosis.key(name)}"]
        # The highest that finds 80%: one step higher finds fewer.
        above = validation["probs"][mine, k] >= threshold
        assert above.mean() >= 0.8 > (above.sum() - 1) / mine.sum()
        called, true = test["probs"][:, k] >= threshold, test["label"] == k
        assert found[f"{diagnosis.key(name)}_sensitivity"].value == called[true].mean()
        assert found[f"{diagnosis.key(name)}_sensitivity"].count == true.sum()
        assert found[f"{diagnosis.key(name)}_specificity"].count == (~true).sum()
        assert found[f"{diagnosis.key(name)}_specificity"].value == (~called[~true]).mean()
        assert found[f"{diagnosis.key(name)}_accuracy"].value == (called == true).mean()
    means = [found[f"{diagnosis.key(name)}_specificity"].value for name in CLASSES]
    assert found["mean_specificity"].value == pytest.approx(np.mean(means))
    assert found["temperature"].value == chosen["temperature"]
    assert found["scaled_log_loss"].value < found["log_loss"].value + 0.02


def test_folds_keep_the_thresholds_of_their_own():
    """Pooled folds, in any order: each film at its own fold's choice."""
    folds = []
    for seed in (1, 2, 3):
        validation, rows = rows_of(60, seed=seed), rows_of(60, seed=seed + 10)
        rows["probs"] = np.roll(rows["probs"], 1, axis=1) if seed == 3 else rows["probs"]
        chosen = diagnosis.choose(validation["probs"], validation["label"], CLASSES)
        folds.append(diagnosis.with_choice(rows, chosen | {"temperature": 0.5 * seed}, CLASSES))
    pooled = [
        report({name: np.concatenate([fold[name] for fold in some]) for name in folds[0]})
        for some in (folds, folds[::-1])
    ]
    for name, value in pooled[0].items():
        np.testing.assert_allclose(pooled[1][name].value, value.value, err_msg=name)
    called = np.concatenate([fold["probs"] >= fold["threshold"] for fold in folds])[:, 0]
    true = np.concatenate([fold["label"] for fold in folds]) == 0
    assert pooled[0]["normal_sensitivity"].value == pytest.approx(called[true].mean())
    assert np.isnan(pooled[0]["temperature"].value)
    assert pooled[0]["temperature"].reason == "each fold has its own"
    assert pooled[0]["scaled_ece"].value >= 0


def test_without_a_choice_it_says_so():
    found = report(rows_of())
    for name in ("mean_sensitivity", "covid_19_specificity", "scaled_ece", "temperature"):
        assert np.isnan(found[name].value)
        assert "was chosen on validation films" in found[name].reason


@pytest.mark.parametrize("labels", [[0, 0, 2, 2, 2], [1, 1, 1]])
def test_a_missing_class_is_null_with_a_reason(labels):
    rows = rows_of(labels=labels)
    chosen = diagnosis.choose(*rows_of(seed=5).values(), CLASSES)
    rows = diagnosis.with_choice(rows, chosen, CLASSES)
    found = bootstrap(report, rows, np.arange(len(labels)), resamples=20)
    missing = [name for k, name in enumerate(CLASSES) if k not in labels]
    for name in missing:
        metric = found[f"auc_{diagnosis.key(name)}"]
        assert (metric.value, metric.low, metric.high) == (None, None, None)
        assert metric.reason == f"no film is of class {name}"
        assert found[f"recall_{diagnosis.key(name)}"].value is None
        assert found[f"{diagnosis.key(name)}_sensitivity"].value is None
        assert found[f"{diagnosis.key(name)}_specificity"].value is not None
    assert found["mean_auc"].value is None
    assert "no film is of class" in found["mean_auc"].reason
    assert found["accuracy"].value is not None
    if labels == [1, 1, 1]:
        assert found["auc_other_infection"].reason == "all films are of class other infection"


def test_a_class_that_validation_lacks_has_no_threshold():
    rows = rows_of(labels=[0, 0, 1, 1])
    chosen = diagnosis.choose(rows["probs"], rows["label"], CLASSES)
    assert "threshold_covid_19" not in chosen
    found = report(diagnosis.with_choice(rows_of(), chosen, CLASSES))
    assert found["normal_sensitivity"].value >= 0
    assert np.isnan(found["covid_19_sensitivity"].value)
    assert found["mean_sensitivity"].reason == found["covid_19_sensitivity"].reason != ""


def test_the_order_of_films_and_classes_does_not_matter():
    rows, order = rows_of(), np.random.default_rng(3).permutation(300)
    mixed = report({name: values[order] for name, values in rows.items()})
    turned = np.array([2, 0, 1])  # class k is called turned[k] there
    other = diagnosis.DiagnosisReport(tuple(CLASSES[k] for k in np.argsort(turned)))
    there = other({"probs": rows["probs"][:, np.argsort(turned)], "label": turned[rows["label"]]})
    for name, value in report(rows).items():
        np.testing.assert_allclose(mixed[name].value, value.value, err_msg=name)
        np.testing.assert_allclose(there[name].value, value.value, err_msg=name)
