"""What a run leaves behind: progress on the terminal, metrics.jsonl, results.json; and what its
trackers get."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from typing import Any

import jax
import tqdm

from cxr_jax import hosts, safe_write, small_files, trackers
from cxr_jax.metrics.bootstrap import Metric
from cxr_jax.version import VERSION


class Writer:
    """Progress bar with time left on a terminal, plain lines otherwise; metrics.jsonl; trackers.

    metrics.jsonl has one line a logged step and never loses one: a resumed run drops the lines
    past its checkpoint first, so that each step stands in the file once. Of several hosts the first
    one writes.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        total_steps: int,
        first_step: int = 0,
        asked: str = "",
        settings: Mapping[str, Any] = types.MappingProxyType({}),
    ):
        """`asked` and `settings`: as `trackers.start`."""
        self.path = workdir / "metrics.jsonl"
        self._main = hosts.is_main()
        if self._main:
            self._drop_lines_after(first_step)
            self._file = self.path.open("a", encoding="utf-8")
            self._trackers = trackers.start(
                asked, workdir, first_step=first_step, settings=settings
            )
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not (self._main and sys.stderr.isatty()),
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._total, self._first = total_steps, first_step
        self._start: float | None = None  # of the second step: the first one compiles

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._main:
            self._file.close()
            for tracker in self._trackers:
                tracker.close()

    def advance(self, step: int) -> None:
        """Tells the progress bar that `step` is done."""
        if self._start is None:
            self._start, self._first = time.monotonic(), step
        self._bar.update(step - self._bar.n)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, the trackers, and the terminal."""
        if not self._main:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.scalars(step, values)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar.disable:
            print(f"step {step}/{self._total}  {text}{self._time_left(step)}", flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)

    def note(self, text: str) -> None:
        """A line for the reader that no file needs."""
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def _time_left(self, step: int) -> str:
        done = step - self._first
        if self._start is None or done < 1 or step == self._total:
            return ""
        left = (time.monotonic() - self._start) / done * (self._total - step)
        return f"  [{left / 60:.1f} min left]"

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line, values in small_files.scan_lines(self.path):
            there = (values or {}).get("step")  # None of the half line of a killed run
            if isinstance(there, int) and there <= step:
                kept.append(line)
        write_atomic(self.path, "".join(line + "\n" for line in kept))


def write_atomic(path: pathlib.Path, text: str) -> None:
    """A reader, or a run after a kill, sees the old file or the new one, never a half."""
    safe_write.write_text(path, text)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Atomic, indented; a NaN is a bug here and raises ValueError."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def code_version() -> str:
    """Package version, and the commit where the package runs from a git checkout."""
    folder = pathlib.Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return VERSION
    return f"{VERSION}+{commit}"


def provenance() -> dict[str, Any]:
    """How a result came about: code, libraries, device."""
    device = jax.devices()[0]
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "libraries": {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "flax", "optax")},
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "hosts": hosts.count(),
        "cpu_count": os.cpu_count(),
    }


def metrics_json(metrics: dict[str, Metric]) -> dict[str, dict[str, float | int | str | None]]:
    """Metrics as results.json holds them; what is undefined is null, never a number, with the
    reason where it can be told."""
    found: dict[str, dict[str, float | int | str | None]] = {}
    for name, m in metrics.items():
        found[name] = {"value": m.value, "low": m.low, "high": m.high, "n": m.n}
        if m.reason:
            found[name]["reason"] = m.reason
    return found


def metrics_table(metrics: dict[str, Metric]) -> str:
    """Lines for the terminal: name, value or why there is none, 95% interval, n; '' without
    metrics."""
    width = max(map(len, metrics), default=0)
    lines = []
    for name, m in metrics.items():
        undefined = f"undefined ({m.reason})" if m.reason else "undefined"
        value = undefined if m.value is None else f"{m.value:.4f}"
        interval = "" if m.low is None else f"  [{m.low:.4f}, {m.high:.4f}]"
        lines.append(f"{name:<{width}}  {value}{interval}  n={m.n}")
    return "\n".join(lines)
