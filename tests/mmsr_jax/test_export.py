"""A trained model as one file, and what runs of it where the training code is missing."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import REPOSITORY, SMALL, FinishedRun, error_line, run
from jax import export
from random_networks import random_super_resolution

from data_pipelines.errors import UserError
from mmsr_jax.inference.exported import load_exported, save_exported
from mmsr_jax.inference.memory import plan
from mmsr_jax.inference.model import SuperResolver
from mmsr_jax.inference.network import Network
from mmsr_jax.inference.tiles import super_resolve_slices
from mmsr_jax.inference.trained import load_model

MEMBERS = ["model.json", "trunk.stablehlo", "tail.stablehlo"]
WINDOW_HU = (-1000.0, 500.0)
# Compiles several times faster, for networks that run slower than they need to.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
PROVENANCE = {"run": "runs/a", "step": 3, "parameters_sha256": "ab"}


def pictures(rows: int, columns: int, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(rows * 1000 + columns)
    return rng.uniform(-1, 1, (count, rows, columns, 1)).astype(np.float32)


def chest(shape: tuple[int, int, int]) -> np.ndarray:
    """Hounsfield units with air and tissue, and values beyond any window."""
    return np.random.default_rng(0).integers(-1024, 1500, shape).astype(np.int16)


def whole(network: Network, *batches: np.ndarray) -> list[np.ndarray]:
    """What the network gives for batches of whole slices."""
    both = jax.jit(
        lambda images: network.tail(network.trunk(images)), compiler_options=FAST_COMPILATION
    )
    return [np.asarray(both(images)) for images in batches]


# ---- a run, without the training code ---------------------------------------------------------


@pytest.fixture(scope="module")
def exported(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, exported by its command line. Not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "new folder" / "model.mmsr"
    result = run("mmsr_jax.export", f"--run={finished.workdir}", f"--output={path}")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(f"{path}: ")
    assert f"step {SMALL['steps']} of {finished.workdir}" in result.stdout
    assert [file.name for file in path.parent.iterdir()] == ["model.mmsr"]
    return path


WITHOUT_TRAINING = """
import sys
from pathlib import Path

BLOCKED = {"flax", "optax", "orbax", "dm_pix", "tensorflow", "tensorflow_datasets",
           "ml_collections", "chex", *(f"mmsr_jax.{name}" for name in (
           "methods", "networks", "losses", "config", "checkpoints", "train", "train_state",
           "train_step"))}

class Missing:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if BLOCKED & {parts[0], ".".join(parts[:2])}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
try:
    import flax
except ModuleNotFoundError:
    pass
else:
    sys.exit("nothing is blocked")

import numpy as np
from mmsr_jax.inference.exported import load_exported

