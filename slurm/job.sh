# Code that all jobs share; the scripts next to it source it with `home` set to the checkout. docs/slurm.md explains it.
#
#   train ARGUMENT...   `dmt-ds $trainer` on all tasks: checked first, asked to save before the time is up, requeued
#   once COMMAND...     any other `dmt-ds` command in one process on the job's first node
#   once_or_requeue COMMAND...   the same; a signal ends it, and the job is requeued to start it again
#   on_encoder WORD...  leaves in `words` what a command on an encoder takes: the WORDs themselves, or, of `--of-run
#                       TRAINING... [-- WORD...]`, `-e` with the folder of the run that these describe, and the WORDs
#
# Exit codes: 0 finished, 2 something the user can fix, 75 saved but not finished and not requeued, others: a crash.
# shellcheck shell=bash
set -euo pipefail

# A task of an array by its own name: the number of the last one is that of the whole array.
this_job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}

say() { printf '%s slurm: %s\n' "$(date +%T)" "$*"; }

# ---- Settings: the environment at sbatch, then slurm/site.sh (see site.sh.example), then these defaults.
srun_options=() # site.sh may add to it
asked=''        # the signal that asked for an end
# shellcheck source=/dev/null
if [[ -f ${DMT_DS_SITE:-$home/slurm/site.sh} ]]; then source "${DMT_DS_SITE:-$home/slurm/site.sh}"; fi

: "${DMT_DS_MAX_RESTARTS:=20}"
: "${DMT_DS_CONTROLLER_SECONDS:=180}" # a backup controller takes over after 120 s as a rule (SlurmctldTimeout)
: "${DMT_DS_CONTROLLER_RETRY_SECONDS:=5}"
: "${DMT_DS_DOCTOR:=1}"
: "${DMT_DS_CPU_BIND=cores}"
: "${DMT_DS_CONTAINER:=}"
: "${DMT_DS_CONTAINER_RUNTIME:=pyxis}"
: "${DMT_DS_MOUNTS:=}"
if [[ -z ${DMT_DS_PYTHON:-} ]]; then
    DMT_DS_PYTHON=python3
    if [[ -z $DMT_DS_CONTAINER && -x $home/.venv/bin/python ]]; then DMT_DS_PYTHON=$home/.venv/bin/python; fi
fi

# ---- Environment of every process.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_SIZE # of a launcher around sbatch: each task has its own
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # images are decoded by loader processes, not by threads
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
export DS_BUILD_OPS=0
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun doesn't take it from sbatch: ranks would share one core each
fi

# ---- The container, where there is one: options of srun (pyxis), or words before python (apptainer).
in_container=()
pyxis_options=()
if [[ -n $DMT_DS_CONTAINER ]]; then
    mounts=$home,$PWD${DMT_DS_MOUNTS:+,$DMT_DS_MOUNTS}
    case $DMT_DS_CONTAINER_RUNTIME in
    pyxis)
        pyxis_options=("--container-image=$DMT_DS_CONTAINER" "--container-workdir=$PWD")
        while read -r -d, mount; do # pyxis wants both sides of each
            if [[ $mount != *:* ]]; then mount=$mount:$mount; fi
            pyxis_mounts=${pyxis_mounts:+$pyxis_mounts,}$mount
        done <<<"$mounts,"
        pyxis_options+=("--container-mounts=$pyxis_mounts")
        ;;
    apptainer) in_container=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$DMT_DS_CONTAINER") ;;
    *)
        say "DMT_DS_CONTAINER_RUNTIME=$DMT_DS_CONTAINER_RUNTIME: must be pyxis or apptainer"
        exit 2
        ;;
    esac
fi

await_controller() { # srun ends at once where it gives no answer; it says so itself if that is still so at the end
    local deadline=$((SECONDS + DMT_DS_CONTROLLER_SECONDS))
    if scontrol ping >/dev/null 2>&1; then return; fi
    say "no answer from Slurm's controller: retrying for $DMT_DS_CONTROLLER_SECONDS s" >&2
    until scontrol ping >/dev/null 2>&1; do
        if [[ -n $asked ]] || ((SECONDS >= deadline)); then return; fi
        sleep "$DMT_DS_CONTROLLER_RETRY_SECONDS"
    done
}

