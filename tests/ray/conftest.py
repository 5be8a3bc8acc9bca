"""Ray starts a dozen processes and gives each a few seconds: these tests run when named (`make test-ray`)."""

import importlib.util

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "ray: needs Ray Serve and a machine with time to spare; runs when named"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Left out is deselected: neither passed nor skipped."""
    named = any("tests/ray" in argument for argument in config.args)
    if importlib.util.find_spec("ray") is None or not named:
        left_out = [item for item in items if item.get_closest_marker("ray")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
