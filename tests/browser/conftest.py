"""Tests in a real browser follow sound in real time: they run when they are named (`make test-page`)."""

import pytest

from tests.browser.chromium import program


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "browser: needs Chromium and a machine with time to spare; runs when named"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Left out is deselected: neither passed nor skipped."""
    named = any("browser" in argument for argument in config.args)
    if program() is None or not named:
        left_out = [item for item in items if item.get_closest_marker("browser")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
