"""A linear probe of a frozen network: logistic regression on what it tells of each film."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import complete_steps
from cxr_jax.data import pipeline, records, sources
from cxr_jax.errors import InputError
from cxr_jax.inputs import external
from cxr_jax.metrics.bootstrap import Metric, Value, bootstrap
from cxr_jax.metrics.diagnosis import DiagnosisReport
from cxr_jax.tasks.base import Rows, Variables
from cxr_jax.trained import TrainedRun, make_batch
from cxr_jax.writers import metrics_json, provenance, write_json

METRICS = ("accuracy", "balanced_accuracy", "mean_auc")
STRENGTHS = tuple(10.0**k for k in range(-4, 3))  # C: one over the weight of the penalty
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Films:
    """A split: its `source`, and of each film the class, `labels` int [N], and patient, `groups`
    [N]."""

    source: sources.Source
    labels: np.ndarray
    groups: np.ndarray


def probe(
    workdir: pathlib.Path, data: ml_collections.ConfigDict, *, resamples: int = 1000
) -> dict[str, dict[str, Metric]]:
    """Probes a run and writes `probe.json` in its folder.

    Args:
      workdir: of the run.
      data: the block of a set with `diagnosis`, whose train and test splits are taken.
      resamples: of the intervals, over the test's patients.

    Returns:
      `METRICS` of each: 'trained', 'random weights', 'constant, training shares'.

    Raises:
      InputError: no such run, or one without embeddings; a set without diagnoses; test films that
        the run was trained on; classes with films of one patient alone.
    """
    run = TrainedRun.load(workdir, tuple(complete_steps(workdir)[-1:]))
    config = run.config.copy_and_resolve_references()
    config.data = data
    opened = [_open(data, split) for split in ("train", "test")]
    classes = _classes(opened[0])
    train, test = (_films(sources.by_classes(source, classes)) for source in opened)
    folds = _folds(train, classes, seed=config.seed)
    networks = _networks(run)
    if not external.is_own(config, workdir):
        external.check_unseen(config, workdir, split="test", allowed=False)
    told, asked = (_features(run, films.source, networks) for films in (train, test))
    rows, chosen = {}, {}
    for at, title in enumerate(("trained", "random weights")):
        model = _fit(told[at], train, folds)
        rows[title] = model.predict_proba(asked[at])
        chosen[title] = model.best_params_["logisticregression__C"]
    shares = np.bincount(train.labels, minlength=len(classes)) / len(train.labels)
    rows["constant, training shares"] = np.tile(shares, (len(test.labels), 1))
    found = {
        title: bootstrap(
            functools.partial(_report, classes),
            {"probs": probs, "label": test.labels},
            test.groups,
            resamples=resamples,
            seed=config.seed,
        )
        for title, probs in rows.items()
    }
    with workdirs.only_writer(workdir):
        write_json(
            workdir / "probe.json",
            {
                "probes": {title: metrics_json(metrics) for title, metrics in found.items()},
                "data": {"name": data.name, "version": test.source.version},
                "classes": list(classes),
                "films": {"train": len(train.labels), "test": len(test.labels)},
                "strength": chosen,
                "steps": list(run.steps),
                **provenance(),
            },
        )
    return found


def _open(data: ml_collections.ConfigDict, split: str) -> sources.Source:
    """The films with a diagnosis."""
    source = sources.open_source(data, split)
    pipeline.check_fields(source, {"diagnosis"})
    return sources.only_with(source, {"diagnosis"})


def _classes(train: sources.Source) -> tuple[str, ...]:
    """Those that the training films have."""
    there = {int(sources.peek(train, index, "diagnosis")) for index in range(len(train))}
    return tuple(sources.names_of(train, "diagnoses")[k] for k in sorted(there))


def _films(source: sources.Source) -> Films:
    """Reads no picture."""
    every = range(len(source))
    labels = [int(sources.peek(source, index, "diagnosis")) for index in every]
    groups = [str(sources.peek(source, index, "group")) for index in every]
    return Films(source, np.array(labels, int), np.array(groups, str))


def _folds(train: Films, classes: tuple[str, ...], *, seed: int) -> StratifiedGroupKFold:
    """Folds of whole patients, as many as the rarest class has, at most `FOLDS`."""
    patients = [len(set(train.groups[train.labels == k])) for k in range(len(classes))]
    if len(patients) < 2 or min(patients) < 2:
        counts = [f"{name} {count}" for name, count in zip(classes, patients)]
        raise InputError(
            "a probe needs two classes or more among the training films, each with films of two "
            f"patients or more; patients of each class: {', '.join(counts)}; of phantoms draw more "
            "with --train"
        )
    return StratifiedGroupKFold(min(FOLDS, *patients), shuffle=True, random_state=seed)


def _networks(run: TrainedRun) -> list[Variables]:
    """The trained variables, and those that the run began with where it had no `init_from`."""
    example = make_batch(run.task, [records.blank(run.task.data.inputs)])
    if "embedding" not in jax.eval_shape(run.task.predict, run.ensemble[-1], example):
        raise InputError(
            f"{run.workdir}: the predictions of task {run.task.name!r} have no embedding to probe; "
            "give a run of configs/simclr.py"
        )
    start, _ = jax.random.split(jax.random.PRNGKey(run.config.seed))  # as `state.create`
    return [run.ensemble[-1], jax.jit(run.task.init)(start, example)]


def _features(
    run: TrainedRun, source: sources.Source, networks: Sequence[Variables]
) -> list[np.ndarray]:
    """Every film once through each network: [N, C] of each."""

    def embedding(variables, batch):  # jitted, so that nothing else of `predict` is computed
        return run.task.predict(variables, batch)["embedding"]

    embed = jax.jit(embedding)
    collected: list[list[np.ndarray]] = [[] for _ in networks]
    batches = pipeline.eval_batches(
        source,
        run.task.data.transforms,
        batch_size=run.config.eval_batch_size,
        threads=run.config.threads,
    )
    with contextlib.closing(batches):
        for batch in batches:
            arrays = {k: v for k, v in batch.items() if v.dtype.kind not in "US"}
            for found, variables in zip(collected, networks):
                found.append(np.asarray(embed(variables, arrays))[batch["valid"]])
    return [np.concatenate(found) for found in collected]


def _fit(features: np.ndarray, train: Films, folds: StratifiedGroupKFold) -> GridSearchCV:
    """Logistic regression on standardised features; its strength by the balanced accuracy over
    the folds, the smallest weights where several strengths are equal."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(
        model,
        {"logisticregression__C": STRENGTHS},
        cv=folds,
        scoring="balanced_accuracy",
    )
    return search.fit(features, train.labels, groups=train.groups)


def _report(classes: tuple[str, ...], rows: Rows) -> dict[str, Value]:
    report = DiagnosisReport(classes)(rows)
    return {name: report[name] for name in METRICS}
