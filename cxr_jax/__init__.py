"""Chest radiograph and chest CT papers on one JAX core.

Research software. Not a medical device, and not fit for any clinical use.
"""

__version__ = "0.1.0"
