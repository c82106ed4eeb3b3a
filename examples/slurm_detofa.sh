#!/bin/bash
# Algorithm 1 as in the paper, on the GPUs of one machine or of several, under Slurm:
#
#     sbatch examples/slurm_detofa.sh
#     MINI_BATCH=4 sbatch --nodes=2 examples/slurm_detofa.sh                            # 8 GPUs on two machines
#     CONFIG=configs/coco_detofa.json MINI_BATCH=16 sbatch examples/slurm_detofa.sh     # another config
#
# Submit it from the repository, whose .venv was made by "make setup" and "make setup-cuda". Folders of data, weights
# and runs must be the same for all machines.
#
# A job that reaches its time limit is told so five minutes ahead: the run saves what it has and stops with status 130, and
# this script submits itself again. If anything else ends it, the same command resumes from the last checkpoint.
#
#SBATCH --job-name=detofa
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output=detofa-%j.txt
#SBATCH --open-mode=append
set -u

config=${CONFIG:-configs/voc_detofa.json}
output=${OUTPUT:-runs/$(basename "$config" .json)}

# Images of one pass through the network, on one GPU. It is part of the config, so that one process, or another number of
# GPUs, gives the same run: batch normalization sees mini-batches. The paper's batch of 32 is 8 on each of 4 GPUs; on 8 GPUs
# it is 4. Do not change it when a run is resumed.
mini_batch=${MINI_BATCH:-8}

# One process for each GPU, and every process sees all GPUs of its machine (so not --gpus-per-task): it takes the one whose
# number is its own on the machine.
gpus=$(seq -s, 0 $((SLURM_NTASKS_PER_NODE - 1)))

# --kill-on-bad-exit: an error on one rank ends all of them.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --mpi=pmix --kill-on-bad-exit=1 \
    .venv/bin/nnabla_nas -f "$config" -c cudnn -d "$gpus" -o "$output" "hparams.mini_batch=$mini_batch" &
step=$!

# The batch shell hears Slurm's warning, and tells the ranks through srun.
stopping=
trap 'stopping=1; kill -USR1 "$step"' USR1
trap 'kill -TERM "$step"' TERM

# "wait" returns early when a signal was heard, so wait until the step is gone.
while true; do
    wait "$step"
    status=$?
    kill -0 "$step" 2>/dev/null || break
done

# Status 0 is a finished run, and 2 something that the user must mend.
if [ -n "$stopping" ] && [ "$status" -ne 0 ] && [ "$status" -ne 2 ]; then
    echo "stopped ahead of the time limit: going on in another job"
    sbatch ${SLURM_JOB_NUM_NODES:+--nodes="$SLURM_JOB_NUM_NODES"} "$0"
fi
exit "$status"
