#!/usr/bin/env bash
# Trains over MPI on four hosts that are network namespaces of this machine, with links of 1 Gb/s and without a shared
# disk, and compares the weights with those of one process:
#
#     scripts/cluster/check_hosts.sh PROGRAM
#
# Needs root, iproute2 and Open MPI. PROGRAM is nextword, built with the feature `mpi`.
set -euo pipefail
program=$(realpath "${1:?usage: check_hosts.sh PROGRAM}")
export RAYON_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
hosts="1 2 3 4"
work=$(mktemp -d)
cleanup() {
    for n in $hosts; do ip netns del "nextword$n" 2>/dev/null || true; done
    ip link del nextword-br 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

ip link add nextword-br type bridge
ip link set nextword-br up
for n in $hosts; do
    ip netns add "nextword$n"
    ip link add "nextword-v$n" type veth peer name eth0 netns "nextword$n"
    ip link set "nextword-v$n" master nextword-br up
    ip netns exec "nextword$n" ip addr add "10.77.0.$n/24" dev eth0
    ip netns exec "nextword$n" ip link set eth0 up
    ip netns exec "nextword$n" ip link set lo up
    ip netns exec "nextword$n" tc qdisc add dev eth0 root tbf rate 1gbit burst 256k latency 50ms
done

cat > "$work/tiny.toml" <<'TOML'
name = "tiny"
[data]
builtin = "stories"
documents = 200
[model]
context_length = 64
n_layers = 4
d_model = 128
[train]
steps = 20
batch_size = 1
accumulation = 8
lanes = 8
[schedule]
warmup_steps = 4
[validation]
windows = 12
TOML

# Starts a command as mpirun does by ssh, with a folder for runs that other hosts do not see.
cat > "$work/agent" <<'AGENT'
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
number=${1##*.}
shift
exec ip netns exec "nextword$number" unshare --uts --mount sh -c '
    hostname "node$1"; mount -t tmpfs none "$2"; shift 2; exec sh -c "$*"' sh "$number" "$HOST_FOLDER" "$@"
AGENT
chmod +x "$work/agent"
mkdir "$work/runs"
export HOST_FOLDER="$work/runs"

"$program" train "$work/tiny.toml" --quiet --set "out=\"$work/alone\""
ip netns exec nextword1 unshare --uts sh -c 'hostname node1; exec "$@"' sh \
    timeout 120 mpirun -n 4 --host 10.77.0.1:1,10.77.0.2:1,10.77.0.3:1,10.77.0.4:1 \
    --mca plm_rsh_agent "$work/agent" --mca plm_rsh_no_tree_spawn 1 --mca pml ob1 --mca btl self,tcp \
    --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 --bind-to none \
    "$program" train "$work/tiny.toml" --set "out=\"$work/runs/four\"" 2>&1 | tee "$work/log"
grep -q "1 on node1, 1 on node2, 1 on node3, 1 on node4" "$work/log"
for file in model optimizer; do
    cmp "$work/alone/checkpoints/step-00000020/$file.safetensors" "$work/runs/four/checkpoints/step-00000020/$file.safetensors"
done
echo "four hosts: the bits of one process, in $SECONDS s"
