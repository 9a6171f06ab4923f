# shellcheck shell=bash disable=SC2154  # what local.sh has set
# Several Ray nodes on one machine, for local.sh, which reads this file.
#
# A node is a process with everything below it. Where that is allowed, it is process 1 of namespaces of its own: for
# processes, so that all of a node ends with it; for the network, with a cable to a bridge that leads nowhere else; for
# mounts, in which all but the node's folder, /dev/shm and --shared is read-only; and for the host's name, which locks
# name their holder by. The nodes' folders are below /tmp: paths of Ray's sockets must be short.

bridge=littoral$dashboard
passed='PATH LANG LANGUAGE LC_ALL TZ LD_LIBRARY_PATH'
passed_prefixes='^(RAY_|AWS_|MLFLOW_|OMP_|DS_|NCCL_|GLOO_|HF_HUB_)'
not_passed='^RAY_(ADDRESS|AUTH_TOKEN_PATH|PORT|TMPDIR)$' # of this machine
stop_timeout_s=30

# Set by start_nodes, and read again from the file that it writes: what `kill`, `replace` and `stop` must know.
nodes_file=$state/nodes
work='' nodes='' groups='' cpus='' shared='' subnet='' head_cpus='' options=()

nodes_running() { [[ -f $nodes_file ]]; }

# Starts all nodes; the arguments go to every `ray start`.
start_nodes() {
    options=("$@")
    [[ " ${options[*]} " == *" --num-gpus"* ]] || options+=(--num-gpus 0) # each node would count all of them as its own
    check_nodes
    prepare
    if [[ -z $plain ]] && may_isolate; then
        subnet=$(free_subnet)
    else
        loopback_ports_free
    fi
    work=$(mktemp -d /tmp/littoral-XXXXXX)
    chmod 711 "$work" # what is in there has its own rights
    # Before anything is started, so that `stop` finds all of it.
    declare -p work nodes groups cpus shared subnet head_cpus options ray port | sed 's/^declare /declare -g /' >"$nodes_file"
    trap stop_nodes EXIT # a start that fails leaves nothing
    if [[ -n $subnet ]]; then
        ip link add "$bridge" type bridge
        ip address add "$subnet.1/24" dev "$bridge"
        ip link set "$bridge" up
        cat /etc/hosts >"$work/hosts"
    fi
    local number
    for number in $(seq "$nodes"); do
        [[ -z $subnet ]] || echo "$(address_of "$number") littoral-$number" >>"$work/hosts"
    done
    start_node 1
    wait_for_node 1 # the others ask the head
    for number in $(seq 2 "$nodes"); do
        start_node "$number"
    done
    for number in $(seq 2 "$nodes"); do
        wait_for_node "$number"
    done
    trap - EXIT
    show_nodes
}

check_nodes() {
    [[ $nodes =~ ^[1-9][0-9]?$ && $nodes -ge 2 ]] || fail "--nodes is '$nodes'; give a number from 2 to 99."
    [[ $cpus =~ ^[1-9][0-9]{0,3}$ ]] || fail "--cpus is '$cpus'; give the logical CPUs of a node, at least 1."
    [[ -n $groups ]] || groups=data$(printf ',train%.0s' $(seq 2 "$nodes"))
    local known='(data|train|eval)'
    [[ $groups =~ ^$known(,$known)*$ ]] || fail "--groups is '$groups'; give data, train or eval for each node, with commas between."
    [[ $(tr ',' '\n' <<<"$groups" | wc -l) == "$nodes" ]] || fail "--groups is '$groups', which is not one for each of $nodes nodes."
    [[ -n $shared ]] || return 0
    "${as_user[@]}" mkdir -p "$shared" 2>/dev/null || fail "--shared is '$shared', which is no folder and cannot be made one."
    shared=$(cd "$shared" && pwd -P)
}

# Whether this process may make what a node of its own needs.
may_isolate() {
    local probe=lt$$
    [[ $(id -u) == 0 ]] && command -v ip >/dev/null &&
        unshare --net --mount --uts --pid --fork mount -t tmpfs none /dev/shm 2>/dev/null &&
        ip link add "$probe" type bridge 2>/dev/null && ip link delete "$probe"
}

# The first of 10.213.0 .. 10.213.255 that no network of this machine has.
free_subnet() {
    local third taken
    taken=$(ip -4 -o address show; ip -4 route show)
    for third in $(seq 0 255); do
        if ! grep -qF "10.213.$third." <<<"$taken"; then
            echo "10.213.$third"
            return
        fi
    done
    fail "all networks of 10.213.0.0/16 are in use; stop other clusters of $0."
}

address_of() { if [[ -n $subnet ]]; then echo "$subnet.$(($1 + 1))"; else echo 127.0.0.1; fi; }

