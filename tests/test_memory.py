"""Check that a network that cannot fit into memory is rejected before its training graph is built,
and how the available memory is determined."""

import os
import re
import resource

import numpy as np
import pytest
from conftest import run_python

import SE_ResNeXt
from senet.data.datasets import Dataset, Split
from senet.engine import memory
from senet.engine.compat import tf
from senet.engine.errors import HyperparameterError


@pytest.mark.parametrize(
    "fields",
    [
        ["--depth=1024", "--cardinality=256", "--reduction_ratio=4096"],
        ["--padding=512", "--depth=128"],
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
    split = Split(np.zeros([50, 32, 32, 3], np.uint8), np.zeros(50, np.int32))
    data = Dataset("noise", split, split, ["a", "b"])
    hp = SE_ResNeXt.Hyperparameters(
        **{"cardinality": 2, "depth": 2, "blocks": 1, "reduction_ratio": 0, "padding": 0},
        mixed_precision=False,
        micro_batch_size=4,
    )
    monkeypatch.setattr(memory, "available_memory", lambda: 10**12)
    SE_ResNeXt.build_graph(data, hp)
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
                SE_ResNeXt.build_graph(data, hp)
            else:
                with pytest.raises(HyperparameterError, match="the feature maps of 4 images"):
                    SE_ResNeXt.build_graph(data, hp)


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch_size, micro_batch_size, images", [(10, 9, 5), (10, 4, 4), (7, 3, 3), (10, 0, 10)]
)
def test_the_estimate_counts_the_images_of_the_largest_micro_batch(
    graph, monkeypatch, batch_size, micro_batch_size, images
):
    split = Split(np.zeros([50, 32, 32, 3], np.uint8), np.zeros(50, np.int32))
    data = Dataset("noise", split, split, ["a", "b"])
    hp = SE_ResNeXt.Hyperparameters(
        **{"cardinality": 2, "depth": 2, "blocks": 1, "reduction_ratio": 0, "padding": 0},
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
    )
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    with pytest.raises(HyperparameterError, match=f"the feature maps of {images} images"):
        SE_ResNeXt.build_graph(data, hp)


def test_a_trained_network_that_does_not_fit_is_rejected(trained, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert SE_ResNeXt.main(["evaluate", f"--run_dir={trained}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the network needs at least") and "1e-06 GB is available" in line


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
@pytest.mark.slow
def test_ulimit_restricts_the_available_memory(kind):
    limit = 64 * 2**30
    status, output, errors = run_python(
        "-c",
        f"import resource; resource.setrlimit(resource.{kind}, ({limit}, {limit}))\n"
        "from senet.engine import memory; memory.PROC = memory.CGROUPS\n"
        "memory.os.sysconf = lambda _: 2**40  # more physical memory than the limit\n"
        "print(memory.available_memory())",
    )
    assert (status, errors) == (0, "")
    assert int(output) == limit


@pytest.mark.parametrize(
    "line, file, found",
    [
        ("0::/user/job", "user/job/memory.max", [10**9]),
        ("0::/user/job", "user/memory.max", [10**9]),
        ("4:memory:/docker/1234", "memory/docker/1234/memory.limit_in_bytes", [10**9]),
        ("4:memory:/docker/1234", "memory/memory.limit_in_bytes", [10**9]),  # inside the container
        ("4:cpu:/user", "cpu/memory.max", []),
    ],
)
def test_control_groups_restrict_the_available_memory(tmp_path, monkeypatch, line, file, found):
    for name, text in ("proc/self/cgroup", f"{line}\n"), (f"groups/{file}", "1000000000\n"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    assert list(memory._cgroup_limits()) == found
    assert memory.available_memory() <= (10**9 if found else float("inf"))


def test_memory_in_use_counts_towards_the_limit_of_ulimit_d(tmp_path, monkeypatch):
    """Check that 300 MB of 1 GB are available if the process has 700 MB of data."""
    page = os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/statm").write_text(f"999999 1 1 1 0 {700_000_000 // page} 0\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    limits = {resource.RLIMIT_DATA: 10**9, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (limits[kind], -1))
    assert memory.available_memory() == pytest.approx(300e6, abs=page)


def test_mapped_files_do_not_count_towards_the_limit_of_a_control_group(tmp_path, monkeypatch):
    """Check that 300 MB of 1 GB are available if 700 MB are in use, not counting 5 GB of
    mapped files."""
    page = os.sysconf("SC_PAGE_SIZE")
    pages = [size // page for size in (9 * 10**9, 5_700_000_000, 5 * 10**9)]
    for name, text in {
        "proc/self/cgroup": "0::/job\n",
        "proc/self/statm": "{} {} {} 1 0 99 0\n".format(*pages),
        "groups/job/memory.max": "1000000000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    assert memory.available_memory() == pytest.approx(300e6, abs=2 * page)
