"""Sidecar processes for the tests of this folder."""

from tests.sidecar_process import new_sidecar, shared_sidecar

__all__ = ["new_sidecar", "shared_sidecar"]
