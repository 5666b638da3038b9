#!/usr/bin/env bash
#SBATCH --job-name=mlflow
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=1-00:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# The page of an MLflow store:  bash slurm/mlflow_server.sh [STORE]   or   sbatch slurm/mlflow_server.sh [STORE]
# STORE is an SQLite file (default runs/mlflow.db) or the URI of a database. docs/mlflow.md explains the settings:
#   PORT=5000         where it listens
#   AUTH=1            require name and password; other users of this machine can reach 127.0.0.1 too
#   OPEN=1            listen to other machines; always with AUTH
#   MAKE_PASSWORD=1   make password and key, in SECRETS
#   SECRETS=FILE      default: mlflow_server.secrets next to the store
#   ALLOWED_HOSTS=A,B further names of this machine that pages and runs may use
set -euo pipefail

die() {
    printf 'mlflow_server: error: %s\n' "$*" >&2
    exit 2
}
case ${1:-} in -h | --help) sed -n '10,17s/^# //p' "${BASH_SOURCE[0]}" && exit 0 ;; esac
say() { printf 'mlflow_server: %s\n' "$*"; }

# ---- Where things are. Slurm runs a copy of this script, which lies elsewhere.
home=${DMT_DS_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
if [[ ! -f $home/slurm/mlflow_server.sh && -n ${SLURM_JOB_ID:-} ]]; then
    home=$( # asked again where the controller does not answer
        for _ in {1..12}; do scontrol show job "$SLURM_JOB_ID" && break; sleep 5; done |
            sed -n 's|^ *Command=\([^ ]*\)/slurm/.*|\1|p' | tail -n 1
    )
    [[ -n $home ]] || die "can't find the checkout: set DMT_DS_HOME to it"
fi
# shellcheck source=/dev/null
if [[ -f ${DMT_DS_SITE:-$home/slurm/site.sh} ]]; then source "${DMT_DS_SITE:-$home/slurm/site.sh}"; fi
python=${DMT_DS_PYTHON:-$home/.venv/bin/python}
command -v "$python" >/dev/null || python=python3

port=${PORT:-5000}
[[ $port =~ ^[0-9]+$ ]] || die "PORT=$port: must be a number such as 5000"
store=${1:-runs/mlflow.db}
if [[ $store != *://* || $store == sqlite:///* ]]; then
    database=$(realpath -m -- "${store#sqlite:///}")
    folder=$(dirname "$database")
    [[ $database != *[[:cntrl:]]* ]] || die "the store's path contains a line break or the like; choose another one"
    mkdir -p "$folder" || die "$folder: can't be made; name a file in a folder of yours"
    store=sqlite:///$database
    case $(stat -f -c %T "$folder") in
    nfs* | lustre | gpfs | beegfs | ceph* | fuse* | smb* | cifs | afs | panfs | orangefs | pvfs*)
        say "warning: $folder is on a network file system, where SQLite breaks as soon as two machines write to it:" \
            "let runs log to this server (MLFLOW_TRACKING_URI), or keep the store on a local disk"
        ;;
    esac
else
    folder=$PWD
fi
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then die "port $port is taken; set PORT to another one"; fi

# ---- Secrets go to the server by its environment: command lines and logs are for everyone.
secrets=${SECRETS:-$folder/mlflow_server.secrets}

random() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

secret() { sed -n "s/^$1=//p" "$secrets" | tail -n 1; }

make_secrets() {
    [[ ! -e $secrets ]] || return 0
    (
        umask 077
        printf 'MLFLOW_AUTH_ADMIN_PASSWORD=%s\n' "$(random)" >"$secrets"
        printf 'MLFLOW_FLASK_SERVER_SECRET_KEY=%s\n' "$(random)" >>"$secrets"
    )
    say "made a password for user ${MLFLOW_AUTH_ADMIN_USERNAME:-admin}, in $secrets"
}

take_secrets() {
    if [[ ${MAKE_PASSWORD:-0} == 1 ]]; then make_secrets; fi
    if [[ -e $secrets ]]; then
        [[ $(stat -c '%u %a' "$secrets") =~ ^"$EUID "[46]00$ ]] || die "$secrets: others can read it; chmod 600 $secrets"
        : "${MLFLOW_AUTH_ADMIN_PASSWORD:=$(secret MLFLOW_AUTH_ADMIN_PASSWORD)}"
        : "${MLFLOW_FLASK_SERVER_SECRET_KEY:=$(secret MLFLOW_FLASK_SERVER_SECRET_KEY)}"
    fi
    [[ -n ${MLFLOW_AUTH_ADMIN_PASSWORD:-} ]] ||
        die "no password: MAKE_PASSWORD=1 makes one in $secrets, or set MLFLOW_AUTH_ADMIN_PASSWORD"
    ((${#MLFLOW_AUTH_ADMIN_PASSWORD} >= 12)) || die "MLFLOW_AUTH_ADMIN_PASSWORD: must have at least 12 characters"
    # Without a key of its own, who is logged in has to log in again after each restart.
    export MLFLOW_FLASK_SERVER_SECRET_KEY=${MLFLOW_FLASK_SERVER_SECRET_KEY:-$(random)}
    export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_AUTH_ADMIN_USERNAME=${MLFLOW_AUTH_ADMIN_USERNAME:-admin}
}

write_auth_settings() {
    export MLFLOW_AUTH_CONFIG_PATH=$folder/mlflow_auth.ini
    (
        umask 077
        : >>"$folder/mlflow_auth.db" # names and hashes of passwords
        printf '%s\n' '[mlflow]' 'default_permission = READ' "database_uri = sqlite:///${folder//%/%%}/mlflow_auth.db" \
            'authorization_function = mlflow.server.auth:authenticate_request_basic_auth' >"$MLFLOW_AUTH_CONFIG_PATH"
    )
}

options=()
host=127.0.0.1
if [[ ${OPEN:-0} == 1 || ${AUTH:-0} == 1 ]]; then
    "$python" -c 'import flask_wtf' 2>/dev/null || die "passwords need mlflow[auth]: $python -m pip install 'mlflow[auth]'"
    take_secrets
    write_auth_settings
    options+=(--app-name basic-auth)
fi
if [[ ${OPEN:-0} == 1 ]]; then
    host=0.0.0.0
    IFS=', ' read -r -a names <<<"$(hostname),$(hostname -s),$(hostname -f),$(hostname -I)${ALLOWED_HOSTS:-}"
    allowed='localhost:*,127.0.0.1:*' # the near end of a tunnel
    origins=http://localhost:$port
    for name in "${names[@]}"; do
        if [[ -z $name || $name == *:* || $allowed, == *",$name:$port,"* ]]; then continue; fi # IPv6, doubles
        allowed+=,$name:$port
        origins+=,http://$name:$port
    done
    options+=(--allowed-hosts "$allowed" --cors-allowed-origins "$origins")
    say "open to other machines: http://$(hostname):$port; traffic is not encrypted"
fi

shown=$store
if [[ $store != sqlite:///* ]]; then # by standard input, for the command line is for everyone
    shown=$(PYTHONPATH=$home "$python" -c 'from dmt_ds.redact import masked; print(masked(input()))' <<<"$store") ||
        shown="a database: ${store%%:*}"
fi
say "$shown"
say "on your own computer: ssh -N -L $port:127.0.0.1:$port $(id -un)@$(hostname), then http://localhost:$port"
if [[ -n ${SLURM_JOB_ID:-} ]]; then
    say "from outside the cluster, with the name of its login node: ssh -N -J LOGIN -L" \
        "$port:127.0.0.1:$port $(id -un)@$(hostname)"
fi
# MLflow's page opens on its view for language models, unless the address of an experiment names the other one.
experiments() {
    "$python" - "$1" 2>/dev/null <<'END' || true
import pathlib, sqlite3, sys
database = sqlite3.connect(f"{pathlib.Path(sys.argv[1]).as_uri()}?mode=ro", uri=True)
for row in database.execute(
    "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id IN "
    "(SELECT experiment_id FROM runs) ORDER BY experiment_id DESC LIMIT 10"
):
    print(*row, sep="\t")
END
}
if [[ $store == sqlite:///* ]]; then
    while IFS=$'\t' read -r id name; do
        say "runs of $name: http://localhost:$port/#/experiments/$id?workflowType=machine_learning"
    done < <(experiments "$database")
fi
say "where the page shows traces instead of runs: choose 'Model training' at its top left"
export MLFLOW_BACKEND_STORE_URI=$store # may hold a password
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
exec "$python" -m mlflow server --host "$host" --port "$port" --workers 1 \
    --artifacts-destination "$folder/mlartifacts" "${options[@]}"
