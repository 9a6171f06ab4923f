#!/usr/bin/env bash
# Ray on this machine for `ray job submit`, with token authentication, reachable from this machine only.
#
#   clusters/local.sh [start] [RAY START OPTIONS ...]
#   clusters/local.sh [start] --nodes N [--groups GROUP,...] [--cpus N] [--shared DIR] [--plain] [RAY START OPTIONS ...]
#   clusters/local.sh kill N | replace N
#   clusters/local.sh stop
#
#   --nodes N       N separate Ray nodes: a head, which reads data, and N - 1 others with a worker each. Every node has an
#                   address, processes, a home and a temporary folder of its own, and can write nowhere else. They reach
#                   each other and this machine. That needs root and the package iproute2.
#   --groups A,B    the label ray-subcluster of each node, in order (data,train,train,...): data, train or eval
#   --cpus N        logical CPUs of each node but the head (1)
#   --shared DIR    a folder that all nodes see at the same place, and may write to; without it they share nothing
#   --plain         nodes as plain processes, as without root: they share this machine's files, and use loopback
#   kill N          ends node N at once, as a power cut does; node 1 is the head
#   replace N       starts node N again, with an empty home
#
# RAY_PORT (6379) and DASHBOARD_PORT (8265) choose the ports; all commands take the same DASHBOARD_PORT. The log and the
# process id are kept in LITTORAL_STATE (~/.cache/littoral). Of the environment, nodes of --nodes get PATH, locale, and
# what begins with RAY_, AWS_, MLFLOW_, OMP_, DS_, NCCL_, GLOO_ or HF_HUB_.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
port=${RAY_PORT:-6379}
dashboard=${DASHBOARD_PORT:-8265}
as_user=() # what gives up root, where sudo has given it: only namespaces need that
if [[ $(id -u) == 0 && -n ${SUDO_UID:-} && $SUDO_UID != 0 ]]; then
    as_user=(setpriv --reuid "$SUDO_UID" --regid "${SUDO_GID:?}" --init-groups)
    HOME=$(getent passwd "$SUDO_UID" | cut -d: -f6)
fi
home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)} || true
[[ -n $home ]] || { echo "error: HOME is not set; set it to a folder that can be written." >&2; exit 1; }
state=${LITTORAL_STATE:-$home/.cache/littoral}/cluster-$dashboard # process ids and logs
pid_file=$state/pid
log=$state/ray.log
own_path=$PATH
start_timeout_s=300 # a cold disk takes minutes
token=${RAY_AUTH_TOKEN_PATH:-$home/.ray/auth_token}

# shellcheck source=clusters/local_nodes.sh
source "$here/local_nodes.sh"

fail() {
    echo "error: $*" >&2
    exit 1
}

# Whether the recorded process is alive and really is this cluster (process ids are used again).
running() {
    [[ -f $pid_file ]] && ps -ww -o args= -p "$(cat "$pid_file")" 2>/dev/null | grep -q -- "--dashboard-port $dashboard"
}

loopback_ports_free() {
    local taken
    for taken in "$port" "$dashboard"; do
        ! listening 127.0.0.1 "$taken" || fail "port $taken is in use; choose others with RAY_PORT and DASHBOARD_PORT."
    done
}

listening() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# Finds Ray, and makes its token where there is none.
prepare() {
    ray=$(command -v ray || echo "$root/.venv/bin/ray")
    [[ -x $ray ]] || fail "no ray command on PATH or in .venv; install Littoral first (pip install -e .)."
    if running || nodes_running; then
        fail "this cluster runs already (in $state); stop it with: $(again) stop"
    fi
    ray_environment
    # Ray makes it with the rights that the umask leaves.
    (umask 077 && "${as_user[@]}" "$ray" get-auth-token --generate >/dev/null 2>&1) || fail "ray could not read or make its token ($token)."
    [[ ! -f $token ]] || "${as_user[@]}" chmod go-rwx "$token" 2>/dev/null || true # another's is not ours to change

    # Logical CPUs: Ray Data must find some beside the training workers, also on two cores.
    head_cpus=$(cd "$root" && python -c 'from components.core.machine import usable_cpus; print(usable_cpus())') || fail "python of $ray cannot import Littoral."
    ((head_cpus >= 4)) || head_cpus=4
    "${as_user[@]}" mkdir -p "$state" 2>/dev/null || fail "cannot write to $state; set LITTORAL_STATE to a folder that can be written."
}

