"""What the project itself writes and reads again: datasets, models, runs, unfinished outputs."""

import dataclasses
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from commands import small_config
from hostile_subject import Subject
from models import model_of
from mutants import mutant, tfrecord

from data_pipelines.dataset_card import CARD_NAME, CaseCard, DatasetCard, DomainCard, HeldOutScan
from data_pipelines.patches import validation_patches
from data_pipelines.records import _Example
from data_pipelines.resident import load_resident
from data_pipelines.stage_case import CaseTask, DomainOptions, StagedCase, StagedPatches
from data_pipelines.staging import stage_all
from data_pipelines.unfinished_output import finish_publishing, unfinished_output
from mmsr_jax import methods
from mmsr_jax.checkpoints import CheckpointMeta, Checkpoints
from mmsr_jax.evaluation import evaluate_run
from mmsr_jax.evaluation.sections import Section
from mmsr_jax.inference.exported import load_exported, save_exported
from mmsr_jax.inference.trained import load_model
from mmsr_jax.mesh import data_mesh
from mmsr_jax.report.comparison import Run, merged_sections
from mmsr_jax.report.page import _plot
from mmsr_jax.report.run_report import page_table, run_curves
from mmsr_jax.report.tables import text_table
from mmsr_jax.run_log import RunLog
from mmsr_jax.train import _claimed
from mmsr_jax.train_state import create_train_state, state_sharding

_CASE = CaseCard(
    name="scan.nii.gz",
    shape_px=(5, 64, 64),
    spacing_mm=(0.5, 0.5, 2.0),
    split="both",
    validation_from_slice=4,
    air=-1000.0,
    tissue=40.0,
    tissue_level=0.5,
    anchor_method="given",
    stored_offset=0.0,
    stored_step=1.0,
    patches={"train": 4, "validation": 2},
    valid_positions=20,
    rejected={"nearly constant": 2},
)
_BATCH = 2


def _record(patch: bytes, case: int) -> bytes:
    example = _Example()
    example.features.feature.add(key="patch").value.bytes_list.value.append(patch)
    example.features.feature.add(key="case").value.int64_list.value.append(case)
    return tfrecord(example.SerializeToString())


def _domain(folder: Path, name: str, patch_px: int) -> DomainCard:
    """Two cases, whose records lie in two shards of training and one of validation."""
    shards = {}
    for split, index, count in (("train", 0, 4), ("train", 1, 4), ("validation", 0, 4)):
        shard = f"{name}/{name}-{split}.tfrecord-{index:05d}-of-00002"
        patches = [np.full((patch_px, patch_px), 10 * case, "<i2") for case in range(count)]
        content = b"".join(_record(patch.tobytes(), n % 2) for n, patch in enumerate(patches))
        (folder / shard).parent.mkdir(exist_ok=True)
        (folder / shard).write_bytes(content)
        shards[shard] = len(content)
    return DomainCard(patch_px, "int16", (_CASE, _CASE), shards)


def _dataset(folder: Path) -> None:
    card = DatasetCard(
        scale=2,
        window_hu=(-1000.0, 400.0),
        seed=3,
        clinical=_domain(folder, "clinical", 4),
        micro=_domain(folder, "micro", 8),
        held_out=(HeldOutScan("held_out/clinical.nii", "held_out/micro.nii"),),
    )
    card.save(folder)


def _with_true_sizes(read: Callable[[Path], None]) -> Callable[[Path], None]:
    """With a card that knows how large the changed records are."""

    def changed(folder: Path) -> None:
        path = folder / CARD_NAME
        card = json.loads(path.read_bytes())
        for name in ("clinical", "micro"):
            shards = card[name]["shards"]
            card[name]["shards"] = {shard: (folder / shard).stat().st_size for shard in shards}
        path.write_text(json.dumps(card))
        read(folder)

    return changed


def _read_resident(folder: Path) -> None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    patches = load_resident(folder, batch_size=_BATCH, sharding=sharding)
    assert all(np.isfinite(domain.gain).all() for domain in patches.values())
    validation_patches(folder)


def _read_batches(folder: Path) -> None:
    from data_pipelines.batches import train_batches

    batches = train_batches(folder, batch_size=_BATCH)
    for _ in range(9):  # two epochs
        assert all(np.isfinite(batch).all() for batch in next(batches).values())


def _record_mutant(content: bytes, random: Random) -> bytes:
    """Mostly one record's changed content under checksums that fit."""
    if random.random() < 0.2:
        return mutant(content, random)
    records, place = [], 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        records.append(content[place + 12 : place + 12 + size])
        place += 16 + size
    what, victim = random.random(), random.randrange(len(records))
    if what < 0.1:
        del records[victim]
    elif what < 0.2:
        records.append(records[victim])
    elif what < 0.3:
        patch = random.randbytes(random.choice((0, 31, 32, 128, 130)))
        records[victim] = _record(patch, random.choice((-1, 0, 1, 2, 2**40, -(2**63))))[12:-4]
    elif what < 0.4:
        return b"".join(map(tfrecord, records)) + _claiming(2 ** random.randrange(63))
    else:
        records[victim] = mutant(records[victim], random)
    return b"".join(map(tfrecord, records))


