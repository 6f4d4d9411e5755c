"""A super-resolver as one file, which runs without the code that trained it.

The file is a ZIP archive of `model.json` and of the network's two functions as StableHLO, the
parameters within, for any number and size of slices. Loading needs JAX and flatbuffers.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from data_pipelines.errors import UserError
from data_pipelines.output_folder import check_writable, made
from data_pipelines.typed_json import from_json, typed
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.network import Network

_FORMAT = 1
_PLATFORMS = ("cpu", "cuda", "tpu")
_LEAST_PX = 4  # a convolution of 7 pixels reflects 3; fewer would need reflections of reflections
_CARD, _TRUNK, _TAIL = "model.json", "trunk.stablehlo", "tail.stablehlo"
_LARGEST_MEMBER_BYTES = 2 * 10**9
_REMEDY = "copy it again, or export the run again"


@dataclasses.dataclass(frozen=True)
class _Card:
    """What `model.json` holds."""

    format: int
    jax: str  # version that exported
    platforms: tuple[str, ...]
    least_px: int  # rows and columns of a slice
    scale: int
    trunk_reach_px: float | None
    tail_reach_px: float | None
    window_hu: tuple[float, float]
    provenance: dict[str, Any]
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)  # of the functions


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that `save_exported` may write to `path`.

    Raises:
      UserError: the file exists, is a folder, or lies in a locked one.
    """
    path = Path(path)
    check_writable(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists; choose another name or pass --overwrite")


def save_exported(
    model: SuperResolver, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a model as one file for CPUs, NVIDIA GPUs and TPUs.

    Missing folders are made. The file appears under its name only when it is complete.

    Raises:
      UserError: as `check_output`, or the file cannot be written.
    """
    path, network = Path(path), model.network
    check_output(path, overwrite)
    trunk, tail = _exported(network)
    functions = {_TRUNK: bytes(trunk.serialize()), _TAIL: bytes(tail.serialize())}
    card = _Card(
        _FORMAT,
        jax.__version__,
        _PLATFORMS,
        _LEAST_PX,
        network.scale,
        network.trunk_reach_px,
        network.tail_reach_px,
        model.window_hu,
        dict(model.provenance),
        {name: _sha256(part) for name, part in functions.items()},
    )
    try:
        with (
            made(path.parent),
            tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder,
        ):
            partial = Path(folder) / path.name
            with zipfile.ZipFile(partial, "w") as archive:
                archive.writestr(_CARD, json.dumps(dataclasses.asdict(card), indent=2))
                for name, part in functions.items():
                    archive.writestr(name, part)
            partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def load_exported(path: str | os.PathLike[str]) -> SuperResolver:
    """The model that `save_exported` wrote. Load only files whose source you trust.

    Its network takes slices of at least 4 x 4 pixels and raises `UserError` on smaller ones.

    Raises:
      UserError: no such file, no exported model, a damaged one, or one that this version of the
        package, of JAX, or this machine cannot run.
    """
    path = Path(path)
    with _readable(path) as archive:
        card = _card(path, _member(archive, _CARD))
        parts = [_member(archive, name) for name in (_TRUNK, _TAIL)]
        for name, part in zip((_TRUNK, _TAIL), parts, strict=True):
            # Damaged ones end the process that JAX reads them in. Older files say nothing of it.
            if card.sha256.get(name, digest := _sha256(part)) != digest:
                raise zipfile.BadZipFile(f"{name} is not what was exported")
    try:
        trunk, tail = (_jitted(_function(part), card) for part in parts)
        network = Network(trunk, tail, card.scale, card.trunk_reach_px, card.tail_reach_px)
        _check_runs(network, card.least_px)
    except Exception as error:  # JAX names no kinds
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} cannot be run by JAX {jax.__version__} on {jax.default_backend()}: JAX "
            f"{card.jax} exported it, for {', '.join(card.platforms)} ({detail}); install that "
            "version of JAX, or export the run again"
        ) from error
    return SuperResolver(network, card.window_hu, card.provenance)


def _sha256(part: bytes) -> str:
    return hashlib.sha256(part).hexdigest()


def _exported(network: Network) -> tuple[export.Exported, export.Exported]:
    """Trunk and tail, with features as a plain tuple, which reading needs no class for."""
    images = jax.ShapeDtypeStruct((1, _LEAST_PX, _LEAST_PX, 1), jnp.float32)
    structure = jax.tree.structure(jax.eval_shape(network.trunk, images))
    sizes = export.symbolic_shape(
        "n, rows, columns, 1",
        constraints=(f"rows >= {_LEAST_PX}", f"columns >= {_LEAST_PX}"),
    )

    def trunk(images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jax.tree.leaves(network.trunk(images)))

    def tail(features: tuple[jax.Array, ...]) -> jax.Array:
        return network.tail(jax.tree.unflatten(structure, features))

    exported = export.export(jax.jit(trunk), platforms=_PLATFORMS)(
        jax.ShapeDtypeStruct(sizes, jnp.float32)
    )
    features = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.out_avals)
    return exported, export.export(jax.jit(tail), platforms=_PLATFORMS)(features)


def _function(part: bytes) -> export.Exported:
    function = export.deserialize(bytearray(part))
    version = function.calling_convention_version
    if version > export.maximum_supported_calling_convention_version:  # JAX does not look
        raise ValueError(f"calling convention {version} is unknown")
    return function


def _jitted(function: export.Exported, card: _Card) -> Callable[[Any], Any]:
    least = card.least_px

    def run(argument: Any) -> Any:
        rows, columns = jax.tree.leaves(argument)[0].shape[1:3]
        if min(rows, columns) < least:
            raise UserError(
                f"slices of {columns} x {rows} pixels are too small for an exported model; give "
                f"at least {least} x {least}"
            )
        return function.call(argument)

    return jax.jit(run)


def _check_runs(network: Network, least_px: int) -> None:
    """Compile nothing, but read both functions, as JAX does so only when it needs them."""
    images = jax.ShapeDtypeStruct((1, least_px, least_px, 1), jnp.float32)
    network.trunk.lower(images)  # type: ignore[attr-defined]
    features = jax.eval_shape(network.trunk, images)
    network.tail.lower(features)  # type: ignore[attr-defined]
    fine, side = jax.eval_shape(network.tail, features), network.scale * least_px
    if fine.shape != (1, side, side, 1):
        raise ValueError(f"its scale is {network.scale}, but it makes {fine.shape} of {images}")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive, with what may be wrong with it in one line."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not an exported model")
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; `python -m mmsr_jax.export` writes such files")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, ValueError) as error:
        detail = " ".join(str(error).strip("'\"").split())[:200] or "it ends early"
        raise UserError(f"{path} is damaged or no exported model ({detail}); {_REMEDY}") from error
    except OSError as error:  # also of a damaged offset
        raise UserError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.file_size > _LARGEST_MEMBER_BYTES:
        raise zipfile.BadZipFile(f"{name} has {entry.file_size / 1e9:.3g} GB")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return archive.read(name)


def _card(path: Path, text: bytes) -> _Card:
    try:
        values = from_json(text)
        version = typed(values, dict[str, Any])["format"]
        if version == _FORMAT:
            return typed(values, _Card)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: its {_CARD} cannot be read ({error}); {_REMEDY}"
        ) from error
    raise UserError(
        f"{path} has format {version!r}, and this version of mmsr-jax reads {_FORMAT}; install "
        "the version that exported it, or export the run again"
    )
