# Becomes systemd as PID 1: `sh boot.sh DIR`, in fresh pid, mount, uts, ipc, net and cgroup namespaces.
# The root is this machine's own, read through an overlay; what the lab writes is in memory and goes with it.
set -eu
dir=$1
mount --make-rprivate /
ip link set lo up
# An address that is not loopback's, for what the sandbox must not reach.
ip addr add 10.99.0.1/32 dev lo
mkdir -p "$dir/disk"
mount -t tmpfs -o mode=755 tmpfs "$dir/disk"
mkdir "$dir/disk/upper" "$dir/disk/work" "$dir/disk/root"
r=$dir/disk/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/disk/upper,workdir=$dir/disk/work" "$r"

# Of this machine's services only the journal starts: neither what is installed here, nor what generators would add.
for units in etc/systemd/system usr/lib/systemd/system lib/systemd/system; do
    rm -rf "$r/$units"/*.wants "$r/$units"/*.requires
done
rm -rf "$r"/usr/lib/systemd/system-generators "$r"/lib/systemd/system-generators "$r"/var/log/journal
mkdir -p "$r/etc/systemd/system" "$r/etc/systemd/journald.conf.d"
cat >"$r/etc/systemd/system/lab.target" <<'UNIT'
[Unit]
Requires=basic.target systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket
After=basic.target systemd-journald.service
Wants=dbus.socket
AllowIsolate=yes
UNIT
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' >"$r/etc/systemd/journald.conf.d/lab.conf"
: >"$r/etc/fstab"
echo lab >"$r/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$r/etc/machine-id"

mkdir -p "$r/proc" "$r/sys" "$r/dev" "$r/run" "$r/tmp"
mount -t proc -o nosuid,nodev,noexec proc "$r/proc"
for part in sys irq bus fs sysrq-trigger; do
    if [ -e "$r/proc/$part" ]; then
        mount --bind "$r/proc/$part" "$r/proc/$part"
        mount -o remount,bind,ro "$r/proc/$part"
    fi
done
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$r/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$r/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid tmpfs "$r/dev"
for node in null zero full random urandom tty; do
    : >"$r/dev/$node"
    mount --bind "/dev/$node" "$r/dev/$node"
done
mkdir "$r/dev/pts" "$r/dev/shm" "$r/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$r/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$r/dev/shm"
ln -s pts/ptmx "$r/dev/ptmx"
ln -s /proc/self/fd "$r/dev/fd"
ln -s fd/0 "$r/dev/stdin"
ln -s fd/1 "$r/dev/stdout"
ln -s fd/2 "$r/dev/stderr"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$r/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$r/tmp"
hostname lab
cd "$r"
mkdir -p oldroot
pivot_root . oldroot
cd /
umount -l /oldroot
rmdir /oldroot
# Or LoadCredential= gives an empty directory: outside of a container PID 1 does this itself.
mount --make-rshared /
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=lab.target --log-target=journal-or-kmsg --show-status=no </dev/null
