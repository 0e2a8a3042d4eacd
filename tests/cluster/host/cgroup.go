package host

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// hierarchy is one mounted cgroup file system.
type hierarchy struct {
	dir string
	v2  bool
}

// hierarchies reads the machine's cgroup mounts.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseHierarchies(bufio.NewScanner(f))
}

func parseHierarchies(lines *bufio.Scanner) ([]hierarchy, error) {
	var hs []hierarchy
	seen := map[string]bool{}
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 3 || (f[2] != "cgroup" && f[2] != "cgroup2") || seen[f[1]] || !strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			continue
		}
		seen[f[1]] = true
		hs = append(hs, hierarchy{dir: f[1], v2: f[2] == "cgroup2"})
	}
	return hs, lines.Err()
}

// CgroupV2 says whether the machine has the unified hierarchy alone.
func CgroupV2() (bool, error) {
	hs, err := hierarchies()
	if err != nil {
		return false, err
	}
	if len(hs) == 0 {
		return false, errors.New("no cgroup file system is mounted at /sys/fs/cgroup: mount one (mount -t cgroup2 none /sys/fs/cgroup)")
	}
	return len(hs) == 1 && hs[0].v2, nil
}

// systemCgroup is the leaf, under a space's cgroup, of the space's own
// components: a cgroup of version 2 has either processes or children.
const systemCgroup = "system"

// MakeCgroups makes a cgroup for each space in every hierarchy.
func MakeCgroups(spaces []string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		for _, space := range spaces {
			dir := h.dir
			for _, part := range []string{plan.CgroupName, space, systemCgroup} {
				if h.v2 {
					delegate(dir)
				}
				parent := dir
				dir = filepath.Join(dir, part)
				if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("make cgroup: %w (in a container: it must be privileged and have a writable /sys/fs/cgroup)", err)
				}
				if err := inheritCPUSet(parent, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// delegate hands a version 2 cgroup's controllers to its children. A
// controller which cannot be handed on is missed by the kubelet, which then
// says so; the hierarchy beside version 1 has none at all.
func delegate(dir string) {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for controller := range strings.FieldsSeq(string(available)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
}

// inheritCPUSet fills in what a version 1 cpuset leaves empty; no process may
// enter it before.
func inheritCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(have)) != "" {
			continue // not a cpuset, or not an empty one
		}
		value, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil || strings.TrimSpace(string(value)) == "" {
			continue // version 2: empty means the parent's
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0); err != nil {
			return fmt.Errorf("fill in cpuset: %w", err)
		}
	}
	return nil
}

// EnterCgroup puts the calling process into the space's cgroups.
func EnterCgroup(space string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		procs := filepath.Join(h.dir, plan.CgroupName, space, systemCgroup, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// cgroupDirs are all of the cluster's cgroups, children before parents.
func cgroupDirs() ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hs {
		// A cgroup may vanish while it is walked; that is what is wanted.
		_ = filepath.WalkDir(filepath.Join(h.dir, plan.CgroupName), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	sort.Slice(dirs, func(i, j int) bool { return len(dirs[i]) > len(dirs[j]) })
	return dirs, nil
}

// cgroupMembers are the processes in the cluster's cgroups.
func cgroupMembers() (map[int]bool, error) {
	dirs, err := cgroupDirs()
	if err != nil {
		return nil, err
	}
	pids := map[int]bool{}
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // gone meanwhile, or threaded
		}
		for line := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
				pids[pid] = true
			}
		}
	}
	return pids, nil
}

// removeCgroups removes the cluster's cgroups, which must be empty of
// processes.
func removeCgroups() error {
	dirs, err := cgroupDirs()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
