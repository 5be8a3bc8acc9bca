"""`asr-stream models`. Only the command line is imported with this file, so that help comes at once."""

from functools import partial
from typing import Annotated

import typer

from adapters.house import House
from adapters.shipped import find, shipped, transducers

app = typer.Typer(
    add_completion=False, help="Models: what there is, and getting base weights.", no_args_is_help=True
)


@app.command("list")
def list_models(context: typer.Context) -> None:
    """Every model: size, sources, whether it is here, and what of ours comes with the project."""
    from urllib.parse import urlsplit

    from rich.table import Column, Table

    from asr.weights import catalogue, locate

    whole = partial(Column, overflow="fold")  # a path that is cut short is of no use
    table = Table(Column("model", no_wrap=True), "MB", whole("from"), whole("cached"), "adapter")
    for model in catalogue():
        table.add_row(
            model.name,
            f"{model.sources[0].n_bytes / 1e6:.0f}",
            "\n".join(urlsplit(str(source.origin)).netloc or str(source.origin) for source in model.sources),
            str(locate(model.name) or "no"),
            "shipped" if shipped(model.name) else "no",
        )
    for name in transducers():
        added = find(name)
        n_bytes = sum(file.stat().st_size for file in added.files)
        table.add_row(name, f"{n_bytes / 1e6:.0f}", f"this project, on {added.base}", "with it", "experiment")
    house: House = context.obj
    house.print_result(table)


@app.command("fetch")
def fetch_model(name: Annotated[str, typer.Argument()] = "tiny.en") -> None:
    """Download a model's base weights, unless they are here, and prove them."""
    from asr.weights import fetch

    typer.echo(fetch(find(name, "none").base))


@app.command("verify")
def verify_model(name: Annotated[str, typer.Argument()] = "tiny.en") -> None:
    """Prove the base weights that are here."""
    from asr.weights import verify

    typer.echo(f"{verify(find(name, 'none').base)} is right")


@app.command("path")
def model_path(name: Annotated[str, typer.Argument()] = "tiny.en") -> None:
    """Where the base weights are, without proving them."""
    from asr.weights import WeightsError, locate

    if (path := locate(find(name, "none").base)) is None:
        raise WeightsError(f"{name} is not here: get it with `asr-stream models fetch {name}`")
    typer.echo(path)
