package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

// needed maps each command which the cluster or its tests run to the Debian
// package it comes from. What is there already, from wherever, is used.
var needed = []struct{ file, pkg string }{
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"containerd-shim-runc-v2", "containerd"},
	{"runc", "runc"},
	{"etcd", "etcd-server"},
	{PluginDir + "/ptp", "containernetworking-plugins"},
	{PluginDir + "/bridge", "containernetworking-plugins"},
	{"iptables", "iptables"},
	{"ip6tables", "iptables"},
	{"nft", "nftables"},
	{"conntrack", "conntrack"},
	{"wg", "wireguard-tools"},
	{"tcpdump", "tcpdump"},
	{"ip", "iproute2"},
	{"nsenter", "util-linux"},
	{"mount", "mount"},
}

// PluginDir is where Debian's package of CNI plugins lies.
const PluginDir = "/usr/lib/cni"

// policyPath is asked by Debian's packages before they start a service.
const policyPath = "/usr/sbin/policy-rc.d"

const policyText = "#!/bin/sh\n# Written by the Hauberk test cluster while it installs packages: no service starts.\nexit 101\n"

// missingPackages are the packages of commands which are not there.
func missingPackages() []string {
	var missing []string
	seen := map[string]bool{}
	for _, n := range needed {
		if _, err := exec.LookPath(n.file); err != nil && !seen[n.pkg] {
			seen[n.pkg] = true
			missing = append(missing, n.pkg)
		}
	}
	return missing
}

// InstallPackages installs what is missing and lets no service of it start,
// neither now nor when the machine boots.
func InstallPackages(ctx context.Context, r *report.Reporter) error {
	if text, err := os.ReadFile(policyPath); err == nil && string(text) == policyText {
		// A run that was killed has left it.
		if err := os.Remove(policyPath); err != nil {
			return err
		}
	}
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this machine lacks what Debian calls %s, and has no apt-get to install it: install the equivalents by hand", strings.Join(missing, " "))
	}
	if !exists(policyPath) {
		if err := os.WriteFile(policyPath, []byte(policyText), 0o755); err != nil {
			return err
		}
		defer os.Remove(policyPath)
	}
	return r.During("install Debian packages: "+strings.Join(missing, " "), func() error {
		err := aptGet(ctx, append([]string{"install", "--no-install-recommends", "--yes"}, missing...)...)
		if err != nil { // most often package lists that are missing or old
			if err := aptGet(ctx, "update"); err != nil {
				return err
			}
			err = aptGet(ctx, append([]string{"install", "--no-install-recommends", "--yes"}, missing...)...)
		}
		if err != nil {
			return err
		}
		for _, service := range []string{"containerd", "etcd"} {
			for _, pkg := range missing {
				if pkg == service || pkg == service+"-server" {
					// Only a machine with systemd has such services to disable.
					_ = exec.CommandContext(ctx, "systemctl", "disable", "--now", service+".service").Run()
				}
			}
		}
		if still := missingPackages(); len(still) > 0 {
			return fmt.Errorf("installed, but their commands are not in PATH (%s): %s", os.Getenv("PATH"), strings.Join(still, " "))
		}
		return nil
	})
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-o", "DPkg::Lock::Timeout=300", "-q"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		text := strings.Split(strings.TrimSpace(out.String()), "\n")
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, strings.Join(text[max(0, len(text)-8):], "\n"))
	}
	return nil
}

// CheckRoot says whether the caller may make a cluster at all.
func CheckRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the cluster needs root, for namespaces, mounts and links: run it as root (sudo env PATH=$PATH make cluster)")
	}
	return nil
}

// ProbeCommand is the hidden sub-command which tries what the cluster asks of
// the kernel, in namespaces of its own.
const ProbeCommand = "internal-probe"

