"""The sources of jobs: what they list, how they read it, and what they refuse."""

from __future__ import annotations

import gzip
import io
import os
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import pyinv
from pyinv import InputError, Inverter, JobStopped, read_job, run_job
from pyinv.bundle import Manifest
from pyinv.images import save_images, to_uint8
from pyinv.jobs.meter import Meter
from pyinv.jobs.opening import open_source
from pyinv.jobs.sources import CHUNK, Source
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam
from support.tiny_bundle import write_tiny_bundle

COUNT = 12
QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=5))


@pytest.fixture(scope="module")
def images(inverter):
    """Images of 256 levels, so that files of any kind hold the same."""
    made = inverter.generate(inverter.sample(COUNT, seed=3))
    return (np.rint((made + 1) * 127.5) / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module")
def pixels(images):
    """The same images, uint8 [N, 8, 8]."""
    return to_uint8(images, (-1, 1))[..., 0]


@pytest.fixture(scope="module")
def pngs(pixels) -> list[bytes]:
    found = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        found.append(file.getvalue())
    return found


def opened(paths, inverter: Inverter, **options) -> Source:
    return open_source(paths, inverter.manifest, fit="crop", **options)


def all_of(source: Source, first=0, last=None) -> tuple[list, list, np.ndarray]:
    """Return the ids, sources and images of a range."""
    last = source.count if last is None else last
    targets = [target for chunk in source.read(first, last) for target in chunk.targets]
    loaded = [target.load() for target in targets]
    return [one.id for one in targets], [one.source for one in targets], np.array(loaded)


def assert_holds(source: Source, images) -> None:
    """Check a source's images, as a whole and in parts."""
    assert source.count == len(images)
    np.testing.assert_allclose(all_of(source)[2], images, atol=1e-6)
    for first, last in ((0, 1), (3, 9), (11, 12), (5, 5)):
        found = all_of(source, first, last)
        assert found[0] == all_of(source)[0][first:last]
        np.testing.assert_allclose(found[2].reshape(-1, 1, 8, 8), images[first:last], atol=1e-6)


# Files


def test_a_folder_is_searched_recursively(inverter, images, tmp_path):
    for number, place in enumerate(["b", "a/deep", "a", ".hidden", "__MACOSX"]):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        save_images(images[number : number + 1], tmp_path / place, (-1, 1), names=["x"])
    (tmp_path / "a" / "notes.md").write_text("")
    save_images(images[5:6], tmp_path, (-1, 1), names=[".x"])
    ids, sources, found = all_of(opened(tmp_path, inverter))
    assert ids == ["a/deep/x.png", "a/x.png", "b/x.png"]
    assert sources == [str(tmp_path / name) for name in ids]
    np.testing.assert_allclose(found, images[[1, 2, 0]], atol=1e-6)


def test_a_list_names_files_relative_to_its_folder(inverter, images, tmp_path):
    (tmp_path / "in").mkdir()
    save_images(images, tmp_path / "in", (-1, 1))
    names = [f"in/{row:02d}.png" for row in (3, 1)] + [str(tmp_path / "in" / "05.png")]
    (tmp_path / "list.txt").write_text("\n".join([*names, "", ""]))
    ids, _, found = all_of(opened(tmp_path / "list.txt", inverter))
    assert ids == names
    np.testing.assert_allclose(found, images[[3, 1, 5]], atol=1e-6)


def test_a_list_may_begin_with_a_byte_order_mark(inverter, images, tmp_path):
    save_images(images, tmp_path, (-1, 1))
    (tmp_path / "list.txt").write_text("00.png\n", encoding="utf-8-sig")
    ids, _, _ = all_of(opened(tmp_path / "list.txt", inverter))
    assert ids == ["00.png"]


def test_ids_of_several_folders_are_relative_to_their_common_one(inverter, images, tmp_path):
    for name in ("2020", "2021"):
        (tmp_path / name).mkdir()
        save_images(images[:1], tmp_path / name, (-1, 1))
    sources = [tmp_path / "2021", tmp_path / "2020" / "0.png"]
    assert all_of(opened(sources, inverter))[0] == ["2021/0.png", "2020/0.png"]


def test_ids_do_not_depend_on_where_the_folder_is(inverter, images, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_images(images, tmp_path / name, (-1, 1))
    one = opened(tmp_path / "one", inverter)
    monkeypatch.chdir(tmp_path)
    two = opened("two/", inverter)
    assert one.describe() == two.describe()
    (tmp_path / "two" / "00.png").rename(tmp_path / "two" / "99.png")
    assert opened("two/", inverter).describe() != one.describe()


def test_an_unreadable_file_is_one_invalid_row(inverter, images, tmp_path):
    (tmp_path / "in").mkdir()
    save_images(images, tmp_path / "in", (-1, 1))
    (tmp_path / "in" / "04.png").write_bytes(b"no image")
    run_job(inverter, tmp_path / "in", tmp_path / "out", recipe=QUICK)
    found = read_job(tmp_path / "out").to_table().to_pylist()
    bad = [row for row in found if row["status"] == "invalid"]
    assert [row["id"] for row in bad] == ["04.png"]
    assert "04.png: not a readable image" in bad[0]["reason"]
    assert len(found) == COUNT


# Arrays


@pytest.mark.parametrize("kind", ["floats", "uint8", "channels_last", "fortran"])
def test_rows_of_an_array(inverter, images, pixels, tmp_path, kind):
    arrays = {
        "floats": images,
        "uint8": pixels,
        "channels_last": pixels[..., None],
        "fortran": np.asfortranarray(images),
    }
    np.save(tmp_path / "x.npy", arrays[kind])
    source = opened(tmp_path / "x.npy", inverter)
    assert_holds(source, images)
    ids, sources, _ = all_of(source)
    assert ids == list(range(COUNT))
    assert sources[7] == f"{tmp_path}/x.npy[7]"


def test_rows_of_several_arrays_are_numbered_on(inverter, images, tmp_path):
    np.save(tmp_path / "a.npy", images[:5])
    np.save(tmp_path / "b.npy", images[5:])
    source = opened([tmp_path / "a.npy", tmp_path / "b.npy"], inverter)
    assert_holds(source, images)
    assert all_of(source)[0] == list(range(COUNT))
    assert all_of(source)[1][5] == f"{tmp_path}/b.npy[0]"


def test_more_rows_than_are_read_at_a_time(inverter, images, tmp_path):
    many = np.resize(images, (2 * CHUNK + 3, 1, 8, 8))
    np.save(tmp_path / "x.npy", many)
    source = opened(tmp_path / "x.npy", inverter)
    np.testing.assert_array_equal(all_of(source)[2], many)
    np.testing.assert_array_equal(all_of(source, CHUNK - 1, CHUNK + 2)[2], many[255:258])


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_idx_files(inverter, images, pixels, tmp_path, packed):
    data = struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(data) if packed else data)
    source = opened(path, inverter)
    assert_holds(source, images)
    path.write_bytes(gzip.compress(data[:-9]) if packed else data[:-9])
    with pytest.raises(InputError, match="truncated"):
        all_of(source)


# Tables


def column_of(kind, images, pixels, pngs, folder: Path) -> pa.Array:
    """Return the images as a column."""
    if kind == "bytes":
        return pa.array(pngs, pa.binary())
    if kind == "large_bytes":
        return pa.array(pngs, pa.large_binary())
    if kind == "structs":
        for row in (1, 2):
            (folder / f"{row}.png").write_bytes(pngs[row])
        values = [
            {"bytes": None, "path": f"{row}.png"} if row in (1, 2) else {"bytes": png, "path": None}
            for row, png in enumerate(pngs)
        ]
        return pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    if kind == "flat":
        return pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 64)
    if kind == "flat_lists":
        return pa.array(images.reshape(COUNT, 64).tolist(), pa.list_(pa.float64()))
    if kind == "fixed_uint8":
        rows = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 8)
        return pa.FixedSizeListArray.from_arrays(rows, 8)
    if kind == "lists_uint8":
        return pa.array(pixels.tolist(), pa.list_(pa.list_(pa.uint8())))
    tensor = pa.fixed_shape_tensor(pa.float32(), [1, 8, 8])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 64)
    return pa.ExtensionArray.from_storage(tensor, storage)