in_one_process() { # leaves in `command` how `dmt-ds ARGUMENT...` is started
    command=("${in_container[@]}" "$DMT_DS_PYTHON" -m dmt_ds "$@")
    if ((${#pyxis_options[@]})); then
        await_controller
        command=(
            srun --nodes=1 --ntasks=1 --ntasks-per-node=1 "${srun_options[@]}" "${pyxis_options[@]}" "${command[@]}"
        )
    fi
}

once() {
    local command
    in_one_process "$@"
    "${command[@]}"
}

# shellcheck disable=SC2034 # the scripts read it
on_encoder() {
    words=("$@")
    if [[ ${1:-} != --of-run ]]; then return; fi
    local of_training=() run
    shift
    while (($#)) && [[ $1 != -- ]]; do of_training+=("$1") && shift; done
    run=$(once config "${of_training[@]}" --get output_dir) || exit
    words=(-e "$run" "${@:2}")
}

# ---- Signals. Slurm sends USR1 to this shell ahead of the time limit. Preemption and scancel send TERM to the ranks
# themselves, some ways of scancel to this shell too. srun passes USR1 on, but kills the ranks on a TERM of its own.
step='' # pid of srun, or of what else is to hear of signals
ends='the ranks save and end'
trap 'on_signal USR1' USR1
trap 'on_signal TERM' TERM

on_signal() {
    asked=$1
    say "got $1: $ends"
    pass_on
}

pass_on() { if [[ -n $step ]]; then kill -USR1 "$step" 2>/dev/null || true; fi; }

is_running() { kill -0 "$step" 2>/dev/null; }

# bash's wait returns at a trapped signal with srun still there. A rank that still imports ignores the signal: repeat it.
wait_for_step() {
    local tries
    while is_running; do
        if [[ -z $asked ]]; then
            wait "$step" || true
        else
            for ((tries = 0; tries < 50; tries++)); do
                is_running || break
                sleep 0.1
            done
            pass_on
        fi
    done
    wait "$step"
}

once_or_requeue() {
    local command code=0 ends="$1 is stopped"
    in_one_process "$@"
    if [[ -z $asked ]]; then
        "${command[@]}" & # saves nothing, so nothing in it catches the signal
        step=$!
        wait_for_step || code=$?
        if [[ -z $asked ]] || ((code == 0)); then return "$code"; fi
    fi
    end_if_slurm_ends_it "$code"
    requeue "$code" "$1 was not finished when the job got $asked"
}

# ---- Training.
trainer=pretrain # or finetune, segment, detect

train() {
    local arguments=("$@") settings code=0
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then arguments=("${arguments[@]//%a/$SLURM_ARRAY_TASK_ID}"); fi
    settings=$(once config "${arguments[@]}" --get output_dir --get train.stop_after_step) || exit
    output_dir=${settings%$'\n'*} stop_after_step=${settings##*$'\n'}
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} && " $*" != *" output_dir="* ]]; then
        output_dir+=-$SLURM_ARRAY_TASK_ID # two tasks of an array never share a folder
        arguments+=("output_dir=$output_dir")
    fi
    ranks=${SLURM_NTASKS:-$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-1}))}
    say "job $this_job, restart ${SLURM_RESTART_COUNT:-0}: $ranks tasks on $SLURM_JOB_NODELIST, into $output_dir"
    if [[ $DMT_DS_DOCTOR == 1 && ${SLURM_RESTART_COUNT:-0} == 0 ]]; then
        once doctor "${arguments[@]}" --ranks "$ranks" || exit # 75 where a disk gave no answer, others: it crashed
    fi
    done_before=$(mark_of_done) checkpoint_before=$(newest_checkpoint)
    await_controller
    if [[ -z $asked ]]; then
        start_ranks "${arguments[@]}"
        wait_for_step || code=$?
    fi
    end_job "$code"
}

start_ranks() {
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))} # below the ephemeral ports, another for each job
    export MASTER_ADDR MASTER_PORT
    # Signals are ignored until Python's handlers stand: a USR1 during the imports would kill the rank.
    srun --kill-on-bad-exit=1 ${DMT_DS_CPU_BIND:+"--cpu-bind=$DMT_DS_CPU_BIND"} "${srun_options[@]}" \
        "${pyxis_options[@]}" bash -c 'trap "" USR1 TERM; exec "$@"' _ \
        "${in_container[@]}" "$DMT_DS_PYTHON" -m dmt_ds "$trainer" "$@" &
    step=$!
    if [[ -n $asked ]]; then pass_on; fi # it came between the check and here
}

mark_of_done() { stat --format='%y %s' "$output_dir/DONE" 2>/dev/null || true; } # a new DONE has another time
newest_checkpoint() { cat "$output_dir/checkpoints/latest" 2>/dev/null || true; }