folder = Path(sys.argv[2])
model = load_exported(sys.argv[1])
hu, image = np.load(folder / "hu.npy"), np.load(folder / "image.npy")
np.save(folder / "fine_hu.npy", model.array(hu))
np.save(folder / "fine.npy", model.normalised(image))
assert not BLOCKED & set(sys.modules)
"""


def test_a_process_without_the_training_code_gives_the_same(
    finished: FinishedRun, exported: Path, tmp_path: Path
) -> None:
    hu, image = chest((2, 140, 132)), pictures(20, 37)[0, :, :, 0]  # more than a tile, and less
    np.save(tmp_path / "hu.npy", hu)
    np.save(tmp_path / "image.npy", image)
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, str(exported), str(tmp_path)],
        check=True,
        cwd=REPOSITORY,
        timeout=300,
    )
    model = load_model(finished.workdir)
    expected, given = model.array(hu), np.load(tmp_path / "fine_hu.npy")
    assert given.dtype == np.int16
    assert given.std() > 1
    assert np.abs(given.astype(int) - expected).max() <= 1
    expected, given = model.normalised(image), np.load(tmp_path / "fine.npy")
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_the_file_tells_where_it_comes_from_and_where_it_runs(
    finished: FinishedRun, exported: Path
) -> None:
    trained, model = load_model(finished.workdir), load_exported(exported)
    assert model.provenance == trained.provenance
    assert model.window_hu == trained.window_hu
    assert dataclasses.astuple(model.network)[2:] == dataclasses.astuple(trained.network)[2:]
    with zipfile.ZipFile(exported) as archive:
        assert archive.namelist() == MEMBERS
        card = json.loads(archive.read("model.json"))
        functions = [export.deserialize(bytearray(archive.read(name))) for name in MEMBERS[1:]]
    assert card["format"] == 1
    assert card["jax"] == jax.__version__
    assert card["least_px"] == 4
    assert card["platforms"] == ["cpu", "cuda", "tpu"]
    assert all(function.platforms == ("cpu", "cuda", "tpu") for function in functions)


def test_the_best_checkpoint_replaces_the_last_when_asked(
    finished: FinishedRun, exported: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.mmsr"
    path.write_bytes(b"old")
    flags = f"--run={finished.workdir}", f"--output={path}", "--checkpoint=best"
    line = error_line(run("mmsr_jax.export", *flags))
    assert f"{path} exists" in line
    assert "--overwrite" in line
    assert path.read_bytes() == b"old"
    result = run("mmsr_jax.export", *flags, "--overwrite")
    assert result.returncode == 0, result.stderr
    best = load_model(finished.workdir, "best").provenance
    assert load_exported(path).provenance == best
    assert [file.name for file in tmp_path.iterdir()] == ["model.mmsr"]


# ---- every kind of network ---------------------------------------------------------------------


@functools.cache
def model_of(
    method: str, norm: str, upsample: str, base: str, scale: int, dtype: str
) -> SuperResolver:
    trunk, tail, *reach = random_super_resolution(method, norm, upsample, base, scale, dtype)
    network = Network(jax.jit(trunk), jax.jit(tail), scale, *reach)
    return SuperResolver(network, WINDOW_HU, PROVENANCE)


PLAIN = ("cyclegan", "pixel", "nearest", "none", 2, "float32")
KINDS = [
    PLAIN,
    ("cyclegan", "none", "smooth", "bicubic", 4, "float32"),
    ("cyclegan", "instance", "shuffle", "consistent", 2, "float32"),
    ("cyclegan", "pixel", "nearest", "consistent", 8, "bfloat16"),
    ("unit", "pixel", "shuffle", "none", 8, "float32"),
    ("unit", "instance", "nearest", "none", 2, "float32"),
    ("unit", "none", "smooth", "none", 4, "bfloat16"),
    ("cyclegan_original", "pixel", "nearest", "none", 4, "float32"),
    ("unit_original", "pixel", "nearest", "none", 8, "float32"),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_an_export_equals_its_model_on_slices_of_any_size_and_number(
    kind: tuple, tmp_path: Path
) -> None:
    model = model_of(*kind)
    save_exported(model, tmp_path / "model.mmsr")
    loaded = load_exported(tmp_path / "model.mmsr")
    assert dataclasses.astuple(loaded.network)[2:] == dataclasses.astuple(model.network)[2:]
    assert (loaded.window_hu, loaded.provenance) == (WINDOW_HU, PROVENANCE)
    batches = pictures(4, 4), pictures(11, 6, 2)
    results = (whole(network, *batches) for network in (model.network, loaded.network))
    for images, expected, given in zip(batches, *results):
        count, rows, columns, _ = images.shape
        assert given.shape == (count, rows * model.scale, columns * model.scale, 1)
        assert given.dtype == np.float32
        assert given.std() > 0.01
        np.testing.assert_allclose(given, expected, atol=1e-5 if kind[-1] == "float32" else 0.02)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of one of them. Not to be changed."""
    path = tmp_path_factory.mktemp("plain") / "model.mmsr"
    save_exported(model_of(*PLAIN), path)
    return path


