"""The pinned models and data sets: list, fetch, locate."""

from cltk.data.assets import ASSETS, Asset, fetch, path, resolve, verify

__all__ = ["ASSETS", "Asset", "fetch", "path", "resolve", "verify"]