# Sets what the environment of every node has.
ray_environment() {
    # Jobs run `python` of the environment that Ray itself comes from.
    PATH=$(dirname "$ray"):$PATH
    export PATH
    export RAY_AUTH_MODE=token
    # `stop` need not wait for anything to move elsewhere: a run goes on from its checkpoint.
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-0}
    export RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-$start_timeout_s}
    # `ray job stop` kills a job after 3 s, in which no run can write a checkpoint.
    export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-120}
    # Ray adds this to the niceness of what starts it, 15 by default: beside other work a run would stand still.
    export RAY_worker_niceness=${RAY_worker_niceness:-0}
}

start_one() {
    prepare
    loopback_ports_free
    # Ray's way to bind every port of the node to loopback; made for desktops, it works on Linux too.
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
    # The agent takes any free port: its default one may belong to a run that started its own Ray.
    # --block keeps one parent over all processes of this cluster: `stop` ends these and no other Ray.
    nohup "$ray" start --head --block --disable-usage-stats --num-cpus "$head_cpus" --port "$port" \
        --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port 0 "$@" >"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    wait_until_ready $! "$log" 127.0.0.1

    echo "Ray runs on this machine only; dashboard: http://127.0.0.1:$dashboard"
    echo "Submit from the repository's root (with RAY_AUTH_MODE=token; --storage must be an absolute path):"
    echo
    printf '  RAY_AUTH_MODE=token %s job submit --address http://127.0.0.1:%s --working-dir . --submission-id first -- python pipelines/coast.py --run-id first --storage %q\n' \
        "$(shown "$ray")" "$dashboard" "$home/littoral-runs"
    echo
    echo "Stop it with: $(again) stop"
}

# A program as it is typed: by name where PATH leads to it, else from the repository's root.
shown() {
    if [[ $(PATH=$own_path command -v "$(basename "$1")") == "$1" ]]; then
        basename "$1"
    else
        printf %q "${1#"$root"/}"
    fi
}

# This script as it was called, for another command.
again() { echo "$([[ $dashboard == 8265 ]] || echo "DASHBOARD_PORT=$dashboard ")$(printf %q "$0")"; }

# Waits for process $1 to say in log $2 that Ray runs; with an address $3, for the dashboard there too.
wait_until_ready() {
    local pid=$1 log=$2 address=${3:-} deadline=$((SECONDS + start_timeout_s))
    until grep -qs "Ray runtime started" "$log" && { [[ -z $address ]] || listening "$address" "$dashboard"; }; do
        if ! kill -0 "$pid" 2>/dev/null; then
            rm -f "$pid_file"
            tail -n 5 "$log" >&2
            fail "Ray ended while starting; the whole log is $log"
        fi
        ((SECONDS < deadline)) || fail "Ray did not start within $start_timeout_s s; see $log, then: $(again) stop"
        sleep 1
    done
}

stop() {
    if nodes_running; then
        stop_nodes
        echo "stopped"
        return
    fi
    if ! running; then
        rm -f "$pid_file"
        echo "no cluster started by $0 with DASHBOARD_PORT=$dashboard is running"
        return
    fi
    local pid
    pid=$(cat "$pid_file")
    kill -TERM "$pid"
    for _ in $(seq 120); do
        running || break
        sleep 1
    done
    running && fail "process $pid is still running after 120 s; see $log"
    rm -f "$pid_file"
    echo "stopped"
}

# Reads the options of --nodes; what is left are those of `ray start`.
start() {
    nodes='' groups='' cpus=1 shared='' plain=''
    local rest=()
    while (($#)); do
        case $1 in
        --nodes | --groups | --cpus | --shared)
            (($# > 1)) || fail "$1 needs a value; see $0 --help"
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        --nodes=* | --groups=* | --cpus=* | --shared=*)
            local name=${1%%=*}
            [[ -n ${1#*=} ]] || fail "$name needs a value; see $0 --help"
            printf -v "${name#--}" %s "${1#*=}"
            ;;
        --plain) plain=yes ;;
        *) rest+=("$1") ;;
        esac
        shift
    done
    if [[ -n $nodes ]]; then
        start_nodes "${rest[@]}"
    elif [[ -n $groups$shared$plain || $cpus != 1 ]]; then
        fail "--groups, --cpus, --shared and --plain are for several nodes; give --nodes N too."
    else
        start_one "${rest[@]}"
    fi
}

case ${1:-start} in
start)
    shift || true
    start "$@"
    ;;
stop)
    (($# == 1)) || fail "stop ends the whole cluster and takes nothing behind it; one node is ended by: $(again) kill N"
    stop
    ;;
kill | replace)
    (($# == 2)) || fail "give $1 the number of a node; node 1 is the head."
    "${1}_node" "$2"
    ;;
-h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
-*) start "$@" ;;
*) fail "unknown command '$1'; use start, stop, kill or replace." ;;
esac
