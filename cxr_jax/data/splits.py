"""Splits by patient: never two films of one group on both sides."""

import hashlib
import itertools
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cxr_jax.data.records import FINDINGS
from cxr_jax.errors import InputError


def selection(indices: Sequence[int], total: int) -> str:
    """What a version says of some films of a set; empty where it is all of them.

    Two selections of as many films are different data: masks and iterators must not be shared.
    """
    if list(indices) == list(range(total)):
        return ""
    digest = hashlib.sha256(np.asarray(indices, np.int64).tobytes()).hexdigest()[:8]
    return f"+{len(indices)}of{total}.{digest}"


def check_disjoint(split_groups: Mapping[str, Iterable[str]], *, where: str) -> None:
    """Refuses a group (patient) that is in two splits: two views of one chest are one sample.

    Args:
      split_groups: split -> the groups of its films.
      where: the file that made the splits, for the message.

    Raises:
      InputError: names two splits and one group that is in both.
    """
    sets = {split: set(groups) for split, groups in split_groups.items()}
    for a, b in itertools.combinations(sets, 2):
        if both := sets[a] & sets[b]:
            raise InputError(
                f"{where}: group {min(both)!r} is in both split {a!r} and split {b!r} "
                f"({len(both)} such groups); all films of a patient must be in one split"
            )


def kept_apart(split_groups: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Of published splits that part a group: which films of each are kept so that no group is in
    two. It stays whole where the last of the splits has it, so that nothing is lost of that one.

    Args:
      split_groups: split -> the groups of its films; what is tested on comes last.
    """
    taken: set[str] = set()
    kept: dict[str, list[int]] = {}
    for split in reversed(split_groups):
        groups = split_groups[split]
        kept[split] = [k for k, group in enumerate(groups) if group not in taken]
        taken.update(groups)
    return {split: kept[split] for split in split_groups}


def balanced_folds(
    groups: Sequence[str], scores: Sequence[float], *, folds: int, edges: Sequence[float]
) -> np.ndarray:
    """Deals whole groups to `folds` folds of like size and like distribution of scores.

    Greedy: the largest group first, each to the fold where it brings the counts per score class
    closest to an even share. The same groups and scores give the same folds in any order of films.

    Args:
      groups: the patient of each of N films.
      scores: a number per film to balance by, such as the global severity score.
      folds: how many.
      edges: cuts between score classes; class k is edges[k-1] <= score < edges[k].

    Returns:
      int32 [N], the fold of each film, 0 .. folds - 1.
    """
    classes = np.digitize(np.asarray(scores, float), edges)
    counts = {group: np.zeros(len(edges) + 1) for group in groups}
    for group, score_class in zip(groups, classes):
        counts[group][score_class] += 1
    share = np.bincount(classes, minlength=len(edges) + 1) / folds
    filled = np.zeros((folds, len(edges) + 1))
    fold_of = {}
    for group in sorted(counts, key=lambda g: (-counts[g].sum(), g)):
        before = filled - share
        after = before + counts[group]
        cost = (after**2 - before**2).sum(1) + after.sum(1) ** 2 - before.sum(1) ** 2
        # Rounded: equal costs must stay equal whatever the order of the sums.
        fold = int(np.argmin(cost.round(9)))
        filled[fold] += counts[group]
        fold_of[group] = fold
    return np.array([fold_of[group] for group in groups], np.int32)


def folds_by_findings(
    groups: Sequence[str], labels: Sequence[Sequence[float]], *, folds: int = 5
) -> np.ndarray:
    """`balanced_folds` by the number of findings a film has.

    Args:
      groups: the patient of each of N films.
      labels: [N, 10] in the order of `records.FINDINGS`; 1 where a finding is there.
      folds: how many.

    Returns:
      int32 [N], the fold of each film, 0 .. folds - 1.
    """
    diseases = np.asarray(labels, float)[:, np.array(FINDINGS) != "no finding"]
    return balanced_folds(groups, (diseases == 1).sum(1), folds=folds, edges=(1, 2, 3, 4))


def folds_by_class(
    groups: Sequence[str], diagnoses: Sequence[int | None], *, folds: int = 5
) -> np.ndarray:
    """`balanced_folds` by the class of a film; films without one are a class of their own.

    Args:
      groups: the patient of each of N films.
      diagnoses: the class of each, or None.
      folds: how many.

    Returns:
      int32 [N], the fold of each film, 0 .. folds - 1.
    """
    numbers = [-1 if diagnosis is None else diagnosis for diagnosis in diagnoses]
    edges = range(max(numbers, default=0) + 1)
    return balanced_folds(groups, numbers, folds=folds, edges=edges)


def check_unique(names: Iterable[str], *, where: pathlib.Path, what: str = "film") -> None:
    """Refuses a table that lists something twice.

    Raises:
      InputError: it does, naming `where`, what is listed, and the first name that comes twice.
    """
    if twice := repeated(names):
        raise InputError(f"{where}: {what} {twice!r} is listed twice; leave one row")


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes twice, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
