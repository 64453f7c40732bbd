"""Jobs: what they write, and that they go on where they were ended."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet

import pyinv
from pyinv import Inverter, JobStopped, OutputError, Status, merge_jobs, read_job, run_job
from pyinv.cli import main
from pyinv.errors import DependencyError, InputError, RunError
from pyinv.images import save_images
from pyinv.jobs.meter import Meter
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam
from support.tiny_bundle import write_tiny_bundle

COUNT, SHARD = 50, 8  # seven shards, the last with two rows
QUICK = Recipe("quick", Stage(Adam(0.05), max_steps=20))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    write_tiny_bundle(path, normal_equations=("mse",))
    return path


@pytest.fixture(scope="module")
def inverter(path: Path) -> Inverter:
    return Inverter(path, threads=1, batch_size=4)


@pytest.fixture(scope="module")
def images(inverter):
    return inverter.generate(inverter.sample(COUNT, seed=3))


@pytest.fixture(scope="module")
def array(images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "images.npy"
    np.save(path, images)
    return path


@pytest.fixture(scope="module")
def undisturbed(inverter, array, tmp_path_factory) -> pa.Table:
    out = tmp_path_factory.mktemp("jobs") / "undisturbed"
    return table_of(run(inverter, array, out))


def run(inverter, source, out, **options) -> Path:
    """Run a job; return its folder."""
    run_job(inverter, source, out, **{"recipe": QUICK, "shard_size": SHARD, **options})
    return out


def table_of(out: Path) -> pa.Table:
    return read_job(out).to_table()


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


def drafts_of(out: Path) -> list[str]:
    """Everything but results, ``job.json`` and locks."""
    kept = ("part-", "job.json", ".lock")
    return sorted(path.name for path in out.iterdir() if not path.name.startswith(kept))


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    ids = found.column("id").to_pylist()
    assert len(ids) == len(set(ids))
    assert found.drop_columns("source").equals(expected.drop_columns("source"))


# Results


def test_the_rows_are_those_of_invert(inverter, images, array, undisturbed):
    found = inverter.invert(images, recipe=QUICK)
    assert undisturbed.column("id").to_pylist() == list(range(COUNT))
    assert undisturbed.column("source")[9].as_py() == f"{array}[9]"
    latents = np.stack(undisturbed.column("latent").to_numpy())
    np.testing.assert_allclose(latents, found.latents, atol=1e-5)
    np.testing.assert_allclose(undisturbed.column("loss").to_numpy(), found.loss, rtol=1e-3)
    np.testing.assert_allclose(undisturbed.column("psnr").to_numpy(), found.psnr, rtol=1e-3)
    names = [Status(code).name.lower() for code in found.status]
    assert undisturbed.column("status").to_pylist() == names
    assert undisturbed.column("steps").to_pylist() == found.steps.tolist()
    assert undisturbed.column("attempts").to_pylist() == found.attempts.tolist()
    assert undisturbed.column("reason").null_count == COUNT


def test_shards_are_the_rows_in_order(inverter, array, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    names = [f"part-{number:05d}.parquet" for number in range(7)]
    assert sorted(files_of(out)) == names
    assert [parquet.read_metadata(out / name).num_rows for name in names] == [SHARD] * 6 + [2]
    compression = parquet.read_metadata(out / names[0]).row_group(0).column(0).compression
    assert compression == "ZSTD"
    assert drafts_of(out) == []
    as_one = dataset.dataset([str(out / name) for name in names], format="parquet").to_table()
    assert as_one.column("id").to_pylist() == list(range(COUNT))


def test_job_json_describes_the_job(inverter, array, tmp_path):
    out = run(inverter, array, tmp_path / "out", seed=5)
    job = json.loads((out / "job.json").read_text())
    settings = job["settings"]
    assert job["format_version"] == 1
    assert settings["bundle"] == inverter.bundle.digest
    assert settings["recipe"] == json.loads(json.dumps(QUICK.describe()))
    assert (settings["seed"], settings["shard_size"]) == (5, SHARD)
    assert settings["source"]["count"] == COUNT
    assert job["made_with"]["sources"] == [str(array)]
    assert job["made_with"]["pyinv"] == pyinv.__version__
    assert job["made_with"]["device"] == "cpu"


def test_the_summary_and_the_events(inverter, array, tmp_path):
    events: list[dict] = []
    summary = run_job(
        inverter,
        array,
        tmp_path / "out",
        recipe=QUICK,
        shard_size=SHARD,
        on_event=events.append,
    )
    assert (summary.targets, summary.resumed) == (COUNT, 0)
    assert sum(summary.counts.values()) == COUNT
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "done"
    assert kinds.count("shard") == 7
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["finished"], last["targets"]) == (COUNT, COUNT)
    assert events[-1]["counts"] == summary.counts


def test_invalid_targets_have_a_row(inverter, images, tmp_path):
    broken = images.copy()
    broken[3, 0, 0, 0] = np.nan
    broken[SHARD] = 7
    np.save(tmp_path / "broken.npy", broken)
    found = table_of(run(inverter, tmp_path / "broken.npy", tmp_path / "out"))
    status = found.column("status").to_pylist()
    assert [row for row, one in enumerate(status) if one == "invalid"] == [3, SHARD]
    assert found.column("latent")[3].as_py() is None
    assert found.column("loss")[3].as_py() is None
    assert "must be finite and in [-1, 1]" in found.column("reason")[SHARD].as_py()
    with pytest.raises(InputError, match=r"broken.npy\[3\].*start the job again"):
        run(inverter, tmp_path / "broken.npy", tmp_path / "raises", on_error="raise")


def test_uncertainty_is_that_of_the_inverter(inverter, images, array, tmp_path):
    found = table_of(run(inverter, array, tmp_path / "out", uncertainty=True, noise=0.1))
    expected = inverter.uncertainty(inverter.invert(images, recipe=QUICK), images, noise=0.1)
    for name in ("condition_number", "identifiable", "noise"):
        np.testing.assert_allclose(
            found.column(name).to_numpy(), getattr(expected, name), rtol=1e-3
        )
    errors = np.stack(found.column("standard_error").to_numpy())
    np.testing.assert_allclose(errors, expected.standard_error, rtol=1e-2, atol=1e-4)


def test_images_are_saved_by_shard(inverter, images, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    save_images(images[:10], tmp_path / "in" / "deep", (-1, 1))
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    run(inverter, tmp_path / "in", out, save_images_to=pictures)
    saved = sorted(str(file.relative_to(pictures)) for file in pictures.rglob("*.png"))
    assert saved == [f"part-0000{row // SHARD}/{row}-{row}.png" for row in range(10)]
    latents = np.stack(table_of(out).column("latent").to_numpy())
    expected = inverter.generate(latents)
    again = pyinv.load_images([pictures / name for name in saved], inverter.manifest)
    np.testing.assert_allclose(again, expected, atol=1 / 255)


def test_images_that_cannot_be_written_end_the_job(inverter, images, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    save_images(images[:10], tmp_path / "in", (-1, 1))
    out, pictures = tmp_path / "out", tmp_path / "pictures"

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyinv.jobs.pictures.save_images", full)
    with pytest.raises(OutputError, match=r"pictures.*No space left on device.*start the job"):
        run(inverter, tmp_path / "in", out, save_images_to=pictures)
    assert files_of(out) == {}
    monkeypatch.undo()
    run(inverter, tmp_path / "in", out, save_images_to=pictures)
    assert sorted(path.name for path in pictures.iterdir()) == ["part-00000", "part-00001"]
    assert len(list(pictures.rglob("*.png"))) == 10


def test_shards_are_read_by_others(inverter, array, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    merged = tmp_path / "merged.parquet"
    assert merge_jobs(out, merged) == COUNT
    with pytest.raises(OutputError, match="exists"):
        merge_jobs(out, merged)
    assert merge_jobs(out, merged, overwrite=True) == COUNT
    assert parquet.read_table(merged).equals(table_of(out))


def test_what_the_bundle_cannot_do_is_refused_before_there_is_a_job(inverter, array, tmp_path):
    with pytest.raises(pyinv.BundleError, match="encoder"):
        run(inverter, array, tmp_path / "out", init="encoder")
    assert not (tmp_path / "out").exists()


def test_pyarrow_is_needed(inverter, array, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match="jobs need pyarrow: pip install"):
        run(inverter, array, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_keeps_the_shards(inverter, array, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    before = files_of(out)
    for name in ("part-00000.parquet", "all.parquet"):
        with pytest.raises(InputError, match="is within the job's folder"):
            merge_jobs(out, out / name)
    assert files_of(out) == before


def test_a_merge_names_a_damaged_shard(inverter, array, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    shard = out / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[4 : len(content) // 4] = bytes(len(content) // 4 - 4)  # not its end, which describes it
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00001.parquet: damaged .*; remove it"):
        merge_jobs(out, tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


# Going on


PROGRAM = """
import os, signal, sys
from pathlib import Path
import pyinv
from pyinv.jobs import shards
from pyinv.recipes import Recipe, Stage
from pyinv.solvers import Adam

