package sandbox

import (
	"os"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// limits are those by which programs behave differently. What limits the use of the machine (memory, processor
// time, file size, processes) is the caller's, like its control group: it can stop a command, but not change what it
// makes. GCC raises its stack to 64 MiB where it may.
var limits = []configs.Rlimit{
	{Type: unix.RLIMIT_CORE, Soft: 0, Hard: 0},
	{Type: unix.RLIMIT_STACK, Soft: 8 << 20, Hard: 64 << 20},
	{Type: unix.RLIMIT_NOFILE, Soft: 1024, Hard: 4096},
}

// masked is what in /proc tells of the machine, its devices and its other users, and what no compiler reads.
var masked = []string{
	"/proc/acpi", "/proc/asound", "/proc/bus", "/proc/cmdline", "/proc/config.gz", "/proc/diskstats", "/proc/driver",
	"/proc/fs", "/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/irq", "/proc/kallsyms", "/proc/kcore",
	"/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/latency_stats", "/proc/modules", "/proc/mtrr",
	"/proc/partitions", "/proc/sched_debug", "/proc/scsi", "/proc/swaps", "/proc/sysrq-trigger", "/proc/sysvipc",
	"/proc/timer_list", "/proc/timer_stats", "/proc/tty", "/proc/vmallocinfo",
}

func newConfig(s *Spec) *configs.Config {
	umask := uint32(0o022)
	var nodes []*devices.Device
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		// In a user namespace libcontainer mounts the host's node, so its path is all that matters.
		nodes = append(nodes, &devices.Device{Path: "/dev/" + name})
	}
	return &configs.Config{
		Rootfs:     s.Root,
		Readonlyfs: true,
		// Without this a mount made on the host below Root or Work would appear inside.
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		Namespaces: configs.Namespaces{
			{Type: configs.NEWUSER}, {Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWIPC},
			{Type: configs.NEWUTS}, {Type: configs.NEWNET}, {Type: configs.NEWCGROUP},
		},
		// One user and group, for root as for anyone else: then no helper (newuidmap) is needed, and user 0 inside
		// is the caller. "Rootless" makes libcontainer treat both alike, too.
		UIDMappings:     []configs.IDMap{{ContainerID: 0, HostID: int64(os.Geteuid()), Size: 1}},
		GIDMappings:     []configs.IDMap{{ContainerID: 0, HostID: int64(os.Getegid()), Size: 1}},
		RootlessEUID:    true,
		RootlessCgroups: true,
		Cgroups:         &cgroups.Cgroup{Rootless: true, Resources: &cgroups.Resources{}},

		Hostname:   "enginery",
		Domainname: "(none)", // as on a machine without one
		Umask:      &umask,
		Rlimits:    limits,
		Devices:    nodes,
		Mounts: []*configs.Mount{
			{Destination: "/proc", Device: "proc", Source: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
			{Destination: "/dev", Device: "tmpfs", Source: "tmpfs", Data: "mode=755,size=64k",
				Flags: unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_RDONLY},
			{Destination: "/tmp", Device: "tmpfs", Source: "tmpfs", Data: "mode=1777", Flags: unix.MS_NOSUID | unix.MS_NODEV},
			{Destination: WorkDir, Device: "bind", Source: s.Work,
				Flags: unix.MS_BIND | unix.MS_REC | unix.MS_NOSUID | unix.MS_NODEV},
		},
		MaskPaths:     masked,
		ReadonlyPaths: []string{"/proc/sys"},

		Capabilities:    &configs.Capabilities{},
		NoNewPrivileges: true,
		// A keyring of its own would take two system calls that the filter refuses. It refuses all others on keys,
		// too, so the caller's keyring is out of reach.
		NoNewKeyring:      true,
		ParentDeathSignal: int(unix.SIGKILL),
	}
}
