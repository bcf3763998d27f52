"""A Dask scheduler on this node and workers in SLURM jobs, for docs/cluster.md. Fill in what your
site asks for.

python docs/slurm.py --workers 64 --queue cpu --folder /shared/sae-probing
"""

from __future__ import annotations

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers", type=int, default=16, help="workers of one thread, 16 to a job"
    )
    parser.add_argument("--queue", help="SLURM partition")
    parser.add_argument("--account", help="SLURM account")
    parser.add_argument("--walltime", default="04:00:00")
    parser.add_argument(
        "--folder",
        default=".",
        help="the checkout, on a disk that all nodes share; its .venv is used",
    )
    args = parser.parse_args()
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(
        cores=16,
        processes=16,  # one thread each
        memory="32GiB",
        queue=args.queue,
        account=args.account,
        walltime=args.walltime,
        python=f"{args.folder}/.venv/bin/python",
        scheduler_options={"port": 8786},
        job_script_prologue=["export OMP_NUM_THREADS=1", f"cd {args.folder}"],
    )
    cluster.scale(n=args.workers)
    print(f"SCHEDULER={cluster.scheduler_address}")
    input("Enter ends the cluster ")


if __name__ == "__main__":
    main()
