"""A training bundle as a folder on the author's machine.

    manifest.json   what is in it (schemas.bundle.BundleManifest)
    step.onnx       the training step, without weights
    infer.onnx      the inference graph, without weights
    theta0.npz      the initial model: float32 arrays by name, in the manifest's order

Whatever is wrong with one is a ConfigError that names the file.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.arrays import UNREADABLE
from schemas.bundle import (
    BUNDLE_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    Bundle,
    BundleManifest,
    pack_bundle,
    read_bundle,
)
from schemas.errors import ConfigError
from schemas.params import flatten

MANIFEST: Final = "manifest.json"
STEP: Final = "step.onnx"
INFER: Final = "infer.onnx"
THETA0: Final = "theta0.npz"


def write_folder(path: Path, bundle: Bundle, theta0: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a bundle and its initial model; the folder is made, files in it are replaced.

    Raises:
        ConfigError: it cannot be written, or the tensors are not those of the manifest.
    """
    params = bundle.manifest.params
    _check(bundle.manifest, theta0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / MANIFEST).unlink(missing_ok=True)  # without it a folder is no bundle
        (path / STEP).write_bytes(bundle.step)
        (path / INFER).write_bytes(bundle.infer)
        with zipfile.ZipFile(path / THETA0, "w") as archive:
            for tensor in params.tensors:
                info = zipfile.ZipInfo(f"{tensor.name}.npy")
                with archive.open(info, "w", force_zip64=True) as member:
                    array = np.asarray(theta0[tensor.name], dtype=np.float32)
                    np.lib.format.write_array(member, array, allow_pickle=False)
        text = msgspec.json.format(msgspec.json.encode(bundle.manifest), indent=1)
        (path / MANIFEST).write_bytes(text + b"\n")
    except OSError as exc:
        raise ConfigError("bundle", f"{path} cannot be written: {exc}") from exc


def read_folder(path: Path) -> tuple[Bundle, dict[str, NDArray[np.float32]]]:
    """Read a bundle, checked as a device checks it, and its initial model.

    Raises:
        ConfigError: a file is missing, too large, or not what the manifest says.
    """
    text = _bytes(path / MANIFEST, MANIFEST_BYTES_MAX)
    step, infer = (_bytes(path / name, BUNDLE_BYTES_MAX) for name in (STEP, INFER))
    try:
        manifest = msgspec.json.decode(text, type=BundleManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError("bundle", f"{path / MANIFEST} is no manifest: {exc}") from exc
    try:
        bundle = read_bundle(pack_bundle(manifest, step, infer))
    except ValueError as exc:
        raise ConfigError("bundle", f"{path}: {exc}") from exc
    theta0 = read_npz(path / THETA0)
    _check(manifest, theta0)
    return bundle, {tensor.name: theta0[tensor.name] for tensor in manifest.params.tensors}


def packed(bundle: Bundle) -> bytes:
    """The one file that a bundle travels as; its SHA-256 is `bundle.digest`."""
    return pack_bundle(bundle.manifest, bundle.step, bundle.infer)


def _check(manifest: BundleManifest, theta0: Mapping[str, NDArray[np.float32]]) -> None:
    try:
        flatten(manifest.params, theta0)
    except ValueError as exc:
        raise ConfigError("bundle", f"{THETA0} does not fit {MANIFEST}: {exc}") from exc


def _bytes(path: Path, most: int) -> bytes:
    try:
        if path.stat().st_size > most:
            raise ConfigError("bundle", f"{path} is larger than {most} bytes")
        return path.read_bytes()
    except OSError as exc:
        remedy = f"{path} cannot be read ({exc}); fedmq model import makes a bundle"
        raise ConfigError("bundle", remedy) from exc


def read_npz(path: Path, field: str = "bundle") -> dict[str, NDArray[np.float32]]:
    """Named arrays of an .npz, as float32. Raises ConfigError, which names the field."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name], dtype=np.float32) for name in archive.files}
    except OSError as exc:
        raise ConfigError(field, f"{path} cannot be read: {exc}") from exc
    except UNREADABLE as exc:
        remedy = f"{path} is not an .npz of plain arrays ({exc}); write it with numpy.savez"
        raise ConfigError(field, remedy) from exc
