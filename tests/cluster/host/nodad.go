package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
)

// NoDADPlugin is the name under which this program is a CNI plugin: ptp, but
// without the two seconds in which each pod's IPv6 address would be checked
// for duplicates on a link that has two ends only. Nothing configures a
// network namespace before the first plugin, so it must be the plugin's doing.
const NoDADPlugin = render.PrimaryPlugin

// RunNoDADPlugin switches the check off in the namespace of the pod which is
// being added and becomes the ptp plugin.
func RunNoDADPlugin() error {
	if netns := os.Getenv("CNI_NETNS"); os.Getenv("CNI_COMMAND") == "ADD" && netns != "" {
		if err := switchOffDAD(netns); err != nil {
			return err
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("CNI_PATH")) {
		ptp := filepath.Join(dir, "ptp")
		if _, err := os.Stat(ptp); err == nil {
			return fmt.Errorf("exec %s: %w", ptp, syscall.Exec(ptp, []string{ptp}, os.Environ()))
		}
	}
	return errors.New("the ptp plugin is not in CNI_PATH")
}

func switchOffDAD(netns string) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, in the pod's
		// namespace, and the plugin is executed on another.
		runtime.LockOSThread()
		f, err := os.Open(netns)
		if err != nil {
			done <- err
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", netns, err)
			return
		}
		err = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0)
		if errors.Is(err, os.ErrNotExist) {
			err = nil // a kernel without IPv6
		}
		done <- err
	}()
	return <-done
}
