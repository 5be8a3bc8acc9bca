"""The adapters that come with the project. Kept apart from peft, which takes seconds to import."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


class AdapterError(ValueError):
    """An adapter that is missing or does not fit; the message says what to do."""


def shipped(name: str) -> Path | None:
    """The folder of the adapter for the base model `name`, if one comes with the project."""
    folder = WEIGHTS / f"careless-{name}"
    return folder if (folder / "adapter_config.json").is_file() else None
