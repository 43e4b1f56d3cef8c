"""The toy pipeline, for tests of the engine and the recorder."""

from __future__ import annotations

import pytest

from tests.toy import ToyPipeline, toy


@pytest.fixture
def pipe() -> ToyPipeline:
    return toy()