bundle, source, out, moment = sys.argv[1:]
inverter = pyinv.Inverter(bundle, threads=1, batch_size=4)
recipe = Recipe("quick", Stage(Adam(0.05), max_steps=20))
written = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_event(event):
    global written
    if event["event"] == "shard":
        written += 1
        if moment == f"after {written}":
            die()
    if event["event"] == moment:
        die()

fsync, replace = os.fsync, os.replace

def dying_fsync(handle):
    if moment == f"fsync {written}":
        die()
    fsync(handle)

def dying_replace(source, target):
    if "part-" in str(target) and moment == f"rename {written}":
        die()
    replace(source, target)
    if "part-" in str(target) and moment == f"renamed {written}":
        die()

os.fsync, os.replace = dying_fsync, dying_replace
pyinv.run_job(inverter, source, out, recipe=recipe, shard_size=8, on_event=on_event)
"""


def run_program(path, array, out, moment) -> int:
    arguments = [sys.executable, "-c", PROGRAM, path, array, out, moment]
    return subprocess.run([str(one) for one in arguments], timeout=120, check=False).returncode


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
@pytest.mark.parametrize(
    "moments",
    [["start", "after 1", "rename 2", "fsync 1", "renamed 0"], ["fsync 0", "rename 0", "after 6"]],
    ids=str,
)
def test_a_job_that_was_killed_goes_on(path, inverter, array, undisturbed, tmp_path, moments):
    out = tmp_path / "out"
    finished: dict[str, bytes] = {}
    for moment in moments:
        assert run_program(path, array, out, moment) == -signal.SIGKILL
        files = files_of(out)
        assert finished.items() <= files.items()
        for name in files:  # nothing torn
            assert parquet.read_table(out / name).num_rows in (SHARD, 2)
        finished = files
    run(inverter, array, out)
    assert finished.items() <= files_of(out).items()
    assert_same(table_of(out), undisturbed)
    assert drafts_of(out) == []


def test_finished_shards_are_not_done_again(inverter, array, tmp_path, monkeypatch):
    out = run(inverter, array, tmp_path / "out")
    before = files_of(out)
    (out / "part-00002.parquet").unlink()
    events: list[dict] = []
    read = []
    original = pyinv.jobs.sources.ArraySource.read

    def reads(self, first, last):
        read.append((first, last))
        return original(self, first, last)

    monkeypatch.setattr("pyinv.jobs.sources.ArraySource.read", reads)
    run(inverter, array, out, on_event=events.append)
    assert events[0]["finished"] == COUNT - SHARD
    assert [event["shard"] for event in events if event["event"] == "shard"] == [2]
    assert all(2 * SHARD <= first < last <= 3 * SHARD for first, last in read)
    assert files_of(out) == before


def test_a_shard_whose_targets_are_all_finished_is_only_written(inverter, array, tmp_path):
    out = tmp_path / "out"
    options = {"recipe": QUICK, "shard_size": SHARD}
    summary = pyinv.run_job(inverter, array, out, **options)
    # As if a signal had come just before it was written.
    whole = out / "part-00000.parquet"
    table = parquet.read_table(whole)
    rows = table.append_column("__row", pa.array(range(SHARD), pa.int64()))
    parquet.write_table(rows, out / ".part-00000.partial.parquet")
    whole.unlink()
    events: list[dict] = []
    again = pyinv.run_job(inverter, array, out, **options, on_event=events.append)
    assert again.counts == summary.counts
    assert [event["shard"] for event in events if event["event"] == "shard"] == [0]
    assert parquet.read_table(whole).equals(table)


def test_a_damaged_shard_is_done_again(inverter, array, undisturbed, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    (out / "part-00001.parquet").write_bytes(b"PAR1 is not all")
    assert_same(table_of(run(inverter, array, out)), undisturbed)


def test_other_settings_are_refused(inverter, array, images, path, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    np.save(tmp_path / "fewer.npy", images[:40])
    write_tiny_bundle(tmp_path / "other.bundle", seed=8)
    steps = replace(QUICK.stages[0], max_steps=21)
    other = Recipe("quick", steps)
    for given, message in [
        ({"seed": 1}, "seed 0, and this run has 1"),
        ({"shard_size": 9}, "shard_size 8, and this run has 9"),
        ({"recipe": other}, r"recipe.stages.0.max_steps 20, and this run has 21"),
        ({"recipe": "adam"}, 'recipe.name "quick", and this run has "adam"'),
        ({"source": tmp_path / "fewer.npy"}, "source.count 50, and this run has 40"),
        ({"fit": "stretch"}, 'fit "crop", and this run has "stretch"'),
        ({"uncertainty": True}, "uncertainty false, and this run has true"),
        ({"inverter": Inverter(tmp_path / "other.bundle")}, 'bundle "sha256:'),
    ]:
        arguments = {"inverter": inverter, "source": array, **given}
        with pytest.raises(InputError, match=message) as error:
            run(out=out, **arguments)
        assert str(out) in str(error.value)
    run(inverter, array, out)


def test_batch_size_and_workers_may_change(inverter, path, array, undisturbed, tmp_path):
    out = run(inverter, array, tmp_path / "out")
    (out / "part-00003.parquet").unlink()
    run(Inverter(path, threads=1, batch_size=7), array, out, workers=1)
    latents = [np.stack(one.column("latent").to_numpy()) for one in (table_of(out), undisturbed)]
    np.testing.assert_allclose(*latents, atol=1e-4)


# Signals and failures


@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_what_is_finished(
    inverter, array, undisturbed, tmp_path, monkeypatch, number
):
    out, count = tmp_path / "out", Meter.count
    before = signal.getsignal(number)

    def stopping_count(meter, result):
        count(meter, result)
        if result.id == 3 * SHARD:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Meter, "count", stopping_count)
    with pytest.raises(JobStopped, match="start the job again") as stopped:
        run(inverter, array, out)
    monkeypatch.undo()
    assert signal.getsignal(number) is before
    stop_ = stopped.value
    assert stop_.signal == number.name
    assert 2 * SHARD <= stop_.finished < stop_.targets == COUNT
    events: list[dict] = []
    run(inverter, array, out, on_event=events.append)
    assert events[0]["finished"] == stop_.finished  # those of unfinished shards too
    assert_same(table_of(out), undisturbed)
    assert drafts_of(out) == []


@pytest.mark.skipif(os.name != "posix", reason="sends this process a signal")
def test_a_signal_ends_the_measuring_of_uncertainty(inverter, array, tmp_path, monkeypatch):
    options = {"uncertainty": True, "noise": 0.1}
    expected = table_of(run(inverter, array, tmp_path / "expected", **options))
    out, measure = tmp_path / "out", Inverter.uncertainty
    calls = []

    def stopped(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, *arguments, **options)

    monkeypatch.setattr(Inverter, "uncertainty", stopped)
    with pytest.raises(JobStopped):
        run(inverter, array, out, **options)
    assert sorted(files_of(out)) == ["part-00000.parquet"]
    run(inverter, array, out, **options)
    assert_same(table_of(out), expected)


@pytest.mark.skipif(os.name != "posix", reason="sends a process a signal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_command_ends_within_a_step(path, array, tmp_path, number, code):
    command = [sys.executable, "-m", "pyinv", "invert", path, array, "-o", f"{tmp_path}/out/"]
    options = ["--json", "--recipe", "adam", "--max-steps", 10**8, "--threads", 1]
    process = subprocess.Popen(
        [str(one) for one in (*command, *options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert json.loads(process.stdout.readline())["event"] == "start"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    stopped = json.loads(out.splitlines()[-1])
    assert (stopped["event"], stopped["signal"]) == ("stopped", number.name)
    assert f"ended by {number.name}: 0 of {COUNT} targets are done; start the job again" in err
    assert "Traceback" not in err


def test_a_full_disk_ends_the_job_in_one_line(inverter, array, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*start the job again"):
        run(inverter, array, out)
    monkeypatch.undo()
    assert drafts_of(out) == []
    run(inverter, array, out)
    assert_same(table_of(out), undisturbed)


def test_a_failing_runtime_keeps_what_is_finished(
    inverter, array, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    take, taken = pyinv.session.StreamRun.take, []

    def failing(self):
        if len(taken) > SHARD:
            raise RunError("the runtime failed")
        found = take(self)
        taken.extend(found["numbers"])
        return found

    monkeypatch.setattr("pyinv.session.StreamRun.take", failing)
    with pytest.raises(RunError, match=r"the runtime failed; .*start the job again"):
        run(inverter, array, out)
    monkeypatch.undo()
    events: list[dict] = []
    run(inverter, array, out, on_event=events.append)
    assert events[0]["finished"] > 0
    assert_same(table_of(out), undisturbed)


def test_a_source_that_vanishes_ends_the_job(inverter, images, tmp_path):
    np.save(tmp_path / "x.npy", images)

    def remove(event):
        if event["event"] == "start":
            (tmp_path / "x.npy").unlink()

    with pytest.raises(InputError, match=r"x.npy: no such file.*start the job again"):
        run(inverter, tmp_path / "x.npy", tmp_path / "out", on_event=remove)


def test_an_error_in_the_callers_function_ends_the_job(inverter, array, tmp_path):
    def fail(event):
        if event["event"] == "progress":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(inverter, array, tmp_path / "out", on_event=fail)


# Parts


def test_two_runs_of_one_folder_exclude_each_other(inverter, array, tmp_path):
    out = tmp_path / "out"
    seen = []

    def again(event):
        if event["event"] == "start":
            for shard in (None, "1/1", "1/2"):
                with pytest.raises(OutputError, match=r"process \d+ on .* is working on this job"):
                    run(inverter, array, out, shard=shard)
            seen.append(event)

    run(inverter, array, out, on_event=again)
    assert len(seen) == 1
    run(inverter, array, out, shard="1/2")


def test_parts_share_a_folder(inverter, array, undisturbed, tmp_path):
    out = tmp_path / "out"

    def rest(event):
        if event["event"] == "start":
            run(inverter, array, out, shard="2/3")
            run(inverter, array, out, shard=(3, 3))
            with pytest.raises(OutputError, match="is working on this job"):
                run(inverter, array, out, shard="1/3")
            with pytest.raises(OutputError, match="is working on this job"):
                run(inverter, array, out)

    run(inverter, array, out, shard="1/3", on_event=rest)
    assert_same(table_of(out), undisturbed)
    assert drafts_of(out) == []


def test_parts_in_folders_of_their_own_are_merged(inverter, array, undisturbed, tmp_path):
    outs = [tmp_path / f"out{number}" for number in (1, 2)]
    for number, out in enumerate(outs, 1):
        run(inverter, array, out, shard=(number, 2))
    assert sorted(files_of(outs[1])) == [f"part-0000{shard}.parquet" for shard in (1, 3, 5)]
    merged = tmp_path / "merged.parquet"
    with pytest.raises(
        InputError,
        match="3 of 7 shards are missing: part-00001, part-00003, part-00005; start the job",
    ):
        merge_jobs(outs[0], merged)
    assert not merged.exists()
    assert merge_jobs(outs, merged) == COUNT
    assert_same(parquet.read_table(merged), undisturbed)
    assert_same(table_of(outs), undisturbed)


def test_parts_of_different_jobs_are_not_merged(inverter, array, tmp_path):
    outs = [run(inverter, array, tmp_path / f"out{seed}", seed=seed) for seed in (0, 1)]
    with pytest.raises(InputError, match=r"seed 0, and .*out1 has 1"):
        merge_jobs(outs, tmp_path / "merged.parquet")
    with pytest.raises(InputError, match=r"no job.json"):
        merge_jobs(tmp_path, tmp_path / "merged.parquet")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", (0, 1), 3, "1/2/3", ""])
def test_bad_parts_are_refused(inverter, array, tmp_path, shard):
    with pytest.raises(InputError, match="shard must be i/n with i from 1 to n"):
        run(inverter, array, tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


# The command


def test_the_command_runs_and_merges(path, array, tmp_path, capsys):
    out, merged = f"{tmp_path}/out/", f"{tmp_path}/all.parquet"
    options = ["--recipe", "adam", "--max-steps", "9", "--shard-size", "20", "--json"]
    command = ["invert", str(path), str(array), "-o", out, *options]
    assert main([*command, "--shard", "1/2"]) == 0
    assert main(["merge", out, "-o", merged]) == 1
    assert "1 of 3 shards are missing: part-00001" in capsys.readouterr().err
    assert main(command) == 0
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "shard", "done"]
    assert events[0]["finished"] == 30
    assert f"wrote {tmp_path}/out/part-*.parquet" in captured.err
    assert main(["merge", out, "-o", merged]) == 0
    assert parquet.read_metadata(merged).num_rows == COUNT
    assert main([*command, "--seed", "1"]) == 1
    assert "seed 0, and this run has 1" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::pyinv.errors.PyinvWarning")
def test_the_command_warns_of_another_value_range(path, images, tmp_path, capsys):
    np.save(tmp_path / "x.npy", (images + 1) / 2)
    out = f"{tmp_path}/out/"
    options = ["--recipe", "adam", "--max-steps", "2", "--json"]
    assert main(["invert", str(path), f"{tmp_path}/x.npy", "-o", out, *options]) == 0
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    warning = next(event for event in events if event["event"] == "warning")
    assert f"pyinv: warning: {warning['message']}" in captured.err


def test_the_command_says_that_targets_are_invalid(path, images, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.where(np.arange(COUNT)[:, None, None, None] == 2, 9, images))
    out = f"{tmp_path}/out/"
    options = ["--recipe", "adam", "--max-steps", "2"]
    assert main(["invert", str(path), f"{tmp_path}/x.npy", "-o", out, *options]) == 3
    assert "1 invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "mask.png"], "--weights: not for jobs"),
        (["--trace-every", "2"], "--trace-every: not for jobs"),
        (["--init", "z.npy"], "--init: jobs take only"),
        (["--shard", "5/4"], "shard must be i/n"),
        (["--image-column", "image"], "image_column: only for tables"),
    ],
    ids=str,
)
def test_the_command_refuses_what_a_job_has_not(path, array, tmp_path, capsys, options, message):
    assert main(["invert", str(path), str(array), "-o", f"{tmp_path}/out/", *options]) == 1
    assert message in capsys.readouterr().err


def test_options_of_jobs_need_a_folder(path, array, tmp_path, capsys):
    command = ["invert", str(path), str(array), "-o", f"{tmp_path}/out.npz"]
    assert main([*command, "--shard", "1/2"]) == 1
    assert "--shard: is for jobs" in capsys.readouterr().err
