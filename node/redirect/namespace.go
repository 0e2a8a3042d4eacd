package redirect

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Enter runs do on a thread that is in the network namespace at path. Programs
// that do starts are there as well; goroutines that it starts are not. The
// thread goes back afterwards; one that can't is ended instead of being handed
// to other goroutines.
func Enter(path string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		defer home.Close()
		target, err := netns.GetFromPath(path)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open network namespace %s: %w; is the host's /var/run/netns mounted with propagation HostToContainer?", path, err)
			return
		}
		defer target.Close()
		if err := netns.Set(target); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w; the node agent needs CAP_SYS_ADMIN", path, err)
			return
		}
		err = do()
		if back := netns.Set(home); back != nil {
			// The runtime ends a locked thread with its goroutine.
			done <- errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Exists reports whether a network namespace is mounted at path, or is there
// by a process. The runtime leaves an empty file behind for a moment when it
// unmounts one.
func Exists(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && int64(fs.Type) == unix.NSFS_MAGIC
}

// HostInterface is the name of the host's end of the veth pair whose other end
// is called name in the namespace at path.
func HostInterface(path, name string) (string, error) {
	var inside netlink.Link
	if err := Enter(path, func() error {
		var err error
		inside, err = netlink.LinkByName(name)
		return err
	}); err != nil {
		return "", fmt.Errorf("find interface %s in %s: %w", name, path, err)
	}
	if inside.Type() != "veth" {
		return "", fmt.Errorf("interface %s in %s is of type %s; hauberk needs a primary CNI plugin that connects pods by veth pairs, such as ptp or bridge", name, path, inside.Type())
	}
	host, err := netlink.LinkByIndex(inside.Attrs().ParentIndex)
	if err != nil {
		return "", fmt.Errorf("find the host's end of %s in %s: %w", name, path, err)
	}
	pod, err := netns.GetFromPath(path)
	if err != nil {
		return "", fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer pod.Close()
	// Indices repeat between namespaces; the kernel's id of the namespace in
	// which the other end is does not.
	id, err := netlink.GetNetNsIdByFd(int(pod))
	if err != nil {
		return "", fmt.Errorf("ask for the id of network namespace %s: %w", path, err)
	}
	if host.Type() != "veth" || host.Attrs().ParentIndex != inside.Attrs().Index || host.Attrs().NetNsID != id {
		return "", fmt.Errorf("the other end of %s in %s is not on this host's network; the node agent needs hostNetwork", name, path)
	}
	return host.Attrs().Name, nil
}
