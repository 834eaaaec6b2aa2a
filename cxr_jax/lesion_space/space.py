"""Clusters of lesions (Wu et al. 2022, Sec. 3.2.3), and the two dimensions they are drawn in."""

import dataclasses
import pathlib
import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE

from cxr_jax import safe_write, small_files
from cxr_jax.errors import InputError
from cxr_jax.explain import lesion_maps
from cxr_jax.lesion_space.collected import Found
from cxr_jax.metrics.lesion_maps import match_clusters

MOST_CLUSTERS = 20  # that the elbow is looked for among; the paper's bends at 12 [Sec. 6.3]
_DIMENSIONS = 50  # before t-SNE [paper, Sec. 5.3]
_STARTS = 10  # of k-means
_LIMIT = 1 << 28  # bytes of a space that is read
UNTYPED = -1


@dataclasses.dataclass(frozen=True)
class Space:
    """Clusters that were fitted to the lesions of one split.

    Attributes:
      centres: float32 [K, C].
      types: int [K], of LESION_TYPES: the type that a cluster stands for, by the best one-to-one
        matching on the lesions it was fitted to; -1 where there is none.
      distances: float64 [M], of all lesions to their centres, squared and summed, with 1 .. M
        clusters; [0] where K was given.
      network: digest of the run whose features they are.
    """

    centres: np.ndarray
    types: np.ndarray
    distances: np.ndarray
    network: str

    def __len__(self) -> int:
        return len(self.centres)

    def place(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """`lesion_maps.lesion_scores` of lesions; of a space without clusters there are none."""
        return lesion_maps.lesion_scores(features, self.centres)

    def save(self, path: pathlib.Path) -> None:
        """Writes it as an .npz."""
        with safe_write.replacing(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                centres=self.centres,
                types=self.types,
                distances=self.distances,
                network=np.array(self.network),
            )


def read(path: pathlib.Path, *, network: str) -> Space:
    """A space that was saved.

    Raises:
      InputError: no such file, none of a space, or one of another network, whose features mean
        something else.
    """
    remedy = "give the space.npz that python -m cxr_jax.lesion_space wrote"
    found = small_files.read_npz(path, remedy, limit=_LIMIT)
    shapes = {"centres": 2, "types": 1, "distances": 1, "network": 0}
    if any(name not in found or found[name].ndim != rank for name, rank in shapes.items()):
        raise InputError(f"{path} is no lesion space; {remedy}")
    space = Space(
        centres=found["centres"],
        types=found["types"],
        distances=found["distances"],
        network=str(found["network"]),
    )
    numeric = all(np.issubdtype(found[n].dtype, np.number) for n in ("centres", "types"))
    if not numeric or len(space.types) != len(space) or not np.isfinite(space.centres).all():
        raise InputError(f"{path} is a damaged lesion space; {remedy}")
    if space.network != network:
        raise InputError(
            f"{path} was made with another network, whose features are others; {remedy} for this "
            "run"
        )
    return space


def fit(found: Found, *, network: str, clusters: int, seed: int) -> Space:
    """K-means on all lesions.

    Args:
      found: the lesions; with none of them the space has no cluster.
      network: digest of the run.
      clusters: K; 0: where the curve of the distances bends.
      seed: of the first centres.

    Raises:
      InputError: fewer lesions than clusters.
    """
    width = found.features.shape[1]
    if not len(found):
        return Space(np.zeros((0, width), np.float32), np.zeros(0, int), np.zeros(0), network)
    if clusters > len(found):
        raise InputError(
            f"--clusters={clusters}: there are {len(found)} lesions on the {len(found.source)} "
            f"slices of {found.source.name!r} ({found.source.split}); ask for at most as many"
        )
    distances = np.zeros(0)
    if not clusters:
        most = min(MOST_CLUSTERS, len(np.unique(found.features, axis=0)))
        distances = np.array(
            [k_means(found.features, k, seed).inertia_ for k in range(1, most + 1)]
        )
        clusters = elbow(distances)
    model = k_means(found.features, clusters, seed)
    types = _types(model.labels_, found.types, clusters)
    return Space(model.cluster_centers_.astype(np.float32), types, distances, network)


def k_means(features: np.ndarray, clusters: int, seed: int) -> KMeans:
    """scikit-learn's, fitted to features [L, C]."""
    with warnings.catch_warnings():
        # Lesions with equal features leave a cluster empty; it is then a copy of another.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(clusters, n_init=_STARTS, random_state=seed).fit(features)


def _types(labels: np.ndarray, types: np.ndarray, clusters: int) -> np.ndarray:
    """The types in the best matching, of lesions whose type is known."""
    names = np.unique(types[types >= 0])
    if not len(names):
        return np.full(clusters, UNTYPED)
    counts = np.zeros((clusters, len(names)), int)
    known = types >= 0
    np.add.at(counts, (labels[known], np.searchsorted(names, types[known])), 1)
    matched = match_clusters(counts)
    return np.where(matched >= 0, names[matched], UNTYPED)


def elbow(distances: np.ndarray) -> int:
    """The number of clusters at which a curve bends: that of the point farthest below the straight
    line from the first to the last (Satopää et al., ICDCS Workshops 2011, 'kneedle', without its
    smoothing); 1 where it does not bend.

    Args:
      distances: [M], of 1 .. M clusters.
    """
    distances = np.asarray(distances, np.float64)
    spread = distances[0] - distances[-1]
    if len(distances) < 3 or spread <= 0:
        return 1
    across = np.linspace(0, 1, len(distances))
    below = 1 - across - (distances - distances[-1]) / spread
    return int(below.argmax()) + 1


def in_two_dimensions(features: np.ndarray, seed: int) -> np.ndarray:
    """Truncated SVD to 50 dimensions, then t-SNE (Fig. 9): [L, C] -> float32 [L, 2]. Fewer than
    four lesions stand in a row, for t-SNE needs neighbours."""
    count = len(features)
    if count < 4:
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    dimensions = min(_DIMENSIONS, features.shape[1] - 1, count - 1)
    if dimensions > 1 and np.ptp(features, axis=0).any():  # else all lesions are equal
        svd = TruncatedSVD(dimensions, random_state=seed)
        features = svd.fit_transform(np.asarray(features, np.float64))
    perplexity = min(30.0, (count - 1) / 3)
    # PCA needs some spread to begin from.
    flat = not np.ptp(features, axis=0).any()
    init = "random" if flat else "pca"
    model = TSNE(perplexity=perplexity, random_state=seed, init=init, n_jobs=1)
    return model.fit_transform(features.astype(np.float32))
