"""The pinned models and data sets: list, fetch, locate."""

from cltk.data.assets import fetch, path, resolve, verify
from cltk.data.pinned import ASSETS, Asset

__all__ = ["ASSETS", "Asset", "fetch", "path", "resolve", "verify"]
