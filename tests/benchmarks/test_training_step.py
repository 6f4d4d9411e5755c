import dataclasses
from pathlib import Path
from typing import Any

import pytest
from commands import error_line, run

pytest.importorskip("torch")

from benchmarks.processes import in_a_process, running
from benchmarks.torch_peer.supported import check_supported
from benchmarks.training_contenders import (
    OurTraining,
    TorchTraining,
    Variant,
    compiled_variants,
    uncompiled_variants,
    write_weights,
)
from configs import cyclegan, unit
from data_pipelines.errors import UserError
from mmsr_jax.config import Config, DataConfig, NetworksConfig

TINY = NetworksConfig(
    sr_channels=4,
    sr_blocks=1,
    sr_tail_channels=4,
    down_channels=4,
    down_blocks=1,
    discriminator_channels=4,
    discriminator_max_channels=8,
)
CONFIG = "--config=configs/cyclegan.py"
EAGER = Variant(compiled=False, cuda_graphs=False, channels_last=True, host_memory_kept=True)


def tiny(method: str) -> dict[str, Any]:
    config = Config(method=method, data=DataConfig(clinical_patch_px=12), networks=TINY)
    return dataclasses.asdict(config)


def test_both_sides_start_from_the_same_weights_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster
    config = tiny("cyclegan")
    in_a_process(write_weights, tmp_path, config)
    ours = running(OurTraining, config, "cpu")
    with ours as us, running(TorchTraining, config, "cpu", tmp_path, EAGER) as them:
        for side in (us, them):
            side.call("forward", 2)
            side.call("train", 2)
        expected, got = us.call("loss_terms"), them.call("loss_terms")
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert expected["generator_loss"] > 1
        for side in (us, them):
            peaks = side.call("peaks_mib")
            assert 100 < peaks["peak_mib"] < 10_000
            assert peaks["device_peak_mib"] is None


def test_what_is_tried_is_different_and_graphs_are_of_what_is_compiled() -> None:
    for device, count in (("cpu", 5), ("gpu", 4)):
        uncompiled = uncompiled_variants(device)
        tried = uncompiled + compiled_variants(uncompiled[-1], device)
        assert len(set(tried)) == len(tried) == count
        graphs = [variant for variant in tried if variant.cuda_graphs]
        assert len(graphs) == (device == "gpu")
        assert all(variant.compiled for variant in graphs)


def test_configurations_that_pytorch_cannot_train_are_refused() -> None:
    for preset in (cyclegan.get_config(), unit.get_config()):
        check_supported(preset)
    with pytest.raises(UserError, match=r"optimizer\.clip_update_rms=1\.0: must be 0\.0"):
        check_supported(cyclegan.get_config("demo"))
    with pytest.raises(UserError, match="method='unit_original': must be cyclegan or unit"):
        check_supported(Config(method="unit_original"))


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        ("--config=", "cannot be read; try --config=configs/cyclegan.py"),
        ("--batch_sizes=1,many", "'many' must be a number"),
        ("--config.networks.norm=none", "networks.norm='none': must be pixel"),
        ("--config.networks.width=3", "width"),
        ("--dtype=float16", "float16"),
    ],
)
def test_bad_flags_are_one_line(flag: str, error: str) -> None:
    assert error in error_line(run("benchmarks.training_step", CONFIG, flag))
