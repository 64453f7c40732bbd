"""Jobs: inversions of any size, written to a folder as shards of Parquet, that can be resumed."""

from pyinv.jobs.reading import merge_jobs, read_job
from pyinv.jobs.running import run_job
from pyinv.jobs.work import JobStopped, JobSummary

__all__ = ["JobStopped", "JobSummary", "merge_jobs", "read_job", "run_job"]
