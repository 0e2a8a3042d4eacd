package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
)

// Wipe removes every trace of a cluster from the machine, whichever checkout
// it belongs to and however far it had come. It is right to call it when
// there is none.
func Wipe() error {
	var errs []error
	errs = append(errs, killMembers())
	errs = append(errs, unmountAll())
	errs = append(errs, removeLink())
	for i := range 100 {
		err := removeCgroups()
		if err == nil {
			break
		}
		if i == 99 {
			errs = append(errs, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if points, err := mountPoints(); err != nil || len(points) > 0 {
		// Below a mount may lie what is not the cluster's to delete.
		return errors.Join(append(errs, err)...)
	}
	removeMountPoints()
	errs = append(errs, os.RemoveAll(plan.Root))
	return errors.Join(errs...)
}

// Leftovers lists what is still there of a cluster; none is the only right
// answer after Wipe.
func Leftovers() ([]string, error) {
	var found []string
	pids, err := members()
	if err != nil {
		return nil, err
	}
	for pid := range pids {
		if _, state := processStart(pid); state != "" && state != "Z" {
			found = append(found, "process "+describe(pid))
		}
	}
	points, err := mountPoints()
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		found = append(found, "mount "+p)
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Name == plan.HostLink {
			found = append(found, "link "+l.Name)
		}
	}
	dirs, err := cgroupDirs()
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		found = append(found, "cgroup "+d)
	}
	found = append(found, leftRules()...)
	found = append(found, leftNamespaceHolders()...)
	if exists(plan.Root) {
		found = append(found, "folder "+plan.Root)
	}
	return found, nil
}

// leftRules are firewall tables in the machine's own namespace of the names
// which the cluster's components use in theirs.
func leftRules() []string {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return nil // no nft: nothing of the cluster ever ran
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.Contains(line, "hauberk") {
			found = append(found, "nftables "+line)
		}
	}
	return found
}

// leftNamespaceHolders are processes whose root or mounts still lie in a
// node, by the mark each node's own /run has.
func leftNamespaceHolders() []string {
	infos, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	var found []string
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // gone meanwhile
		}
		if strings.Contains(string(text), "tmpfs hauberk-node") {
			found = append(found, fmt.Sprintf("a node's mounts, kept by %s", strings.TrimSuffix(strings.TrimPrefix(info, "/proc/"), "/mountinfo")))
		}
	}
	return found
}
