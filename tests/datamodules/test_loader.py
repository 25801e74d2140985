import errno
import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from hem.datamodules.images import FileImages, Fit, MemoryImages, RandomFit, image_files, subfolders
from hem.datamodules.loader import Batches, Loader
from hem.rng import permutation
from hem.runs.files import write_atomically


def batches(n, b, *, training, rank=0, world=1, epoch=0):
    made = Batches(lambda epoch: permutation(n, epoch), n, b, training=training, rank=rank, world=world)
    made.set_epoch(epoch)
    assert len(made) == len(list(made))
    return list(made)


@pytest.mark.parametrize("n", [2, 3, 8, 9, 63, 64, 65, 100, 128])
@pytest.mark.parametrize("b", [2, 4, 64])
@pytest.mark.parametrize("training", [True, False])
def test_the_processes_parts_make_up_the_one_process_batches(n, b, training):
    for world in {1, 2, min(4, b)}:
        if n < world:
            continue
        parts = [batches(n, b, training=training, rank=r, world=world) for r in range(world)]
        assert len({len(part) for part in parts}) == 1
        assert min(len(batch) for part in parts for batch in part) >= 1
        together = [torch.cat(step) for step in zip(*parts, strict=True)]
        alone = batches(n, b, training=training)
        if training or len(together) == len(alone):
            assert all(torch.equal(a, c) for a, c in zip(alone, together, strict=True))
        assert torch.equal(torch.cat(together), permutation(n, 0)[: sum(map(len, together))])


@pytest.mark.parametrize(("n", "b", "steps"), [(10, 4, 2), (9, 4, 2), (8, 4, 2), (3, 4, 1), (1, 4, 1)])
def test_training_batches_are_full_or_the_one_there_is(n, b, steps):
    made = batches(n, b, training=True)
    assert [len(batch) for batch in made] == [min(n, b)] * steps


@pytest.mark.parametrize("n", range(4, 40))
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_counts_every_sample_once_and_keeps_step(n, world):
    parts = [batches(n, 6, training=False, rank=r, world=world) for r in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert torch.cat(list(itertools.chain(*parts))).sort().values.tolist() == list(range(n))
    sizes = [sum(map(len, step)) for step in zip(*parts, strict=True)]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(batch) for part in parts for batch in part)


def test_order_changes_with_the_epoch():
    first, second = batches(50, 10, training=True), batches(50, 10, training=True, epoch=1)
    assert torch.equal(torch.cat(first).sort().values, torch.cat(second).sort().values)
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_sentences():
    with pytest.raises(ValueError, match="multiple of their number, got 10 for 4 processes: take 8"):
        Batches(torch.arange, 100, 10, training=True, world=4)
    with pytest.raises(ValueError, match="Expected samples to go through, got none: take a larger share"):
        Batches(lambda epoch: torch.arange(0), 0, 4, training=False)
    with pytest.raises(ValueError, match="at least one sample for each of 4 processes, got 3"):
        Batches(torch.arange, 3, 4, training=False, world=4)


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    paths = []
    for i in range(7):
        pixels = torch.randint(256, (20, 24, 3), dtype=torch.uint8, generator=generator)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels.numpy()).save(paths[-1])
    return FileImages(paths, torch.arange(7), Fit((16, 16), 18), RandomFit((16, 16), (0.2, 1.0)))


MEMORY = MemoryImages(torch.arange(7 * 4).reshape(7, 1, 2, 2).byte(), torch.arange(7))


def collect(images, *, training=True, workers=0, epoch=0, state=None, partners=None):
    order = Batches(lambda epoch: permutation(7, epoch), 7, 2, training=training)
    loader = Loader(images, order, seed=0 if training else None, workers=workers, partners=partners)
    loader.sampler.set_epoch(epoch)
    if state is not None:
        loader.load_state_dict(state)
    return list(loader), loader


def equal(a, b):
    return len(a) == len(b) and all(
        x.size == y.size and all(torch.equal(s, t) for s, t in zip(x[:4], y[:4], strict=True) if s is not None)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("source", ["memory", "files"])
def test_resume_goes_on_with_the_next_batch(source, files):
    images = MEMORY if source == "memory" else files
    order = Batches(lambda epoch: permutation(7, epoch), 7, 2, training=True)
    loader = Loader(images, order, seed=0)
    order.set_epoch(3)
    whole, _ = collect(images, epoch=3)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 3, "position": 1}
    rest, resumed = collect(images, epoch=3, state=state)
    assert equal(rest, whole[1:])
    assert resumed.state_dict() == {"epoch": 3, "position": 3}
    assert equal(list(resumed), whole)  # the state serves once
    assert equal(collect(images, epoch=4, state=state)[0], collect(images, epoch=4)[0])  # and its epoch alone


def test_workers_change_nothing(files):
    for epoch in (0, 1):
        assert equal(collect(files, epoch=epoch)[0], collect(files, epoch=epoch, workers=2)[0])


