"""`asr-stream serve`. Only the command line is imported with this file, so that help comes at once."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from server.house import FinalPass, House

app = typer.Typer(add_completion=False)

FOR_OTHERS = "for clients that do not say."


@app.command("serve")
def serve(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of settings; all else overrides it.",
            envvar="ASR_STREAM_CONFIG",
            readable=False,  # Typer need not prove it: what is wrong is said in one line, as of all settings
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A base model or a transducer, as in `models list`.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Folder of an adapter or a head instead of the shipped one; `none` for experiments."
        ),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Conversations at once.")] = None,
    engines: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that decode, each with its share of the slots; as many as cores if not given, at most 4.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where models compute: auto (a GPU if there is one), cpu, cuda, cuda:1."),
    ] = None,
    chunk_ms: Annotated[int | None, typer.Option(help=f"Audio per step, 100 to 1000, {FOR_OTHERS}")] = None,
    delay_ms: Annotated[
        int | None, typer.Option(help=f"How long after its end a word is due, 0 to 600, {FOR_OTHERS}")
    ] = None,
    pause_ms: Annotated[
        int | None, typer.Option(help=f"Silence that ends an utterance, 100 to 5000, {FOR_OTHERS}")
    ] = None,
    final_pass: Annotated[FinalPass | None, typer.Option(help=f"As in `transcribe`, {FOR_OTHERS}")] = None,
    beam: Annotated[int | None, typer.Option(help=f"Hypotheses of the search, 1 to 8, {FOR_OTHERS}")] = None,
    prompt: Annotated[str | None, typer.Option(help=f"What was said before, {FOR_OTHERS}")] = None,
    hotwords: Annotated[
        str | None, typer.Option(help=f"Words likely to be said, a list or @FILE, {FOR_OTHERS}")
    ] = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(help="Certificate, a PEM file: with --tls-key the server speaks wss and https."),
    ] = None,
    tls_key: Annotated[str | None, typer.Option(help="Its key, a PEM file without a password.")] = None,
    api_key_file: Annotated[
        str | None, typer.Option(help="Keys, one a line: a client must show one of them.")
    ] = None,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--origin", help="Of a page that may connect besides our own; several times, or * for all."
        ),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Replicas under Ray Serve: needs the extra `ray`.")
    ] = False,
    replicas: Annotated[
        str | None, typer.Option(help="With --ray, a number or a range: 1:4 grows as slots fill.")
    ] = None,
) -> None:
    """Serve conversations over WebSockets. SIGTERM and Ctrl-C let clients finish; docs/operations.md has defaults.

    Every setting may also be ASR_STREAM_... in the environment, or in a file: `port = 9000`. Keys that clients must
    show come from ASR_STREAM_API_KEY or a file only: command lines can be read by others.
    """
    from asr.limits import read_hotwords
    from server.app import serve as run
    from server.config import read_settings
    from server.log import configure_logging

    given: dict[str, Any] = {
        "host": host, "port": port, "model": model, "adapter": adapter, "slots": slots, "engines": engines,
        "device": device,
        "chunk_ms": chunk_ms, "delay_ms": delay_ms, "pause_ms": pause_ms, "final_pass": final_pass, "beam": beam,
        "prompt": prompt,
        "hotwords": hotwords and read_hotwords(hotwords), "tls_cert": tls_cert, "tls_key": tls_key,
        "api_key_file": api_key_file, "origins": origins and tuple(origins),
        "log_level": log_level, "log_format": log_format,
    }  # fmt: skip
    house: House = context.obj
    settings = read_settings(config, **{name: value for name, value in given.items() if value is not None})
    house.check_final_pass(settings.model, settings.adapter, settings.final_pass)
    if house.decides_when_to_wait(
        settings.model, settings.adapter, asked="delay_ms" in settings.model_fields_set
    ):
        settings = settings.model_copy(update={"delay_ms": None})  # as clients are told
    if not ray:  # whose replicas may have other devices
        house.look_around(settings.device)  # what cannot be is refused before all else
    build = partial(
        house.build_pool,
        settings.model,
        slots=settings.slots,
        engines=settings.engines or (1 if ray else None),  # a replica has the cores that Ray reserves
        adapter=settings.adapter,
        device=settings.device,
        prepare=partial(configure_logging, settings.log_level, settings.log_format),
    )
    if ray:
        from server.ray_serve import Replicas
        from server.ray_serve import serve as run_replicas

        run_replicas(settings, build, Replicas.parse(replicas or "1"))
        return
    if replicas is not None:
        raise ValueError("--replicas are Ray's: add --ray")
    run(settings, build)