cpus_of() { if (($1 == 1)); then echo "$head_cpus"; else echo "$cpus"; fi; }

group_of() { cut -d, -f"$1" <<<"$groups"; }

# Starts node $1, with an empty folder.
start_node() {
    local number=$1 folder=$work/$1 address command environment
    address=$(address_of "$number")
    rm -rf "$folder"
    mkdir -p "$folder"/{home/.ray,tmp,ray}
    [[ ! -f $token ]] || install -m 600 "$token" "$folder/home/.ray/auth_token"
    ((${#as_user[@]} == 0)) || chown -R "$SUDO_UID:$SUDO_GID" "$folder"
    command=("$ray" start --block --disable-usage-stats --node-ip-address "$address" --temp-dir "$folder/ray")
    command+=(--labels "ray-subcluster=$(group_of "$number")" --num-cpus "$(cpus_of "$number")")
    if ((number == 1)); then
        command+=(--head --port "$port" --dashboard-host "$address" --dashboard-port "$dashboard")
    else
        command+=(--address "$(address_of 1):$port")
    fi
    if [[ -n $subnet ]]; then
        plug_in "$number" "$address"
        command=(ip netns exec "$bridge-$number" unshare --mount --uts --pid --fork --kill-child --mount-proc
            bash "$here/local_node.sh" "$folder" "littoral-$number" "$work/hosts" "$shared" "${as_user[@]}" "${command[@]}")
    else
        # All are on loopback and take free ports. Ray refuses a second node there, unless it is told otherwise.
        command+=(--dashboard-agent-listen-port 0 --min-worker-port 0 --max-worker-port 0)
        command=("${as_user[@]}" "$(dirname "$ray")/python" -c "$second_node" "${command[@]:1}")
    fi
    set_environment "$folder"
    setsid env -i -C "$folder/home" "${environment[@]}" "${command[@]}" "${options[@]}" >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
}

second_node='
from types import SimpleNamespace
from ray.scripts import scripts

# For the command alone, which refuses: what it calls, and starts, goes on to bind loopback.
scripts.ray_constants = SimpleNamespace(**{**vars(scripts.ray_constants), "ENABLE_RAY_CLUSTER": True})
scripts.main()
'

# A network for node $1 with address $2: a cable from it to the bridge.
plug_in() {
    local name=$bridge-$1 cable
    cable=lt$dashboard-$1
    unplug "$1"
    ip netns add "$name"
    # The same hardware address for the same node, so that a node which replaces one is known at once.
    ip link add "$cable" type veth peer name eth0 address "$(printf '02:00:0a:d5:%02x:%02x' "${subnet##*.}" $(($1 + 1)))" netns "$name"
    ip link set "$cable" master "$bridge" up
    ip -n "$name" address add "$2/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
}

unplug() {
    ip netns delete "$bridge-$1" 2>/dev/null || true
    ip link delete "lt$dashboard-$1" 2>/dev/null || true
}

# Sets `environment` to that of the node in folder $1.
set_environment() {
    local name
    environment=("HOME=$1/home" "TMPDIR=$1/tmp")
    for name in $passed $(compgen -e | grep -E "$passed_prefixes" | grep -vE "$not_passed"); do
        [[ -z ${!name+x} ]] || environment+=("$name=${!name}")
    done
    [[ -z $shared ]] || environment+=("LITTORAL_CACHE=$shared/cache" "HF_HOME=$shared/huggingface")
    # Ray's way to bind every port of a node to loopback; made for desktops, it works on Linux too.
    [[ -n $subnet ]] || environment+=("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0")
}

wait_for_node() {
    local head=''
    (($1 > 1)) || head=$(address_of 1)
    if [[ -n $subnet && -z $head ]]; then
        ip netns exec "$bridge-$1" timeout 10 bash -c "exec 3<>/dev/tcp/$(address_of 1)/$port" 2>/dev/null ||
            fail "node $1 cannot reach the head: a firewall of this machine stops what crosses a bridge (see the setting net.bridge.bridge-nf-call-iptables); allow it, or give --plain."
    fi
    wait_until_ready "$(cat "$work/$1/pid")" "$work/$1/log" "$head"
}

show_nodes() {
    local number workers
    workers=$(($(tr ',' '\n' <<<"$groups" | tail -n +2 | grep -c train || true) * cpus))
    if [[ -n $subnet ]]; then
        echo "$nodes Ray nodes run on this machine, each with its own address, processes, home and temporary folder:"
    elif [[ -n $plain ]]; then
        echo "$nodes Ray nodes run on this machine, as plain processes on loopback that share its files:"
    else
        echo "$nodes Ray nodes run on this machine, as plain processes on loopback that share its files, because namespaces need root and iproute2:"
    fi
    for number in $(seq "$nodes"); do
        printf '  %s  %-5s  %-12s  logical CPUs: %s\n' "$number" "$(group_of "$number")" "$(address_of "$number")" "$(cpus_of "$number")"
    done
    echo "Dashboard: http://$(address_of 1):$dashboard"
    local storage=$home/littoral-runs
    if [[ -n $shared ]]; then
        storage=$shared/runs
    elif [[ -n $subnet ]]; then
        storage=s3://BUCKET/runs
        echo "They share no folder: storage and data must be at URIs that all of them reach. --shared DIR would give them one."
    fi
    echo "Submit from the repository's root:"
    echo
    printf '  %s clusters/submit.py --address http://%s:%s first pocket --storage %q' \
        "$(shown "$(dirname "$ray")/python")" "$(address_of 1)" "$dashboard" "$storage"
    printf ' --cluster.num-workers %s' "$((workers > 0 ? workers : 1))"
    [[ $groups != *train* ]] || printf ' --cluster.worker-labels ray-subcluster=train'
    [[ $groups != *data* ]] || printf ' --cluster.data-labels ray-subcluster=data'
    printf '\n\n'
    echo "End a node as a power cut does: $(again) kill 2; start it again: $(again) replace 2"
    echo "Stop all with: $(again) stop"
}

# The process id of node $1, if it lives (process ids are used again).
node_pid() {
    local pid
    pid=$(cat "$work/$1/pid" 2>/dev/null) || return 1
    ps -ww -o args= -p "$pid" 2>/dev/null | grep -qF -- "$work/$1" && echo "$pid"
}

# A process and all below it.
tree_of() {
    ps -e -o pid=,ppid= | awk -v top="$1" '
        { parent[$1] = $2 }
        END { for (each in parent) for (up = each; up in parent; up = parent[up]) if (up == top) { print each; break } }'
}

# Reads what start_nodes has noted; $1 is the number of a node, or nothing.
read_nodes() {
    nodes_running || fail "no nodes started by $0 with DASHBOARD_PORT=$dashboard are running."
    # shellcheck source=/dev/null
    source "$nodes_file"
    [[ -z ${1:-} ]] || { [[ $1 =~ ^[1-9][0-9]?$ ]] && (($1 <= nodes)); } || fail "there is no node '$1'; give 1 to $nodes."
}

kill_node() {
    read_nodes "$1"
    local pid tree
    pid=$(node_pid "$1") || fail "node $1 does not run; start it again with: $(again) replace $1"
    # Silence first: a machine without power closes no connections either.
    [[ -z $subnet ]] || ip link set "lt$dashboard-$1" down
    mapfile -t tree < <(tree_of "$pid")
    kill -KILL "${tree[@]}" 2>/dev/null || true
    wait_for_end 10 "${tree[@]}"
    echo "node $1 is gone"
}

# Whether one of these processes lives; one that has ended and was not asked after does not.
alive() { (($#)) && ps -o stat= -p "$(IFS=,; echo "$*")" | grep -qv '^Z'; }

# Waits for up to $1 s until all of the processes behind it have ended.
wait_for_end() {
    local deadline=$((SECONDS + $1))
    shift
    while alive "$@" && ((SECONDS < deadline)); do
        sleep 0.1
    done
}

replace_node() {
    read_nodes "$1"
    ! node_pid "$1" >/dev/null || fail "node $1 runs; end it first with: $(again) kill $1"
    ray_environment
    start_node "$1"
    wait_for_node "$1"
    echo "node $1 runs again"
    (($1 > 1)) || echo "The other nodes belong to the head that is gone, and end within a minute or two: kill and replace them too."
}

stop_nodes() {
    trap - EXIT
    read_nodes
    local number pid left=() tree=()
    for number in $(seq "$nodes" -1 1); do
        pid=$(node_pid "$number") || continue
        left+=("$pid")
        mapfile -t -O "${#tree[@]}" tree < <(tree_of "$pid")
        # In namespaces, the process that passes the signal on to Ray is the child of the recorded one.
        [[ -z $subnet ]] || pid=$(ps -o pid= --ppid "$pid" | head -n 1)
        [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true
    done
    wait_for_end "$stop_timeout_s" "${left[@]}"
    ((${#tree[@]} == 0)) || kill -KILL "${tree[@]}" 2>/dev/null || true
    wait_for_end 10 "${tree[@]}"
    if [[ -n $subnet ]]; then
        for number in $(seq "$nodes"); do
            unplug "$number"
        done
        ip link delete "$bridge" 2>/dev/null || true
    fi
    rm -rf "$work"
    rm -f "$nodes_file"
}