KINDS = (
    "bytes",
    "large_bytes",
    "structs",
    "flat",
    "flat_lists",
    "fixed_uint8",
    "lists_uint8",
    "tensors",
)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_images(inverter, images, pixels, pngs, tmp_path, kind):
    column = column_of(kind, images, pixels, pngs, tmp_path)
    table = pa.table({"image": column, "other": range(COUNT)})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=5)
    assert_holds(opened(tmp_path / "x.parquet", inverter), images)


@pytest.mark.parametrize("suffix", ["parquet", "one_group", "arrow", "feather", "stream"])
def test_kinds_of_tables(inverter, images, pngs, tmp_path, suffix):
    table = pa.table({"image": pngs, "id": [f"t{row}" for row in range(COUNT)]})
    path = tmp_path / "x.parquet"
    if suffix == "one_group":
        parquet.write_table(table, path)
    elif suffix == "parquet":
        parquet.write_table(table, path, row_group_size=5)
    else:
        path = tmp_path / ("x.arrow" if suffix == "stream" else f"x.{suffix}")
        new = pa.ipc.new_stream if suffix == "stream" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    source = opened(path, inverter)
    assert_holds(source, images)
    assert all_of(source)[0] == [f"t{row}" for row in range(COUNT)]


def test_a_folder_of_tables_is_one_source(inverter, images, pngs, tmp_path):
    for number, rows in enumerate((slice(0, 4), slice(4, 5), slice(5, COUNT))):
        parquet.write_table(pa.table({"image": pngs[rows]}), tmp_path / f"{number}.parquet")
    source = opened(tmp_path, inverter)
    assert_holds(source, images)
    assert all_of(source)[0] == list(range(COUNT))
    assert all_of(source)[1][4] == f"{tmp_path}/1.parquet[0]"


