#!/usr/bin/env bash
# Trains over MPI on four hosts that are network namespaces of this machine, with links of 1 Gb/s and without a shared
# disk, and compares the weights with those of one process. Then takes one host off the network during a run:
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
end_step = 20
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

# on_hosts ARGUMENTS...: the program on the four hosts, from the first one.
for n in $hosts; do echo "10.77.0.$n slots=1"; done >"$work/hostfile"
export OMPI_MCA_plm_rsh_agent="$work/agent" OMPI_MCA_plm_rsh_no_tree_spawn=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp
export OMPI_MCA_btl_tcp_if_include=10.77.0.0/24 OMPI_MCA_oob_tcp_if_include=10.77.0.0/24
on_hosts() {
    ip netns exec nextword1 unshare --uts sh -c 'hostname node1; exec "$@"' sh \
        timeout -k 5 120 "$program" "$@" --ranks 4 --hosts "$work/hostfile"
}

"$program" train "$work/tiny.toml" --quiet --set "out=\"$work/alone\""
for shards in false true; do
    run="$work/runs/shards-$shards"
    on_hosts train "$work/tiny.toml" --set "out=\"$run\"" --set parallel.shard_optimizer=$shards 2>&1 | tee "$work/log"
    grep -q "1 on node1, 1 on node2, 1 on node3, 1 on node4" "$work/log"
    for file in model optimizer; do
        cmp "$work/alone/checkpoints/step-00000020/$file.safetensors" "$run/checkpoints/step-00000020/$file.safetensors"
    done
done
echo "four hosts: the bits of one process, in $SECONDS s"

run="$work/runs/cut"
on_hosts train "$work/tiny.toml" --set "out=\"$run\"" --set train.steps=1000000 --set checkpoint.every=5 \
    --set checkpoint.keep_every=5 --set schedule.end_step=20 --set parallel.timeout=3 >"$work/cut.log" 2>&1 &
job=$!
until [ -e "$run/checkpoints/step-00000010/MANIFEST.json" ]; do sleep 0.1; done
ip link set nextword-v3 down
start=$SECONDS
code=0
wait "$job" || code=$?
took=$((SECONDS - start))
ip link set nextword-v3 up
cat "$work/cut.log"
[ $code -ne 0 ] && [ $code -ne 124 ] || { echo "failed: exit code $code after a host was cut off" >&2; exit 1; }
[ $took -le 15 ] || { echo "failed: the job ended $took s after a host was cut off" >&2; exit 1; }
find "$run/checkpoints" -maxdepth 1 -name 'step-*' ! -name 'step-00000005' -exec rm -r {} +
"$program" resume "$run" --quiet --set train.steps=20
for file in model optimizer; do
    cmp "$work/alone/checkpoints/step-00000020/$file.safetensors" "$run/checkpoints/step-00000020/$file.safetensors"
done
echo "a host without a network: ended in $took s with exit code $code, and resumed, in $SECONDS s"
