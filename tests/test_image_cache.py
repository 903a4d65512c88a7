import concurrent.futures
import os
import shutil
import types

import numpy as np
import pytest
from conftest import full_disk
from image_folders import plain, save, write_image_folder

from senet.data import image_cache, image_files
from senet.data.datasets import load_dataset
from senet.engine.errors import Failure, HyperparameterError


@pytest.fixture
def folder(tmp_path):
    """Return a folder of 6 training and 4 test images; class a is black, class b is (5, 5, 5)."""
    return write_image_folder(tmp_path / "pets", "ab")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def load(folder, data_dir):
    return lambda size=32: load_dataset(str(folder), data_dir, size)


@pytest.fixture
def decoded(monkeypatch):
    """Return a list of the image files read so far."""
    paths, read_image = [], image_files.read_image

    def read(path, side):
        paths.append(path)
        return read_image(path, side)

    monkeypatch.setattr(image_files, "read_image", read)
    return paths


def cache_entries(data_dir):
    """Return the names of all entries in the cache of the only image folder, except the lock."""
    (home,) = (data_dir / "cache").iterdir()
    return sorted(path.name for path in home.iterdir() if path.name != "lock")


def check_images(data):
    """Assert that `data` has the images of `folder`."""
    for split, count in (data.train, 3), (data.test, 2):
        assert split.images[:, 9, 9, 1].tolist() == [0] * count + [5] * count
        assert split.labels.tolist() == [0] * count + [1] * count


def test_a_second_load_from_any_path_opens_the_images_without_decoding_them(
    folder, load, data_dir, decoded, monkeypatch
):
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    loaded = [load(), *(load_dataset(name, data_dir) for name in (".", f"{folder}/", "../link"))]
    assert (len(decoded), len(cache_entries(data_dir))) == (10, 1)
    for data in loaded:
        check_images(data)
        assert not data.train.images.flags.writeable
        # Half of the values are 0 and half are 5.
        mean, std = data.channel_statistics()
        assert (mean.tolist(), std.tolist()) == ([2.5] * 3, [2.5] * 3)
        assert data.checksums() == loaded[0].checksums()


def advance_mtime(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.parametrize(
    "change, images",
    [
        (advance_mtime, 10),
        (lambda path: path.rename(path.with_name("new.png")), 10),
        (lambda path: path.unlink(), 9),
        (lambda path: shutil.copyfile(path, path.with_name("new.png")), 11),
    ],
)
def test_a_changed_folder_is_decoded_again_and_its_old_caches_are_removed(
    folder, load, data_dir, decoded, change, images
):
    load()
    load(16)
    earlier = cache_entries(data_dir)
    assert (len(decoded), len(earlier)) == (20, 2)
    change(folder / "train" / "a" / "1.png")
    assert len(load().train.labels) == images - 4
    assert len(decoded) == 20 + images
    (now,) = cache_entries(data_dir)
    assert now not in earlier


def test_images_are_decoded_again_when_the_decoder_changes(load, decoded, monkeypatch):
    load()
    for change in ("PIL.__version__", "1.2.3"), (f"{image_files.__name__}.__file__", __file__):
        monkeypatch.setattr(*change)
        load()
    assert len(decoded) == 30


def test_folders_do_not_share_a_cache(folder, load, data_dir, decoded, tmp_path):
    shutil.copytree(folder, tmp_path / "other")  # preserves the modification times
    save(tmp_path / "other" / "train" / "a" / "0.png", plain("L", 9))
    for _ in range(2):
        check_images(load())
        assert load_dataset(str(tmp_path / "other"), data_dir).train.images[0, 0, 0, 0] == 9
    assert len(decoded) == 20


@pytest.mark.parametrize(
    "file, length", [("images.npy", 0), ("images.npy", 50), ("images.npy", -1), ("sums.json", 9)]
)
def test_a_truncated_cache_is_rewritten(load, data_dir, decoded, file, length):
    load()
    (path,) = (data_dir / "cache").glob(f"*/*/{file}")
    os.truncate(path, length % path.stat().st_size)
    for _ in range(2):
        check_images(load())
    assert len(decoded) == 20


def test_images_that_do_not_fit_on_the_disk_are_rejected_before_they_are_read(
    load, data_dir, decoded, monkeypatch
):
    free = 10 * 32 * 32 * 3 - 1
    disk_usage = lambda _: types.SimpleNamespace(free=free)  # noqa: E731
    monkeypatch.setattr(image_cache.shutil, "disk_usage", disk_usage)
    message = "^--image_size=32 needs 3.07e-05 GB for 10 images in .*, but 3.07e-05 GB is free; use"
    with pytest.raises(HyperparameterError, match=message):
        load()
    assert (decoded, cache_entries(data_dir)) == ([], [])
    free += 1
    check_images(load())


def test_a_data_dir_that_cannot_be_written_gives_a_one_line_error(folder, tmp_path):
    (tmp_path / "file").touch()
    message = f"cannot write {tmp_path}/file/data/cache/.*: Not a dir.* or use another --data_dir$"
    with pytest.raises(Failure, match=message):
        load_dataset(str(folder), tmp_path / "file" / "data")


def test_a_full_disk_gives_a_one_line_error_and_leaves_no_cache(load, data_dir):
    with full_disk(20_000), pytest.raises(Failure, match="^cannot write .*: File too large; fix"):
        load()
    assert cache_entries(data_dir) == []
    check_images(load())


def test_two_loads_at_the_same_time_decode_the_images_once(load, decoded):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for data in threads.map(lambda _: load(), range(2)):
            check_images(data)
    assert len(decoded) == 10


def test_leftovers_of_a_killed_process_are_removed(load, data_dir):
    load()
    (cache,) = (data_dir / "cache").glob("*/*-32")
    cache.rename(cache.with_name("new"))
    check_images(load())
    assert cache_entries(data_dir) == [cache.name]


def test_image_sums_do_not_depend_on_the_chunk_size(rng, monkeypatch):
    images = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    pixels = images.reshape(-1, 3).astype(int)
    whole = image_cache.sum_images(images)
    assert whole.sums == pixels.sum(0).tolist()
    assert whole.squares == (pixels**2).sum(0).tolist()
    for size in 1, 7 * 8 * 8 * 3, 10**9:
        monkeypatch.setattr(image_cache, "CHUNK", size)
        assert image_cache.sum_images(images) == whole
    images[[0, 1]] = images[[1, 0]]
    assert image_cache.sum_images(images).checksum != whole.checksum
