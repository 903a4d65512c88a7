"""Check that a network that cannot fit into memory is rejected before its training graph is built,
and how the available memory is determined."""

import os
import re

import pytest
from scripts import TINY, noise

import SE_ResNeXt
from senet.engine import memory
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError


@pytest.mark.parametrize(
    "fields",
    [
        ["--depth=1024", "--cardinality=256", "--reduction_ratio=4096"],
        ["--padding=512", "--micro_batch_size=0", "--batch_size=1048576"],
    ],
)
@pytest.mark.slow
def test_a_network_that_needs_terabytes_is_rejected(tmp_path, capsys, fields):
    fields = [f"--run_dir={tmp_path / 'run'}", "--dataset=shapes", *fields]
    assert SE_ResNeXt.main(fields) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: training needs at least [\d,.e+]+ GB of memory \(", line)
    assert re.search(r"but [\d,.e+]+ GB is available", line)
    assert not (tmp_path / "run" / "logs.txt").exists()


@pytest.mark.slow
def test_the_estimate_is_close_to_the_memory_worked_out_by_hand(graph, monkeypatch):
    hp = SE_ResNeXt.Hyperparameters(**TINY | {"reduction_ratio": 0, "micro_batch_size": 4})
    monkeypatch.setattr(memory, "available_memory", lambda: 10**12)
    SE_ResNeXt.build_graph(noise(50), hp)
    values = sum(v.shape.num_elements() for v in tf.trainable_variables())
    # The maps of each image: the stem's 32x32x64, then those of reduce, paths, merge and the
    # shortcut, with 4, 4, 8 and 8 channels in the first stage, doubled in each later one.
    # The map of reduce has the size of the stage's input.
    maps = 32 * 32 * (64 + 24) + (32 * 32 * 8 + 16 * 16 * 40) + (16 * 16 * 16 + 8 * 8 * 80)
    needed = 4 * (3 * values + 2 * 4 * maps)  # float32; four images
    for available, fits in (0.9 * needed, False), (1.2 * needed, True):
        monkeypatch.setattr(memory, "available_memory", lambda size=available: size)
        with tf.Graph().as_default():
            if fits:
                SE_ResNeXt.build_graph(noise(50), hp)
            else:
                with pytest.raises(HyperparameterError, match="the feature maps of 4 images"):
                    SE_ResNeXt.build_graph(noise(50), hp)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, micro_batch_size, images", [(10, 9, 5), (7, 3, 3)])
def test_the_estimate_counts_the_images_of_the_largest_micro_batch(
    graph, monkeypatch, batch_size, micro_batch_size, images
):
    sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
    hp = SE_ResNeXt.Hyperparameters(**TINY | sizes)
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    with pytest.raises(HyperparameterError, match=f"the feature maps of {images} images"):
        SE_ResNeXt.build_graph(noise(50), hp)


@pytest.mark.parametrize(
    "line, file, limit",
    [
        ("0::/user/job", "user/job/memory.max", 10**9),
        ("0::/user/job", "user/memory.max", 10**9),
        ("4:memory:/docker/1234", "memory/docker/1234/memory.limit_in_bytes", 10**9),
        ("4:memory:/docker/1234", "memory/memory.limit_in_bytes", 10**9),  # inside the container
        ("4:cpu:/user", "cpu/memory.max", None),
    ],
)
def test_control_groups_restrict_the_available_memory(tmp_path, monkeypatch, line, file, limit):
    """The process has 5.7 GB in use, of which 5 GB are mapped files: they do not count."""
    page = os.sysconf("SC_PAGE_SIZE")
    for name, text in {
        "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 2000000 kB\n",
        "proc/self/cgroup": f"{line}\n",
        "proc/self/statm": f"9999999 {5_700_000_000 // page} {5 * 10**9 // page} 1 0 99 0\n",
        f"groups/{file}": "1000000000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    expected = 300_000_000 if limit else 2_048_000_000
    assert memory.available_memory() == pytest.approx(expected, abs=2 * page)
