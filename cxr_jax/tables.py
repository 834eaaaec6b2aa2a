"""Tables over runs, as Markdown."""

from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax.metrics.bootstrap import Metric

Line = dict[str, str]  # metric -> what stands in the table


def mean_and_sd(reports: Sequence[Mapping[str, float]]) -> Line:
    """Each number of several runs: mean +- standard deviation over them (ddof 1; none of one run);
    '-' where it is NaN in any."""
    texts = {}
    for name in reports[0]:
        values = np.array([r[name] for r in reports])
        spread = f" +- {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        texts[name] = "-" if np.isnan(values).any() else f"{values.mean():.3f}{spread}"
    return texts


def with_interval(metric: Metric) -> str:
    """A number and its 95% interval, where it has one; '-' where it is undefined."""
    if metric.value is None:
        return "-"
    interval = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{interval}"


def markdown(lines: Mapping[str, Line], names: Sequence[str]) -> str:
    """A row a title, a column a name; '-' where a line has none."""
    text = [f"| | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for title, line in lines.items():
        text.append(f"| {title} | {' | '.join(line.get(name, '-') for name in names)} |")
    return "\n".join(text)