def test_columns_are_carried_through(inverter, pngs, tmp_path):
    labels = [None if row == 3 else f"label {row}" for row in range(COUNT)]
    nested = [{"a": [row, row + 1]} for row in range(COUNT)]
    table = pa.table(
        {"label": labels, "image": pngs, "nested": nested, "id": range(100, 100 + COUNT)}
    )
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=5)
    run_job(inverter, tmp_path / "x.parquet", tmp_path / "out", recipe=QUICK, shard_size=5)
    found = read_job(tmp_path / "out").to_table()
    assert found.column("id").to_pylist() == list(range(100, 100 + COUNT))
    assert found.column("label").to_pylist() == labels
    assert found.column("nested").to_pylist() == nested
    assert "image" not in found.column_names
    chosen = tmp_path / "chosen"
    run_job(inverter, tmp_path / "x.parquet", chosen, recipe=QUICK, columns=["label"])
    assert "nested" not in read_job(chosen).schema.names


@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
def test_columns_are_carried_through_a_resumed_job(inverter, pngs, tmp_path, monkeypatch):
    many = 10 * COUNT
    table = pa.table(
        {"image": pngs * 10, "label": [f"label {row}" for row in range(many)], "id": range(many)}
    )
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    options = {"recipe": QUICK, "shard_size": 50}
    run_job(inverter, tmp_path / "x.parquet", tmp_path / "alone", **options)
    out, count = tmp_path / "out", Meter.count

    def stopping_count(meter, result):
        count(meter, result)
        if result.id == 70:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Meter, "count", stopping_count)
    small = Inverter(inverter.bundle, threads=1, batch_size=2)
    with pytest.raises(JobStopped) as stopped:
        run_job(small, tmp_path / "x.parquet", out, **options)
    monkeypatch.undo()
    assert 50 < stopped.value.finished < many
    run_job(small, tmp_path / "x.parquet", out, **options)
    found, expected = (read_job(folder).to_table() for folder in (out, tmp_path / "alone"))
    for name in ("id", "source", "label", "status"):
        assert found.column(name).equals(expected.column(name))
    latents = [np.stack(one.column("latent").to_numpy()) for one in (found, expected)]
    np.testing.assert_allclose(*latents, atol=1e-5)


