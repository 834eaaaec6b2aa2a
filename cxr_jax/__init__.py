"""cxr_jax: chest radiograph and chest CT papers on one JAX core. Research software, not a medical device."""

__version__ = "0.1.0"
