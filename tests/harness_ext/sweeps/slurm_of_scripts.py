"""A Slurm of small scripts: `sbatch`, `srun`, `squeue` and `scancel` that run the tasks of arrays on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# A cluster of one machine: each task of an array is a process, whose number is kept beside its id.
SBATCH = r"""#!/bin/bash
id=$(($(ls {state}/scripts | wc -l) + 100)); cp "$1" {state}/scripts/$id; echo "Submitted batch job $id"
[ -f {state}/hold ] && echo "$id" >> {state}/held && exit
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$1")
others=$(sed -n 's/^#SBATCH --dependency=afterany://p' "$1" | tr : ' ')
export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_JOB_ID=$id
for task in $(seq 0 ${{last:-0}}); do
  name=$id
  [ -n "$last" ] && name=${{id}}_$task && export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task
  (
    sleep 0.3
    for other in $others; do while kill -0 $(cat {state}/running/$other); do sleep 0.1; done; done
    SLURM_CONF={state}/$name exec bash {state}/scripts/$id
  ) >/dev/null 2>&1 &
  echo $! > {state}/running/$name
done
[ ! -f {state}/late ] || {{ echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1; }}
"""
SRUN = """#!/bin/bash
while [ "$1" != "{python}" ]; do shift; done
exec "$@"
"""
SQUEUE = r"""#!/bin/bash
[ -f {state}/silent ] && exit 1
for id in $(cat {state}/held 2>/dev/null) $(ls {state}/running); do
  [ -f {state}/running/$id ] && ! kill -0 $(cat {state}/running/$id) 2>/dev/null && continue
  echo "$id $(sed -n 's/^#SBATCH --job-name=//p' {state}/scripts/${{id%_*}})"
done
exit 0
"""
SCANCEL = r"""#!/bin/bash
for process in $(grep -lzs "^SLURM_CONF={state}/$1\$" /proc/[0-9]*/environ | cut -d/ -f3); do kill -TERM $process; done
exit 0
"""


def slurm_of_scripts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the commands on the PATH; the folder with the state of the cluster, which has every script by its number.

    A file `hold` in it keeps tasks in the queue, `silent` has `squeue` fail, `late` has `sbatch` give up after all.
    """
    state, commands = folder / "state", folder / "commands"
    for made in (state / "scripts", state / "running", commands):
        made.mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (commands / name).write_text(text.format(state=state, python=sys.executable))
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr("harness_ext.sweeps.engines.slurm_queue.QUEUE_SECONDS", 0.0)
    return state