def test_draws_depend_on_ids(inverter, pngs, tmp_path):
    """A job of the same targets in another order gives them the same latents."""
    order = np.random.default_rng(0).permutation(COUNT)
    ids = [f"t{row}" for row in range(COUNT)]
    recipe = Recipe("quick", QUICK.stages, restarts=1)
    found = []
    for name, rows in (("a", np.arange(COUNT)), ("b", order)):
        table = pa.table({"image": pngs, "id": ids}).take(pa.array(rows))
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        run_job(inverter, tmp_path / f"{name}.parquet", tmp_path / name, recipe=recipe)
        rows_ = read_job(tmp_path / name).to_table().sort_by("id")
        found.append(np.stack(rows_.column("latent").to_numpy()))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_conditions_from_a_column_or_for_all(tmp_path):
    generator = write_tiny_bundle(tmp_path / "b", condition_size=1)
    inverter = Inverter(tmp_path / "b", threads=1)
    given = np.linspace(-1, 1, COUNT, dtype=np.float32)[:, None]
    made = generator(inverter.sample(COUNT), given).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), 64)
    parquet.write_table(pa.table({"image": column, "c": given[:, 0]}), tmp_path / "x.parquet")
    for name, condition, values in (("a", "c", given), ("b", 0.5, np.full_like(given, 0.5))):
        conditions = {"condition": condition}
        out = tmp_path / name
        run_job(inverter, tmp_path / "x.parquet", out, recipe=QUICK, conditions=conditions)
        found = np.stack(read_job(out).to_table().column("latent").to_numpy())
        expected = inverter.invert(made, recipe=QUICK, conditions={"condition": values})
        np.testing.assert_allclose(found, expected.latents, atol=1e-4)
    with pytest.raises(InputError, match="needs conditions"):
        run_job(inverter, tmp_path / "x.parquet", tmp_path / "c")
    with pytest.raises(InputError, match="no column 'd'"):
        run_job(inverter, tmp_path / "x.parquet", tmp_path / "c", conditions={"condition": "d"})


def test_a_row_with_a_bad_condition_is_invalid(tmp_path):
    generator = write_tiny_bundle(tmp_path / "b", condition_size=1)
    inverter = Inverter(tmp_path / "b", threads=1)
    given = np.linspace(-1, 1, COUNT, dtype=np.float32)[:, None]
    made = generator(inverter.sample(COUNT), given).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(made.reshape(-1)), 64)
    values = [None if row in (0, 5) else float(one) for row, one in enumerate(given[:, 0])]
    parquet.write_table(pa.table({"image": column, "c": values}), tmp_path / "x.parquet")
    out = tmp_path / "out"
    conditions = {"condition": "c"}
    run_job(inverter, tmp_path / "x.parquet", out, recipe=QUICK, conditions=conditions)
    found = read_job(out).to_table().to_pylist()
    assert [row["id"] for row in found if row["status"] == "invalid"] == [0, 5]
    assert "condition" in found[5]["reason"]
    assert found[5]["c"] is None


def test_an_error_that_no_decoder_should_raise_is_one_invalid_row(
    inverter, images, tmp_path, monkeypatch
):
    np.save(tmp_path / "x.npy", images)
    load_row = pyinv.jobs.sources.load_row

    def load(values, name, **how):
        if name.endswith("[7]"):
            raise ZeroDivisionError("by a decoder")
        return load_row(values, name, **how)

    monkeypatch.setattr("pyinv.jobs.sources.load_row", load)
    run_job(inverter, tmp_path / "x.npy", tmp_path / "out", recipe=QUICK)
    found = read_job(tmp_path / "out").to_table().to_pylist()
    reasons = {row["id"]: row["reason"] for row in found if row["status"] == "invalid"}
    assert reasons == {7: "ZeroDivisionError: by a decoder"}


