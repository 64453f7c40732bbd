"""Ray data sets: rows are those of ``invert``, whatever their images and ids are."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pyinv import Bundle, InputError, Inverter, RuleError, RunError, Status, target_id
from pyinv.errors import BundleError
from pyinv.images import to_uint8
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import LBFGS, Adam
from support.tiny_bundle import write_tiny_bundle

pytest.importorskip("ray.data")

import ray

import pyinv.ray
from pyinv.ray import OUTPUT_COLUMNS, InvertBatches, build_processor

# Ray's own, in this process.
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))
# Ends at very different times.
UNEVEN = Recipe("uneven", Stage(LBFGS(), max_steps=300, loss_tolerance=1e-7), restarts=3)
COUNT = 12


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with two CPUs. Starts when the first test needs it."""
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,  # as Ray counts them
        object_store_memory=150 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def images(inverter):
    return inverter.generate(inverter.sample(COUNT, seed=3))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, format="PNG")
    return file.getvalue()


def batch_of(table, **arguments):
    """What an actor makes of a batch, without Ray."""
    return asyncio.run(InvertBatches(**arguments)(table))


def assert_rows(rows, inversion):
    """Rows, in any order of ids, are those of ``invert``."""
    assert len(rows) == len(inversion)
    assert all(row["reason"] is None for row in rows)
    latents = np.array([row["latent"] for row in rows])
    np.testing.assert_allclose(latents, inversion.latents.reshape(len(rows), -1), atol=1e-4)
    np.testing.assert_allclose([row["loss"] for row in rows], inversion.loss, rtol=1e-3)
    np.testing.assert_allclose([row["psnr"] for row in rows], inversion.psnr, rtol=1e-3)
    assert [row["status"] for row in rows] == [
        Status(code).name.lower() for code in inversion.status
    ]
    for name in ("steps", "attempts", "normal_equations"):
        assert [row[name] for row in rows] == list(getattr(inversion, name))


# On a cluster


def test_a_data_set_gets_the_rows_of_invert_and_keeps_its_columns(
    cluster, bundle_path, inverter, images
):
    dataset = ray.data.from_items(
        [{"id": 7 + i, "image": images[i], "split": f"part {i % 3}"} for i in range(COUNT)],
        override_num_blocks=3,
    )
    processor = build_processor(bundle_path, recipe=UNEVEN, seed=5, batch_size=4, concurrency=2)
    rows = processor(dataset).take_all()
    rows.sort(key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(7, 7 + COUNT))
    assert [row["split"] for row in rows] == [f"part {i % 3}" for i in range(COUNT)]
    assert set(rows[0]) == {"id", "split", *OUTPUT_COLUMNS}
    assert_rows(
        rows, inverter.invert(images, recipe=UNEVEN, seed=5, target_ids=range(7, 7 + COUNT))
    )


def test_files_of_pixels_with_their_paths_as_ids(cluster, bundle_path, inverter, images, tmp_path):
    pixels = to_uint8(images[:4], (-1, 1))
    for number, one in enumerate(pixels):
        (tmp_path / f"{number}.png").write_bytes(png(one))
    (tmp_path / "broken.png").write_bytes(b"no image")
    processor = build_processor(
        bundle_path,
        recipe=QUICK,
        concurrency=(1, 2),
        id_column="name",
        preprocess=lambda row: {"name": row["path"].rpartition("/")[2], "image": row["bytes"]},
        postprocess=lambda row: {**row, "length": len(row["latent"] or [])},
    )
    dataset = ray.data.read_binary_files(str(tmp_path), include_paths=True)
    rows = sorted(processor(dataset).take_all(), key=lambda row: row["name"])
    *rows, broken = rows
    assert [row["length"] for row in rows] == [6] * 4
    ids = [target_id(f"{number}.png") for number in range(4)]
    loaded = pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    assert_rows(rows, inverter.invert(loaded, recipe=QUICK, target_ids=ids))
    assert broken["name"] == "broken.png"
    assert broken["status"] == "invalid"
    assert broken["reason"] == (
        "the image: not a readable image, or truncated; replace or remove it"
    )


