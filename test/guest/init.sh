#!/bin/busybox sh
# The first process of a guest: makes a small system around the tests, runs them, says how that ended, and switches off.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /usr/bin /usr/sbin /sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
ip link set lo up 2>/dev/null
export PATH=/bin:/usr/bin HOME=/tmp TMPDIR=/tmp UPROBE_TEST_TARGETS=/uprobe/targets
cd /uprobe
. ./environment
echo "guest: Linux $(uname -r) $(uname -m)"
node run-tests.cjs
echo "guest: status $?"
# What the kernel has to say of leaked uprobes, of warnings and of worse.
dmesg | grep -E 'uprobe|ref_ctr|WARNING|BUG|Oops' | sed 's/^/guest: kernel: /'
poweroff -f
