"""`asr-stream train`. Only the command line is imported with this file, so that help comes at once."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from adapters.house import Base, House, device
from adapters.shipped import shipped

app = typer.Typer(add_completion=False, help="Train what we add to the base models.", no_args_is_help=True)

Run = Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on.")]


@app.command()
def careless(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder that `align` wrote.", exists=True)],
    out: Run,
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    batch_seconds: Annotated[float, typer.Option(help="Audio per step and device.")] = 120.0,
    learning_rate: float = 5e-4,
    encoder_rank: int = 128,
    decoder_rank: int = 64,
    seed: int = 0,
    start_from: Annotated[
        Path | None, typer.Option(help="Adapter of the same ranks to begin with.", exists=True)
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the adapter begun with in the one that comes out.")
    ] = 0.0,
    model: Base = "tiny.en",
) -> None:
    """Make Whisper causal: train the adapter of its encoder and decoder. Ctrl-C saves and ends."""
    from adapters.align import ALIGNED, open_features, read_aligned
    from adapters.data import Augmentation, Examples
    from adapters.train import Recipe, Trainer
    from asr.checkpoint import load

    clips = list(read_aligned(data / ALIGNED))
    if not clips:
        raise ValueError(f"{data} holds no aligned clips: run `asr-stream align` first")
    house: House = context.obj
    house.writable_folder(out)
    base = load(model, device=device())
    recipe = Recipe(
        steps=steps,
        batch_seconds=batch_seconds,
        learning_rate=learning_rate,
        warmup=min(Recipe.warmup, steps // 10),
        encoder_rank=encoder_rank,
        decoder_rank=decoder_rank,
        kept=keep,
        seed=seed,
    )
    examples = Examples(clips, base.vocabulary, Augmentation(), seed)
    trainer = Trainer(base, examples, open_features(data, base.dims.n_audio_state), recipe, out, start_from)
    with house.interruption() as interruption, house.progress("training") as show:

        def after_step(step: int, record: dict[str, float]) -> None:
            losses = (f"{name} {record[name]:.3f}" for name in ("words", "waits", "distillation"))
            show(step, steps, ", ".join(losses))
            if interruption.asked:
                trainer.save()
                raise KeyboardInterrupt

        trainer.run(progress=after_step)
    typer.echo(f"the adapter is in {out / 'adapter'}")


@app.command()
def ancat(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="JSON lines with audio and text.", exists=True)],
    out: Run,
    heads: Annotated[
        str,
        typer.Option(help="Policies, with blanks between: adaptive:MS causal layerwise:1,1,0,0 chunked:9"),
    ] = "adaptive:80 adaptive:320",
    aligned: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `align` wrote; it guides the first steps and sets word times right.",
            exists=True,
        ),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Of the manifest, for learning curves; else all.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Augmented copies in the cache of features.")] = 2,
    first_steps: Annotated[int, typer.Option(min=1, help="Of a head on the trunk as it comes.")] = 700,
    trunk_steps: Annotated[
        int, typer.Option(min=0, help="Of the trunk's own adapter; 0: it stays the causal Whisper's.")
    ] = 0,
    any_steps: Annotated[int, typer.Option(min=1, help="Under random right contexts.")] = 8000,
    head_steps: Annotated[int, typer.Option(min=1, help="Of each head under its own policy.")] = 600,
    batch_seconds: Annotated[float, typer.Option(help="Audio per step and device, once cached.")] = 40.0,
    model: Base = "tiny.en",
) -> None:
    """Teach a transducer on the causal Whisper's encoder when to wait. Ctrl-C saves and ends."""
    from adapters.ancat.stages import Plan, Stages

    base = shipped(model)
    if base is None:
        raise ValueError(
            f"the trunk begins with the causal adapter of {model}, and none comes with the project"
        )
    plan = Plan(base=model, hours=hours, draws=draws)
    plan = replace(
        plan,
        first=replace(plan.first, steps=first_steps),
        trunk=replace(plan.trunk, steps=trunk_steps),
        any=replace(plan.any, steps=any_steps, batch_seconds=batch_seconds),
        head=replace(plan.head, steps=head_steps, batch_seconds=batch_seconds),
    )
    house: House = context.obj
    house.writable_folder(out)
    with house.interruption() as interruption, house.progress("training") as show:

        def after_step(stage: str, done: float, total: float, line: str) -> None:
            show(done, total, f"{stage}: {line}")
            if interruption.asked:
                raise KeyboardInterrupt

        stages = Stages(manifest, out, base, plan, after_step, aligned, device())
        folders: list[Path] = stages.run(heads.split())
    for folder in folders:
        typer.echo(f"a head is in {folder}")