def test_an_export_is_planned_tiled_and_fused_as_its_model_is(plain: Path) -> None:
    network, loaded = model_of(*PLAIN).network, load_exported(plain).network
    assert plan(loaded, (30, 20)).bytes > 30 * 20 * 4
    images = pictures(30, 20)
    expected = whole(network, images)[0][..., 0]
    for way in (loaded, loaded.fused()):
        tiled = super_resolve_slices(way, images[..., 0], tile_px=16)
        np.testing.assert_allclose(tiled, expected, atol=1e-5)


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mmsr_jax.inference.exported import load_exported

assert len(jax.devices()) == 2
network = load_exported(sys.argv[1]).network
images = np.random.default_rng(0).uniform(-1, 1, (4, 12, 9, 1)).astype(np.float32)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
placed = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
features = network.trunk(placed)
fine = network.tail(features)
assert not fine.sharding.is_fully_replicated, fine.sharding
np.testing.assert_allclose(fine, network.tail(network.trunk(images)), atol=1e-6)
"""


def test_an_export_shares_slices_among_devices(plain: Path) -> None:
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run(
        [sys.executable, "-c", SHARDED, str(plain)],
        check=True,
        cwd=REPOSITORY,
        env=os.environ | two,
        timeout=300,
    )


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 1)])
def test_slices_that_are_too_small(shape: tuple[int, int], plain: Path) -> None:
    model = load_exported(plain)
    for use in (lambda: model.array(chest((1, *shape))), lambda: model.normalised(np.ones(shape))):
        with pytest.raises(UserError, match="at least 4 x 4") as caught:
            use()
        assert f"{shape[1]} x {shape[0]}" in str(caught.value)


# ---- bad input --------------------------------------------------------------------------------


def refuses(path: Path, *parts: str) -> None:
    """`load_exported` gives one line with the path and all the parts."""
    with pytest.raises(UserError) as caught:
        load_exported(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def refusal(path: Path) -> str | None:
    """The message of `load_exported`, if it gives one."""
    try:
        load_exported(path)
    except UserError as error:
        return str(error)
    return None


def rewritten(
    path: Path, target: Path, compression: int = zipfile.ZIP_STORED, **members: bytes | None
) -> Path:
    """The archive with other members, or without those that are None."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w", compression) as other:
        for name in MEMBERS:
            data = members.get(name.split(".")[0], archive.read(name))
            if data is not None:
                other.writestr(name, data)
    return target


def with_card(path: Path, target: Path, **values: object) -> Path:
    with zipfile.ZipFile(path) as archive:
        card = json.loads(archive.read("model.json"))
    return rewritten(path, target, model=json.dumps(card | values).encode())


