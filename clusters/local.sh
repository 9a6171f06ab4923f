#!/usr/bin/env bash
# A Ray head on this machine for `ray job submit`, with token authentication, reachable from this machine only.
#
#   clusters/local.sh [start] [RAY START OPTIONS ...]
#   clusters/local.sh stop
#
# RAY_PORT (6379) and DASHBOARD_PORT (8265) choose the ports; stop takes the same DASHBOARD_PORT. The log and the process id
# are kept in LITTORAL_STATE (~/.cache/littoral).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${RAY_PORT:-6379}
dashboard=${DASHBOARD_PORT:-8265}
home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)} || true
[[ -n $home ]] || { echo "error: HOME is not set; set it to a folder that can be written." >&2; exit 1; }
state=${LITTORAL_STATE:-$home/.cache/littoral}/cluster-$dashboard # process id and log
pid_file=$state/pid
log=$state/ray.log
own_path=$PATH
start_timeout_s=300 # a cold disk takes minutes

fail() {
    echo "error: $*" >&2
    exit 1
}

# Whether the recorded process is alive and really is this cluster (process ids are used again).
running() {
    [[ -f $pid_file ]] && ps -o args= -p "$(cat "$pid_file")" 2>/dev/null | grep -q -- "--dashboard-port $dashboard"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    local ray cpus submit
    ray=$(command -v ray || echo "$root/.venv/bin/ray")
    [[ -x $ray ]] || fail "no ray command on PATH or in .venv; install Littoral first (pip install -e .)."
    running && fail "this cluster runs already (process $(cat "$pid_file")); stop it with: $0 stop"
    for taken in "$port" "$dashboard"; do
        listening "$taken" && fail "port $taken is in use; choose others with RAY_PORT and DASHBOARD_PORT."
    done

    # Jobs run `python` of the environment that Ray itself comes from.
    PATH=$(dirname "$ray"):$PATH
    export PATH
    export RAY_AUTH_MODE=token
    # Ray's way to bind every port of the node to loopback; made for desktops, it works on Linux too.
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
    # `stop` need not wait for anything to move elsewhere: there is one node, and a run goes on from its checkpoint.
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-0}
    export RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-$start_timeout_s}
    # Ray makes it with the rights that the umask leaves.
    (umask 077 && "$ray" get-auth-token --generate >/dev/null 2>&1) || fail "ray could not read or make its token (~/.ray/auth_token)."

    [[ ! -O $home/.ray/auth_token ]] || chmod go-rwx "$home/.ray/auth_token"

    # Logical CPUs: Ray Data must find some beside the training workers, also on two cores.
    cpus=$(cd "$root" && python -c 'from components.core.machine import usable_cpus; print(usable_cpus())') || fail "python of $ray cannot import Littoral."
    ((cpus >= 4)) || cpus=4
    # Ray adds this to the niceness of what starts it, 15 by default: beside other work a run would stand still.
    export RAY_worker_niceness=${RAY_worker_niceness:-0}
    mkdir -p "$state" || fail "cannot write to $state; set LITTORAL_STATE to a folder that can be written."
    # The agent takes any free port: its default one may belong to a run that started its own Ray.
    # --block keeps one parent over all processes of this cluster: `stop` ends these and no other Ray.
    nohup "$ray" start --head --block --disable-usage-stats --num-cpus "$cpus" --port "$port" \
        --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port 0 "$@" >"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    wait_until_ready $!

    echo "Ray runs on this machine only; dashboard: http://127.0.0.1:$dashboard"
    echo "Submit from the repository's root (with RAY_AUTH_MODE=token; --storage must be an absolute path):"
    echo
    submit=$(shown "$ray")
    printf '  RAY_AUTH_MODE=token %s job submit --address http://127.0.0.1:%s --working-dir . -- python pipelines/coast.py --run-id first --storage %q\n' \
        "$submit" "$dashboard" "$home/littoral-runs"
    echo
    echo "Stop it with: $([[ $dashboard == 8265 ]] || echo "DASHBOARD_PORT=$dashboard ")$(printf %q "$0") stop"
}

# A program as it is typed: by name where PATH leads to it, else from the repository's root.
shown() {
    if [[ $(PATH=$own_path command -v "$(basename "$1")") == "$1" ]]; then
        basename "$1"
    else
        printf %q "${1#"$root"/}"
    fi
}

wait_until_ready() {
    local pid=$1 deadline=$((SECONDS + start_timeout_s))
    until grep -qs "Ray runtime started" "$log" && listening "$dashboard"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            rm -f "$pid_file"
            tail -n 5 "$log" >&2
            fail "Ray ended while starting; the whole log is $log"
        fi
        ((SECONDS < deadline)) || fail "Ray did not start within $start_timeout_s s; see $log, then: $0 stop"
        sleep 1
    done
}

stop() {
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

case ${1:-start} in
start)
    shift || true
    start "$@"
    ;;
stop) stop ;;
-h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
-*) start "$@" ;;
*) fail "unknown command '$1'; use start or stop." ;;
esac