@pytest.mark.parametrize(
    ("resources", "expected"),
    [({"num_cpus": 2}, (2, "cpu")), ({"num_cpus": 0.5, "num_gpus": 1}, (1, "cuda"))],
)
def test_an_engine_runs_on_what_ray_gave_its_actor(cluster, resources, expected):
    class Actor:
        def assigned(self):
            return pyinv.ray._assigned()

    actor = ray.remote(**resources)(Actor).remote()
    assert ray.get(actor.assigned.remote()) == expected
    ray.kill(actor)


# Of a batch


@pytest.mark.parametrize("dtype", ["encoded", "structs", "uint8", "float32", "lists", "nested"])
def test_images_in_any_form(dtype, bundle_path, inverter, images):
    pixels = to_uint8(images, (-1, 1))
    targets = images
    if dtype in ("encoded", "structs", "uint8"):
        targets = pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    column = {
        "encoded": [png(one) for one in pixels],
        "structs": pa.array([{"bytes": png(one), "path": None} for one in pixels]),
        "uint8": pixels,
        "float32": images,
        "lists": pa.array([one.reshape(-1) for one in images]),
        "nested": pa.array(images[:, 0].tolist()),
    }[dtype]
    if isinstance(column, pa.Array):
        batch = pa.table({"id": range(COUNT), "image": column})
    else:
        kind = object if dtype == "encoded" else None  # NumPy's own bytes end at a zero
        batch = {"id": np.arange(COUNT), "image": np.array(column, dtype=kind)}
    rows = batch_of(batch, bundle=bundle_path, recipe=QUICK).to_pylist()
    assert_rows(rows, inverter.invert(targets, recipe=QUICK))


def test_the_types_of_columns(bundle_path, images):
    carried = pa.array([None, 3], pa.int16())
    batch = pa.table({"id": ["a", "b"], "image": [b"", b""], "carried": carried})
    table = batch_of(batch, bundle=bundle_path)
    assert table.schema == pa.schema(
        {
            "id": pa.string(),
            "carried": pa.int16(),
            "latent": pa.list_(pa.float32(), 6),
            "loss": pa.float32(),
            "psnr": pa.float32(),
            "status": pa.string(),
            "steps": pa.int64(),
            "attempts": pa.int32(),
            "normal_equations": pa.int64(),
            "reason": pa.string(),
        }
    )
    assert table["carried"].to_pylist() == [None, 3]
    assert batch_of(batch.slice(0, 0), bundle=bundle_path).schema == table.schema


def test_a_row_that_cannot_be_inverted_says_why_and_harms_no_other(bundle_path, inverter, images):
    good = png(to_uint8(images[:1], (-1, 1))[0])
    batch = pa.table(
        {
            "id": pa.array([0, None, 2, -1, 4]),
            "image": [good, good, None, good, b"\x89PNG"],
        }
    )
    rows = batch_of(batch, bundle=bundle_path, recipe=QUICK).to_pylist()
    assert [row["status"] == "invalid" for row in rows] == [False, True, True, True, True]
    assert rows[0]["reason"] is None
    for row, reason in zip(
        rows[1:], ("got None", "no image", "got -1", "not a readable image"), strict=True
    ):
        assert reason in row["reason"]
        assert row["latent"] is None
        assert row["loss"] is None
        assert row["steps"] is None
    alone = batch_of(batch.slice(0, 1), bundle=bundle_path, recipe=QUICK).to_pylist()
    assert rows[0] == alone[0]
    with pytest.raises(InputError, match=r"id 2: no image"):
        batch_of(batch.slice(2, 1), bundle=bundle_path, on_error="raise")


def test_batches_at_once_share_the_lanes_and_get_their_own_rows(bundle_path, inverter, images):
    inverts = InvertBatches(bundle_path, recipe=UNEVEN, lanes=4)

    async def both():
        parts = [
            {"id": np.arange(first, COUNT, 3), "image": images[first::3]} for first in range(3)
        ]
        return await asyncio.gather(*map(inverts, parts))

    rows = [row for table in asyncio.run(both()) for row in table.to_pylist()]
    rows.sort(key=lambda row: row["id"])
    assert_rows(rows, inverter.invert(images, recipe=UNEVEN))


def test_a_run_that_fails_fails_its_batches_and_no_later_one(
    bundle_path, inverter, images, monkeypatch
):
    inverts = InvertBatches(bundle_path, recipe=QUICK)
    batch = {"id": np.arange(COUNT), "image": images}

    def fails(source, **options):
        next(source)
        raise RunError("no memory")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(inverts._inverter, "stream", fails)

        async def both():
            return await asyncio.gather(inverts(batch), inverts(batch), return_exceptions=True)

        for error in asyncio.run(both()):
            assert isinstance(error, RunError)
            assert str(error) == "no memory"
    rows = asyncio.run(inverts(batch)).to_pylist()
    assert_rows(rows, inverter.invert(images, recipe=QUICK))


