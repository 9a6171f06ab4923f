#!/usr/bin/env bash
# One node of `clusters/local.sh --nodes N`, as process 1 of its own namespaces; local.sh alone starts it.
#
#   local_node.sh FOLDER NAME HOSTS SHARED COMMAND ...
#
# What it mounts is seen by this node alone and ends with it.
set -euo pipefail
folder=$1 name=$2 hosts=$3 shared=$4
shift 4
[[ $$ == 1 ]] || { echo "error: this script is for local.sh, which starts it as process 1 of its own namespaces." >&2; exit 1; }

echo "$name" >/proc/sys/kernel/hostname
mount --bind "$hosts" /etc/hosts # gloo looks for this node's address by its name
mount -t tmpfs -o mode=1777 shm /dev/shm
for writable in "$folder" ${shared:+"$shared"}; do
    mount --bind "$writable" "$writable"
done

# Everything else is only read, as in an image: what a node leaves elsewhere would be seen by the others.
mapfile -t points < <(cut -d' ' -f5 /proc/self/mountinfo)
for point in "${points[@]}"; do
    point=$(printf %b "$point") # spaces are written \040
    case $point in "$folder" | "$shared" | /dev | /dev/* | /proc | /proc/* | /sys | /sys/*) continue ;; esac
    mount -o remount,bind,ro "$point" || echo "note: $point stays writable"
done

# Process 1 hears no signal that it has no handler for, and must wait for processes that lost their parent: bash does.
"$@" &
ray=$!
trap 'kill -TERM "$ray" 2>/dev/null' TERM
until wait "$ray" || [[ ! -d /proc/$ray ]]; do :; done
