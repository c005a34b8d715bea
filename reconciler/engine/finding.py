"""The name of an issue in modules that do not say ``Issue`` yet."""

from reconciler.engine.issue import Issue as Finding

__all__ = ["Finding"]
