"""Phantoms: drawn chest radiographs and CT slices with exact truth for every field of a record.

`phantom(seed, index)` draws one film; `cxr_jax.data.phantoms.ct` draws CT slices (`ct_slice`).
Phantoms are not patients. They serve to test code and to see whether a model can learn at all;
a number measured on them claims nothing about any patient or any reader.

A film. Anatomy is laid out in the patient's frame (x = 0 is the midline, positive towards the
patient's left, y runs down, the film is one unit wide), moved to the film by one affine map, and
drawn as an attenuation map A: soft tissue times the share of it that is not air, plus bone, vessels
and devices. The film is then exposed,

    I = (exp(-A) + f * scatter(exp(-A))) / (1 + f) + noise,      v = curve(-log I),

so that what is dense is bright and what lies behind the heart keeps little contrast, as on real
films. What is filled with fluid takes the place of air, so ribs and vessels still show through.

Exact truth. Masks and boxes are taken from the very shapes that are drawn:

* `lungs`: the air-filled fields as a reader outlines them, from apex to diaphragm (or to the top of
  a pleural effusion) and to the mediastinum; the part behind the heart belongs to them.
* `lesion`: pixels where a lesion's opacity is at least 35% of its peak. Outside the positive zones
  the opacity is exactly 0.
* `severity`: of the burden b = (ground glass + 2 x consolidation pixels) / lung pixels of the zone:
  0 where the zone has no lesion pixel, 1 for b < 0.3, 2 for b < 0.6, else 3.
* Edema is an opacity: it counts in `lesion` and `severity`. Atelectasis, effusion and pneumothorax
  are findings with boxes, not lesions.
* `diagnosis` names the infection only: a 'normal' film may show a large heart or a tube.

Where to look:

| | films | CT |
|---|---|---|
| the door | `film` | `ct` |
| options; chance | `population`, `patient` | `ct_anatomy` |
| outlines of the body | `anatomy` | `ct_anatomy`, `ct_trees` |
| disease | `disease`, `signs`, `devices` | `ct_disease` |
| what the rays meet | `attenuation`, `skeleton` | `ct_tissue`, `ct_skeleton`, `ct_lungs` |
| the machine | `exposure` | `ct_scanner` |
| labels | `truth` | `ct_disease` |
| pens and fields | `drawing`, `lattice` | `drawing`, `ct_drawing` |
"""

from cxr_jax.data.phantoms.film import MAX_SIZE, MIN_SIZE, phantom
from cxr_jax.data.phantoms.population import APPEARANCES, Population

__all__ = ["APPEARANCES", "MAX_SIZE", "MIN_SIZE", "Population", "phantom"]
