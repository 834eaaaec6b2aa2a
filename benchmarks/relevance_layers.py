"""Which layers of a ViT make its relevance map, and which of them point at the lesion.

    python benchmarks/relevance_layers.py RUN [RUN ...] [--films=256] [--output=x.json]

Of diagnosis runs on phantoms, whose lesions are known: their last checkpoint, the true class, test
films that have a lesion. The map is, to first order, the sum of every layer's class row (see
`cxr_jax/explain/relevance.py`), so each layer's row is also a map of its own: `share` is its part
of the sum, `relevance` the share of films where its highest cell lies on a lesion, `attention` the
same of that layer's raw attention. Layers are counted from the one nearest to the film.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.common import write_result
from cxr_jax import trained, writers
from cxr_jax.data import sources
from cxr_jax.explain import relevance
from cxr_jax.metrics import explanations

BATCH = 16


def rows_of(task, variables: dict, batch: dict) -> dict[str, jax.Array]:
    """Of each film: every map's hit, each layer's part of the sum [B, L], has it a lesion."""
    params = variables["params"]
    cells = task.model.apply(variables, batch["image"], train=False, method="corpus")
    found = relevance.relevance_maps(
        task.model.vit,
        params["vit"],
        cells,
        head=params["head"],
        classes=batch["diagnosis"],
        return_layers=True,
    )
    side = found["relevance"].shape[1:]
    weighted = jnp.maximum(found["attn_grad"] * found["attn_relevance"], 0).mean(axis=2)
    layers = {
        "relevance": weighted[:, :, 0, 1:],
        "attention": found["attn"].mean(axis=2)[:, :, 0, 1:],
    }
    hit = {"the whole map": _hit(found["relevance"], batch["lesion"])}
    for name, rows in layers.items():
        hit |= {
            f"{name} {layer}": _hit(rows[:, layer].reshape(-1, *side), batch["lesion"])
            for layer in range(rows.shape[1])
        }
    sums = jnp.sum(layers["relevance"], axis=2)
    valid = explanations.pointing(found["relevance"], batch["lesion"])["pointing_valid"]
    return hit | {"sums": sums, "valid": valid}


def _hit(heat: jax.Array, lesion: jax.Array) -> jax.Array:
    return explanations.pointing(heat, lesion)["pointing_hit"]


def measure(workdir: str, films: int) -> dict:
    """One run's row of the result."""
    run = trained.TrainedRun.load(workdir)
    source = run.task.data.adapt(sources.open_source(run.config.data, "test"), training=False)
    records = [source[index] for index in range(min(films, len(source)) // BATCH * BATCH)]
    function = jax.jit(lambda variables, batch: rows_of(run.task, variables, batch))
    parts = []
    for start in tqdm(range(0, len(records), BATCH), desc=workdir, disable=None):
        batch = trained.make_batch(run.task, records[start : start + BATCH])
        parts.append(jax.device_get(function(run.ensemble[-1], batch)))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kept = rows["valid"].astype(bool)
    sums = rows["sums"][kept].mean(axis=0)
    return {
        "run": pathlib.Path(workdir).name,
        "films_with_a_lesion": int(kept.sum()),
        "the_whole_map": round(float(rows["the whole map"][kept].mean()), 3),
        "layers": [
            {
                "share": round(float(part), 3),
                "relevance": round(float(rows[f"relevance {layer}"][kept].mean()), 3),
                "attention": round(float(rows[f"attention {layer}"][kept].mean()), 3),
            }
            for layer, part in enumerate(sums / sums.sum())
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="work directories of diagnosis runs with a ViT")
    parser.add_argument("--films", type=int, default=256)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    rows = [measure(workdir, args.films) for workdir in args.runs]
    write_result({"runs": rows, **writers.provenance()}, args.output)


if __name__ == "__main__":
    main()
