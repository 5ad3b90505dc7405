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
export PATH=/usr/bin:/bin HOME=/tmp TMPDIR=/tmp NO_COLOR=1 UPROBE_TEST_TARGETS=/uprobe/targets UPROBE_TEST_GUEST=1
cd /uprobe
echo "guest: Linux $(uname -r) $(uname -m), up after $(cut -d ' ' -f 1 /proc/uptime) s"
node --test-reporter=/uprobe/reporter.mjs run-tests.cjs
echo "guest: status $?"
# What the kernel has to say of leaked uprobes, of warnings and of worse.
dmesg | sed -E 's|^\[[^]]*\] ||; s|[0-9a-fx]*[0-9][0-9a-fx]*|N|g' | grep -E 'leaking uprobe|ref_ctr|WARNING|BUG|Oops' | sort | uniq -c | sed 's|^|guest: kernel: |'
poweroff -f
