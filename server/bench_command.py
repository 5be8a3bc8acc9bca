"""`asr-stream bench`. Only the command line is imported with this file, so that help comes at once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from server.bench_reports import ALL_FOUR, Bench, Measured, Report
from server.house import SAMPLES, Adapter, Device, FinalPass, House

CHECK_FAILED = 1  # exit code

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    context: typer.Context,
    reports: Annotated[
        list[Report] | None,
        typer.Argument(
            metavar="REPORT",
            help="compute: what a chunk costs one stream, and which stage. streams: how many streams at once. "
            "memory: of each stream. long: an hour in one session. All four if none is named. soak: clients "
            "that come, go, vanish, pause and stall; exit code 1 if a word or a slot is lost, or memory grows. "
            "lookahead: error rate against latency of transducers, one after another.",
        ),
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1, help="streams: so many, instead of finding the most. memory: up to so many. soak: clients."
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="streams: no more are tried; the server has slots for them.")
    ] = 64,
    seconds: Annotated[
        float, typer.Option(min=1, help="streams, memory: that each client speaks, per trial.")
    ] = 30,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="long: of joined clips, 60 if not given. soak: of clients, 30."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="long: of the pauses between clips. soak: of what clients do. lookahead: of the shuffling."
        ),
    ] = 0,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="lookahead: adaptive, shuffled, causal, layerwise:1,1,0,0 or chunked:9, as often as you like; what "
            "each model was trained for if not given.",
        ),
    ] = None,
    data: Annotated[Path, typer.Option(help="A manifest or LibriSpeech tree.")] = SAMPLES / "manifest.jsonl",
    out: Annotated[Path | None, typer.Option(help="Folder of the reports; runs/... if not given.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="tiny.en (if not given), base.en, a checkpoint's path, or a transducer as in `models list`. "
            "lookahead: transducers or folders of heads, as many as you like.",
        ),
    ] = None,
    adapter: Adapter = None,
    chunk_ms: Annotated[
        int, typer.Option(help="Audio per step; `compute` compares several if it is not given.")
    ] = 300,
    delay_ms: Annotated[int, typer.Option(help="How long after its end a word is due.")] = 160,
    beam: Annotated[
        int, typer.Option(help="Hypotheses of the search; `compute` compares several if it is not given.")
    ] = 1,
    final_pass: Annotated[
        FinalPass,
        typer.Option(help="Of each utterance, as in `transcribe`: full, rescore or none."),
    ] = "full",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the model; of a server, its engines.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure speed: compute, concurrent streams, memory, an hour without a break. Ctrl-C keeps what there is."""
    from server.outputs import writable_folder
    from server.terminal import print_result, tell
    from streaming.session import SessionOptions

    house: House = context.obj
    if Report.LOOKAHEAD in (reports or ()):
        if len(set(reports or ())) > 1:
            raise ValueError("lookahead is about models of its own: ask for it alone")
        if adapter is not None:
            raise ValueError("lookahead takes no --adapter: name each folder of a head with --model")
        _lookahead(house, models or [], house.load_utterances(data), out, policies or [], seed)
        return
    if policies:
        raise ValueError("--policy is for lookahead")
    model, *others = models or ["tiny.en"]
    if others:
        raise ValueError("these reports are about one --model; lookahead compares several")
    house.check_final_pass(model, adapter, final_pass)
    given = house.set_by_user(context)
    if house.decides_when_to_wait(model, adapter, asked="delay_ms" in given):
        delay_ms = 0
    device = str(house.place(device))
    bench = Bench(
        house,
        model,
        adapter,
        threads,
        device,
        SessionOptions(chunk_ms=chunk_ms, delay_ms=delay_ms, final_pass=final_pass, beam=beam),
        house.load_utterances(data),
        streams=streams,
        most=most,
        seconds=seconds,
        minutes=minutes,
        seed=seed,
        given=frozenset(given),
    )
    out = writable_folder(out or Path("runs") / f"bench-{Path(model).name}")
    header = {
        "model": model,
        "adapter": house.describe_adapter(model, adapter),
        "data": data.name,
        "delay_ms": delay_ms,
        "final_pass": final_pass,
        "threads": threads,  # null: as the server chooses
        "machine": house.describe_machine(device),
    }
    passed = True
    compared = {"chunk_ms": chunk_ms, "beam": beam}  # by `compute`, whose rows say which
    for name in dict.fromkeys(reports or ([Report.STREAMS] if streams else ALL_FOUR)):
        measured: Measured | None = None
        try:
            for so_far in bench.reports[name]():
                measured = so_far
        finally:  # Ctrl-C, or a server that gave up: what there is was measured
            if measured is not None:
                own = {} if name == Report.COMPUTE else compared
                _write(out, name, {"report": name.value} | header | own, measured)
                print_result(measured.table())
                tell(f"{out / name}.json")
                passed = passed and getattr(measured, "passed", True)
    if not passed:
        raise typer.Exit(CHECK_FAILED)


def _lookahead(
    house: House,
    models: Sequence[str],
    utterances: Sequence[Any],
    out: Path | None,
    policies: Sequence[str],
    seed: int,
) -> None:
    from server.outputs import writable_folder
    from server.terminal import progress, tell

    if not models:
        raise ValueError(
            "name one --model or more: transducers, such as ancat-tiny.en-320, or folders of heads"
        )
    out = writable_folder(out or Path("runs") / "bench-lookahead")
    with progress("lookahead") as show:
        page = house.measure_lookahead(models, utterances, out, policies=policies, seed=seed, progress=show)
    page.write(out)
    tell(f"{out / 'report.md'}")


def _write(out: Path, name: Report, header: dict[str, Any], measured: Measured) -> None:
    """NAME.json, and NAME.md and NAME.png where the report has a page and draws a plot."""
    from server.outputs import replacing

    with replacing(out / f"{name}.json") as file:
        assert file is not None
        file.write(json.dumps(header | measured.as_json(), indent=1) + "\n")
    if markdown := getattr(measured, "markdown", None):
        with replacing(out / f"{name}.md") as file:
            assert file is not None
            file.write(markdown())
    if plot := getattr(measured, "plot", None):
        plot(out / f"{name}.png")
