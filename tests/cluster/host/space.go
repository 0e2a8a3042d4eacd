package host

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// SpaceCommand is the hidden sub-command which lays out a node's mounts: the
// program runs it in new namespaces and pins those from outside.
const SpaceCommand = "internal-space"

// own are the folders which every node has for itself, under the names it
// has on any machine, and where in the node's folder each lies.
var own = map[string]string{
	"/etc/cni/net.d":      "cni-conf",
	"/opt/cni/bin":        "cni-bin",
	"/var/lib/cni":        "cni-state",
	"/var/lib/containerd": "containerd",
	"/var/lib/hauberk":    "hauberk",
	"/var/lib/kubelet":    "kubelet",
	"/var/log/containers": "log-containers",
	"/var/log/pods":       "log-pods",
}

// tunables are settings of the whole machine which a kubelet wants so. The
// node sees them as the kubelet wants them; the machine keeps its own.
var tunables = map[string]string{
	"/proc/sys/kernel/keys/root_maxbytes": "25000000",
	"/proc/sys/kernel/keys/root_maxkeys":  "1000000",
	"/proc/sys/kernel/panic":              "10",
	"/proc/sys/kernel/panic_on_oops":      "1",
	"/proc/sys/vm/overcommit_memory":      "1",
	"/proc/sys/vm/panic_on_oom":           "0",
}

// createdPath lists the folders made on the machine to mount on; they go when
// the cluster goes.
func createdPath() string { return filepath.Join(plan.Root, "created-folders") }

// MakeSpaces makes the namespaces of the plan and pins them.
func MakeSpaces(c plan.Cluster) error {
	if err := os.MkdirAll(plan.PinDir(), 0o700); err != nil {
		return err
	}
	// A mount of its own, shared with nobody: the kernel lets a mount
	// namespace be pinned on no other.
	if err := unix.Mount("hauberk-cluster", plan.PinDir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount %s: %w", plan.PinDir(), err)
	}
	if err := unix.Mount("", plan.PinDir(), "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", plan.PinDir(), err)
	}
	if err := makeMountPoints(); err != nil {
		return err
	}
	if err := makeSpace(plan.ControlPlane, false); err != nil {
		return err
	}
	for _, n := range c.Workers() {
		if err := makeSpace(n.Name, true); err != nil {
			return err
		}
	}
	return nil
}

func makeMountPoints() error {
	var created []string
	for dir := range own {
		for p := dir; !exists(p); p = filepath.Dir(p) {
			created = append(created, p)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(createdPath(), []byte(strings.Join(created, "\n")), 0o644)
}

// removeMountPoints removes the folders which makeMountPoints made and which
// nobody has put anything into.
func removeMountPoints() {
	text, err := os.ReadFile(createdPath())
	if err != nil {
		return
	}
	dirs := strings.Split(string(text), "\n")
	for range dirs { // a folder can go after those in it
		for _, dir := range dirs {
			if dir != "" {
				_ = os.Remove(dir) // not empty: somebody else uses it now
			}
		}
	}
}

// makeSpace starts a child in new namespaces, which lays out its mounts, and
// pins its namespaces before it ends.
func makeSpace(name string, node bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, SpaceCommand, name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	if node {
		cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNS
		cmd.Args = append(cmd.Args, "node")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	hold, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make namespaces of %s: %w (the kernel needs CONFIG_NET_NS and the caller CAP_SYS_ADMIN)", name, err)
	}
	_, readErr := bufio.NewReader(out).ReadString('\n')
	var pinErr error
	if readErr == nil {
		pinErr = pin(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), plan.NetPin(name))
		if node && pinErr == nil {
			pinErr = pin(fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid), plan.MountPin(name))
		}
	}
	hold.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("lay out %s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return errors.Join(readErr, pinErr)
}

func pin(ns, path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace at %s: %w", path, err)
	}
	return nil
}

// isNamespace says whether a namespace is pinned at path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// SpacesWhole says whether every namespace of the plan is pinned.
func SpacesWhole(c plan.Cluster) bool {
	for _, space := range c.Spaces() {
		if !isNamespace(plan.NetPin(space)) || (space != plan.ControlPlane && !isNamespace(plan.MountPin(space))) {
			return false
		}
	}
	return true
}

// RunSpace is the body of SpaceCommand. It says when it is done and stays
// until its input ends, so that its namespaces can be pinned.
func RunSpace(args []string) error {
	if len(args) == 2 {
		if err := layOut(args[0]); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && err.Error() != "EOF" {
		return err
	}
	return nil
}

// layOut gives this process's new mount namespace the mounts of a node.
func layOut(name string) error {
	// What the other spaces pin is no business of this one.
	if err := unix.Unmount(plan.PinDir(), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave %s: %w", plan.PinDir(), err)
	}
	for target, sub := range own {
		source := filepath.Join(plan.NodeDir(name), sub)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on %s: %w", source, target, err)
		}
	}
	if err := unix.Mount("hauberk-"+name, "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run of %s: %w", name, err)
	}
	for _, dir := range []string{"/run/lock", "/run/netns", "/run/tunables"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if resolved, err := filepath.EvalSymlinks("/var/run"); err != nil || resolved != "/run" {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /run on /var/run: %w", err)
		}
	}
	for target, value := range tunables {
		source := filepath.Join("/run/tunables", filepath.Base(target))
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show %s to %s: %w", target, name, err)
		}
	}
	// Within the node mounts spread, as on a machine of its own: a pod with
	// HostToContainer propagation sees network namespaces made later.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts within %s: %w", name, err)
	}
	return nil
}

// unmountAll takes down every mount of the cluster in this namespace.
func unmountAll() error {
	for range 64 { // mounts may lie on mounts
		points, err := mountPoints()
		if err != nil {
			return err
		}
		if len(points) == 0 {
			return nil
		}
		for i := len(points) - 1; i >= 0; i-- {
			if err := unix.Unmount(points[i], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("unmount %s: %w", points[i], err)
			}
		}
	}
	return fmt.Errorf("mounts below %s come again", plan.Root)
}

// mountPoints are the cluster's mounts in this namespace, in mount order.
func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountPoints(string(text)), nil
}

func parseMountPoints(text string) []string {
	var points []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == plan.Root || strings.HasPrefix(f[4], plan.Root+"/")) {
			points = append(points, f[4])
		}
	}
	return points
}