// Probe tries, in namespaces which vanish with the attempt, what the cluster
// asks of the kernel.
func Probe() error {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return errors.New("/dev/net/tun is missing, the mesh's tunnels need it: load the module (modprobe tun) or, in a container, pass the device in")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, ProbeCommand)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("this machine cannot run the cluster: %s (%w)", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// probes are commands and what it means if they fail.
var probes = []struct {
	command []string
	input   string
	mend    string
}{
	{[]string{"ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1"}, "", "the kernel lacks veth: load the module (modprobe veth) or use a kernel with CONFIG_VETH"},
	{[]string{"ip", "link", "add", "b0", "type", "bridge"}, "", "the kernel lacks bridges: load the module (modprobe bridge) or use a kernel with CONFIG_BRIDGE"},
	{[]string{"nft", "-f", "-"}, `table inet probe {
 chain c { type nat hook prerouting priority dstnat; fib daddr type local counter; tcp dport 1 redirect to :2; }
 chain m { type nat hook postrouting priority srcnat; masquerade; }
 chain f { type filter hook forward priority filter; ct state established accept; reject; }
}
`, "the kernel's nftables lacks nat, fib, ct or reject: use a kernel with CONFIG_NF_TABLES, NFT_NAT, NFT_MASQ, NFT_REDIR, NFT_FIB_INET, NFT_CT and NFT_REJECT"},
	{[]string{"iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-m", "owner", "--uid-owner", "1", "-j", "REDIRECT", "--to-ports", "1"}, "",
		"iptables cannot redirect by owner: use a kernel with CONFIG_NETFILTER_XT_TARGET_REDIRECT and CONFIG_NETFILTER_XT_MATCH_OWNER"},
}

// RunProbe is the body of ProbeCommand.
func RunProbe() error {
	for _, p := range probes {
		cmd := exec.Command(p.command[0], p.command[1:]...)
		cmd.Stdin = strings.NewReader(p.input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %s", p.mend, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// Snapshotter is what containerd can use on the file system of dir:
// overlayfs, or native where an overlay cannot lie (on another overlay).
func Snapshotter(dir string) string {
	probe, err := os.MkdirTemp(dir, "overlay-probe-")
	if err != nil {
		return "native"
	}
	defer os.RemoveAll(probe)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if os.Mkdir(filepath.Join(probe, sub), 0o755) != nil {
			return "native"
		}
	}
	merged := filepath.Join(probe, "merged")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", probe)
	if unix.Mount("overlay", merged, "overlay", 0, options) != nil {
		return "native"
	}
	if unix.Unmount(merged, 0) != nil {
		_ = unix.Unmount(merged, unix.MNT_DETACH) // busy for a moment; it goes on its own
	}
	return "overlayfs"
}

// HasIPv6 says whether the kernel speaks IPv6 in a new network namespace.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// BootID names the machine's current boot.
func BootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Lock is held by whoever changes the cluster.
type Lock struct {
	file *os.File
	path string
}

// AcquireLock waits for the machine-wide lock.
func AcquireLock(path string, r *report.Reporter) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			holder := make([]byte, 200)
			n, _ := f.Read(holder)
			r.Say("waiting for another run of the cluster program: %s", strings.TrimSpace(string(holder[:n])))
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
				f.Close()
				return nil, fmt.Errorf("lock %s: %w", path, err)
			}
		}
		// Whoever held it may have removed the file: then it is not the lock.
		mine, errMine := f.Stat()
		there, errThere := os.Stat(path)
		if errMine != nil || errThere != nil || !os.SameFile(mine, there) {
			f.Close()
			continue
		}
		if err := f.Truncate(0); err == nil {
			_, _ = f.WriteAt([]byte(fmt.Sprintf("process %d, %s\n", os.Getpid(), strings.Join(os.Args, " "))), 0)
		}
		return &Lock{file: f, path: path}, nil
	}
}

// Release gives the lock up and leaves no file behind.
func (l *Lock) Release() {
	_ = os.Remove(l.path) // a file without a holder does no harm
	_ = l.file.Close()
}
