"""Pictures for people: overlays on films, score tables, scatters, training curves.

`save` writes a figure to a file; `to_array` turns it into pixels (for TensorBoard, contact sheets).
A new panel is put together from `overlays`, in the colours of `style`.
"""

from cxr_jax.figures.boxes import DrawnBoxes, Region, boxes_panel
from cxr_jax.figures.charts import (
    auc_chart,
    scatter_scores,
    setting_chart,
    threshold_chart,
    training_curves,
)
from cxr_jax.figures.classes import (
    confusion_chart,
    hit_rate_chart,
    precision_recall_chart,
    reliability_chart,
    roc_chart,
)
from cxr_jax.figures.films import (
    diagnosis_panel,
    findings_panel,
    lungs_comparison,
    lungs_panel,
    severity_panel,
    slice_panel,
)
from cxr_jax.figures.lesions import DrawnLesions, lesions_panel
from cxr_jax.figures.sheets import contact_sheet
from cxr_jax.figures.style import PREDICTION, TRUTH, mark, save, to_array
from cxr_jax.figures.views import views_panel

__all__ = [
    "PREDICTION",
    "TRUTH",
    "DrawnBoxes",
    "DrawnLesions",
    "Region",
    "auc_chart",
    "boxes_panel",
    "confusion_chart",
    "contact_sheet",
    "diagnosis_panel",
    "findings_panel",
    "hit_rate_chart",
    "lesions_panel",
    "lungs_comparison",
    "lungs_panel",
    "mark",
    "precision_recall_chart",
    "reliability_chart",
    "roc_chart",
    "save",
    "scatter_scores",
    "setting_chart",
    "severity_panel",
    "slice_panel",
    "threshold_chart",
    "to_array",
    "training_curves",
    "views_panel",
]