def test_a_batch_that_is_cancelled_ends_no_other(bundle_path, inverter, images):
    inverts = InvertBatches(bundle_path, recipe=UNEVEN)
    batch = {"id": np.arange(COUNT), "image": images}

    async def one_of_two():
        other = asyncio.ensure_future(inverts(batch))
        await asyncio.sleep(0)
        found = asyncio.ensure_future(inverts(batch))
        await asyncio.sleep(0)
        other.cancel()
        return await found

    rows = asyncio.run(one_of_two()).to_pylist()
    assert_rows(rows, inverter.invert(images, recipe=UNEVEN))


def test_conditions_come_from_their_columns(tmp_path):
    write_tiny_bundle(tmp_path / "b", condition_size=3)
    inverter = Inverter(tmp_path / "b", threads=1)
    (name,) = inverter.manifest.conditions
    conditions = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    images = inverter.generate(inverter.sample(4), conditions=conditions)
    batch = {"id": np.arange(4), "image": images, name: conditions}
    table = batch_of(batch, bundle=tmp_path / "b", recipe=QUICK)
    assert name in table.column_names
    assert_rows(table.to_pylist(), inverter.invert(images, recipe=QUICK, conditions=conditions))
    del batch[name]
    with pytest.raises(InputError, match=f"no column '{name}'"):
        batch_of(batch, bundle=tmp_path / "b")


# What is refused


def test_columns_are_checked_before_anything_runs(cluster, bundle_path):
    processor = build_processor(bundle_path)
    for row, message in (
        ({"image": b""}, "no column 'id' of ids"),
        ({"id": 1, "picture": b""}, "no column 'image' of images; the data set has id, picture"),
        ({"id": 1, "image": b"", "loss": 0.0}, "has a column 'loss' already; rename it"),
    ):
        with pytest.raises(InputError, match=message):
            processor(ray.data.from_items([row]))
    with pytest.raises(InputError, match=r"expected a ray\.data\.Dataset, got list"):
        processor([])


def test_ids_of_a_type_that_seeds_nothing(bundle_path):
    with pytest.raises(InputError, match="must be whole numbers, text or bytes, got double"):
        batch_of(pa.table({"id": [0.5], "image": [b""]}), bundle=bundle_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, InputError, "batch_size must be"),
        ({"concurrency": 0}, InputError, "concurrency must be"),
        ({"concurrency": (3, 2)}, InputError, r"\(least, most\), got \(3, 2\)"),
        ({"concurrency": (1, 2, 3)}, InputError, r"\(least, most\)"),
        ({"num_cpus": 0}, InputError, "num_cpus must be a number above 0"),
        ({"num_gpus": -1}, InputError, "num_gpus must be a number at least 0"),
        ({"preprocess": "x"}, InputError, "preprocess must be a function"),
        ({"recipe": "none"}, RuleError, "none"),
        ({"loss": "none"}, BundleError, "none"),
        ({"seed": -1}, InputError, "seed must be"),
        ({"fit": "none"}, InputError, "fit must be"),
        ({"on_error": "skip"}, InputError, 'on_error must be "result" or "raise"'),
        ({"id_column": ""}, InputError, "id_column must be the name of a column"),
        ({"lanes": 0}, InputError, "batch_size must be"),
        ({"nonsense": 0}, TypeError, "nonsense"),
    ],
)
def test_wrong_arguments_are_refused_when_a_processor_is_built(
    bundle_path, arguments, error, message
):
    with pytest.raises(error, match=message):
        build_processor(bundle_path, **arguments)


def test_a_node_with_another_bundle_is_refused(bundle_path):
    processor = build_processor(bundle_path)
    digest = Bundle.open(bundle_path).digest
    assert processor.options["digest"] == digest
    InvertBatches(bundle_path, digest=digest)
    with pytest.raises(BundleError, match=f"expected a bundle of sha256:0, got {digest}"):
        InvertBatches(bundle_path, digest="sha256:0")


def test_a_bundle_that_is_missing(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        build_processor(tmp_path / "nowhere")
