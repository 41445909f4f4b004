"""Meta-learned initialisations for coordinate-based neural representations, in JAX."""

__version__ = "0.1.0"
