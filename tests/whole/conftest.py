"""Tests of the whole service, from HTTP to the runner and back."""

from tests.client.conftest import client, lenet

__all__ = ["client", "lenet"]