def test_files_that_are_none(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere.mmsr", "does not exist")
    refuses(tmp_path, "is a folder")
    (tmp_path / "text.mmsr").write_text("no archive")
    refuses(tmp_path / "text.mmsr", "damaged or no exported model")
    (tmp_path / "empty.mmsr").write_bytes(b"")
    refuses(tmp_path / "empty.mmsr", "damaged or no exported model")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file(share: float, plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    (tmp_path / "cut.mmsr").write_bytes(data[: int(share * len(data))])
    refuses(tmp_path / "cut.mmsr", "damaged")


@pytest.mark.parametrize("name", MEMBERS)
def test_a_flipped_bit_in_any_member(name: str, plain: Path, tmp_path: Path) -> None:
    data = bytearray(plain.read_bytes())
    with zipfile.ZipFile(plain) as archive:
        entry = archive.getinfo(name)
    data[entry.header_offset + 30 + len(name) + entry.file_size // 2] ^= 1
    (tmp_path / "flipped.mmsr").write_bytes(data)
    refuses(tmp_path / "flipped.mmsr", "damaged", name)


def test_flipped_bits_between_members(plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    with zipfile.ZipFile(plain) as archive:
        heads = [entry.header_offset for entry in map(archive.getinfo, MEMBERS)]
        ends = range(archive.start_dir, len(data))
    rng = np.random.default_rng(0)
    refusals = []
    for place in rng.choice([*ends, *(head + i for head in heads for i in range(30))], 60):
        broken = bytearray(data)
        broken[place] ^= 1 << rng.integers(8)
        (tmp_path / "flipped.mmsr").write_bytes(broken)
        refusals.append(refusal(tmp_path / "flipped.mmsr"))
    noticed = list(filter(None, refusals))  # not so bits, such as dates, that nobody reads
    assert len(noticed) > 20
    assert all("export the run again" in message for message in noticed)


@pytest.mark.parametrize("name", ["model", "trunk", "tail"])
def test_a_missing_member(name: str, plain: Path, tmp_path: Path) -> None:
    refuses(rewritten(plain, tmp_path / "model.mmsr", **{name: None}), name, "damaged")


@pytest.mark.parametrize(
    "card", [b"{", b"[]", b"\xff", b"{}", b'{"format": 1}', b"[" * 100_000, b'{"format": null']
)
def test_a_card_that_cannot_be_read(card: bytes, plain: Path, tmp_path: Path) -> None:
    refuses(rewritten(plain, tmp_path / "model.mmsr", model=card), "damaged")


def test_a_format_that_is_unknown(plain: Path, tmp_path: Path) -> None:
    refuses(with_card(plain, tmp_path / "model.mmsr", format=7, more=1), "format 7", "reads 1")


def test_members_that_are_compressed_or_huge(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeezed = rewritten(plain, tmp_path / "model.mmsr", zipfile.ZIP_DEFLATED)
    refuses(squeezed, "compressed")
    monkeypatch.setattr("mmsr_jax.inference.exported._LARGEST_MEMBER_BYTES", 10)
    refuses(plain, "GB")


def of_another_jax(plain: Path, **changes: object) -> bytes:
    with zipfile.ZipFile(plain) as archive:
        function = export.deserialize(bytearray(archive.read("tail.stablehlo")))
    return bytes(dataclasses.replace(function, **changes).serialize())


def test_functions_that_this_jax_or_machine_cannot_run(plain: Path, tmp_path: Path) -> None:
    newer = with_card(plain, tmp_path / "newer.mmsr", jax="99.1", sha256={})  # as older files
    for tail in (
        b"no function",
        of_another_jax(plain, mlir_module_serialized=b"ML\xefR\rStableHLO_v99.0.0\x00"),
        of_another_jax(plain, calling_convention_version=99),
        of_another_jax(plain, platforms=("rocm",)),
    ):
        path = rewritten(newer, tmp_path / "model.mmsr", tail=tail)
        refuses(path, "JAX 99.1 exported it", jax.__version__, "cpu, cuda, tpu")


def test_a_card_of_another_network(plain: Path, tmp_path: Path) -> None:
    refuses(with_card(plain, tmp_path / "model.mmsr", scale=4), "scale is 4")


def test_outputs_that_cannot_be_written(plain: Path, tmp_path: Path) -> None:
    model = model_of(*PLAIN)
    (tmp_path / "file").write_text("")
    for path, part in [
        (tmp_path, "is a folder"),
        (tmp_path / "file", "--overwrite"),
        (tmp_path / "file" / "model.mmsr", "is no folder"),
        (tmp_path / ("a" * 300), "cannot be written"),
    ]:
        with pytest.raises(UserError, match=part):
            save_exported(model, path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_command_lines(tmp_path: Path) -> None:
    line = error_line(run("mmsr_jax.export", f"--run={tmp_path}", f"--output={tmp_path}/a.mmsr"))
    assert f"{tmp_path} is no run directory" in line
    assert "--output is missing" in error_line(run("mmsr_jax.export", "--run=a", "--output="))
    assert not list(tmp_path.iterdir())