# Ranks end with 0 when they have finished and when they have saved: the file DONE tells which.
end_job() { # CODE of srun
    local code=$1 done_now
    done_now=$(mark_of_done) # nothing where the disk does not answer: that is no new mark
    if [[ -n $done_now && $done_now != "$done_before" ]] && { ((code == 0)) || [[ -n $asked ]]; }; then
        say "finished: $output_dir"
        exit 0
    fi
    if ((code == 0)) && has_stopped_as_told; then
        say "stopped at train.stop_after_step=$stop_after_step: $output_dir"
        exit 0
    fi
    if ((code == 2)); then
        say "not requeued: fix the error above first"
        exit 2
    fi
    end_if_slurm_ends_it "$code"
    if ((code != 0)); then
        sleep 5 # if a node was lost, Slurm itself requeues the job and ends this shell
        end_if_slurm_ends_it "$code"
    fi
    if ((code != 0)) && [[ -z $asked && $(newest_checkpoint) == "$checkpoint_before" ]]; then
        say "srun ended with code $code, and no checkpoint was written since the start: not requeued"
        exit "$code"
    fi
    requeue "$code" "srun ended with code $code before the run was finished"
}

# By what is saved, not by who asked: a signal may come in the very step where the run stops anyway, and the signal of a
# preemption, long before that step, reaches the ranks alone.
has_stopped_as_told() {
    local newest
    if [[ $stop_after_step == null ]]; then return 1; fi
    newest=$(newest_checkpoint)
    if [[ -z $asked && $newest == "$checkpoint_before" ]]; then return 0; fi # at once: it stood there at the start
    newest=${newest##*[!0-9]} # of step00000120
    ((10#${newest:-0} >= stop_after_step))
}

# Goes on only where the job still runs, as this attempt: one that was cut off must not end the one that came after it.
end_if_slurm_ends_it() { # CODE of srun
    local state restarts
    ask_slurm
    state=$(job_field JobState) restarts=$(job_field Restarts)
    if [[ -z $state ]]; then
        say "no answer from Slurm's controller for $DMT_DS_CONTROLLER_SECONDS s: submit again to resume"
    elif [[ $state != RUNNING ]]; then
        say "the job was cancelled or has reached its time limit ($state)"
    elif ((restarts > ${SLURM_RESTART_COUNT:-0})); then
        say "the job was restarted elsewhere"
    else
        return 0
    fi
    exit "$(($1 ? $1 : 75))" # 0 is for what is finished: jobs that wait for this one would start
}

# A controller that is restarted, fails over or is too busy gives no answer. That says nothing of the job, so it is asked
# again; the wait costs nobody anything, for without a controller no time limit ends a job and no other job starts.
ask_slurm() { # leaves in `job` what Slurm says of it; nothing if it doesn't say it in time
    local deadline=$((SECONDS + DMT_DS_CONTROLLER_SECONDS))
    until job=$(scontrol --oneliner show job "$this_job") && [[ -n $(job_field JobState) ]]; do
        job=''
        if ((SECONDS >= deadline)); then return; fi
        sleep "$DMT_DS_CONTROLLER_RETRY_SECONDS"
    done
}

is_on_its_way() { # back to the queue: the controller took the request, and only its answer was lost
    ask_slurm
    [[ $(job_field JobState) == @(PENDING|REQUEUED|COMPLETING) ]]
}

job_field() { if [[ $job =~ (^| )$1=([^ ]*) ]]; then printf '%s' "${BASH_REMATCH[2]}"; fi; }

requeue() { # CODE WHY
    local where tries
    where="newest checkpoint: $(newest_checkpoint)"
    if ((${SLURM_RESTART_COUNT:-0} >= DMT_DS_MAX_RESTARTS)); then
        say "not finished after $DMT_DS_MAX_RESTARTS restarts (DMT_DS_MAX_RESTARTS): submit again to resume; $where"
        exit 75
    fi
    say "$2: requeued; $where"
    for ((tries = 0; tries < 5; tries++)); do
        if scontrol requeue "$this_job" || is_on_its_way; then
            sleep 300 # Slurm ends this shell; an exit of its own would race with that
            exit 75
        fi
        end_if_slurm_ends_it "$1" # was the controller unreachable? then this waits for it
        if [[ $(job_field Requeue) == 0 ]]; then break; fi
        sleep "$DMT_DS_CONTROLLER_RETRY_SECONDS"
    done
    say "can't requeue (submitted with --no-requeue?): submit again to resume"
    exit 75
}