def _claiming(size: int) -> bytes:
    """The start of a record that says it has so many bytes, under a checksum that fits."""
    return tfrecord(struct.pack("<Q", size))[12:20] + tfrecord(struct.pack("<Q", size))[20:] + b"x"


def _model(folder: Path) -> None:
    kernel = jnp.ones((3, 3, 1, 1)) / 9

    def smooth(images: Any) -> Any:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
        )

    save_exported(model_of(smooth, scale=2, reach_px=1.0), folder / "model.mmsr")


def _member_mutant(content: bytes, random: Random) -> bytes:
    """One member changed in an archive that is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    victim = random.choice(sorted(members))
    members[victim] = mutant(members[victim], random)
    archived = io.BytesIO()
    with zipfile.ZipFile(archived, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return archived.getvalue()


_CONFIG = small_config(pool_size=0)
_METHOD = methods.create(_CONFIG)
_SECTION = Section(
    "Phantoms",
    "of one kind",
    {name: [{"psnr": 20.0, "lost": float("nan")}] * 2 for name in ("nearest", "bicubic", "SR")},
)


def _run(folder: Path) -> None:
    """A run directory that was never trained."""
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(_CONFIG)))
    lines = [
        {"step": step, "group": group, "generator_loss": 0.5, "correlation": 0.25}
        for step in range(1, 6)
        for group in ("train", "validation")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = evaluate_run.Evaluation(_CONFIG, 2, (-1000.0, 400.0), [_SECTION])
    evaluate_run.save(evaluation, folder)
    dataset = {
        "scale": 8,
        "window_hu": [-1000.0, 400.0],
        "micro_anchors": [{"air": 100.0, "tissue": 1000.0}],
    }
    meta = CheckpointMeta(dataclasses.asdict(_CONFIG), dataset)
    shapes = jax.eval_shape(lambda: create_train_state(_CONFIG, _METHOD))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    checkpoints = Checkpoints(folder / "checkpoints", report=lambda _: None)
    for step in (1, 2):
        checkpoints.save(step, state, meta, score=1.0 / step, wait=True)
    checkpoints.close()


def _run_elsewhere(folder: Path) -> None:
    _run(folder)
    (folder / "checkpoints").rename(folder / "place")
    (folder / "checkpoints.location").write_text("place\n")


def _read_elsewhere(run: Path) -> None:
    os.chdir(run)
    load_model(run)


def _of_a_copy(read: Callable[[Path], None]) -> Callable[[Path], None]:
    """For readers that change what they read."""

    def copied(folder: Path) -> None:
        copy = shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"))
        try:
            read(copy)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    return copied


def _resume(run: Path) -> None:
    like = jax.eval_shape(lambda: create_train_state(_CONFIG, _METHOD))
    checkpoints = Checkpoints(run / "checkpoints", report=lambda _: None)
    try:
        checkpoints.restore(like, state_sharding(like, data_mesh()))
    finally:
        checkpoints.close()


def _line_mutant(content: bytes, random: Random) -> bytes:
    """Mostly one line changed, if there are several of JSON."""
    lines = content.splitlines(keepends=True)
    if lines[0].endswith(b"}\n") and random.random() < 0.8:
        victim = random.randrange(len(lines))
        lines[victim] = mutant(lines[victim].strip(), random) + b"\n"
        return b"".join(lines)
    return mutant(content, random)


def _meta_mutant(content: bytes, random: Random) -> bytes:
    """Often without the fingerprints that would tell."""
    meta = json.loads(content)
    if random.random() < 0.7:
        meta["fingerprints"] = {}
    return mutant(json.dumps(meta).encode(), random)


def _read_texts(run: Path) -> None:
    """All that a run says beside its checkpoints."""
    with _claimed(run, _CONFIG, None):
        pass
    evaluation = evaluate_run.load(run)
    if evaluation:
        shown = Run(run, None, evaluation)  # type: ignore[arg-type]
        merged_sections({"a": [shown, shown]})
        for section in evaluation.sections:
            text_table(section)
            page_table(section)
    for panel in run_curves({"a": run, "b": run}):
        _plot(panel)
    log = RunLog(run, 3, 9)
    log.close()


_OUTPUT = "outputs/fine.nii"
_SETTINGS = {"slices": [0, 1], "model": "x"}


def _unfinished(folder: Path) -> None:
    (folder / "outputs").mkdir()
    (folder / "other.nii").write_text("of another")
    (folder / "outputs" / "scan.nii").write_text("of another")
    with unfinished_output(folder / _OUTPUT, _SETTINGS) as output:
        for index in range(3):
            output.record(index, {"network_count": 1.0})
        (output.folder / "fine").mkdir()
        for name in ("report.json", "fine/volume.nii"):
            (output.folder / name).write_text(name)


def _publishing(folder: Path) -> None:
    _unfinished(folder)
    journal = [("report.json", "fine.nii.json"), ("fine/volume.nii", "fine.nii")]
    path = folder / "outputs" / ".unfinished-fine.nii" / "publish.json"
    path.write_text(json.dumps(journal))


def _others(folder: Path) -> dict[str, bytes]:
    """All files but those that belong to the output."""
    outputs = folder / "outputs"
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.parent.rglob("*"))
        if path == outputs / "scan.nii" or (path.is_file() and outputs not in path.parents)
    }


def _publish(folder: Path) -> None:
    before = _others(folder)
    try:
        finish_publishing(folder / _OUTPUT)
    finally:
        assert _others(folder) == before


def _journal_mutant(content: bytes, random: Random) -> bytes:
    """Mostly another name in the journal."""
    if random.random() < 0.3:
        return mutant(content, random)
    names = ["../other.nii", "/tmp/x", "../../x", "scan.nii", "..", ".", "", "fine.nii", "a/b"]
    journal = json.loads(content)
    journal[random.randrange(2)][random.randrange(2)] = random.choice([*names, 5, None, "a\0b"])
    return json.dumps(journal).encode()


def _continue(folder: Path) -> None:
    before = _others(folder)
    with unfinished_output(folder / _OUTPUT, _SETTINGS) as output:
        done = output.done()
        assert all(isinstance(index, int) for index in done)
        output.record(9, {})
    assert _others(folder) == before


def _task(folder: Path) -> CaseTask:
    return CaseTask(
        "clinical",
        0,
        Path(__file__),
        {"train": 4, "validation": 2},
        0.5,
        0,
        folder,
        DomainOptions(4, "none"),
    )


def _in_this_process(function: Callable[[Any], Any], tasks: Any, label: str) -> None:
    del label
    for task in tasks:
        function(task)


_in_this_process.forwards_errors = True  # type: ignore[attr-defined]


def _stage(task: CaseTask) -> StagedCase:
    parts = []
    for split, count in task.patches.items():
        names = (task.directory / f"{split}_{what}.npy" for what in ("patches", "positions"))
        parts.append(StagedPatches(0, split, *names))
        np.save(parts[-1].patches, np.zeros((count, 4, 4), np.int16))
        np.save(parts[-1].positions, np.zeros((count, 4), np.int32))
    return StagedCase(_CASE, "int16", tuple(parts), task.directory / "preview.npz")


def _read_staged(folder: Path) -> None:
    (case,) = stage_all([_task(folder)], _stage, _in_this_process, skip_bad=False)
    assert isinstance(case, StagedCase)
    for part in case.staged:
        assert folder in part.patches.resolve().parents
        assert len(np.load(part.patches)) == case.card.patches[part.split]


RECORD_SUBJECTS = {
    "card_resident": Subject(_dataset, _read_resident, victims=CARD_NAME),
    "card_batches": Subject(_dataset, _read_batches, victims=CARD_NAME),
    "records_resident": Subject(
        _dataset, _with_true_sizes(_read_resident), victims="*.tfrecord*", mutant=_record_mutant
    ),
    "records_batches": Subject(
        _dataset, _with_true_sizes(_read_batches), victims="*.tfrecord*", mutant=_record_mutant
    ),
    "exported": Subject(_model, lambda path: load_exported(path), "model.mmsr"),
    "exported_member": Subject(
        _model, lambda path: load_exported(path), "model.mmsr", mutant=_member_mutant
    ),
    "run_texts": Subject(_run, _of_a_copy(_read_texts), victims="*.json*", mutant=_line_mutant),
    "run_place": Subject(_run_elsewhere, _read_elsewhere, victims="checkpoints.location"),
    "run_meta": Subject(_run, load_model, victims="meta/metadata", mutant=_meta_mutant),
    "run_checkpoint": Subject(
        _run, lambda run: load_model(run, "best"), victims="checkpoints/2/[mp]*/**/*"
    ),
    "run_resumed": Subject(_run, _of_a_copy(_resume), victims="checkpoints/2/**/*"),
    "publishing": Subject(
        _publishing, _of_a_copy(_publish), victims="publish.json", mutant=_journal_mutant
    ),
    "unfinished": Subject(_unfinished, _of_a_copy(_continue), victims="*[es].json*"),
    "staged": Subject(_read_staged, _read_staged, victims="*.[jn][sp][oy]*"),
}
