"""The lesions of a split side by side, as a network sees them (Wu et al. 2022, Sec. 3.2, 5.3).

`collected` finds them and their features, `space` puts them into clusters and finds the type each
cluster stands for, `pictures` shows both. `python -m cxr_jax.lesion_space --help`.
"""