@app.command()
def rescorer(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="JSON lines with audio and text.", exists=True)],
    head: Annotated[Path, typer.Option(help="Folder of a head as `train ancat` writes it.", exists=True)],
    held_out: Annotated[
        Path,
        typer.Option(
            help="A manifest of other clips, which the head has not been trained on either: they tell how far "
            "to trust the rescorer.",
            exists=True,
        ),
    ],
    out: Run,
    steps: Annotated[int, typer.Option(min=1)] = 700,
    batch_seconds: Annotated[float, typer.Option(help="Audio per step and device.")] = 40.0,
) -> None:
    """Teach Whisper's decoder to choose among the hypotheses of a transducer. Ctrl-C saves and ends."""
    from adapters.ancat.rescorer import Recipe, train
    from adapters.shipped import find

    chosen = find(str(head))
    if chosen.head is None or chosen.adapter is None:
        raise ValueError(f"{head} is no head of a transducer")
    recipe = Recipe(steps=steps, batch_seconds=batch_seconds)
    house: House = context.obj
    house.writable_folder(out)
    with house.interruption() as interruption, house.progress("training") as show:

        def after_step(done: float, total: float, line: str) -> None:
            show(done, total, line)
            if interruption.asked:
                raise KeyboardInterrupt

        folder, found = train(chosen, manifest, held_out, recipe, out, after_step, device())
    typer.echo(
        f"of the words of {held_out} the beam has {found.beam:.1%} wrong, rescored {found.rescored:.1%}, "
        f"and the best of the hypotheses {found.oracle:.1%}\n"
        f"the rescorer is in {folder}: it belongs beside the head, or beside the trunk"
    )


@app.command()
def language(
    context: typer.Context,
    texts: Annotated[
        list[Path],
        typer.Argument(help="Plain texts, or manifests (.jsonl) whose texts are taken.", exists=True),
    ],
    head: Annotated[
        Path,
        typer.Option(
            help="Folder of a head as `train ancat` writes it; those beside it that share its trunk and its "
            "pieces weigh the texts, too.",
            exists=True,
        ),
    ],
    weight: Annotated[
        float, typer.Option(min=0, help="Of the texts' log-probabilities beside those of what is heard.")
    ] = 0.5,
    own: Annotated[
        float, typer.Option(min=0, help="Of what the head itself thinks of texts: so much is taken off.")
    ] = 0.3,
    piece: Annotated[
        float, typer.Option(help="Nats for every piece: more makes deletions fewer and insertions more.")
    ] = 0.5,
) -> None:
    """Give the heads of a trunk what texts make likely; their search weighs it from then on."""
    from adapters.ancat.language import learn_language, read_texts
    from adapters.shipped import find, language_name
    from asr.transducer.language import Weights, save_language
    from asr.transducer.model import PIECES
    from asr.transducer.pieces import Pieces

    chosen = find(str(head))
    if chosen.head is None or chosen.adapter is None:
        raise ValueError(f"{head} is no head of a transducer")
    said, pieces = list(read_texts(texts)), Pieces.read(chosen.head / PIECES)
    house: House = context.obj
    with house.progress("reading") as show:
        show(0, 1, f"{len(said)} sentences")
        learnt = learn_language(said, pieces, Weights(weight, own, piece))
    folder = chosen.head.resolve().parent / language_name(chosen.adapter.name)
    save_language(learnt, folder, pieces)
    n = sum(len(grams.pieces) for grams in learnt.grams)
    typer.echo(f"{folder} has {n} runs of pieces from {len(said)} sentences")


@app.command()
def word_times(
    context: typer.Context,
    heads: Annotated[
        list[Path], typer.Argument(help="Folders of heads as `train ancat` writes them.", exists=True)
    ],
    aligned: Annotated[Path, typer.Option(help="Folder that `align` wrote.", exists=True)],
) -> None:
    """Measure how late heads say their words, and note it in them. `train ancat --aligned` does so itself."""
    from adapters import loading
    from adapters.align import ALIGNED, read_aligned
    from adapters.ancat.lateness import fit_lateness
    from adapters.shipped import find
    from asr.checkpoint import load
    from asr.transducer.model import set_lateness

    clips = list(read_aligned(aligned / ALIGNED))
    house: House = context.obj
    for folder in heads:
        chosen = find(str(folder))
        if chosen.head is None:
            raise ValueError(f"{folder} is no head of a transducer")
        model = loading.transducer(load(chosen.base), chosen.adapter, chosen.head)
        with house.progress("listening") as show:
            lateness = fit_lateness(model, clips, show)
        if lateness is None:
            raise ValueError(f"{folder} recognises too few words of {aligned} to tell how late it says them")
        set_lateness(chosen.head, lateness)
        first, last = lateness.first_ms, lateness.last_ms
        typer.echo(f"{folder} says words {first} ms after they begin and is done {last} ms after they end")