def test_workers_outlive_the_signal_of_a_job(files):
    """Schedulers send it to every process; the run wants the rest of its step, and ends the workers itself."""
    order = Batches(lambda epoch: permutation(7, epoch), 7, 2, training=True)
    loader = Loader(files, order, seed=0, workers=1)
    iterator = iter(loader)
    first = next(iterator)
    (worker,) = loader._files._iterator._workers
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert equal([first, *iterator], collect(files)[0])
    with suppress(RuntimeError):  # torch's watch over its workers may raise it in whatever runs just then
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(30)
    worker.join(30)
    assert worker.exitcode == -signal.SIGTERM


def test_workers_live_through_epochs_and_follow_them(files):
    order = Batches(lambda epoch: permutation(7, epoch), 7, 2, training=True)
    loader = Loader(files, order, seed=0, workers=1)
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        iterator = iter(loader)
        next(iterator)  # left in the middle
        assert equal(list(loader), collect(files, epoch=epoch)[0])


def test_augmentation_of_files_leaves_the_global_state_alone(files):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, _ = collect(files)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert equal(first, collect(files)[0])


def test_augmentation_of_a_file_depends_on_its_key_alone(files):
    (whole, _), (second, _) = collect(files), collect(files, epoch=1)
    by_index = {int(i): x for batch in whole for i, x in zip(batch.index, batch.input, strict=True)}
    key = {int(i): int(k) for batch in whole for i, k in zip(batch.index, batch.key, strict=True)}
    for i, image in by_index.items():
        assert torch.equal(files.augmented(i, key[i])[0], image)
        assert not torch.equal(files[i][0], image)
    again = {int(i): x for batch in second for i, x in zip(batch.index, batch.input, strict=True)}
    assert any(not torch.equal(again[i], by_index[i]) for i in again.keys() & by_index.keys())


def test_evaluation_has_no_key_and_no_change(files):
    made, _ = collect(files, training=False)
    assert all(batch.key is None for batch in made)
    for batch in made:
        assert all(torch.equal(files[int(i)][0], x) for i, x in zip(batch.index, batch.input, strict=True))


def test_partners_come_from_the_whole_pool_and_depend_on_the_sample_alone():
    pool = torch.tensor([1, 4, 6])
    seen = {}
    for rank in range(2):
        order = Batches(lambda epoch: permutation(7, epoch), 7, 2, training=True, rank=rank, world=2)
        for batch in Loader(MEMORY, order, seed=0, partners=pool):
            assert len(batch.input) == 2 * batch.size
            own, partner = batch.index.split(batch.size)
            seen.update(zip(own.tolist(), partner.tolist(), strict=True))
    assert set(seen.values()) <= set(pool.tolist())
    for batch in collect(MEMORY, partners=pool)[0]:
        own, partner = batch.index.split(batch.size)
        assert all(seen[o] == p for o, p in zip(own.tolist(), partner.tolist(), strict=True))


def test_an_unreadable_image_gives_its_path_even_from_a_worker(files, tmp_path):
    (tmp_path / "3.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"3\.png is not a readable image") as error:
            collect(files, training=False, workers=workers)
        assert "Traceback" not in str(error.value)
    (tmp_path / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png was there"):
        collect(files, training=False)


def test_a_cut_image_gives_its_path(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.jpg is not a readable image"):
        FileImages([path], torch.tensor([0]), Fit((8, 8)))[0]


def test_pixels_of_more_than_8_bits_are_refused(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray((torch.arange(64).reshape(8, 8) * 1000).numpy().astype("uint16")).save(path)
    with pytest.raises(ValueError, match=r"deep\.png is not a readable image: its pixels have more than 8 bits"):
        FileImages([path], torch.tensor([0]), Fit((8, 8)))[0]


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    for name in ("b.PNG", "a.jpeg", "._a.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.rpartition("/")[2] for path in image_files(tmp_path)] == ["a.jpeg", "b.PNG"]


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("far/c.png", "class/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for link, place in (("more", "far"), ("again", "far"), ("round", "class")):
        (tmp_path / "class" / link).symlink_to(tmp_path / place)
    found = [Path(path).relative_to(tmp_path / "class").as_posix() for path in image_files(tmp_path / "class")]
    assert found == ["a.png", "again/c.png"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "private").mkdir()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="private"):
        image_files(tmp_path)
    assert image_files(tmp_path / "nowhere") == []


def test_names_of_another_encoding(tmp_path):
    """As classes they are refused before anything is trained; files of that name are written as the system has them."""
    os.mkdir(os.fsencode(tmp_path) + b"/B\xe4r")
    with pytest.raises(ValueError, match=r"Expected names of folders in utf-8, got b'B\\xe4r'"):
        subfolders(tmp_path)
    write_atomically(tmp_path / "names.csv", "B\udce4r.png")
    assert (tmp_path / "names.csv").read_bytes() == b"B\xe4r.png"
