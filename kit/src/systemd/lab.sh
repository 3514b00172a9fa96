# Holds a systemd in namespaces until standard input ends: `sh lab.sh DIR CGROUP`. Says the id of the process above it.
# Standard input is a pipe from whoever started this, so that the lab ends with them, however they end.
set -eu
dir=$1 cgroup=$2
mkdir "$cgroup"
(
    # Everything in the lab is below this cgroup: the lab's PID 1 sees it as the root.
    sh -c 'echo "$PPID"' >"$cgroup/cgroup.procs"
    # And with this shell, should somebody kill that first.
    exec setsid setpriv --pdeathsig KILL \
        unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup --propagation private -- \
        sh "$dir/boot.sh" "$dir"
) </dev/null >"$dir/console.log" 2>&1 &
echo "$!"
cat >/dev/null || :
# The end of a namespace's PID 1 is the end of all in it; unshare waits for that. Before there is one, unshare itself goes.
kill -KILL $(cat "/proc/$!/task/$!/children") 2>/dev/null || kill -KILL "$!" 2>/dev/null || :
wait
# Emptied cgroups may be a moment in going.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
rm -rf "$dir"
