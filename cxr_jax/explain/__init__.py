"""Where in a film a network saw what it says, and whether that is so. Pure functions on arrays.

`relevance` passes relevance down a ViT, `attention` reads its attention alone, `gradcam` explains
any map before any head; `lesion_maps` makes lesions of such a map, `faithfulness` measures it by
taking away what it points at. How well a map finds a known lesion is told by
`cxr_jax/metrics/explanations.py`.
"""