def test_a_row_without_an_image_is_invalid(inverter, pngs, tmp_path):
    values = [None if row == 2 else png for row, png in enumerate(pngs)]
    parquet.write_table(pa.table({"image": values}), tmp_path / "x.parquet")
    run_job(inverter, tmp_path / "x.parquet", tmp_path / "out", recipe=QUICK)
    row = read_job(tmp_path / "out").to_table().to_pylist()[2]
    assert row["status"] == "invalid"
    assert row["reason"] == f"{tmp_path}/x.parquet[2]: no image in this row"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": "png", "id": "twice"}, {}, "ids must be unique, and 'id' has 't0' 2 times"),
        ({"image": "png", "id": "missing"}, {}, "'id' has empty rows"),
        ({"image": "png", "id": "float"}, {}, "ids must be texts or whole numbers"),
        ({"image": "png", "id": "negative"}, {}, "an id must be text, bytes or a whole number"),
        ({"image": "png", "key": "number"}, {"id_column": "id"}, "no column 'id'; it has image"),
        ({"image": "number"}, {}, "must hold encoded images"),
        ({"a": "png", "b": "png"}, {}, "which column holds the images"),
        ({"a": "png"}, {"image_column": "b"}, "no column 'b'; it has a"),
        ({"a": "png"}, {"columns": ["c"]}, "no column 'c'"),
        ({"image": "png", "loss": "number"}, {}, "'loss' is also a column of the results"),
    ],
    ids=str,
)
def test_bad_tables(inverter, pngs, tmp_path, columns, options, message):
    values = {
        "png": pngs,
        "number": list(range(COUNT)),
        "twice": ["t0", "t0", *(f"t{row}" for row in range(2, COUNT))],
        "missing": [None, *range(1, COUNT)],
        "float": [0.5] * COUNT,
        "negative": list(range(-1, COUNT - 1)),
    }
    table = pa.table({name: values[kind] for name, kind in columns.items()})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        run_job(inverter, tmp_path / "x.parquet", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_columns_of_one_name_are_refused(inverter, pngs, tmp_path):
    table = pa.Table.from_arrays([pa.array(pngs), pa.array(range(COUNT))] * 2, ["x", "y"] * 2)
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="two columns have one name; it has x, y, x, y"):
        opened(tmp_path / "x.parquet", inverter)


# Refusals


def test_bad_sources(inverter, images, pngs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_bytes(pngs[0])
    parquet.write_table(pa.table({"image": pngs}), tmp_path / "mixed" / "x.parquet")
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "wrong.npy", np.zeros((3, 4, 5, 6), np.float32))
    np.savez(tmp_path / "x.npz", images)
    (tmp_path / "twice.txt").write_text("a.png\nb.png\na.png")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "file.parquet").write_bytes(b"none")
    (tmp_path / "file.xyz").write_bytes(b"none")
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    for names, message in [
        ([], "no sources given"),
        (["missing"], "missing: no such file or folder"),
        (["empty"], "empty: no targets in this folder"),
        (["mixed"], "mixed: holds images and tables"),
        (["x.npy", "mixed/a.png"], "the sources are files and arrays; run a job for each"),
        (["x.npz"], "a .npz file cannot be read in parts"),
        (["wrong.npy"], "wrong.npy: expected"),
        (["twice.txt"], "a.png: is named twice"),
        (["empty.txt"], "no paths in this list"),
        (["file.parquet"], "not a readable .parquet file"),
        (["none.parquet"], "none.parquet: no targets in it"),
        (["file.xyz"], "not a source of a job"),
    ]:
        with pytest.raises(InputError, match=message):
            opened([tmp_path / name for name in names], inverter)


def test_results_within_the_source_are_refused(inverter, images, tmp_path):
    save_images(images, tmp_path, (-1, 1))
    before = sorted(tmp_path.iterdir())
    for out in (tmp_path, tmp_path / "out"):
        with pytest.raises(InputError, match="is within the source"):
            run_job(inverter, tmp_path, out, recipe=QUICK)
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-out")
    with pytest.raises(InputError, match="pictures: is within the source"):
        run_job(inverter, tmp_path, elsewhere, recipe=QUICK, save_images_to=tmp_path / "pictures")
    assert sorted(tmp_path.iterdir()) == before
    assert not elsewhere.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_refused(inverter, images, tmp_path):
    save_images(images, tmp_path, (-1, 1))
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(InputError, match=r"'.udcff.png': this name is not UTF-8; rename it"):
        opened(tmp_path, inverter)


def test_targets_of_other_shapes(tmp_path):
    write_tiny_bundle(tmp_path / "b", image_shape=(64,))
    inverter = Inverter(tmp_path / "b", threads=1)
    assert isinstance(inverter.manifest, Manifest)
    made = inverter.generate(inverter.sample(COUNT))
    np.save(tmp_path / "x.npy", made)
    source = open_source(tmp_path / "x.npy", inverter.manifest, fit="crop")
    np.testing.assert_array_equal(all_of(source)[2], made)
    column = pa.array(made.tolist(), pa.list_(pa.float32()))
    parquet.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet", inverter.manifest, fit="crop")
    np.testing.assert_array_equal(all_of(source)[2], made)
