#!/bin/bash
# Boots systemd with d7y's units, inside namespaces that the caller made (unshare), and leaves what it saw in
# SCRATCH/out. Nothing outside the namespaces changes: the root is an overlay whose upper directory is in memory.
# usage: systemd.sh SCRATCH PROGRAMS UNITS
set -eu
scratch=$1 programs=$2 units=$3
root=$scratch/root

mount --make-rprivate /
mkdir -p "$root" "$scratch/memory" "$scratch/out"
mount -t tmpfs memory "$scratch/memory"
mkdir "$scratch/memory/upper" "$scratch/memory/work"
mount -t overlay root -o "lowerdir=/,upperdir=$scratch/memory/upper,workdir=$scratch/memory/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
if [ -d /sys/fs/cgroup/systemd ]; then
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi
for directory in run tmp dev var/lib; do mount -t tmpfs tmpfs "$root/$directory"; done
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/fuse "$root/dev/"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/hugepages"
mount -t devpts devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

rm -rf "$root/etc/systemd/system" "$root/etc/d7y"
mkdir -p "$root/etc/systemd/system" "$root/etc/d7y" "$root/usr/local/bin" "$root/usr/lib/tmpfiles.d"
cp "$units"/d7y-*.service "$root/etc/systemd/system/"
cp "$units/d7y.tmpfiles.conf" "$root/usr/lib/tmpfiles.d/d7y.conf"
for name in peer snapshotter scheduler manager; do
    cp "$programs/d7y-$name" "$root/usr/local/bin/"
    echo '{}' > "$root/etc/d7y/$name.yaml"
done
echo 'standalone: true' > "$root/etc/d7y/peer.yaml"

cat > "$root/etc/systemd/system/look.service" <<'UNIT'
[Unit]
After=systemd-tmpfiles-setup.service
Wants=systemd-tmpfiles-setup.service
[Service]
Type=oneshot
ExecStart=/bin/bash /look.sh
StandardOutput=file:/mnt/seen
StandardError=file:/mnt/errors
UNIT
printf '[Unit]\nWants=look.service\nAllowIsolate=yes\n' > "$root/etc/systemd/system/look.target"
printf '[Service]\nType=oneshot\nExecStart=/bin/true\nPrivateDevices=yes\nProtectSystem=strict\n' \
    > "$root/etc/systemd/system/control.service"
cat > "$root/look.sh" <<'LOOK'
all="d7y-peer d7y-snapshotter d7y-scheduler d7y-manager"
fuse() { awk '$5 == "/run/d7y/fuse" { print $1 }' /proc/self/mountinfo; }
until_restarted() {
    for _ in $(seq 200); do
        [ "$(systemctl show -P NRestarts "$1")" -ge 1 ] && systemctl is-active -q "$1" && return
        sleep 0.1
    done
    echo "$1 was not restarted"
}
systemctl start control.service && echo "control ok"
systemctl start $all
systemctl is-active $all | sed 's/^/started /'
[ "$(stat -c %a /var/lib/private/d7y/manager/secrets.key)" = 600 ] && echo "the key is the manager's own"
before=$(fuse)
echo "mounted ${before:+yes}"
systemctl reload d7y-peer && echo "reloaded"
systemctl kill -s KILL d7y-peer d7y-snapshotter
until_restarted d7y-peer
until_restarted d7y-snapshotter
systemctl kill -s KILL d7y-manager
until_restarted d7y-manager
echo "the manager is $(systemctl is-active d7y-manager) again"
[ "$(fuse)" = "$before" ] && echo "the mount is the same"
[ "$(ls -A /run/d7y/fuse 2>&1 | grep -ci 'not connected')" = 0 ] && echo "the mount answers"
systemctl stop d7y-peer && [ "$(fuse)" = "$before" ] && echo "the mount outlives the peer"
systemctl start d7y-peer
for _ in $(seq 100); do [ "$(systemctl show -P NFileDescriptorStore d7y-peer)" = 1 ] && break; sleep 0.1; done
systemctl stop d7y-snapshotter
systemctl restart d7y-peer
systemctl start d7y-snapshotter
[ "$(fuse)" = "$before" ] && echo "the mount outlives the peer while no snapshotter runs"
echo 'faulty: 1' > /etc/d7y/snapshotter.yaml
systemctl restart d7y-snapshotter
echo "the snapshotter is $(systemctl is-active d7y-snapshotter)"
restarts=$(systemctl show -P NRestarts d7y-peer)
systemctl kill -s KILL d7y-peer
for _ in $(seq 100); do
    [ "$(systemctl show -P NRestarts d7y-peer)" -gt "$restarts" ] && systemctl is-active -q d7y-peer && break
    sleep 0.1
done
echo '{}' > /etc/d7y/snapshotter.yaml
systemctl start d7y-snapshotter
[ "$(fuse)" = "$before" ] && echo "the mount outlives a snapshotter that is refused and the peer"
rm -rf /var/lib/d7y/peer
# As the peer sees it, whose mount namespace is its own.
nsenter --mount --target "$(systemctl show -P MainPID d7y-peer)" mkdir -p /var/lib/d7y/peer/layers \
    && echo "a deleted cache can be made again"
journalctl --no-pager -u d7y-peer -u d7y-snapshotter -u d7y-scheduler -u d7y-manager >&2
systemctl --force --force poweroff
LOOK

mount --bind "$scratch/out" "$root/mnt"
cd "$root"
mkdir -p "$root/opt/old"
pivot_root . opt/old
umount -l /opt/old
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=look.target --show-status=no --log-target=null
