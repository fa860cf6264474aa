"""`fedmq model import`: an ordinary ONNX model becomes a training bundle. The author's machine."""

import logging
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import typer
from rich.console import Console

from edge_agent.importing import imported
from edge_agent.onnx.session import opened
from fedmq.bundle_folder import packed, write_folder
from schemas.bundle import Loss
from schemas.errors import ConfigError
from schemas.onnx_file import MODEL_BYTES_MAX


def import_model(
    model: Annotated[
        Path | None, typer.Argument(help="The inference model: an .onnx file.", show_default=False)
    ] = None,
    loss: Annotated[
        str, typer.Option(help=f"What is trained: {', '.join(get_args(Loss))}.")
    ] = "cross-entropy",
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("bundle"),
    torch: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="In the file's place: a function that returns (torch module, example batch).",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="An initializer that is not trained; may be repeated.", metavar="NAME"),
    ] = None,
    batch_statistics: Annotated[
        bool,
        typer.Option(
            "--batch-statistics",
            help="BatchNormalization measures its batches, as in training. [default: it is frozen]",
        ),
    ] = False,
    shape: Annotated[
        str | None,
        typer.Option(help="Of one example, where the model leaves it open: 28,28 or 30,14."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the check's examples.")] = 0,
) -> None:
    """Turn an inference model into a bundle that devices train with the stock onnxruntime.

    The model's float initializers become parameters, its graph is differentiated into a step of
    standard operators, and the step is checked: by ONNX's checker, against the model's own loss,
    and by finite differences of the gradient of every tensor. One that fails is not written.

    Example: fedmq model import net.onnx --loss cross-entropy --out bundle/
    Example: fedmq model import --torch nets:make --loss mse --out bundle/
    """
    if (model is None) == (torch is None):
        raise ConfigError("model", "give an .onnx file, or --torch module:factory, one of the two")
    if loss not in get_args(Loss):
        raise ConfigError("loss", f"{loss!r} is none: choose {', '.join(get_args(Loss))}")
    example_shape = None if shape is None else _shape(shape)
    try:
        from fedmq.onnx_training import build  # noqa: PLC0415 - the author's extra
    except ImportError as exc:
        raise ConfigError("model", f"needs pip install 'fedmq[onnx,onnx-runtime]' ({exc})") from exc
    with Console(stderr=True).status("reading the model") as status:
        given = _read(model) if model is not None else _exported(torch or "")
        status.update("differentiating, and checking the gradient")
        built = build(
            given,
            loss=cast("Loss", loss),
            run=opened,
            rng=np.random.default_rng(seed),  # noqa: TID251 - the shell makes it
            batch_statistics=batch_statistics,
            frozen=frozenset(freeze or ()),
            x_shape=example_shape,
        )
        size = len(packed(built.bundle))
        write_folder(out, built.bundle, built.theta0)
    for note in built.notes:
        typer.echo(f"note: {note}", err=True)
    manifest = built.bundle.manifest
    trained = sum(t.size for t in manifest.params.tensors if t.kind == "trained")
    typer.echo(
        f"{out}: {len(manifest.params.tensors)} tensors, {trained:,} of "
        f"{manifest.params.size:,} parameters trained; "
        f"x {_told(manifest.x.shape)} {manifest.x.dtype}, loss {manifest.loss}\n"
        f"{size:,} bytes travel once; the gradient is right to {built.gradient_error:.1g} "
        "(finite differences)\n"
        f"next: fedmq task create NAME --bundle {out}"
    )


def _told(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError("shape", f"{text!r} must be whole numbers above 0, as in 1,28,28")
    return tuple(map(int, parts))


def _read(path: Path) -> Any:
    import onnx  # noqa: PLC0415 - the author's extra

    try:
        size = path.stat().st_size
        model = onnx.load(path) if size <= MODEL_BYTES_MAX else None
    except OSError as exc:
        raise ConfigError("model", f"{path} cannot be read: {exc}") from exc
    except Exception as exc:  # protobuf's own exception has no public place
        raise ConfigError("model", f"{path} is no ONNX model: {exc}") from exc
    if model is None:
        raise ConfigError("model", f"{path} is larger than an ONNX file may be (2 GiB)")
    return model


def _exported(path: str) -> Any:
    from fedmq.onnx_training.from_torch import export  # noqa: PLC0415 - the author's extra

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells what it does without
    factory = imported("torch", path)
    try:
        made = factory() if callable(factory) else factory
    except Exception as exc:  # the author's own code
        raise ConfigError("torch", f"{path} has failed: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ConfigError("torch", f"{path!r} must return (module, example batch)")
    return export(*made)
